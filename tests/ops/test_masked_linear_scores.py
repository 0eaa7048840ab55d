"""masked_linear_scores on the CPU: the definition, threads, compilation, and errors."""

import pytest
import torch
from torch import Tensor

from cad_fast.ops import masked_linear_scores, reference
from tests.ops.calls import with_threads
from tests.ops.cases.test_masked_linear_scores import inputs


def from_zero(*arguments: Tensor, run=masked_linear_scores, **keywords) -> tuple[Tensor, Tensor]:
    shape = arguments[2].shape
    kept, ablated = torch.zeros(shape), torch.zeros(shape)
    run(*arguments, kept, ablated, **keywords)
    return kept, ablated


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


@pytest.mark.parametrize("shape", [(2, 5, 300, 600), (3, 70, 260, 33), (40, 4, 9, 700)], ids=str)
def test_thread_settings_give_equal_results(capability: str, shape: tuple[int, int, int, int]) -> None:
    arguments = inputs(*shape, torch.float32)
    first, *others = with_threads((1, 2, 3), lambda: torch.stack(from_zero(*arguments, backend="native")))
    assert all(torch.equal(other, first) for other in others)


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
