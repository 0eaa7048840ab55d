"""masked_linear_scores, wherever it runs, against sums in float64."""

import pytest
import torch
from torch import Tensor

from cad_fast.ops import masked_linear_scores, pack_bits, unpack_bits
from tests.ops import exact
from tests.ops.places import Place, over, sizes

SHAPES = [  # variants, rows, n, k
    (1, 1, 1, 1),
    (2, 3, 3, 31),
    (3, 1, 5, 33),
    (2, 65, 31, 65),
    (5, 7, 33, 97),
    (1, 131, 65, 32),
    (3, 100, 7, 64),  # rows of a variant fall into two passes over the rows
    (2, 16, 131, 301),  # several blocks of the output each way
    (300, 1, 6, 70),
]
INTERPRETED = [(1, 1, 1, 1), (2, 3, 3, 31), (5, 7, 33, 97), (2, 70, 31, 65), (2, 16, 131, 101), (40, 1, 6, 70)]


def inputs(variants: int, rows: int, n: int, k: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Grad, x, weight and words, whose bits behind the last element are any."""
    grad, x, weight = torch.randn(variants, rows, n), torch.randn(variants, rows, k), torch.randn(n, k)
    words = torch.randint(-(2**31), 2**31, (variants, n, (k + 31) // 32)).to(torch.int32)
    return grad.to(dtype), x.to(dtype), weight.to(dtype), words


def added(place: Place, *arguments: Tensor, before: Tensor | None = None) -> Tensor:
    """What is in kept and ablated afterwards, [2, n, k]."""
    sums = place.to(torch.zeros(2, *arguments[2].shape) if before is None else before.clone())
    place(masked_linear_scores, *arguments, *sums)
    return sums.cpu()


def check(place: Place, *arguments: Tensor, before: Tensor | None = None) -> Tensor:
    """The same, which must be right."""
    sums = added(place, *arguments, before=before)
    for actual, right in zip(sums, exact.masked_linear_scores(*arguments, before), strict=True):
        place.assert_right(actual, right)
    return sums


@over(every_way=True, also=("reference",), shape=sizes(INTERPRETED, SHAPES))
def test_against_reference(place: Place, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """And it adds to what is there."""
    check(place, *inputs(*shape, dtype), before=torch.randn(2, *shape[2:]))


@over(also=("reference",))
def test_one_variant_that_ablates_nothing_gives_weight_times_gradient(place: Place) -> None:
    grad, x, weight, words = inputs(1, 20, 12, 40, torch.float32)
    kept, ablated = added(place, grad, x, weight, torch.zeros_like(words))
    leaf = weight.double().requires_grad_()
    (torch.nn.functional.linear(x[0].double(), leaf) * grad[0]).sum().backward()
    right, _ = exact.masked_linear_scores(grad, x, weight, torch.zeros_like(words))
    torch.testing.assert_close(right.value, weight * leaf.grad)
    place.assert_right(kept, right)
    assert not ablated.any()


@over(rows=sizes([5], [1, 5, 64]))
def test_what_is_not_finite_stays_on_its_side(place: Place, rows: int, dtype: torch.dtype) -> None:
    """Columns with NaN inputs, all ablated by variant 0 and kept by variant 1, where they are finite."""
    grad, x, weight, _ = inputs(2, rows, 6, 70, dtype)
    ablates = torch.rand(2, 6, 70) < 0.5
    ablates[0, :, 3::9], ablates[1, :, 3::9] = True, False
    x[0, 0, 3::9] = float("nan")
    kept, ablated = added(place, grad, x, weight, pack_bits(ablates))
    x[0, 0, 3::9] = 0
    clean = added(place, grad, x, weight, pack_bits(ablates))
    assert torch.equal(kept, clean[0])
    assert ablated[:, 3::9].isnan().all()
    others = torch.ones(70, dtype=torch.bool)
    others[3::9] = False
    assert torch.equal(ablated[:, others], clean[1][:, others])


def test_zero_weights_get_zero(place: Place, dtype: torch.dtype) -> None:
    grad, x, weight, words = inputs(2, 3, 8, 40, dtype)
    weight[::2] = 0
    for sums in added(place, grad, x, weight, words):
        assert not sums[::2].any() and sums[1::2].any()


def test_bits_behind_the_last_column_are_ignored(place: Place, dtype: torch.dtype) -> None:
    grad, x, weight, words = inputs(2, 3, 8, 37, dtype)
    clean = pack_bits(unpack_bits(words, 37))
    assert not torch.equal(clean, words)
    assert torch.equal(added(place, grad, x, weight, words), added(place, grad, x, weight, clean))


def test_strides(place: Place, dtype: torch.dtype) -> None:
    grad, x, weight, words = arguments = inputs(4, 6, 10, 70, dtype)
    plain = added(place, *arguments)
    strided = (
        grad.transpose(0, 1).contiguous().transpose(0, 1),
        x.repeat_interleave(2, 2)[..., ::2],
        weight.t().contiguous().t(),
        words.repeat(1, 1, 2)[..., :3],
    )
    turned = tuple(t.movedim(0, -1).contiguous().movedim(-1, 0) for t in arguments)
    for given in (strided, turned):
        assert not any(t.is_contiguous() for t in given)
        kept, wide = place.to(torch.zeros(70, 10)).t(), place.to(torch.full((10, 140), 7.0))
        place(masked_linear_scores, *given, kept, wide[:, 1::2].zero_())
        assert torch.equal(kept.cpu(), plain[0]) and torch.equal(wide[:, 1::2].cpu(), plain[1])
        assert (wide[:, ::2] == 7).all()


@over(also=("reference",))
@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0)], ids=str)
def test_empty(place: Place, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    assert not added(place, *inputs(*shape, dtype)).any()
