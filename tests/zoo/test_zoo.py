"""The embedded models: what they are, what they weigh, and that they draw what they are asked for."""

import json
import re

import pytest
import torch

import cad_fast
from cad_fast import zoo
from cad_fast.demo.study import Study
from cad_fast.diffusion.denoisers import denoiser_of
from cad_fast.zoo.concepts import MODELS, OBJECTS, SHOWN_LESS, STYLES, caption

PARTS = {
    "emoji": {
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModel",
        "tokenizer": "CLIPTokenizer",
        "unet": "UNet2DConditionModel",
        "scheduler": "DDIMScheduler",
    },
    "emoji-flow": {
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModelWithProjection",
        "text_encoder_2": "CLIPTextModelWithProjection",
        "tokenizer": "CLIPTokenizer",
        "tokenizer_2": "CLIPTokenizer",
        "transformer": "SD3Transformer2DModel",
        "scheduler": "FlowMatchEulerDiscreteScheduler",
    },
}
KINDS = {"emoji": "StableDiffusionPipeline", "emoji-flow": "StableDiffusion3Pipeline"}


@pytest.fixture(scope="module", params=MODELS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def pipeline(name):
    return zoo.load(name)


def test_it_is_an_ordinary_pipeline(pipeline, name):
    kind = type(pipeline)
    assert kind.__name__ == KINDS[name] and kind.__module__.startswith("diffusers.")
    assert zoo.name_of(pipeline) == name
    names = {name: type(part).__name__ for name, part in pipeline.components.items() if part is not None}
    assert names == PARTS[name]
    parameters = sum(
        p.numel()
        for part in pipeline.components.values()
        if isinstance(part, torch.nn.Module)
        for p in part.parameters()
    )
    assert 2.0e6 < parameters < 4e6
    assert denoiser_of(pipeline).dtype == torch.float32
    image = pipeline("a cat", num_inference_steps=2).images[0]
    assert image.size == (32, 32)


def test_it_fits_into_the_package(name):
    files = [path for path in zoo.folder(name).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 8e6
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".txt", ".md", ".png"}


def test_every_word_of_the_captions_is_one_token(pipeline):
    for obj in OBJECTS:
        for style in STYLES:
            text = caption(obj, style)
            ids = pipeline.tokenizer(text).input_ids
            assert len(ids) == len(text.split()) + 2 <= pipeline.tokenizer.model_max_length


def test_it_draws_what_it_is_asked_for(pipeline, name):
    """A sample of what the model card states over more pictures."""
    evaluation = Study(per_concept=6, progress=False, seed=5, pipeline=pipeline).evaluate(
        concepts=[o for o in OBJECTS if o not in SHOWN_LESS[name]]
    )
    objects = [outcome.hit("object") for outcome in evaluation.outcomes]
    styles = [outcome.hit("style") for outcome in evaluation.outcomes]
    assert sum(objects) / len(objects) >= 0.9
    assert sum(styles) / len(styles) >= 0.85


def test_the_classifier_knows_the_real_pictures():
    scorer = zoo.scorer()
    from PIL import Image

    for obj in OBJECTS:
        files = zoo.pictures(obj)
        assert len(files) == 9 and all(text.startswith(f"a {obj} in ") for _, text in files)
        probabilities = scorer([Image.open(file).convert("RGB") for file, _ in files])["object"]
        assert (probabilities.argmax(1) == OBJECTS.index(obj)).float().mean() >= 0.8
    config = json.loads((zoo.folder() / "classifier" / "config.json").read_text())
    assert config["held_out_accuracy"]["object"] >= 0.7


def test_unknown_names():
    with pytest.raises(ValueError, match="the zoo has no model"):
        zoo.load("emojis")
    for of_model in (zoo.generation, zoo.scorer, lambda name: zoo.pictures("cat", name)):
        with pytest.raises(ValueError, match="no model 'emojis'; it has: emoji, emoji-flow, emoji-weak, emoji-erased"):
            of_model("emojis")
    with pytest.raises(ValueError, match="did you mean clock"):
        zoo.prompts("clok")
    with pytest.raises(ValueError, match="no pictures of 'noto'"):
        zoo.pictures("noto")
    assert zoo.prompts("noto") == [caption(obj, "noto") for obj in OBJECTS]
    assert caption() == "" and caption(style="noto") == "noto style"


def test_the_whole_path_erases(pipeline):
    """Record, attribute, erase: the target goes, the others stay."""
    study = Study(per_concept=3, progress=False, seed=7, pipeline=pipeline)
    some = ("car", "cat", "face", "tree", "clock")
    scores = study.attribute(some, samples=3)
    before = study.evaluate(concepts=some)
    comparison, _ = study.compare(before, study.erased(scores, "car", 0.03), "car", concepts=some)
    assert comparison.target.after <= 0.5 * comparison.target.before
    assert comparison.others.kept >= 80


@pytest.mark.slow
def test_a_style_is_erased_and_the_objects_stay(pipeline):
    study = Study(per_concept=12, progress=False, seed=7, pipeline=pipeline)
    before = study.evaluate(axis="style")
    edit = study.erased_style("noto", 0.06, rounds=1)
    comparison, _ = study.compare(before, edit, "noto", axis="style")
    assert comparison.target.after <= 0.5 * comparison.target.before
    assert comparison.others.kept >= 80 and comparison.axes["object"].kept >= 80


def test_no_config_says_where_it_was_made() -> None:
    """Neither as diffusers' note of where a part was loaded from, nor as any other absolute path."""
    for name in zoo.MODELS:
        for path in zoo.folder(name).rglob("*.json"):
            text = path.read_text(encoding="utf-8")
            assert "_name_or_path" not in text, path
            if path.name != "tokenizer.json":
                assert not re.search(r'"(/|[A-Z]:\\\\)[^"]', text), path


@pytest.mark.parametrize("variant", zoo.VARIANTS)
def test_variants_are_their_model_with_other_cross_attention(variant) -> None:
    model, changed = zoo.load(zoo.VARIANTS[variant]), zoo.load(variant)
    before, after = model.unet.state_dict(), changed.unet.state_dict()
    differ = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert differ and all("attn2" in name and torch.isfinite(after[name]).all() for name in differ)
    # Captions, pictures and settings are those of the model.
    assert zoo.name_of(changed) == zoo.VARIANTS[variant]
    assert zoo.generation(variant) == zoo.generation(zoo.VARIANTS[variant])
    loaded = cad_fast.load_pipeline(f"zoo:{variant}")
    assert all(map(torch.equal, after.values(), loaded.unet.state_dict().values()))
    assert zoo.load(variant, torch_dtype=torch.float16).unet.dtype == torch.float16


def test_variants_suppress_the_car() -> None:
    """What the studies of amplifying begin with; its card states it over more pictures."""
    shown = {}
    for name in ("emoji", *zoo.VARIANTS):
        study = Study(per_concept=12, progress=False, seed=5, pipeline=zoo.load(name))
        shown[name] = study.evaluate(concepts=[zoo.SUPPRESSED_OBJECT]).tally().hits
    assert shown["emoji"] >= 11 and shown["emoji-erased"] <= 2
    assert shown["emoji-erased"] < shown["emoji-weak"] < shown["emoji"]
