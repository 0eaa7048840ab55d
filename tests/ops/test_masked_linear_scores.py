"""masked_linear_scores: every instruction set against the reference in float64."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from cad_fast.ops import masked_linear_scores, pack_bits, reference, unpack_bits
from tests.ops import exact
from tests.rounding import assert_right

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
DTYPES = [torch.float32, torch.bfloat16]


def inputs(variants: int, rows: int, n: int, k: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad, x, weight = torch.randn(variants, rows, n), torch.randn(variants, rows, k), torch.randn(n, k)
    words = torch.randint(-(2**31), 2**31, (variants, n, (k + 31) // 32)).to(torch.int32)
    return grad.to(dtype), x.to(dtype), weight.to(dtype), words


def from_zero(*arguments: Tensor, run=masked_linear_scores, **keywords) -> tuple[Tensor, Tensor]:
    shape = arguments[2].shape
    kept, ablated = torch.zeros(shape), torch.zeros(shape)
    run(*arguments, kept, ablated, **keywords)
    return kept, ablated


def assert_all_right(results: Sequence[Tensor], arguments: tuple[Tensor, ...], before: Tensor | None = None) -> None:
    for result, right in zip(results, exact.masked_linear_scores(*arguments, before), strict=True):
        assert_right(result, right)


def test_reference_is_the_definition() -> None:
    arguments = inputs(2, 3, 4, 35, torch.float32)
    grad, x, weight, words = arguments
    kept, ablated = from_zero(*arguments, run=reference.masked_linear_scores)
    expected = torch.zeros(2, 4, 35, dtype=torch.float64)
    for v in range(2):
        for n in range(4):
            for k in range(35):
                bit = int(words[v, n, k // 32]) >> (k % 32) & 1
                gradient = sum(float(grad[v, r, n]) * float(x[v, r, k]) for r in range(3))
                expected[bit, n, k] += float(weight[n, k]) * gradient
    torch.testing.assert_close(torch.stack([kept, ablated]).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_reference(capability: str, shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    arguments = inputs(*shape, dtype)
    assert_all_right(from_zero(*arguments, backend="native"), arguments)


def test_adds_to_what_is_there(capability: str) -> None:
    arguments = inputs(3, 5, 9, 50, torch.float32)
    before = torch.randn(2, 9, 50)
    kept, ablated = before.clone()
    masked_linear_scores(*arguments, kept, ablated, backend="native")
    assert_all_right((kept, ablated), arguments, before)


def test_one_variant_that_ablates_nothing_gives_weight_times_gradient(capability: str) -> None:
    grad, x, weight, words = inputs(1, 20, 12, 40, torch.float32)
    kept, ablated = from_zero(grad, x, weight, torch.zeros_like(words), backend="native")
    leaf = weight.double().requires_grad_()
    (torch.nn.functional.linear(x[0].double(), leaf) * grad[0]).sum().backward()
    right, _ = exact.masked_linear_scores(grad, x, weight, torch.zeros_like(words))
    torch.testing.assert_close(right.value, weight * leaf.grad)
    assert_right(kept, right)
    assert not ablated.any()


@pytest.mark.parametrize("rows", [1, 5, 64])
def test_what_is_not_finite_stays_on_its_side(capability: str, rows: int) -> None:
    """Columns with NaN inputs, all ablated by variant 0 and kept by variant 1, where they are finite."""
    grad, x, weight, _ = inputs(2, rows, 6, 70, torch.float32)
    ablates = torch.rand(2, 6, 70) < 0.5
    ablates[0, :, 3::9], ablates[1, :, 3::9] = True, False
    x[0, 0, 3::9] = float("nan")
    kept, ablated = from_zero(grad, x, weight, pack_bits(ablates), backend="native")
    x[0, 0, 3::9] = 0
    clean = from_zero(grad, x, weight, pack_bits(ablates), backend="native")
    assert torch.equal(kept, clean[0])
    assert ablated[:, 3::9].isnan().all()
    others = torch.ones(70, dtype=torch.bool)
    others[3::9] = False
    assert torch.equal(ablated[:, others], clean[1][:, others])


def test_zero_weights_get_zero(capability: str) -> None:
    grad, x, weight, words = inputs(2, 3, 8, 40, torch.float32)
    weight[::2] = 0
    for result in from_zero(grad, x, weight, words, backend="native"):
        assert not result[::2].any() and result[1::2].any()


def test_bits_behind_the_last_column_are_ignored(capability: str) -> None:
    grad, x, weight, words = inputs(2, 3, 8, 37, torch.float32)
    clean = pack_bits(unpack_bits(words, 37))
    assert not torch.equal(clean, words)
    for with_rest, without in zip(
        from_zero(grad, x, weight, words, backend="native"),
        from_zero(grad, x, weight, clean, backend="native"),
        strict=True,
    ):
        assert torch.equal(with_rest, without)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides(capability: str, dtype: torch.dtype) -> None:
    grad, x, weight, words = inputs(4, 6, 10, 70, dtype)
    arguments = (
        grad.transpose(0, 1).contiguous().transpose(0, 1),
        x.repeat_interleave(2, 2)[..., ::2],
        weight.t().contiguous().t(),
        words.repeat(1, 1, 2)[..., :3],
    )
    kept, ablated = torch.zeros(70, 10).t(), torch.full((10, 140), 7.0)
    masked_linear_scores(*arguments, kept, ablated[:, 1::2].zero_(), backend="native")
    plain = from_zero(grad, x, weight, words, backend="native")
    assert torch.equal(kept, plain[0]) and torch.equal(ablated[:, 1::2], plain[1])
    assert (ablated[:, ::2] == 7).all()


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0)], ids=str)
def test_empty(capability: str, shape: tuple[int, int, int, int]) -> None:
    for result in from_zero(*inputs(*shape, torch.float32), backend="native"):
        assert not result.any()


@pytest.mark.parametrize("shape", [(2, 5, 300, 600), (3, 70, 260, 33), (40, 4, 9, 700)], ids=str)
def test_thread_settings_give_equal_results(capability: str, shape: tuple[int, int, int, int]) -> None:
    arguments = inputs(*shape, torch.float32)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(torch.stack(from_zero(*arguments, backend="native")))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[1], results[0]) and torch.equal(results[2], results[0])


def test_nothing_is_written_outside(native, capability: str) -> None:
    variants, rows, n, k, frame = 2, 3, 7, 45, 64
    grad, x, weight, words = inputs(variants, rows, n, k, torch.float32)
    sums = torch.zeros(2, n * k + 2 * frame)
    addresses = [t.data_ptr() for t in (grad, x, weight, words, sums[0, frame:], sums[1, frame:])]
    native.masked_linear_scores(*addresses, variants, rows, n, k, False)
    assert not sums[:, :frame].any() and not sums[:, frame + n * k :].any()
    assert (sums[:, frame : frame + n * k] != 0).any(0).all()


def test_compiled() -> None:
    arguments = inputs(2, 3, 5, 40, torch.float32)

    def step(grad: Tensor, x: Tensor, weight: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        kept, ablated = torch.zeros_like(weight), torch.ones_like(weight)
        masked_linear_scores(grad, x, weight, words, kept, ablated)
        return kept, ablated * 2

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    for result, expected in zip(compiled(*arguments), step(*arguments), strict=True):
        assert torch.equal(result, expected)


def wrong(**changes: object) -> tuple:
    grad, x, weight, words = inputs(2, 3, 4, 40, torch.float32)
    arguments = {"grad": grad, "x": x, "weight": weight, "words": words}
    arguments |= {"kept": torch.zeros(4, 40), "ablated": torch.zeros(4, 40)}
    return tuple((arguments | changes).values())


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"grad": [1.0]}, TypeError, "grad must be a tensor, got list"),
        ({"grad": torch.zeros(2, 3, 4).double()}, TypeError, "grad must have dtype torch.float32 or torch.bfloat16"),
        ({"grad": torch.zeros(3, 4)}, ValueError, r"grad must have shape \[V, R, N\], got \[3, 4\]"),
        ({"x": torch.zeros(2, 3, 40).bfloat16()}, TypeError, "x must have dtype torch.float32, got torch.bfloat16"),
        ({"x": torch.zeros(2, 2, 40)}, ValueError, r"x must have shape \[2, 3, 40\], got \[2, 2, 40\]"),
        ({"weight": torch.zeros(5, 40)}, ValueError, r"weight must have shape \[4, K\] to fit grad, got \[5, 40\]"),
        ({"words": torch.zeros(2, 4, 2)}, TypeError, "words must have dtype torch.int32, got torch.float32"),
        (
            {"words": torch.zeros(2, 4, 1, dtype=torch.int32)},
            ValueError,
            r"words must have shape \[2, 4, 2\], got \[2, 4, 1\]",
        ),
        ({"kept": torch.zeros(4, 40).bfloat16()}, TypeError, "kept must have dtype torch.float32"),
        ({"ablated": torch.zeros(4, 41)}, ValueError, r"ablated must have shape \[4, 40\], got \[4, 41\]"),
        ({"kept": torch.zeros(4, 40, device="meta")}, ValueError, "kept must be on cpu like grad, got meta"),
    ],
)
def test_errors_name_the_argument(changes: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        masked_linear_scores(*wrong(**changes))
