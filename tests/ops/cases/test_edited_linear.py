"""edited_linear, wherever it runs, against the reference in float64."""

import pytest
import torch
from torch import Tensor

from cad_fast.ops import edited_linear, reference
from tests.ops import exact
from tests.ops.cases.test_masked_linear import transposing
from tests.ops.gradients import assert_gradients_right
from tests.ops.places import Place, over, sizes

# (rows of each group, n, k): groups with no rows and no entries, of several blocks, several tiles of the weight.
NATIVE = [
    ([1], 1, 1),
    ([1, 2, 3, 1], 33, 31),
    ([0, 5, 0, 0, 1, 0], 65, 97),
    ([14, 15, 29, 2], 31, 385),
    ([70, 3], 161, 131),
    ([2, 90], 40, 1555),
    ([1] * 20, 130, 70),
]
INTERPRETED = [
    ([1], 1, 1),
    ([1, 2, 3, 1], 33, 31),
    ([0, 5, 0, 0, 1, 0], 65, 97),
    ([70, 3], 161, 131),
    ([1] * 20, 30, 70),
]
SHIM = [
    ([1], 1, 1),
    ([1, 2, 3, 1], 33, 31),
    ([0, 5, 0, 0, 1, 0], 65, 97),
    ([14, 15, 29, 2], 31, 385),
    ([70, 3, 129], 161, 131),
    ([2, 90], 40, 1055),
    ([1] * 20, 130, 70),
    ([16, 16], 128, 256),
    ([128, 64], 256, 128),
]
GPU = [*SHIM, ([1] * 64, 1280, 320), ([4096, 77, 0, 16], 320, 1280), ([1024] * 3, 640, 2561)]


def random_edits(groups: int, n: int, k: int, share: float) -> tuple[Tensor, Tensor, Tensor]:
    """Offsets, indices and factors; every third group has no entries."""
    chosen = [(torch.rand(n * k) < (share if g % 3 != 1 else 0)).nonzero().flatten() for g in range(groups)]
    offsets = torch.tensor([0, *map(len, chosen)]).cumsum(0)
    indices = torch.cat(chosen)
    return offsets, indices, torch.tensor([0.0, -1.0, 0.5, 3.0])[torch.randint(4, indices.shape)]


def random_case(
    sizes: list[int], n: int, k: int, dtype: torch.dtype, transposed: bool, share: float = 0.1
) -> tuple[Tensor, ...]:
    """X, weight, rows, offsets, indices and factors."""
    rows = torch.tensor([0, *sizes]).cumsum(0)
    x = torch.randn(int(rows[-1]), n if transposed else k).to(dtype)
    return x, torch.randn(n, k).to(dtype), rows, *random_edits(len(sizes), n, k, share)


def edit_of(group: int, offsets: Tensor, indices: Tensor, factors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The edit of one group alone."""
    own = slice(int(offsets[group]), int(offsets[group + 1]))
    return torch.tensor([0, own.stop - own.start]), indices[own], factors[own]


@over(every_way=True, also=("vendor",), shape=sizes(INTERPRETED, NATIVE, shim=SHIM, gpu=GPU))
@transposing
def test_against_reference(place: Place, shape: tuple, dtype: torch.dtype, transposed: bool) -> None:
    case = random_case(*shape, dtype, transposed)
    bias = None if transposed else torch.randn(shape[1]).to(dtype)
    place.check(edited_linear, *case, bias, transposed)
    if not transposed and place.kind != "interpreted":  # which takes its time
        place.check(edited_linear, *case)


@over(also=("vendor",), size=sizes([(25, 77)], [(45, 470), (420, 900)], shim=[(45, 270)]))
@transposing
def test_whole_weights_may_be_edited(place: Place, size: tuple[int, int], dtype: torch.dtype, transposed: bool) -> None:
    place.check(edited_linear, *random_case([3, 4, 20], *size, dtype, transposed, share=1.1), transposed=transposed)


@transposing
def test_whole_numbers_are_exact(place: Place, dtype: torch.dtype, transposed: bool) -> None:
    """Whatever the order of a sum: it is the same everywhere to the last bit."""
    all_rows, size = ((33,), (40, 70)) if place.kind == "interpreted" else ((1, 7, 16, 33, 80), (70, 150))
    for rows in all_rows:
        x, weight, *edit = random_case([rows, 2, rows], *size, dtype, transposed)
        case = x.round().clamp(-1, 1), weight.round().clamp(-1, 1), *edit, None, transposed
        assert torch.equal(place(edited_linear, *case), exact.edited_linear(*case).value.to(dtype))


@over(also=("vendor",))
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@transposing
def test_what_is_removed_does_not_leak(place: Place, dtype: torch.dtype, transposed: bool, bad: float) -> None:
    x, weight, rows, *_ = random_case([1, 20], 50, 80, dtype, transposed)
    indices = torch.arange(3, 4000, 17)
    weight.flatten()[indices] = bad
    offsets, factors = torch.tensor([0, len(indices), 2 * len(indices)]), torch.zeros(2 * len(indices))
    place.check(edited_linear, x, weight, rows, offsets, indices.repeat(2), factors, transposed=transposed)


@over(also=("vendor",))
def test_an_infinite_weight_with_a_factor_stays_infinite(place: Place, dtype: torch.dtype) -> None:
    x, weight = torch.ones(2, 4, dtype=dtype), torch.ones(3, 4, dtype=dtype)
    weight[1, 2] = float("inf")
    edit = torch.tensor([0, 1, 1]), torch.tensor([6]), torch.tensor([-0.5])
    y = place(edited_linear, x, weight, torch.tensor([0, 1, 2]), *edit)
    assert y.tolist() == [[4, -float("inf"), 4], [4, float("inf"), 4]]


@transposing
def test_strides(place: Place, dtype: torch.dtype, transposed: bool) -> None:
    x, weight, *edit = random_case([2, 3], 40, 66, dtype, transposed)
    bias = None if transposed else torch.randn(40, 2).to(dtype)[:, 0]
    strided = [
        x.t().contiguous().t(),
        weight.t().contiguous().t(),
        *(t.repeat_interleave(2)[::2] for t in edit),
        bias,
    ]
    assert not any(t.is_contiguous() for t in strided if t is not None)
    plain = None if transposed else bias.contiguous()
    expected = place(edited_linear, x, weight, *edit, plain, transposed)
    assert torch.equal(place(edited_linear, *strided, transposed), expected)


@over(also=("reference", "vendor"))
@pytest.mark.parametrize("shape", [(0, 5, 7), (3, 0, 7), (3, 5, 0), (70, 5, 0)], ids=str)
@transposing
def test_empty(place: Place, shape: tuple[int, ...], dtype: torch.dtype, transposed: bool) -> None:
    size, n, k = shape
    y = place(edited_linear, *random_case([0, size, 0], n, k, dtype, transposed), None, transposed)
    assert torch.equal(y, torch.zeros(size, k if transposed else n, dtype=dtype))


@over(size=sizes([(70, 45)], [(300, 450)], halves=[], shim=[(100, 150)]))
@transposing
def test_rows_do_not_depend_on_their_company(
    place: Place, size: tuple[int, int], dtype: torch.dtype, transposed: bool
) -> None:
    x, weight, rows, *edits = random_case([70, 9, 1, 30], *size, dtype, transposed)
    whole = place(edited_linear, x, weight, rows, *edits, None, transposed)
    for group in range(4):
        row = slice(int(rows[group]), int(rows[group]) + 1)
        edit = torch.tensor([0, 1]), *edit_of(group, *edits)
        assert torch.equal(place(edited_linear, x[row], weight, *edit, None, transposed), whole[row])


@over(counts=sizes([], [[5, 60, 100, 150]], halves=[[5, 60, 100, 150]]))
@transposing
def test_sums_have_the_same_order_however_many_rows(
    place: Place, counts: list[int], dtype: torch.dtype, transposed: bool
) -> None:
    """The largest group chooses the tile. Sums that cancel are what rounding leaves: it shows the order."""
    x, weight, rows, offsets, indices, factors = random_case(counts, 70, 70, dtype, transposed)
    x, weight = torch.cat([x, -x], 1), torch.cat([weight, weight], 0 if transposed else 1)
    if not transposed:
        indices = indices // 70 * 140 + indices % 70
    whole = place(edited_linear, x, weight, rows, offsets, indices, factors, None, transposed)
    for group, size in enumerate(counts):
        own = slice(int(rows[group]), int(rows[group + 1]))
        edit = torch.tensor([0, size]), *edit_of(group, offsets, indices, factors)
        assert torch.equal(place(edited_linear, x[own], weight, *edit, None, transposed), whole[own])


@over(also=("reference",))
@transposing
def test_gradients(place: Place, transposed: bool) -> None:
    x, weight, *edit = random_case([3, 0, 4], 21, 34, torch.float32, transposed)
    assert_gradients_right(
        lambda x, weight, bias=None: place(edited_linear, x, weight, *edit, bias, transposed),
        lambda x, weight, bias=None: reference.edited_linear(x, weight, *edit, bias, transposed),
        [x, weight] if transposed else [x, weight, torch.randn(21)],
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": [0, 4, 3]}, "rows must ascend from 0 to 3"),
        ({"offsets": [0, 5, 4]}, "offsets must ascend from 0 to 4"),
        ({"indices": [7, 40, 0, 1]}, r"indices\[1\] = 40 is out of range"),
        ({"indices": [7, 7, 0, 1]}, r"indices\[1\] = 7 must be above"),
        ({"indices": [7, 39, 5, 1]}, r"indices\[3\] = 1 must be above"),
    ],
)
def test_wrong_edits_never_reach_the_kernel(place: Place, change: dict[str, list[int]], message: str) -> None:
    """Nor those that are changed in place after they were found right."""
    x, weight, factors = place.to(torch.zeros(3, 8)), place.to(torch.zeros(5, 8)), place.to(torch.zeros(4))
    rows, offsets = torch.tensor([0, 1, 3]), torch.tensor([0, 2, 4])
    indices = place.to(torch.tensor([7, 39, 0, 1]))
    edit = {"rows": rows, "offsets": offsets, "indices": indices}
    before = {name: tensor.clone() for name, tensor in edit.items()}

    def call() -> Tensor:
        return edited_linear(x, weight, **edit, factors=factors, backend=place.backend)

    call()
    for name, values in change.items():
        edit[name].copy_(torch.tensor(values))
    with pytest.raises(ValueError, match=message):
        call()
    for name, tensor in before.items():
        edit[name].copy_(tensor)
    call()
