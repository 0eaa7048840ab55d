"""Designs: blocks of any size, and seeds against the bits drawn from them."""

from __future__ import annotations

import pytest
import torch

from cad_fast import Ablation
from cad_fast.attribution.regression import design as design_module
from cad_fast.attribution.regression import ridge
from cad_fast.attribution.regression.design import Design, SeededDesign
from cad_fast.attribution.regression.solvers import fit
from tests.attribution.regression.common import N, ablations, kept, noisy, truth


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = ablations(60)
    j = noisy(drawn, truth(), 1.0)
    whole = fit(Design.of(drawn), j, standard_errors=True)
    monkeypatch.setattr(design_module, "CHUNK", 1)
    pieces = fit(Design.of(drawn), j, standard_errors=True)
    assert torch.allclose(whole.alpha, pieces.alpha)
    assert torch.allclose(whole.standard_error, pieces.standard_error)


@pytest.mark.parametrize("factor", [0.0, 0.5])
def test_seeds_are_the_bits_drawn_from_them(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    monkeypatch.setattr(design_module, "DRAWN_WORDS", 20)  # blocks of a few rows
    drawn = [Ablation.seeded(N, 0.3, 5, variant, factor) for variant in range(7, 60)]
    seeded, packed = SeededDesign(N, 0.3, 5, 53, first=7, factor=factor), Design.of(drawn)
    x = kept(drawn)
    x = x - x.mean(0)
    alpha, values = torch.randn(2, N, dtype=torch.float64), torch.randn(2, 53, dtype=torch.float64)
    for design in (seeded, packed):
        torch.testing.assert_close(design.times(alpha), alpha @ x.T)
        torch.testing.assert_close(design.transposed_times(values), values @ x)
        torch.testing.assert_close(design.mean_kept(), kept(drawn).mean(0))
    gram = ridge.CentredGram(seeded.counts(), factor)
    torch.testing.assert_close(gram.filled(torch.float64), x @ x.T)
    torch.testing.assert_close(gram.times(values.T), x @ x.T @ values.T)
    assert gram.trace() == pytest.approx(float((x @ x.T).trace()))
    assert torch.equal(seeded.transposed(), packed.transposed())
    assert torch.equal(seeded.words, packed.words)
