"""masked_linear, wherever it runs, against the reference in float64."""

import pytest
import torch
from torch import Tensor

from cad_fast.ops import masked_linear, pack_bits, reference
from tests.ops import exact
from tests.ops.gradients import assert_gradients_right
from tests.ops.places import Place, over, sizes

# (variants, rows, n, k). One row per variant, few, and more than are masked on the way; panels of 32 and blocks of 384
# steps with and without a rest; odd k.
NATIVE = [
    (1, 1, 1, 1),
    (3, 1, 33, 31),
    (11, 1, 65, 97),
    (2, 2, 31, 33),
    (3, 3, 67, 385),
    (2, 5, 127, 64),
    (2, 14, 32, 769),
    (3, 17, 129, 101),
    (2, 65, 161, 131),
    (1, 150, 40, 1555),
]

# One row, few, several blocks; one tile of the weight and several; odd sizes and whole tiles.
INTERPRETED = [
    (1, 1, 1, 1),
    (3, 1, 65, 31),
    (2, 17, 129, 101),
    (2, 64, 64, 64),
    (2, 131, 40, 70),
    (1, 3, 700, 33),
]

# Every kind of tile of the CUDA kernels, with rests and without, rows of 16 bytes and odd ones.
SHIM = [
    (1, 1, 1, 1),
    (3, 1, 33, 31),
    (11, 1, 65, 97),
    (17, 1, 128, 256),
    (9, 8, 72, 136),
    (3, 3, 67, 385),
    (2, 14, 32, 769),
    (5, 16, 64, 64),
    (3, 17, 129, 101),
    (3, 40, 136, 96),
    (2, 65, 161, 131),
    (1, 150, 40, 1055),
    (2, 128, 128, 64),
]
GPU = [*SHIM, (64, 1, 1280, 320), (33, 7, 2560, 641), (8, 16, 1280, 1280), (4, 77, 320, 768), (3, 1024, 640, 2560)]

transposing = pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])


def random_case(
    variants: int, rows: int, n: int, k: int, dtype: torch.dtype, transposed: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """X, weight, words and bias; the bits behind the last element, which mean nothing, are set."""
    x = torch.randn(variants, rows, n if transposed else k).to(dtype)
    words = pack_bits(torch.rand(variants, n, k) < 0.4)
    words[..., -1:] |= -1 << k % 32 if k % 32 else 0
    return x, torch.randn(n, k).to(dtype), words, None if transposed else torch.randn(n).to(dtype)


def some_factors(variants: int) -> Tensor:
    """One for each variant, of which the last is 0 in float16."""
    return torch.tensor([0.0, 1.0, -1.5, 0.3, 2.0, 1e-30])[torch.arange(variants) % 6]


@over(every_way=True, also=("vendor",), shape=sizes(INTERPRETED, NATIVE, shim=SHIM, gpu=GPU))
@transposing
def test_against_reference(place: Place, shape: tuple[int, ...], dtype: torch.dtype, transposed: bool) -> None:
    x, weight, words, bias = random_case(*shape, dtype, transposed)
    place.check(masked_linear, x, weight, words, bias, None, transposed)
    if place.kind != "interpreted":  # which takes its time
        place.check(masked_linear, x, weight, words, None, some_factors(len(x)), transposed)


@over(every_way=True, also=("vendor",), rows=sizes([4], [1, 4, 70]))
@transposing
def test_factors(place: Place, rows: int, dtype: torch.dtype, transposed: bool) -> None:
    x, weight, words, bias = random_case(6, rows, 67, 133, dtype, transposed)
    place.check(masked_linear, x, weight, words, bias, some_factors(6), transposed)


@over(rows=sizes([40], [1, 40]))
def test_factor_one_changes_nothing(place: Place, rows: int) -> None:
    x, weight, words, bias = random_case(2, rows, 70, 100, torch.float32, False)
    whole = exact.masked_linear(x, weight, torch.zeros_like(words), bias)
    place.assert_right(place(masked_linear, x, weight, words, bias, torch.ones(2)), whole)


@transposing
def test_whole_numbers_are_exact(place: Place, dtype: torch.dtype, transposed: bool) -> None:
    """Whatever the order of a sum: it is the same everywhere to the last bit."""
    all_rows, size = ((33,), (40, 70)) if place.kind == "interpreted" else ((1, 7, 16, 33, 80), (70, 150))
    for rows in all_rows:
        x, weight, words, _ = random_case(3, rows, *size, dtype, transposed)
        x, weight = (t.round().clamp(-1, 1) for t in (x, weight))
        case = x, weight, words, None, torch.tensor([0.0, 0.5, -2.0]), transposed
        assert torch.equal(place(masked_linear, *case), exact.masked_linear(*case).value.to(dtype))


@over(also=("vendor",), rows=sizes([3], [1, 3, 20, 70], shim=[1, 8, 16, 64, 70], gpu=[1, 8, 16, 64, 200]))
@transposing
@pytest.mark.parametrize("factors", [None, torch.tensor([0.0, 1e-9])], ids=["removed", "zero"])
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_what_is_removed_does_not_leak(
    place: Place, rows: int, dtype: torch.dtype, transposed: bool, factors: Tensor | None, bad: float
) -> None:
    if factors is not None and dtype != torch.float16:  # where the second rounds to zero too
        factors = torch.zeros(2)
    x, weight, _, _ = random_case(2, rows, 50, 80, dtype, transposed)
    mask = torch.rand(2, 50, 80) < 0.5
    mask[:, ::7, ::3] = True
    weight[::7, ::3] = bad
    place.check(masked_linear, x, weight, pack_bits(mask), None, factors, transposed)


@over(rows=sizes([2], [1, 5, 70], shim=[1, 8, 16, 40, 70]))
@transposing
def test_infinite_factors_reach_ablated_weights_alone(
    place: Place, rows: int, dtype: torch.dtype, transposed: bool
) -> None:
    """Bits behind the last element are ignored."""
    x, weight, _, _ = random_case(2, rows, 35, 77, dtype, transposed)
    weight[:, -1] = 1
    words, factors = torch.zeros(2, 35, 3, dtype=torch.int32), torch.full((2,), float("inf"))
    expected = place.check(masked_linear, x, weight, words, None, factors, transposed)
    words[..., -1] |= -(1 << 13)
    assert torch.equal(place(masked_linear, x, weight, words, None, factors, transposed), expected)


@over(rows=sizes([6], [1, 6]))
@transposing
def test_strides(place: Place, rows: int, dtype: torch.dtype, transposed: bool) -> None:
    x, weight, words, bias = random_case(3, rows, 40, 66, dtype, transposed)
    expected = place(masked_linear, x, weight, words, bias, transposed=transposed)
    strided = [
        x.transpose(0, 2).contiguous().transpose(0, 2),
        weight.t().contiguous().t(),
        words.repeat_interleave(2, 1)[:, ::2],
        None if transposed else bias.repeat_interleave(2)[::2],
    ]
    assert not any(t.is_contiguous() for t in strided if t is not None)
    assert torch.equal(place(masked_linear, *strided, transposed=transposed), expected)


@over(also=("reference", "vendor"))
@pytest.mark.parametrize(
    "shape", [(0, 3, 5, 7), (2, 0, 5, 7), (2, 3, 0, 7), (2, 3, 5, 0), (2, 1, 5, 0), (2, 70, 5, 0)], ids=str
)
@transposing
def test_empty(place: Place, shape: tuple[int, ...], dtype: torch.dtype, transposed: bool) -> None:
    variants, rows, n, k = shape
    x, weight, words, _ = random_case(*shape, dtype, transposed)
    y = place(masked_linear, x, weight, words, None, None, transposed)
    assert torch.equal(y, torch.zeros(variants, rows, k if transposed else n, dtype=dtype))


@over(
    rows=sizes([20], [1, 5, 90], shim=[1, 5, 12, 90]),
    size=sizes([(70, 45)], [(300, 450)], halves=[], shim=[(100, 150)]),
)
@transposing
def test_rows_do_not_depend_on_their_company(
    place: Place, rows: int, size: tuple[int, int], dtype: torch.dtype, transposed: bool
) -> None:
    x, weight, words, _ = random_case(7, rows, *size, dtype, transposed)
    whole = place(masked_linear, x, weight, words, transposed=transposed)
    some = place(masked_linear, x[4:7], weight, words[4:7], transposed=transposed)
    assert torch.equal(some, whole[4:7])


@over(also=("reference",))
@transposing
@pytest.mark.parametrize("factors", [None, torch.tensor([0.0, -0.5, 2.0])], ids=["removed", "factors"])
def test_gradients(place: Place, transposed: bool, factors: Tensor | None) -> None:
    x, weight, words, bias = random_case(3, 4, 21, 34, torch.float32, transposed)
    assert_gradients_right(
        lambda x, weight, bias=None: place(masked_linear, x, weight, words, bias, factors, transposed),
        lambda x, weight, bias=None: reference.masked_linear(x, weight, words, bias, factors, transposed),
        [x, weight] if transposed else [x, weight, bias],
    )
