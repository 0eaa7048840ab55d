"""The CUDA kernels of the linear operators, run on the CPU thread by thread, against the reference in float64."""

import ctypes

import pytest
import torch
from torch import Tensor

from cad_fast.ops import backends, edited_linear, masked_linear, pack_bits
from tests.cuda import simt
from tests.cuda.battery import TYPES, compare

pytestmark = pytest.mark.skipif(simt.why_not() is not None, reason=str(simt.why_not()))

# (variants, rows, n, k): every kind of tile, with rests and without, rows of 16 bytes and odd ones.
MASKED = [
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

# (rows of each group, n, k)
EDITED = [
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

dtypes = pytest.mark.parametrize("dtype", TYPES, ids=str)
transposing = pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])


@pytest.fixture(scope="session")
def library():
    """The kernels as they are."""
    return simt.load(simt.build())


@pytest.fixture(params=simt.ORDERS)
def run(request: pytest.FixtureRequest, library) -> simt.Runner:
    """Calls the operators, in one order of threads and warps after another."""
    return simt.Runner(library, simt.ORDERS[request.param])


@pytest.fixture
def run_once(library) -> simt.Runner:
    """Calls the operators in random order."""
    return simt.Runner(library, 7)


@dtypes
@transposing
@pytest.mark.parametrize("shape", MASKED, ids=str)
def test_masked_against_reference(run: simt.Runner, shape: tuple[int, ...], dtype, transposed: bool) -> None:
    case = simt.masked_case(*shape, dtype, transposed)
    compare(run, "masked_linear", case)
    case[3], case[4] = None, torch.tensor([0.0, 1.0, -1.5, 0.3, 2.0])[torch.arange(shape[0]) % 5]
    compare(run, "masked_linear", case)


@dtypes
@transposing
@pytest.mark.parametrize("shape", EDITED, ids=str)
def test_edited_against_reference(run: simt.Runner, shape: tuple, dtype, transposed: bool) -> None:
    compare(run, "edited_linear", simt.edited_case(*shape, dtype, transposed))


@dtypes
@transposing
def test_unaligned_tensors(library, dtype, transposed: bool) -> None:
    runner = simt.Runner(library, 7, shift=1)
    compare(runner, "masked_linear", simt.masked_case(3, 20, 72, 136, dtype, transposed))
    compare(runner, "edited_linear", simt.edited_case([3, 20], 72, 136, dtype, transposed))


@dtypes
@transposing
@pytest.mark.parametrize("rows", [1, 8, 16, 64, 70])
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@pytest.mark.parametrize("factor", [None, 0.0, "rounds to zero"])
def test_what_is_removed_does_not_leak(
    run_once: simt.Runner, rows: int, dtype, transposed: bool, bad: float, factor: float | str | None
) -> None:
    if isinstance(factor, str):
        factor = 1e-9 if dtype == torch.float16 else 0.0
    case = simt.masked_case(2, rows, 50, 80, dtype, transposed)
    mask = torch.rand(2, 50, 80) < 0.5
    mask[:, ::7, ::3] = True
    case[1][::7, ::3], case[2] = bad, pack_bits(mask)
    case[4] = None if factor is None else torch.full((2,), factor)
    compare(run_once, "masked_linear", case)


@dtypes
@transposing
def test_what_an_edit_removes_does_not_leak(run_once: simt.Runner, dtype, transposed: bool) -> None:
    case = simt.edited_case([1, 20], 50, 80, dtype, transposed)
    indices = torch.arange(3, 4000, 17)
    case[1].flatten()[indices] = float("nan")
    case[3], case[4] = torch.tensor([0, len(indices), 2 * len(indices)]), indices.repeat(2)
    case[5] = torch.zeros(2 * len(indices))
    compare(run_once, "edited_linear", case)


@dtypes
@transposing
def test_whole_weights_may_be_edited(run_once: simt.Runner, dtype, transposed: bool) -> None:
    compare(run_once, "edited_linear", simt.edited_case([3, 4, 20], 45, 270, dtype, transposed, share=1.1))


@dtypes
@pytest.mark.parametrize("rows", [1, 8, 16, 40, 70])
def test_bits_behind_the_last_element_are_ignored(run_once: simt.Runner, rows: int, dtype) -> None:
    case = simt.masked_case(2, rows, 35, 77, dtype, False)
    case[1][:, -1], case[4] = 1, torch.full((2,), float("inf"))
    mask = torch.zeros(2, 35, 77, dtype=torch.bool)
    case[2] = pack_bits(mask)
    expected = run_once("masked_linear", *case)
    assert expected.isfinite().all()
    case[2][..., -1] |= -(1 << 13)
    assert torch.equal(run_once("masked_linear", *case), expected)


@dtypes
def test_strides(run_once: simt.Runner, dtype) -> None:
    x, weight, words, bias, *rest = simt.masked_case(3, 6, 40, 66, dtype, False)
    strided = [
        x.transpose(0, 2).contiguous().transpose(0, 2),
        weight.t().contiguous().t(),
        words.repeat_interleave(2, 1)[:, ::2],
        bias.repeat_interleave(2)[::2],
    ]
    assert not any(t.is_contiguous() for t in strided)
    expected = run_once("masked_linear", x, weight, words, bias, *rest)
    assert torch.equal(run_once("masked_linear", *strided, *rest), expected)


@dtypes
@transposing
@pytest.mark.parametrize("shape", [(0, 3, 5, 7), (2, 0, 5, 7), (2, 3, 0, 7), (2, 3, 5, 0), (2, 70, 5, 0)], ids=str)
def test_empty(run_once: simt.Runner, shape: tuple[int, ...], dtype, transposed: bool) -> None:
    variants, rows, n, k = shape
    y = run_once("masked_linear", *simt.masked_case(*shape, dtype, transposed)[:3], None, None, transposed)
    assert torch.equal(y, torch.zeros(variants, rows, k if transposed else n, dtype=dtype))
    if variants:
        case = simt.edited_case([0, rows, 0], n, k, dtype, transposed)
        case[6] = None
        assert torch.equal(run_once("edited_linear", *case), torch.zeros(rows, k if transposed else n, dtype=dtype))


@dtypes
@transposing
@pytest.mark.parametrize("rows", [1, 5, 12, 90])
def test_rows_do_not_depend_on_their_company(run_once: simt.Runner, rows: int, dtype, transposed: bool) -> None:
    x, weight, words, *_ = simt.masked_case(9, rows, 100, 150, dtype, transposed)
    whole = run_once("masked_linear", x, weight, words, None, None, transposed)
    some = run_once("masked_linear", x[4:7], weight, words[4:7], None, None, transposed)
    assert torch.equal(some, whole[4:7])


@dtypes
@transposing
def test_groups_do_not_depend_on_their_company(run_once: simt.Runner, dtype, transposed: bool) -> None:
    case = simt.edited_case([40, 9, 1, 80], 100, 150, dtype, transposed)
    case[6] = None
    x, weight, rows, offsets, indices, factors, *_ = case
    whole = run_once("edited_linear", *case)
    for group in range(4):
        first, own = int(rows[group]), slice(int(offsets[group]), int(offsets[group + 1]))
        edit = torch.tensor([0, own.stop - own.start]), indices[own].clone(), factors[own]
        alone = run_once("edited_linear", x[first : first + 1], weight, torch.tensor([0, 1]), *edit, None, transposed)
        assert torch.equal(alone, whole[first : first + 1])


@pytest.mark.skipif(backends.native.why_not() is not None, reason=str(backends.native.why_not()))
@transposing
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_agrees_with_the_native_kernels_to_the_last_bit(run_once: simt.Runner, dtype, transposed: bool) -> None:
    def whole_numbers(tensor: Tensor) -> Tensor:
        return tensor.round().clamp(-1, 1)  # so that the order of a sum does not matter

    for rows in (1, 7, 16, 33, 80):
        x, weight, words, *_ = simt.masked_case(3, rows, 70, 150, dtype, transposed)
        args = whole_numbers(x), whole_numbers(weight), words, None, torch.tensor([0.0, 0.5, -2.0]), transposed
        assert torch.equal(run_once("masked_linear", *args), masked_linear(*args, backend="native"))
        x, weight, *edit, _, _ = simt.edited_case([rows, 2, rows], 70, 150, dtype, transposed)
        args = whole_numbers(x), whole_numbers(weight), *edit, None, transposed
        assert torch.equal(run_once("edited_linear", *args), edited_linear(*args, backend="native"))


def test_the_shim_rounds_as_torch_does(library) -> None:
    convert = library.loaded.simt_convert
    bits = torch.randint(-(2**31), 2**31, (500_000,)).to(torch.int32)
    halves = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.float16)
    edges = torch.tensor([0.0, -0.0, 65504, 65519.99, 65520, 2.0**-24, 2.0**-25, 3 * 2.0**-26, 3.3e38])
    ties = halves[halves.isfinite()].float() * (1 + 2**-11)
    values = torch.cat([bits.view(torch.float32), halves.float(), edges, -edges, ties])
    results = [torch.zeros(len(values), dtype=dtype) for dtype in (torch.float16, torch.bfloat16)]
    convert(*(ctypes.c_void_p(t.data_ptr()) for t in (values, *results)), ctypes.c_int64(len(values)))
    for result in results:
        expected = values.to(result.dtype)
        assert torch.equal(result.isnan(), expected.isnan())
        assert torch.equal(result[~expected.isnan()], expected[~expected.isnan()])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": [0, 4, 3]}, "rows must ascend from 0 to 3"),
        ({"offsets": [0, 5, 4]}, "offsets must ascend from 0 to 4"),
        ({"indices": [7, 40, 0, 1]}, r"indices\[1\] = 40 is out of range"),
        ({"indices": [7, 7, 0, 1]}, r"indices\[1\] = 7 must be above"),
    ],
)
def test_bad_edits(run_once: simt.Runner, change: dict[str, list[int]], message: str) -> None:
    good = {"rows": [0, 1, 3], "offsets": [0, 2, 4], "indices": [7, 39, 0, 1]}
    for edit, expected in ((good, None), (good | change, message), (good, None)):
        args = (torch.zeros(3, 8), torch.zeros(5, 8), *map(torch.tensor, edit.values()), torch.zeros(4), None, False)
        if expected is None:
            run_once("edited_linear", *args)
        else:
            with pytest.raises(ValueError, match=expected):
                run_once("edited_linear", *args)


def test_an_index_changed_after_it_was_checked_is_checked_again(library) -> None:
    indices = torch.tensor([1, 3])
    args = torch.zeros(1, 8), torch.zeros(5, 8), torch.tensor([0, 1]), torch.tensor([0, 2])
    with simt.in_use(library, 0, None):
        for _ in range(2):
            backends.cuda.edited_linear(*args, indices, torch.zeros(2), None, False)
        indices[1] = 40
        with pytest.raises(ValueError, match=r"indices\[1\] = 40 is out of range"):
            backends.cuda.edited_linear(*args, indices, torch.zeros(2), None, False)


@dtypes
@transposing
@pytest.mark.parametrize("rows", [1, 8, 16, 32, 64, 128])
def test_shared_memory_fits_the_smallest_device(run_once: simt.Runner, rows: int, dtype, transposed: bool) -> None:
    # 99 KiB on sm_86, sm_89 and sm_120; 163 KiB on sm_80; 227 KiB on sm_90 and sm_100.
    for op, case in (
        ("masked_linear", simt.masked_case(1, rows, 8, 8, dtype, transposed)),
        ("edited_linear", simt.edited_case([rows], 8, 8, dtype, transposed)),
    ):
        run_once(op, *case)
        assert 10_000 < run_once.library.loaded.simt_shared_bytes() <= 99 * 1024


def test_sizes_beyond_int_are_refused(library) -> None:
    with pytest.raises(RuntimeError, match="failed in masked_linear"):
        library.call("masked_linear", *[None] * 6, 1, 1, 1 << 31, 1, 0, 0, None)
