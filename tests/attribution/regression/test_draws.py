"""Ablations drawn when they are asked for."""

from __future__ import annotations

import pytest
import torch

from cad_fast.attribution.regression import draws


@pytest.mark.parametrize("draw", ["partitions", "bernoulli"])
def test_drawn_ablations_are_made_when_asked_for(draw: str) -> None:
    drawn = draws.Drawn(draw, 103, 0.1, 5, 27)
    listed = list(drawn)
    assert len(listed) == len(drawn) == 27 and drawn[3:7] == listed[3:7] and drawn[-1] == listed[26]
    assert torch.equal(drawn.design().words, torch.stack([one.packed for one in listed]))
    assert torch.equal(drawn.design(11, in_memory=False).words, drawn.design(11).words)
    if draw == "partitions":
        for start in (0, 10):
            assert sum(one.mask.int() for one in listed[start : start + 10]).tolist() == [1] * 103
    assert len({one.packed.numpy().tobytes() for one in listed}) == 27
    with pytest.raises(IndexError, match="ablation 27 of 27"):
        drawn[27]
