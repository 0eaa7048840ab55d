"""The bounds of tests.rounding: sums in any order keep within them, and results with a mistake do not."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cad_fast.ops import pack_bits, reference
from tests.ops import exact
from tests.rounding import assert_right

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(1, 33, 31), (4, 40, 64), (3, 67, 385), (2, 33, 1555)]  # rows of each of two variants, n, k
TILE = 32


class Case:
    """A masked linear layer, taken apart: x [2, rows, k], the variants' weights [2, n, k], bias [n]."""

    def __init__(self, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
        rows, n, k = shape
        self.dtype = dtype
        self.x, self.weight = torch.randn(2, rows, k).to(dtype), torch.randn(n, k).to(dtype)
        self.mask = torch.rand(2, n, k) < 0.4
        self.factors, self.bias = torch.tensor([0.0, 0.3]), torch.randn(n).to(dtype)
        self.words = pack_bits(self.mask)
        self.weights = reference.ablated(self.weight, self.words, self.factors)

    def right(self) -> exact.Exact:
        return exact.masked_linear(self.x, self.weight, self.words, self.bias, self.factors)

    def terms(self, weights: Tensor | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """All products, the bias behind them: [k + 1, 2, rows, n]."""
        weights = self.weights if weights is None else weights
        products = self.x.to(dtype).permute(2, 0, 1)[..., None] * weights.to(dtype).permute(2, 0, 1)[:, :, None]
        return torch.cat([products, self.bias.to(dtype).expand(1, *products.shape[1:])])


def one_by_one(terms: Tensor) -> Tensor:
    total = torch.zeros_like(terms[0])
    for term in terms:
        total = total + term
    return total


def in_pairs(terms: Tensor) -> Tensor:
    while len(terms) > 1:
        if len(terms) % 2:
            terms = torch.cat([terms, torch.zeros_like(terms[:1])])
        terms = terms[::2] + terms[1::2]
    return terms[0]


def in_lanes(terms: Tensor, lanes: int = 16) -> Tensor:
    return in_pairs(torch.stack([one_by_one(terms[lane::lanes]) for lane in range(min(lanes, len(terms)))]))


ORDERS: dict[str, Callable[[Tensor], Tensor]] = {
    "one by one": one_by_one,
    "from behind": lambda terms: one_by_one(terms.flip(0)),
    "in pairs": in_pairs,
    "in lanes": in_lanes,
    "in blocks": lambda terms: one_by_one(torch.stack([one_by_one(block) for block in terms.split(48)])),
    "shuffled": lambda terms: one_by_one(terms[torch.randperm(len(terms))]),
    "small ones first": lambda terms: one_by_one(terms.gather(0, terms.abs().argsort(0))),
    "large ones first": lambda terms: one_by_one(terms.gather(0, terms.abs().argsort(0, descending=True))),
    "all of a sign first": lambda terms: one_by_one(terms.sort(0).values),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_order_is_right(shape: tuple[int, int, int], order: str, dtype: torch.dtype) -> None:
    case = Case(shape, dtype)
    assert_right(ORDERS[order](case.terms()).to(dtype), case.right())


def changed(tensor: Tensor, at: tuple, value: Tensor | float) -> Tensor:
    tensor = tensor.clone()
    tensor[at] = value
    return tensor


def dropped(number: int) -> Callable[[Case], Tensor]:
    return lambda case: one_by_one(changed(case.terms(), (number,), 0.0))


def dropped_for_one_row(case: Case) -> Tensor:
    return one_by_one(changed(case.terms(), (len(case.mask[0, 0]) - 1, 1, -1), 0.0))


def columns_swapped(case: Case) -> Tensor:
    weights = case.weights.clone()
    weights[..., [4, 5]] = weights[..., [5, 4]]
    return one_by_one(case.terms(weights))


def with_mask(change: Callable[[Tensor], Tensor]) -> Callable[[Case], Tensor]:
    def mutant(case: Case) -> Tensor:
        words = pack_bits(change(case.mask.clone()))
        assert not torch.equal(words, case.words)
        return one_by_one(case.terms(reference.ablated(case.weight, words, case.factors)))

    return mutant


def one_bit_missing(mask: Tensor) -> Tensor:
    mask.view(-1)[mask.flatten().nonzero()[-1]] = False
    return mask


def neighbour_at_the_edge_of_a_word(mask: Tensor) -> Tensor:
    edge = min(TILE, mask.shape[-1] - 1)
    mask[..., edge] = mask[..., edge - 1]
    return mask


def mask_of_the_next_output(mask: Tensor) -> Tensor:
    mask[:, 7] = mask[:, 8]
    return mask


def mask_of_the_other_variant_for_a_row(case: Case) -> Tensor:
    result = one_by_one(case.terms())
    other = one_by_one(case.terms(case.weights.flip(0)))
    return changed(result, (0, -1), other[0, -1])


def with_factor(factor: float) -> Callable[[Case], Tensor]:
    return lambda case: one_by_one(
        case.terms(reference.ablated(case.weight, case.words, changed(case.factors, (1,), factor)))
    )


def last_output_of_a_tile_from_the_next(case: Case) -> Tensor:
    result = one_by_one(case.terms())
    edge = min(TILE, result.shape[-1] - 1)
    return changed(result, (..., edge - 1), result[..., edge])


def last_step_of_a_tile_twice(case: Case) -> Tensor:
    terms = case.terms()
    edge = min(TILE, len(terms) - 1) - 1
    return one_by_one(torch.cat([terms, terms[edge : edge + 1]]))


def bias_of_the_next_output(case: Case) -> Tensor:
    terms = case.terms()
    return one_by_one(changed(terms, (-1,), terms[-1].roll(1, -1)))


def accumulated_in(dtype: torch.dtype) -> Callable[[Case], Tensor]:
    return lambda case: one_by_one(case.terms().to(dtype))


def operands_rounded_to(dtype: torch.dtype) -> Callable[[Case], Tensor]:
    def mutant(case: Case) -> Tensor:
        case.x = case.x.to(dtype)
        return one_by_one(case.terms(case.weights.to(dtype)))

    return mutant


def operands_in_tf32(case: Case) -> Tensor:
    def cut(tensor: Tensor) -> Tensor:
        return (tensor.view(torch.int32) & ~0x1FFF).view(torch.float32)

    case.x = cut(case.x)
    return one_by_one(case.terms(cut(case.weights)))


def rounded_before_the_bias(case: Case) -> Tensor:
    terms = case.terms()
    return one_by_one(terms[:-1]).to(case.dtype) + terms[-1].to(case.dtype)


HALF, ALL = DTYPES[1:], DTYPES
MUTANTS: dict[str, tuple[Callable[[Case], Tensor], list[torch.dtype]]] = {
    "the first product dropped": (dropped(0), ALL),
    "the last product dropped": (dropped(-2), ALL),
    "the bias dropped": (dropped(-1), ALL),
    "the last product dropped for one row": (dropped_for_one_row, ALL),
    "two columns swapped": (columns_swapped, ALL),
    "one bit of a mask missing": (with_mask(one_bit_missing), ALL),
    "the bit of the neighbour at the edge of a word": (with_mask(neighbour_at_the_edge_of_a_word), ALL),
    "the mask of the next output": (with_mask(mask_of_the_next_output), ALL),
    "one row by the other variant's mask": (mask_of_the_other_variant_for_a_row, ALL),
    "the factor applied twice": (with_factor(0.09), ALL),
    "the factor left out": (with_factor(1.0), ALL),
    "the factor of the other variant": (with_factor(0.0), ALL),
    "the last output of a tile from the next tile": (last_output_of_a_tile_from_the_next, ALL),
    "the last step of a tile twice": (last_step_of_a_tile_twice, ALL),
    "the bias of the next output": (bias_of_the_next_output, ALL),
    "sums in bfloat16": (accumulated_in(torch.bfloat16), ALL),
    "sums in float16": (accumulated_in(torch.float16), [torch.float32, torch.float16]),
    "operands rounded to bfloat16": (operands_rounded_to(torch.bfloat16), [torch.float32, torch.float16]),
    "operands rounded to float16": (operands_rounded_to(torch.float16), [torch.float32]),
    "operands cut to TF32": (operands_in_tf32, [torch.float32]),
    "rounded before the bias": (rounded_before_the_bias, HALF),
}


@pytest.mark.parametrize(
    ("mutant", "dtype"),
    [
        pytest.param(mutant, dtype, id=f"{name}-{dtype}")
        for name, (mutant, dtypes) in MUTANTS.items()
        for dtype in dtypes
    ],
)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_mistake_is_seen(shape: tuple[int, int, int], mutant: Callable[[Case], Tensor], dtype: torch.dtype) -> None:
    case = Case(shape, dtype)
    right = case.right()
    with pytest.raises(AssertionError, match="times what rounding explains"):
        assert_right(mutant(case).to(dtype), right)


def test_what_is_not_finite_or_has_another_shape_is_wrong() -> None:
    case = Case(SHAPES[1], torch.float32)
    y, right = in_pairs(case.terms()), case.right()
    for bad in (float("nan"), float("inf")):
        with pytest.raises(AssertionError, match="not finite"):
            assert_right(changed(y, (1, 2, 3), bad), right)
    with pytest.raises(AssertionError, match="the shape is"):
        assert_right(y[:1], right)


def test_the_message_names_the_worst_element() -> None:
    case = Case(SHAPES[1], torch.float32)
    y = in_pairs(case.terms())
    with pytest.raises(AssertionError, match=r"element \[1, 2, 3\] is .* as is that of 1 of 320 elements"):
        assert_right(changed(y, (1, 2, 3), y[1, 2, 3] * (1 + 1e-3) + 1e-3), case.right())
