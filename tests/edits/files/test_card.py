"""Provenance, model cards, the Hub, and the warning of scores that say little."""

import io
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from PIL import Image

from cad_fast.attribution import Scores, Trust
from cad_fast.components.space import ComponentSpace
from cad_fast.diffusion.generation import Generation
from cad_fast.edits import MIN_HELDOUT_R, CardInfo, Edit, Selection, UntrustedScoresWarning
from cad_fast.edits.files.describe import describe_text
from cad_fast.evaluation import Comparison, Evaluation, Outcome, compare
from cad_fast.evaluation.outcomes import Settings
from tests.pipelines import stable_diffusion

ESCAPES = "a \x1b[31mcat\n## | <b>x</b>\u202e"


def scores(trust=(), concept="a cat"):
    space = ComponentSpace.of(stable_diffusion(), "neuron")
    values = torch.randn(space.n, generator=torch.Generator().manual_seed(0))
    provenance = {
        "concept": concept,
        "method": "gradient",
        "prompts": [concept],
        "seeds": [3],
        "versions": {"torch": "2"},
    }
    return Scores(values, space, {**provenance, **({"trust": list(trust)} if trust else {})})


def check(r, fraction=0.05):
    return Trust(fraction, 50, r, (r - 0.1, r + 0.1), r, (r - 0.1, r + 0.1), 1.0, (0.9, 1.1)).to_dict()


def evaluations(edit) -> tuple[Evaluation, Evaluation, Comparison]:
    """Two concepts, four pictures each; the edit turns three of the cats into dogs."""

    def one(after):
        outcomes = []
        for concept in ("cat", "dog"):
            for i in range(4):
                seen = "dog" if after and concept == "cat" and i < 3 else concept
                outcomes.append(Outcome(concept, i, "p", {"object": concept}, {"object": seen}, {"object": 0.5}))
        settings = Settings(
            "object", 4, 0, Generation(5, 3.0), {}, "fake", {"object": ["cat", "dog"]}, edit.space.fingerprint,
            edit.name if after else None, 1.0 if after else None,
        )  # fmt: skip
        return Evaluation(settings, tuple(outcomes))

    before, after = one(False), one(True)
    return before, after, compare(before, after, "cat")


def front_matter(text):
    _, header, body = text.split("---\n", 2)
    return yaml.safe_load(header), body


def test_evaluation_goes_into_the_provenance(tmp_path):
    edit = Edit.from_scores(scores(), Selection(0.2), name="no-cat")
    _, after, comparison = evaluations(edit)
    edit.evaluated(comparison, after).save_pretrained(tmp_path)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["edit_config.json", "edit_model.safetensors"]
    again = Edit.from_pretrained(tmp_path)
    assert again.digest() == edit.digest() and "evaluation" not in edit.provenance
    recorded = again.provenance["evaluation"]
    assert recorded["target"]["after"] == 0.25 and recorded["targets"] == ["cat"] and recorded["became"]["dog"] == 3
    assert recorded["settings"]["per_concept"] == 4 and recorded["settings"]["num_inference_steps"] == 5
    assert "fingerprint" not in recorded["settings"]
    with pytest.raises(ValueError, match="of edit 'no-cat', not of 'other'"):
        Edit.from_scores(scores(), Selection(0.2), name="other").evaluated(comparison)


def test_the_card(tmp_path):
    edit = Edit.from_scores(scores([check(0.5)]), Selection(0.2), name="no-cat")
    _, after, comparison = evaluations(edit)
    edit.save_pretrained(tmp_path)
    sheet = Image.new("RGB", (5, 4))
    info = CardInfo(sheet=sheet, base_model="someone/model", license="apache-2.0", repo_id="me/no-cat")
    assert edit.evaluated(comparison, after).save_card(tmp_path, info) == tmp_path / "README.md"
    assert Image.open(tmp_path / "sheet.png").size == (5, 4)
    header, body = front_matter((tmp_path / "README.md").read_text())
    assert header["library_name"] == "cad_fast" and header["base_model"] == "someone/model"
    assert header["license"] == "apache-2.0" and {"cad_fast", "diffusers"} <= set(header["tags"])
    assert 'load_pipeline("someone/model")' in body and 'load_edit("me/no-cat", pipe)' in body
    assert "![Pictures before and after" in body and "(sheet.png)" in body
    assert "| cat | 100% " in body and "| 25% " in body and "r = 0.50 on 50 held-out ablations" in body
    assert Edit.from_pretrained(tmp_path).digest() == edit.digest() and edit.digest() in body


def test_a_card_without_figures_says_so(tmp_path):
    Edit.from_scores(scores(), Selection(0.2)).save_card(tmp_path, CardInfo(base_model="zoo:emoji"))
    header, body = front_matter((tmp_path / "README.md").read_text())
    assert "base_model" not in header and 'load_pipeline("zoo:emoji")' in body
    assert "It was not evaluated." in body and "not checked on held-out ablations" in body
    assert not (tmp_path / "sheet.png").exists()


def test_texts_from_elsewhere_stay_texts(tmp_path):
    edit = Edit.from_scores(scores(concept=ESCAPES), Selection(0.2), name="no-cat")
    edit.provenance["evaluation"] = {"target": {"before": "x", "after": []}, "concepts": 3, "axes": {ESCAPES: None}}
    edit.provenance |= {"trust": [3, {"pearson": 10**400}], "composed_of": [ESCAPES], "selection": {"sign": "positive"}}
    edit.save_card(tmp_path)
    _, body = front_matter((tmp_path / "README.md").read_text())
    for text in (body, describe_text(edit)):
        assert "\x1b" not in text and "\u202e" not in text and "\n## |" not in text
    assert "<" not in body


class FakeHub:
    """Stands for ``huggingface_hub.HfApi``: remembers what is uploaded."""

    def __init__(self):
        self.files, self.calls = {}, []

    def __call__(self, token=None):
        self.calls.append(("token", token))
        return self

    def create_repo(self, repo_id, private=None, exist_ok=False):
        self.calls.append(("create", repo_id, private, exist_ok))
        return SimpleNamespace(repo_id=f"me/{repo_id}")

    def upload_folder(self, *, repo_id, folder_path, revision, commit_message, create_pr):
        self.calls.append(("upload", repo_id, revision, commit_message, create_pr))
        self.files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
        return SimpleNamespace(commit_url="https://hub/commit", pr_url="https://hub/pr")


def test_push_to_the_hub_and_back(monkeypatch, tmp_path):
    hub = FakeHub()
    monkeypatch.setattr("huggingface_hub.HfApi", hub)
    edit = Edit.from_scores(scores(), Selection(0.2), name="no-cat")
    sheet = Image.new("RGB", (3, 3))
    info = CardInfo(sheet=sheet, license="mit")
    assert edit.push_to_hub("no-cat", info, private=True, token="t") == "https://hub/commit"
    assert hub.calls == [
        ("token", "t"),
        ("create", "no-cat", True, True),
        ("upload", "me/no-cat", None, "Upload edit no-cat", False),
    ]
    assert set(hub.files) == {"README.md", "sheet.png", "edit_config.json", "edit_model.safetensors"}
    assert Image.open(io.BytesIO(hub.files["sheet.png"])).size == (3, 3)
    assert edit.push_to_hub("no-cat", create_pr=True) == "https://hub/pr"

    def fetch(repository, name, **kwargs):
        assert repository == "me/no-cat" and kwargs == {"revision": "main"}
        (tmp_path / name).write_bytes(hub.files[name])
        return str(tmp_path / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    assert Edit.from_pretrained("me/no-cat", stable_diffusion(), revision="main").digest() == edit.digest()
    with pytest.raises(FileNotFoundError, match="is no folder here, and no repository"):
        monkeypatch.undo()
        Edit.from_pretrained("not a/repository/name")


@pytest.mark.parametrize("sign", ["positive", "negative"])
def test_scores_that_say_little_warn(sign):
    with pytest.warns(UntrustedScoresWarning, match=r"'a cat' .* r = 0\.12 \[0\.02, 0\.22\], below 0\.3") as caught:
        edit = Edit.from_scores(scores([check(0.12)]), Selection(0.05), sign=sign)
    assert caught[0].filename == __file__
    assert edit.provenance["trust"][0]["pearson"] == 0.12


def test_what_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Edit.from_scores(scores([check(MIN_HELDOUT_R)]), Selection(0.05))
        # Of several checks the one nearest in size to the edit counts.
        Edit.from_scores(scores([check(0.9, 0.05), check(0.1, 0.9)]), Selection(0.05))
        edit = Edit.from_scores(scores(), Selection(0.05))
    assert edit.provenance["trust"] == [] and "not checked on held-out" in describe_text(edit)
    with pytest.warns(UntrustedScoresWarning):
        Edit.from_scores(scores([check(float("nan"))]), Selection(0.05))
