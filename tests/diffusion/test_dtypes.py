"""What was made in one dtype fits the same model in another, and no other model."""

import copy

import pytest
import torch

import cad_fast
from cad_fast.attribution import Scores
from cad_fast.edits import Edit
from tests.pipelines import stable_diffusion

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
GENERATION = cad_fast.Generation(num_inference_steps=2)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """One model stored in each dtype, and in each the scores and the edit made with it."""
    folder = tmp_path_factory.mktemp("dtypes")
    for dtype in DTYPES:
        name = str(dtype).removeprefix("torch.")
        copy.deepcopy(stable_diffusion()).to(dtype).save_pretrained(folder / name)
        pipeline = cad_fast.load_pipeline(str(folder / name), dtype=dtype)
        scores = cad_fast.attribute(
            pipeline, "a cat", generation=GENERATION, target_modules="cross-attention-kv", progress=False
        )
        scores.save(folder / f"{name}-scores")
        cad_fast.Edit.from_scores(scores, cad_fast.Selection(0.1), name="no-cat").save_pretrained(
            folder / f"{name}-edit"
        )
    return folder


@pytest.mark.parametrize("used", DTYPES)
@pytest.mark.parametrize("made", DTYPES)
def test_scores_and_edits_of_one_dtype_fit_another(stored, made, used) -> None:
    name = str(made).removeprefix("torch.")
    pipeline = cad_fast.load_pipeline(str(stored / "float32"), dtype=used)
    scores = Scores.load(stored / f"{name}-scores")
    edit = Edit.from_pretrained(stored / f"{name}-edit", pipeline)
    before = {key: value.clone() for key, value in pipeline.unet.state_dict().items()}
    for each in (edit, cad_fast.Edit.from_scores(scores, cad_fast.Selection(0.1))):
        with each.applied(pipeline):
            for module, indices in each.weight_indices().items():
                weight = pipeline.unet.get_submodule(module).weight
                assert weight.dtype is used and not weight.flatten()[indices].any()
    assert all(torch.equal(before[key], value) for key, value in pipeline.unet.state_dict().items())
    scores.space.fingerprint.require_same(cad_fast.ComponentSpace.of(pipeline).fingerprint, "scores")
    recording = cad_fast.record(pipeline, "a cat", guidance_scale=3.0, progress=False, **GENERATION.to_kwargs())
    attributor = cad_fast.Attributor(pipeline, components=scores.space)
    assert attributor.run(recording, progress=False).space == scores.space


@pytest.mark.parametrize("used", DTYPES)
def test_a_model_that_was_trained_on_is_refused(stored, used) -> None:
    pipeline = cad_fast.load_pipeline(str(stored / "float32"), dtype="float32")
    for parameter in pipeline.unet.parameters():
        parameter.data *= 1 + 0.02 * torch.randn_like(parameter)
    pipeline.to(used)
    for dtype in DTYPES:
        name = str(dtype).removeprefix("torch.")
        with pytest.raises(ValueError, match="was made for another model: their weights differ by"):
            Edit.from_pretrained(stored / f"{name}-edit", pipeline)


def test_a_recording_of_another_dtype_is_explained(stored) -> None:
    half = cad_fast.load_pipeline(str(stored / "float32"), dtype="float16")
    recording = cad_fast.record(half, "a cat", guidance_scale=3.0, progress=False, **GENERATION.to_kwargs())
    whole = cad_fast.load_pipeline(str(stored / "float32"))
    with pytest.raises(ValueError, match=r"the recording is of torch.float16, the denoiser of torch.float32"):
        cad_fast.Attributor(whole, target_modules="cross-attention-kv").run(recording, progress=False)
