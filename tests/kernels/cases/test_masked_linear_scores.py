"""masked_linear_scores in Triton against sums in float64."""

import pytest
import torch

from cad_fast.ops import masked_linear_scores, pack_bits
from tests.kernels.judge import assert_right
from tests.ops import exact
from tests.ops.test_masked_linear_scores import inputs

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [  # variants, rows, n, k
    (1, 1, 1, 1),
    (2, 3, 3, 31),
    (5, 7, 33, 97),
    (2, 70, 31, 65),
    (2, 16, 131, 101),
    (40, 1, 6, 70),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_reference(device, precision, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    arguments = [t.to(device) for t in inputs(*shape, dtype)]
    before = torch.randn(2, *shape[2:], device=device)
    results = before.clone()
    masked_linear_scores(*arguments, *results, backend="triton")
    for result, right in zip(results, exact.masked_linear_scores(*arguments, before), strict=True):
        assert_right(result, right)


def test_strides(device) -> None:
    arguments = [t.to(device) for t in inputs(3, 5, 34, 70, torch.float32)]
    expected = torch.zeros(2, 34, 70, device=device)
    masked_linear_scores(*arguments, *expected, backend="triton")
    strided = [t.movedim(0, -1).contiguous().movedim(-1, 0) for t in arguments]
    assert not any(t.is_contiguous() for t in strided)
    kept, ablated = (torch.zeros(70, 34, device=device).t() for _ in range(2))
    masked_linear_scores(*strided, kept, ablated, backend="triton")
    assert torch.equal(torch.stack([kept, ablated]), expected)


def test_what_is_not_finite_stays_on_its_side(device) -> None:
    grad, x, weight, _ = (t.to(device) for t in inputs(2, 5, 6, 70, torch.float32))
    ablates = torch.rand(2, 6, 70, device=device) < 0.5
    ablates[0, :, 3::9], ablates[1, :, 3::9] = True, False
    x[0, 0, 3::9] = float("nan")
    kept, ablated = torch.zeros(2, 6, 70, device=device)
    masked_linear_scores(grad, x, weight, pack_bits(ablates), kept, ablated, backend="triton")
    assert kept.isfinite().all() and ablated[:, 3::9].isnan().all()
    others = torch.ones(70, dtype=torch.bool, device=device)
    others[3::9] = False
    assert ablated[:, others].isfinite().all()
