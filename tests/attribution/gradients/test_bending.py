"""How J of a row bends, against dense matrices."""

from __future__ import annotations

import pytest
import torch

from cad_fast.attribution.gradients import bending as bending_module
from cad_fast.attribution.gradients.bending import bending
from tests.attribution.common import assert_close


@pytest.mark.parametrize("networks", [4, 7, 30])
def test_bending_is_exact_where_the_output_moves_linearly(monkeypatch, networks: int) -> None:
    monkeypatch.setattr(bending_module, "RIDGE", 1e-7)
    n, elements = 60, 3  # three independent outputs are spanned by the differences of four networks
    moves, reference, start = torch.randn(n, elements), torch.randn(elements), torch.randn(elements)
    lost = (torch.rand(networks, n) < 0.3).float()
    outputs = start - lost @ moves
    cotangents = 2 * (outputs - reference)
    gradients = cotangents @ moves.T
    vectors, weights = bending(outputs, cotangents)
    ablation = (torch.rand(n) < 0.3).float() - 0.3
    along = (gradients - gradients.mean(0)) @ ablation
    assert_close((weights * (vectors.T @ along).square()).sum(), (ablation @ moves).square().sum(), 1e-2)
    if networks == 4:  # of two outputs' worth of networks, one direction stays unknown
        less, size = bending(outputs[:3], cotangents[:3])
        along = (gradients[:3] - gradients[:3].mean(0)) @ ablation
        assert (size * (less.T @ along).square()).sum() < (ablation @ moves).square().sum()


def test_nothing_bends_where_j_is_linear() -> None:
    vectors, weights = bending(torch.randn(5, 8), torch.randn(1, 8).expand(5, 8))
    assert vectors.shape == (5, 5) and torch.equal(weights, torch.zeros(5))
