"""Scorers: probabilities as promised, and files that are broken."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPImageProcessor, CLIPModel, SiglipImageProcessor, SiglipModel

from cad_fast.evaluation import ClipMeasure, ClipScorer, ImageFeatures, Measure, Scorer
from cad_fast.evaluation.scorers import checked_measures, checked_probabilities
from cad_fast.zoo.classifier import EmojiClassifier
from cad_fast.zoo.concepts import OBJECTS, STYLES
from cad_fast.zoo.emoji_scorer import EmojiScorer
from cad_fast.zoo.training.models import make_tokenizer
from tests.evaluation.fakes import FakeScorer
from tests.evaluation.tiny_clip import save_clip, save_siglip

CLIP_AXES = {
    "object": {"cat": "a cat", "dog": "a dog", "book": "a book on the table"},
    "style": {"noto": "a picture in noto style", "fluent": "fluent style"},
}


def pictures(n, size=(32, 32)):
    generator = torch.Generator().manual_seed(n)
    pixels = torch.randint(0, 256, (n, size[1], size[0], 3), generator=generator, dtype=torch.uint8)
    return [Image.fromarray(p.numpy()) for p in pixels]


@pytest.fixture(scope="module")
def emoji_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        state = EmojiClassifier().state_dict()
    save_file({name: value.half() for name, value in state.items()}, folder / "model.safetensors")
    config = {"objects": OBJECTS, "styles": STYLES, "held_out_accuracy": {"object": 0.9, "style": 1.0}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("tiny-clip"))


def test_emoji_scorer_gives_the_classifiers_probabilities(emoji_folder):
    scorer = EmojiScorer.from_folder(emoji_folder)
    assert isinstance(scorer, Scorer)
    assert scorer.axes == {"object": OBJECTS, "style": STYLES}
    assert scorer.held_out_accuracy == {"object": 0.9, "style": 1.0}
    images = pictures(5)
    scores = checked_probabilities(scorer, images)
    assert {axis: list(values.shape) for axis, values in scores.items()} == {"object": [5, 12], "style": [5, 3]}
    for i, image in enumerate(images):
        data = torch.tensor(list(image.tobytes()), dtype=torch.float32).view(1, 32, 32, 3).permute(0, 3, 1, 2)
        objects, styles = scorer.classifier(data / 127.5 - 1)
        torch.testing.assert_close(scores["object"][i : i + 1], objects.softmax(-1).detach())
        torch.testing.assert_close(scores["style"][i : i + 1], styles.softmax(-1).detach())


def test_emoji_scorer_takes_other_sizes_and_transparency(emoji_folder):
    scorer = EmojiScorer.from_folder(emoji_folder)
    clear = Image.new("RGBA", (40, 50), (200, 0, 0, 0))
    white = Image.new("RGB", (32, 32), "white")
    scores = scorer([clear, white, Image.new("L", (64, 64), 255)])
    torch.testing.assert_close(scores["object"][0], scores["object"][1])
    torch.testing.assert_close(scores["object"][2], scores["object"][1])


def _truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def _not_finite(folder):
    state = {name: value.clone() for name, value in EmojiClassifier().state_dict().items()}
    state["object_head.bias"][0] = float("nan")
    save_file(state, folder / "model.safetensors")


def _config(**entries):
    def change(folder):
        config = {"objects": OBJECTS, "styles": STYLES, **entries}
        (folder / "config.json").write_text(json.dumps(config))

    return change


@pytest.mark.parametrize(
    "damage, error, reason",
    [
        (lambda folder: (folder / "config.json").write_text("{"), ValueError, "config.json is not valid JSON"),
        (lambda folder: (folder / "config.json").unlink(), FileNotFoundError, "config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), FileNotFoundError, "model.safetensors does not exist"),
        (_truncate, ValueError, "model.safetensors is truncated"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"\x80\x04N."),
            ValueError,
            "not a safetensors file",
        ),
        (_not_finite, ValueError, "NaN or infinite weights in 'object_head.bias'"),
        (_config(objects="cat"), ValueError, "config.json: 'objects' is 'cat', expected a list of names"),
        (_config(objects=["cat", "cat"]), ValueError, "'objects' has a name twice"),
        (_config(objects=["cat", "dog"]), ValueError, "model.safetensors does not fit"),
        (_config(held_out_accuracy=1.0), ValueError, "'held_out_accuracy' is 1.0"),
    ],
)
def test_broken_classifier_folders_are_explained(emoji_folder, tmp_path, damage, error, reason):
    folder = shutil.copytree(emoji_folder, tmp_path / "copy")
    damage(folder)
    with pytest.raises(error, match=reason):
        EmojiScorer.from_folder(folder)


def test_clip_scorer_agrees_with_the_model_itself(clip_folder):
    scorer = ClipScorer(clip_folder, CLIP_AXES, batch_size=2)
    assert isinstance(scorer, Scorer)
    assert scorer.name.startswith("CLIP tiny-clip") and "/" not in scorer.name
    images = pictures(5, (20, 24))
    scores = checked_probabilities(scorer, images)
    model = CLIPModel.from_pretrained(clip_folder).eval()
    processor = CLIPImageProcessor.from_pretrained(clip_folder)
    tokenizer = make_tokenizer(clip_folder)
    for axis, texts in CLIP_AXES.items():
        inputs = tokenizer(list(texts.values()), padding=True, return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs, **processor(images=images, return_tensors="pt")).logits_per_image
        torch.testing.assert_close(scores[axis], logits.softmax(-1), atol=1e-5, rtol=1e-4)


def test_the_clip_score_is_the_cosine_of_picture_and_prompt(clip_folder):
    scorer = ClipScorer(clip_folder, CLIP_AXES, batch_size=2)
    assert isinstance(scorer, Measure) and isinstance(scorer, ImageFeatures)
    images, prompts = pictures(3, (20, 24)), ["a cat", "a dog in noto style", "a book " * 30]
    scores = checked_measures(scorer, images, prompts)["CLIP score"]
    model = CLIPModel.from_pretrained(clip_folder).eval()
    processor, tokenizer = CLIPImageProcessor.from_pretrained(clip_folder), make_tokenizer(clip_folder)
    for image, prompt, score in zip(images, prompts, scores, strict=True):
        texts = tokenizer([prompt], truncation=True, max_length=16, return_tensors="pt")
        with torch.no_grad():
            logits = model(**texts, **processor(images=[image], return_tensors="pt")).logits_per_image
        assert score == pytest.approx(max(0, 100 * float(logits / model.logit_scale.exp().detach())), abs=1e-3)
    alone = ClipMeasure(clip_folder)
    assert alone.name == scorer.name and checked_measures(alone, images, prompts)["CLIP score"] == scores
    torch.testing.assert_close(alone.features(images), scorer.features(images))


def test_siglip_judges_every_text_by_itself(tmp_path):
    scorer = ClipScorer(save_siglip(tmp_path), CLIP_AXES)
    images = pictures(3, (20, 24))
    scores = checked_probabilities(scorer, images)
    model = SiglipModel.from_pretrained(tmp_path).eval()
    pixel_values = SiglipImageProcessor.from_pretrained(tmp_path)(images=images, return_tensors="pt")["pixel_values"]
    for axis, texts in CLIP_AXES.items():
        inputs = make_tokenizer(tmp_path)(
            list(texts.values()), padding="max_length", max_length=16, return_tensors="pt"
        )
        with torch.no_grad():
            logits = model(pixel_values=pixel_values, **inputs).logits_per_image
        torch.testing.assert_close(scores[axis], logits.sigmoid(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "values, reason",
    [
        (torch.ones(2), r"shape \[2\] for 'n', expected \[3\]"),
        (torch.tensor([0, float("nan"), 1]), "gave nan for 'n' of image 1 of 3"),
        (torch.tensor([0, 1, float("inf")]), "gave inf for 'n' of image 2 of 3"),
    ],
)
def test_measures_that_are_no_numbers_are_refused(values, reason):
    measure = SimpleNamespace(name="counting", measure=lambda images, prompts: {"n": values})
    with pytest.raises(ValueError, match=f"counting.*{reason}"):
        checked_measures(measure, pictures(3), ["", "", ""])


def test_clip_scorer_refuses_what_it_cannot_use(clip_folder, tmp_path):
    with pytest.raises(ValueError, match="axis 'style' is empty"):
        ClipScorer(clip_folder, {"object": {"cat": "a cat"}, "style": {}})
    with pytest.raises(ValueError, match="no axes given"):
        ClipScorer(clip_folder, {})
    with pytest.raises(ValueError, match="batch_size is 0"):
        ClipScorer(clip_folder, CLIP_AXES, batch_size=0)
    truncated = shutil.copytree(clip_folder, tmp_path / "truncated")
    weights = truncated / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ValueError, match="truncated or damaged weights"):
        ClipScorer(truncated, CLIP_AXES)
    partial = shutil.copytree(clip_folder, tmp_path / "partial")
    save_file({"logit_scale": torch.tensor(1.0)}, partial / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="not a whole CLIP model"):
        ClipScorer(partial, CLIP_AXES)
    with pytest.raises(ValueError, match="is a CLIPVisionModel, expected a CLIP or SigLIP model"):
        other = tmp_path / "vision"
        CLIPModel.from_pretrained(clip_folder).vision_model.save_pretrained(other)
        ClipScorer(other, CLIP_AXES)
    pickled = shutil.copytree(clip_folder, tmp_path / "pickled")
    (pickled / "model.safetensors").unlink()
    torch.save(CLIPModel.from_pretrained(clip_folder).state_dict(), pickled / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        ClipScorer(pickled, CLIP_AXES)


@pytest.mark.parametrize(
    "change, reason",
    [
        (
            lambda s: s["style"].__setitem__((1, 0), float("nan")),
            "axis 'style' of image 1 of 3; expected probabilities",
        ),
        (lambda s: s["object"].mul_(5), "axis 'object' of image 0 of 3"),
        (lambda s: s.__delitem__("style"), "nothing for its axis 'style'"),
        (lambda s: s.__setitem__("style", s["style"][:2]), r"shape \[2, 3\] for axis 'style', expected \[3, 3\]"),
    ],
)
def test_scores_that_are_no_probabilities_are_refused(change, reason):
    class Broken(FakeScorer):
        def __call__(self, images):
            scores = super().__call__(images)
            change(scores)
            return scores

    with pytest.raises(ValueError, match=reason):
        checked_probabilities(Broken(), [Image.new("RGB", (8, 8))] * 3)
