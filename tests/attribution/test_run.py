"""Many concepts from the same ablated passes, or one after another, against one run each."""

from __future__ import annotations

import pytest
import torch

from cad_fast import ConceptErasure
from cad_fast.attribution import Attributor, Scores, StopWhen, load_many
from cad_fast.attribution import run as run_module
from cad_fast.attribution.measuring.measurer import Measurer
from cad_fast.attribution.measuring.plans import MeasuringPlan, Target
from cad_fast.attribution.store import STATE_NAME, RunState
from cad_fast.objectives import CallableObjective
from tests.attribution.common import interrupt


@pytest.mark.parametrize("method", ["regression", "exact"])
def test_scores_are_those_of_one_run_each(pipeline, concepts, tmp_path, method: str) -> None:
    options = {"ablations": 150, "fraction": 0.2} if method == "regression" else {}
    attributor = Attributor(pipeline, kind="head", method=method, **options)
    found = attributor.run_many(concepts, output_dir=tmp_path, progress=False)
    assert list(found) == list(concepts)
    for concept, value in concepts.items():
        objective, recording = value if isinstance(value, tuple) else (None, value)
        alone = Attributor(pipeline, objective, kind="head", method=method, **options)
        expected = alone.run(recording, concept=concept, progress=False)
        scale = float(expected.values.abs().max())
        torch.testing.assert_close(found[concept].values, expected.values, rtol=1e-2, atol=1e-2 * scale)
        mine, theirs = found[concept].provenance, expected.provenance
        assert {k: v for k, v in mine.items() if k not in ("cost", "estimate", "intact_j")} == {
            k: v for k, v in theirs.items() if k not in ("cost", "estimate", "intact_j")
        }
    loaded = load_many(tmp_path)
    assert list(loaded) == list(concepts)
    assert all(torch.equal(loaded[name].values, found[name].values) for name in concepts)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["concepts.json", *(f"{number:05d}.safetensors" for number in range(5))]
    )


def test_each_concept_is_checked_on_the_same_held_out_ablations(pipeline, concepts) -> None:
    attributor = Attributor(pipeline, kind="head", method="regression", ablations=60, fraction=0.2)
    settings = {"holdout": 12, "holdout_fractions": (0.1, 0.3), "progress": False}
    found = attributor.run_many(concepts, **settings)
    for concept, value in concepts.items():
        objective, recording = value if isinstance(value, tuple) else (None, value)
        alone = Attributor(pipeline, objective, attributor.space, method="exact")
        for check, expected in zip(
            found[concept].trust,
            alone.check(found[concept], recording, 12, holdout_fractions=(0.1, 0.3), progress=False),
            strict=True,
        ):
            assert check["n"] == 12 and check["fraction"] == expected.fraction
            assert check["pearson"] == pytest.approx(expected.pearson, abs=1e-3)
            assert check["slope"] == pytest.approx(expected.slope, rel=1e-2, abs=1e-3)
    assert len({checks["pearson"] for scores in found.values() for checks in scores.trust}) == 2 * len(concepts)


def test_many_stop_when_the_last_of_them_has_reached_r(pipeline, concepts, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("cad_fast.attribution.methods.regression.STOP_BATCH", 20)
    attributor = Attributor(pipeline, kind="head", method="regression", ablations=200, fraction=0.2)
    two = {name: concepts[name] for name in ("animal", "car/red")}
    settings = {"rows_per_pass": 12, "progress": False}

    def ablations_of(scores) -> int:
        return scores.provenance["estimate"]["ablations"]

    stop_when = StopWhen(r=0.92, ablations=16)
    alone = {name: attributor.run(value, stop_when=stop_when, **settings) for name, value in two.items()}
    needed = [ablations_of(scores) for scores in alone.values()]
    assert needed[0] != needed[1] and max(needed) < 200  # else nothing is shown
    found = attributor.run_many(two, stop_when=stop_when, output_dir=tmp_path, **settings)
    assert {ablations_of(scores) for scores in found.values()} == {max(needed)}
    stopped = [scores.provenance["stop_when"] for scores in found.values()]
    assert min(one["r"] for one in stopped) >= 0.92 and stopped[0]["r"] != stopped[1]["r"]
    lowest = min(one["r"] for one in stopped)
    assert stopped[0]["reason"] == f"r reached {lowest:.3f} for every one of 2 concepts, asked for 0.92"
    size = Attributor(pipeline, components=attributor.space, method="regression", ablations=max(needed), fraction=0.2)
    expected = size.run_many(two, **settings)
    assert all(torch.equal(found[name].values, expected[name].values) for name in two)
    rows = MeasuringPlan.of([Target(ConceptErasure(), recording) for recording in two.values()], 12).rows
    budget = attributor.run_many(two, stop_when=StopWhen(row_evaluations=30 * rows), **settings)
    assert {ablations_of(scores) for scores in budget.values()} == {40}


@pytest.mark.parametrize("method", ["gradient", "ablated_gradient"])
def test_methods_of_gradients_take_many_one_after_another(pipeline, concepts, tmp_path, monkeypatch, method) -> None:
    options = {"fraction": 0.25} if method == "ablated_gradient" else {}
    attributor = Attributor(pipeline, kind="head", method=method, **options)
    two = {name: concepts[name] for name in ("late animal", "car/red")}
    settings = {"holdout": 8, "holdout_fractions": (0.2,), "output_dir": tmp_path, "progress": False}
    expected = {}
    for name, value in two.items():
        objective, recording = value if isinstance(value, tuple) else (None, value)
        one = Attributor(pipeline, objective, attributor.space, method=method, **options)
        expected[name] = one.run(recording, holdout=8, holdout_fractions=(0.2,), concept=name, progress=False)
    ran = interrupt(monkeypatch, run_module, "run_one", 2)
    with pytest.raises(KeyboardInterrupt):
        attributor.run_many(two, **settings)
    with pytest.raises(FileExistsError, match="00000 is of an unfinished run: pass resume=True"):
        attributor.run_many(two, **settings)
    with pytest.raises(ValueError, match=r"made with other settings \(rows_per_pass: \d+ then, 3 now\)"):
        attributor.run_many(two, rows_per_pass=3, resume=True, **settings)
    found = attributor.run_many(two, resume=True, **settings)
    assert [each["concept"] for each in ran] == [
        "late animal",
        "car/red",
        "car/red",
    ]  # what was done was not done again
    for name, scores in found.items():
        assert torch.equal(scores.values, expected[name].values) and scores.trust == expected[name].trust
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "00000.safetensors", "00001.safetensors", "concepts.json"
    ]  # fmt: skip
    assert torch.equal(Scores.load(tmp_path / "late animal").values, found["late animal"].values)
    with pytest.raises(FileNotFoundError, match="dog"):
        Scores.load(tmp_path / "dog")
    (tmp_path / "concepts.json").write_text('{"dog": "../other.safetensors"}')
    with pytest.raises(ValueError, match="not numbered from 00000"):
        Scores.load(tmp_path / "dog")


@pytest.mark.parametrize("number", [1, 2])
def test_a_run_that_ends_with_its_scores_saved_and_its_state_there_goes_on(
    pipeline, concepts, tmp_path, monkeypatch, number
) -> None:
    attributor = Attributor(pipeline, kind="head", method="gradient")
    two = {name: concepts[name] for name in ("late animal", "car/red")}
    expected = attributor.run_many(two, progress=False)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, RunState, "finish", number)
        attributor.run_many(two, output_dir=tmp_path, progress=False)
    part = tmp_path / f"{number - 1:05d}"
    assert {path.name for path in part.iterdir()} >= {"scores.safetensors", STATE_NAME}
    found = attributor.run_many(two, output_dir=tmp_path, resume=True, progress=False)
    assert all(torch.equal(found[name].values, expected[name].values) for name in two)
    assert {path.name for path in tmp_path.iterdir()} == {"00000.safetensors", "00001.safetensors", "concepts.json"}


def test_a_stopped_run_of_many_goes_on(pipeline, concepts, tmp_path, monkeypatch) -> None:
    attributor = Attributor(pipeline, kind="head", method="regression", ablations=40, fraction=0.2)
    expected = attributor.run_many(concepts, rows_per_pass=12, progress=False)
    groups = interrupt(monkeypatch, Measurer, "measure", 10)
    settings = {"rows_per_pass": 12, "output_dir": tmp_path, "progress": False}
    with pytest.raises(KeyboardInterrupt, match="resume=True"):
        attributor.run_many(concepts, **settings)
    fewer = {name: concepts[name] for name in list(concepts)[:2]}
    with pytest.raises(ValueError, match=r"concepts\..*: .* then, None now"):
        attributor.run_many(fewer, resume=True, **settings)
    found = attributor.run_many(concepts, resume=True, **settings)
    assert len(groups) == 40 + 1
    assert all(torch.equal(found[name].values, expected[name].values) for name in concepts)


def test_errors(pipeline, recordings) -> None:
    attributor = Attributor(pipeline, kind="head", method="gradient")
    with pytest.raises(ValueError, match="executor='ray' goes with methods 'regression' and 'exact', not 'gradient'"):
        attributor.run(recordings[0], executor="ray", progress=False)
    regression = Attributor(pipeline, kind="head", method="regression", ablations=5, fraction=0.2)
    with pytest.raises(ValueError, match="there are no concepts"):
        regression.run_many({})
    with pytest.raises(TypeError, match=r"a concept needs a Recording or \(Objective, Recording\), got list"):
        regression.run_many({"cat": [recordings[0]]})
    with pytest.raises(ValueError, match="executor is 'dask', expected 'local' or 'ray'"):
        regression.run(recordings[0], executor="dask", progress=False)
    for run in (
        lambda: regression.run(recordings[0], holdout=7),
        lambda: regression.run_many({"a": recordings[0]}, holdout=7),
    ):
        with pytest.raises(ValueError, match="holdout is 7, expected at least 8 ablations, or 0 for none"):
            run()
    constant = CallableObjective(lambda output, call: torch.ones(len(output)), "constant")
    with pytest.raises(
        ValueError, match=r"scores of 'always' cannot be checked at 1%: all (predicted|measured) values"
    ):
        regression.run_many({"a": recordings[0], "always": (constant, recordings[0])}, holdout=8, progress=False)
    with pytest.raises(ValueError, match="method 'exact' cannot stop early"):
        Attributor(pipeline, kind="head", method="exact").run_many(
            {"a": recordings[0]}, stop_when=StopWhen(seconds=1), progress=False
        )
