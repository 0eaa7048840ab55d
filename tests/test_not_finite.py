"""NaN and infinity are refused by name, wherever they turn up: no number is made of them, and no other fault blamed."""

import copy

import pytest
import torch

import cad_fast
from cad_fast import Ablation, ComponentSpace, ConceptErasure, TimestepWindow
from cad_fast.attribution import METHODS, Attributor, Scores
from cad_fast.attribution.scores import TopScores
from cad_fast.attribution.trust import Trust
from cad_fast.edits import Edit, EditManager, Selection, refine
from tests.pipelines import stable_diffusion

SETTINGS = {"seeds": 0, "num_inference_steps": 2, "progress": False}
SPOILED = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v"
NOT_FINITE = r"(?i)\b(nan|inf|finite|infinite)\b"
BAD = [float("nan"), float("inf")]


def intact_pipeline():
    pipeline = copy.deepcopy(stable_diffusion())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def spoiled_pipeline(bad: float):
    """With one weight that is no number."""
    pipeline = intact_pipeline()
    pipeline.unet.get_submodule(SPOILED).weight.data[0, 0] = bad
    return pipeline


@pytest.fixture(scope="module")
def recording():
    return cad_fast.record(intact_pipeline(), ["a cat", "a dog"], **SETTINGS)


@pytest.fixture
def scores(recording) -> Scores:
    attributor = Attributor(intact_pipeline(), ConceptErasure(), target_modules="feed-forward", method="gradient")
    return attributor.run(recording, progress=False)


@pytest.mark.parametrize("bad", BAD)
def test_a_recording_of_a_spoiled_denoiser(bad: float) -> None:
    with pytest.raises(ValueError, match=r"step 0: the output of UNet2DConditionModel is NaN or infinite"):
        cad_fast.record(spoiled_pipeline(bad), ["a cat", "a dog"], **SETTINGS)


def test_an_edit_made_of_a_spoiled_denoiser() -> None:
    making = {"keep": ["a dog"], "samples": 2, "num_inference_steps": 2, "progress": False}
    with pytest.raises(ValueError, match="the output of UNet2DConditionModel is NaN"):
        cad_fast.erase(spoiled_pipeline(float("nan")), "a cat", **making)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", BAD)
def test_attribution_to_a_denoiser_that_was_spoiled_since(recording, method: str, bad: float) -> None:
    attributor = Attributor(
        spoiled_pipeline(bad), ConceptErasure(), kind="neuron", target_modules="feed-forward", method=method
    )
    with pytest.raises(ValueError, match=NOT_FINITE):
        attributor.run(recording, rows_per_pass=8, progress=False)


def test_ablations_that_overflow(recording) -> None:
    """Under a finite factor that is beyond what the outputs can hold."""
    pipeline = intact_pipeline()
    space = ComponentSpace.of(pipeline.unet, "neuron", "feed-forward")
    attributor = Attributor(pipeline, ConceptErasure(), kind="neuron", target_modules="feed-forward")
    ablations = [Ablation.from_indices(space.n, [0, 1, 2], factor=3e38)]
    with pytest.raises(ValueError, match=r"concept_erasure is (nan|inf) at step"):
        attributor.measured(recording, ablations, progress=False)


def test_rows_under_edits_of_a_spoiled_denoiser_stay_the_rows_of_their_prompts(scores) -> None:
    pipeline = spoiled_pipeline(float("nan"))
    manager = EditManager(pipeline)
    manager.load_edit(Edit.from_scores(scores, Selection(0.05), name="e"))
    with manager.per_prompt(["e", "__base__"]):
        latents = pipeline(["a cat", "a dog"], num_inference_steps=2, output_type="latent").images
    assert latents.isnan().any(dim=(1, 2, 3)).all(), "pictures of NaN show as such"


@pytest.mark.parametrize("bad", BAD)
def test_scores_that_were_written_to(scores, recording, tmp_path, bad: float) -> None:
    edit = Edit.from_scores(scores, Selection(0.05), name="e")
    clean = copy.deepcopy(scores)
    scores.values[5] = bad
    label = r"the score of down_blocks\.\d.*\[0, 5\] is (nan|inf)"
    with pytest.raises(ValueError, match=label):
        Edit.from_scores(scores, Selection(0.05), name="e")
    with pytest.raises(ValueError, match=label):
        Edit.from_scores(clean, Selection(0.05, keep=[scores]), name="e")
    with pytest.raises(ValueError, match=label):
        scores.save(tmp_path / "scores.safetensors")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=label):
        refine(intact_pipeline(), recording, scores, Selection(0.05), rounds=1, progress=False)
    with pytest.raises(ValueError, match=label):
        cad_fast.edits.predicted_damage(edit, {"cat": scores})
    with pytest.raises(ValueError, match=label):
        cad_fast.edits.overlap([clean, scores], 0.05)
    with pytest.raises(ValueError, match=r"the score of .* is (nan|inf)"):
        TopScores(torch.tensor([3, 7]), torch.tensor([1.0, bad]), scores.space, {})


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("side", ["predicted", "measured"])
def test_trust(bad: float, side: str) -> None:
    values = {"predicted": torch.randn(20), "measured": torch.randn(20)}
    values[side][3] = bad
    with pytest.raises(ValueError, match=f"some {side} values of J are NaN or infinite"):
        Trust.of(**values, fraction=0.05)


@pytest.mark.parametrize("bad", [*BAD, -float("inf")])
@pytest.mark.parametrize(
    "make",
    [
        lambda bad, space: Edit.from_indices("e", space, torch.tensor([1, 2]), bad),
        lambda bad, space: Ablation.from_indices(space.n, [1], factor=bad),
        lambda bad, space: Selection(bad),
        lambda bad, space: Selection(0.1, keep_weight=bad),
        lambda bad, space: Selection(0.1, exponent=bad),
        lambda bad, space: TimestepWindow(bad, 0),
        lambda bad, space: ConceptErasure(negative_guidance=bad),
        lambda bad, space: cad_fast.Generation(guidance_scale=bad),
    ],
)
def test_settings(make, bad: float, scores) -> None:
    with pytest.raises(ValueError, match=NOT_FINITE):
        make(bad, scores.space)


@pytest.mark.parametrize("bad", BAD)
def test_strengths(bad: float, scores) -> None:
    pipeline = intact_pipeline()
    edit = Edit.from_scores(scores, Selection(0.05), name="e")
    with pytest.raises(ValueError, match="strength is"), edit.applied(pipeline, strength=bad):
        pass
    manager = EditManager(pipeline)
    manager.load_edit(edit)
    with pytest.raises(ValueError, match=NOT_FINITE):
        manager.set_edits("e", bad)
