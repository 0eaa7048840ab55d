"""Refined scores against gradients on edited copies, and what they are for: a lower J for as many components."""

from __future__ import annotations

import pytest
import torch

import cad_fast
from cad_fast import Ablation, ConceptErasure
from cad_fast.attribution import Attributor
from cad_fast.attribution.measuring.passes import merge_calls
from cad_fast.edits import Selection, refine, select
from tests.pipelines import stable_diffusion
from tests.row_truth import slow_gradient


@pytest.fixture(scope="module")
def pipeline():
    return stable_diffusion()


@pytest.fixture(scope="module")
def recording(pipeline):
    return cad_fast.record(pipeline, ["a cat", "a dog"], num_inference_steps=3, guidance_scale=3.0, progress=False)


def scores_of(pipeline, recording, kind: str):
    return Attributor(pipeline, kind=kind).run(recording, progress=False)


@pytest.mark.parametrize("kind", ["weight", "neuron", "filter", "head"])
def test_a_round_adds_the_gradients_along_the_way(pipeline, recording, kind: str) -> None:
    scores = scores_of(pipeline, recording, kind)
    refined = refine(pipeline, recording, scores, Selection(0.2), rounds=1, rows_per_pass=5, progress=False)
    chosen = select(scores, Selection(0.2))
    along = sum(
        weight
        * slow_gradient(pipeline.unet, recording, scores.space, Ablation.from_indices(len(scores), chosen, factor))
        for factor, weight in ((1.0, 0.25), (0.5, 0.5), (0.0, 0.25))
    )
    expected = (scores.values + along) / 2
    torch.testing.assert_close(refined.values, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert refined.provenance["refined"]["rounds"] == 1
    assert refined.provenance["refined"]["selection"]["ratio"] == 0.2


def test_as_many_components_lower_j_further(pipeline, recording) -> None:
    scores = scores_of(pipeline, recording, "weight")
    refined = refine(pipeline, recording, scores, Selection(0.03), rounds=8, progress=False)
    call = merge_calls(recording.calls)

    def j_after(values) -> float:
        with cad_fast.Edit.from_scores(values, cad_fast.Selection(0.03)).applied(pipeline), torch.no_grad():
            return float(ConceptErasure()(call.run(pipeline.unet), call).mean())

    assert j_after(refined) < 0.9 * j_after(scores)


def test_what_is_kept_counts_in_every_round(pipeline, recording) -> None:
    scores = scores_of(pipeline, recording, "neuron")
    keep = [Attributor(pipeline, kind="neuron").run(recording.select(rows=[1]), progress=False)]
    settings = {"rounds": 2, "progress": False}
    plain = refine(pipeline, recording, scores, Selection(0.2), **settings)
    kept = refine(pipeline, recording, scores, Selection(0.2, keep=keep, keep_weight=2.0), **settings)
    assert not torch.equal(plain.values, kept.values)
    assert kept.provenance["refined"]["selection"]["keep"] == ["a dog"]


def test_the_model_is_left_as_it_was_and_errors_are_clear(pipeline, recording) -> None:
    before = {name: value.clone() for name, value in pipeline.unet.state_dict().items()}
    scores = scores_of(pipeline, recording, "head")
    refine(pipeline, recording, scores, Selection(count=2), rounds=1, progress=False)
    assert all(torch.equal(before[name], value) for name, value in pipeline.unet.state_dict().items())
    with pytest.raises(ValueError, match="rounds is 0, expected at least 1"):
        refine(pipeline, recording, scores, Selection(0.1), rounds=0)
    with pytest.raises(ValueError, match="give either ratio or count"):
        refine(pipeline, recording, scores, Selection(), progress=False)
    negative = cad_fast.Scores(-scores.values.abs(), scores.space, scores.provenance)
    with pytest.raises(ValueError, match="no component has a positive score for 'a cat'"):
        refine(pipeline, recording, negative, Selection(0.1), progress=False)


def test_a_model_that_has_changed_since_is_refused(pipeline, recording) -> None:
    scores = scores_of(pipeline, recording, "weight")
    with (
        cad_fast.Edit.from_scores(scores, cad_fast.Selection(0.2)).applied(pipeline),
        pytest.raises(ValueError, match="has changed since"),
    ):
        refine(pipeline, recording, scores, Selection(0.1), rounds=1, progress=False)
