"""The attributor: five lines, costs, stopped and resumed, recordings that do not belong."""

from __future__ import annotations

import pytest
import torch

import cad_fast
from cad_fast.attribution import Attributor, Scores
from cad_fast.attribution.store import STATE_NAME
from cad_fast.components.space import ComponentSpace
from cad_fast.edits import Edit
from tests.attribution.common import interrupt
from tests.pipelines import stable_diffusion_xl


def test_five_lines(pipeline, tmp_path):
    scores = cad_fast.attribute(pipeline, "a cat", generation=cad_fast.Generation(2, 3.0), progress=False)
    edit = cad_fast.Edit.from_scores(scores, cad_fast.Selection(0.01))
    with edit.applied(pipeline):
        pipeline("a cat", num_inference_steps=1, output_type="latent")
    assert scores.concept == "a cat" and edit.n_weights == round(0.01 * scores.space.n)


def test_what_attribute_does_not_take_is_refused(pipeline, recording):
    with pytest.raises(TypeError, match=r"expected generation=Generation\(num_inference_steps=2\)"):
        cad_fast.attribute(pipeline, "a cat", num_inference_steps=2)
    for given in ({"seeds": 3}, {"generation": cad_fast.Generation(2)}):
        with pytest.raises(ValueError, match=f"{next(iter(given))} is given with a Recording"):
            cad_fast.attribute(pipeline, recording, **given)


def test_the_cost_is_counted(pipeline, recording):
    scores = Attributor(pipeline).run(recording, progress=False)
    cost = scores.provenance["cost"]
    assert (cost["recorded_denoiser_calls"], cost["recorded_rows"], cost["backward_passes"]) == (
        4,
        2,
        1,
    )  # one is replayed


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


def test_a_recording_of_another_model_is_refused(recording):
    with pytest.raises(ValueError, match="another model"):
        Attributor(stable_diffusion_xl()).run(recording, progress=False)


def test_an_unwritable_folder_is_refused_before_any_work(pipeline, recording, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="file"):
        Attributor(pipeline).run(recording, output_dir=tmp_path / "file", progress=False)


@pytest.mark.parametrize("method", ["ablated_gradient", "regression", "exact"])
def test_a_denoiser_that_has_changed_since_the_recording_is_refused(pipeline, recording, method) -> None:
    space = ComponentSpace.of(pipeline, "head")
    with (
        Edit.from_indices("gone", space, torch.arange(0, space.n, 2)).applied(pipeline),
        pytest.raises(ValueError, match="has changed since"),
    ):
        Attributor(pipeline, None, space, method=method, **({"fraction": 0.2} if method != "exact" else {})).run(
            recording, progress=False
        )
