"""Runs that are saved, stopped and resumed, and the scores they give."""

import pytest
import torch

import cad_fast
from cad_fast.attribution import Attributor, Scores
from cad_fast.attribution.methods.registry import default_method
from cad_fast.attribution.store import STATE_NAME
from cad_fast.components.space import ComponentSpace
from tests.attribution.common import interrupt
from tests.pipelines import stable_diffusion, stable_diffusion_xl


@pytest.fixture(scope="module")
def pipeline():
    return stable_diffusion()


@pytest.fixture(scope="module")
def recording(pipeline):
    return cad_fast.record(pipeline, ["a cat", "a dog"], num_inference_steps=3, guidance_scale=2.0, progress=False)


def test_five_lines(pipeline, tmp_path):
    scores = cad_fast.attribute(pipeline, "a cat", num_inference_steps=2, guidance_scale=3.0, progress=False)
    edit = cad_fast.erase(scores, ratio=0.01)
    with edit.applied(pipeline):
        pipeline("a cat", num_inference_steps=1, output_type="latent")
    assert scores.concept == "a cat" and edit.n_weights == round(0.01 * scores.space.n)


@pytest.mark.parametrize(
    ("kind", "method"), [("weight", "gradient"), ("neuron", "ablated_gradient"), ("filter", "ablated_gradient")]
)
def test_the_method_is_chosen_by_the_kind_of_component(pipeline, kind, method) -> None:
    attributor = Attributor(pipeline, kind=kind)
    assert attributor.method == method
    assert Attributor(pipeline, components=attributor.space).method == method
    assert Attributor(pipeline, components=attributor.space, method="regression").method == "regression"


def test_few_components_are_ablated_alone(pipeline) -> None:
    heads = Attributor(pipeline, kind="head")
    assert heads.space.n < 20 and heads.method == "exact"
    assert (default_method("head", 19), default_method("head", 20)) == ("exact", "ablated_gradient")


def test_the_cost_is_counted(pipeline, recording):
    scores = Attributor(pipeline).run(recording, progress=False)
    cost = scores.provenance["cost"]
    assert (cost["recorded_denoiser_calls"], cost["recorded_rows"], cost["backward_passes"]) == (3, 2, 1)


def test_a_stopped_run_goes_on_where_it_was(pipeline, recording, tmp_path, monkeypatch):
    attributor = Attributor(pipeline)
    expected = attributor.run(recording, rows_per_pass=1, progress=False)
    import cad_fast.attribution.gradients.sums as gradient

    passes = interrupt(monkeypatch, gradient, "gather", 4)
    with pytest.raises(KeyboardInterrupt):
        attributor.run(recording, rows_per_pass=1, output_dir=tmp_path, progress=False)
    assert (tmp_path / STATE_NAME).exists() and not (tmp_path / "scores.safetensors").exists()
    with pytest.raises(FileExistsError, match="resume=True"):
        attributor.run(recording, rows_per_pass=1, output_dir=tmp_path, progress=False)
    with pytest.raises(ValueError, match="rows_per_pass: 1 then, 2 now"):
        attributor.run(recording, rows_per_pass=2, output_dir=tmp_path, resume=True, progress=False)
    scores = attributor.run(recording, rows_per_pass=1, output_dir=tmp_path, resume=True, progress=False)
    # 6 rows: three passes were done, the fourth was stopped and is done again.
    assert len(passes) == 4 + 3
    assert torch.equal(scores.values, expected.values)
    assert not (tmp_path / STATE_NAME).exists()
    assert torch.equal(Scores.load(tmp_path).values, expected.values)


def test_round_trip_and_damage(pipeline, recording, tmp_path):
    scores = Attributor(pipeline, kind="head").run(recording, concept="cat", progress=False)
    path = scores.save(tmp_path / "cat.safetensors")
    again = Scores.load(path)
    assert torch.equal(again.values, scores.values) and again.space == scores.space
    assert again.provenance == scores.provenance and again.concept == "cat"
    data = path.read_bytes()
    for cut in (0, 7, 100, len(data) - 1):
        (tmp_path / "cut.safetensors").write_bytes(data[:cut])
        with pytest.raises(ValueError, match=r"cut\.safetensors is truncated or not"):
            Scores.load(tmp_path / "cut.safetensors")
    with pytest.raises(FileNotFoundError, match="absent"):
        Scores.load(tmp_path / "absent")
    assert not list(tmp_path.glob("*.part"))


def test_top_and_modules(pipeline, recording):
    scores = Attributor(pipeline, target_modules="attention").run(recording, progress=False)
    name, value = scores.top(1)[0]
    assert value == scores.values.max() and name.endswith("]")
    assert scores.top(1, negative=True)[0][1] == scores.values.min()
    part = scores.of_modules("cross-attention-kv")
    own = Attributor(pipeline, target_modules="cross-attention-kv").run(recording, progress=False)
    assert part.space == own.space and torch.allclose(part.values, own.values, rtol=1e-3, atol=1e-7)
    with pytest.raises(ValueError, match="none of the"):
        scores.of_modules("convolution9")


def test_scores_must_fit_their_space(pipeline):
    space = ComponentSpace.of(pipeline, "head")
    with pytest.raises(ValueError, match="one per component"):
        Scores(torch.zeros(3), space)
    values = torch.zeros(space.n)
    values[2] = float("nan")
    with pytest.raises(ValueError, match="is nan"):
        Scores(values, space)


def test_a_recording_of_another_model_is_refused(recording):
    with pytest.raises(ValueError, match="another model"):
        Attributor(stable_diffusion_xl()).run(recording, progress=False)


def test_an_unwritable_folder_is_refused_before_any_work(pipeline, recording, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="file"):
        Attributor(pipeline).run(recording, output_dir=tmp_path / "file", progress=False)
