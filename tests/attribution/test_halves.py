"""Agreement of two halves of the pictures."""

import pytest
import torch

import cad_fast
from cad_fast.attribution import Attributor
from cad_fast.attribution.halves import split_half
from tests.pipelines import stable_diffusion


def test_halves_are_runs_on_every_other_picture() -> None:
    pipeline = stable_diffusion()
    prompts = ["a cat", "a dog", "a car", "a clock", "a moon"]
    recording = cad_fast.record(pipeline, prompts, num_inference_steps=2, guidance_scale=3.0, progress=False)
    attributor = Attributor(pipeline, kind="head")
    halves, scores = split_half(lambda half: attributor, recording, progress=False)
    one = attributor.run(recording.select(rows=[0, 2, 4]), progress=False).values
    other = attributor.run(recording.select(rows=[1, 3]), progress=False).values
    agreement = float(torch.corrcoef(torch.stack([one, other]))[0, 1])
    assert halves.agreement == pytest.approx(agreement, abs=1e-5)
    assert halves.reliability == pytest.approx(2 * agreement / (1 + agreement), abs=1e-5)
    assert agreement < halves.reliability < halves.with_twice_the_pictures < 1
    whole = attributor.run(recording, progress=False).values  # J is a mean over the pictures
    torch.testing.assert_close(scores.values, whole, rtol=1e-3, atol=1e-4 * float(whole.abs().max()))
    assert scores.provenance["seeds"] == recording.seeds and scores.provenance["halves"]["pictures"] == 5
    intact, passes = (scores.provenance["intact_j"], scores.provenance["cost"]["forward_passes"])
    assert intact == pytest.approx(attributor.run(recording, progress=False).provenance["intact_j"], rel=1e-4)
    halves_passes = [
        attributor.run(recording.select(rows=rows), progress=False).provenance["cost"]["forward_passes"]
        for rows in ([0, 2, 4], [1, 3])
    ]
    assert passes == sum(halves_passes)
    with pytest.raises(ValueError, match="two halves need at least 2"):
        split_half(lambda half: attributor, recording.select(rows=[0]), progress=False)
