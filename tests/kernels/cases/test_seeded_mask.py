"""seeded_mask in Triton, where a grid is not wide enough. What is right: tests/ops/cases/test_seeded_mask.py."""

import pytest
import torch

from cad_fast.kernels import configs
from cad_fast.ops import seeded_mask


def test_more_variants_than_a_grid_is_wide(device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configs, "MOST_PROGRAMS", 4)
    words = seeded_mask(3, 1, 11, 70, 0.3, device=device, backend="triton")
    assert torch.equal(words.cpu(), seeded_mask(3, 1, 11, 70, 0.3, backend="reference"))
