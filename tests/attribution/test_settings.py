"""The settings of a run: checked, printed, as JSON, and the same whether given as an object or as keywords."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import cad_fast
from cad_fast.attribution import Attributor, RunOptions, StopWhen


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"rows_per_pass": 0}, ValueError, "rows_per_pass is 0, expected at least 1, or None"),
        ({"workers": 0, "executor": "ray"}, ValueError, "workers is 0, expected at least 1"),
        ({"workers": 2}, ValueError, "workers is 2, which goes with executor='ray', not 'local'"),
        ({"holdout": 7}, ValueError, "holdout is 7, expected at least 8 ablations, or 0 for none"),
        ({"holdout": -8}, ValueError, "holdout is -8, expected at least 8"),
        (
            {"holdout_fractions": (0.1, 1.0)},
            ValueError,
            r"holdout_fractions has 1\.0, expected numbers between 0 and 1",
        ),
        ({"holdout_fractions": ()}, ValueError, "holdout_fractions is empty"),
        ({"holdout_fractions": 0.1}, TypeError, r"holdout_fractions is 0\.1, expected a sequence of numbers"),
        ({"stop_when": 0.9}, TypeError, "stop_when is a float, expected a StopWhen or None"),
        ({"resume": True}, ValueError, "resume is True without output_dir"),
        ({"executor": "dask"}, ValueError, "executor is 'dask', expected 'local' or 'ray'"),
        ({"rows": 3}, TypeError, "a run has no setting 'rows'; it has: rows_per_pass, holdout, "),
        ({"options": {"holdout": 8}}, TypeError, "options is a dict, expected a RunOptions or None"),
    ],
)
def test_wrong_settings(settings, error, message: str) -> None:
    with pytest.raises(error, match=message):
        RunOptions.of(**settings)


def test_keywords_replace_fields() -> None:
    options = RunOptions(holdout=8, progress=False)
    assert RunOptions.of(options) == options
    assert RunOptions.of(options, holdout=9) == RunOptions(holdout=9, progress=False)
    assert RunOptions.of() == RunOptions() == RunOptions(holdout_fractions=[0.01, 0.05, 0.2])


def test_json_and_words() -> None:
    options = RunOptions(holdout=8, stop_when=StopWhen(r=0.9), output_dir="runs/cat")
    assert options.output_dir == Path("runs/cat")
    assert json.loads(json.dumps(options.to_dict())) == {
        "rows_per_pass": None,
        "holdout": 8,
        "holdout_fractions": [0.01, 0.05, 0.2],
        "stop_when": {"r": 0.9, "ablations": 64},
        "output_dir": "runs/cat",
        "resume": False,
        "progress": True,
        "executor": "local",
        "workers": None,
        "save_dtype": "float32",
        "save_top": None,
    }
    assert repr(RunOptions()) == "RunOptions()"
    assert repr(RunOptions(holdout=8, progress=False)) == "RunOptions(holdout=8, progress=False)"


def test_an_object_and_keywords_run_the_same(pipeline, recording, tmp_path) -> None:
    attributor = Attributor(pipeline, kind="neuron", method="gradient")
    options = RunOptions(rows_per_pass=2, holdout=8, holdout_fractions=(0.2,), progress=False)
    expected = attributor.run(
        recording, concept="cat", rows_per_pass=2, holdout=8, holdout_fractions=(0.2,), progress=False
    )
    scores = attributor.run(recording, concept="cat", options=options, output_dir=tmp_path)
    many = attributor.run_many({"cat": recording}, options=options)["cat"]
    alone = cad_fast.attribute(
        pipeline,
        recording,
        kind="neuron",
        concept="cat",
        method="gradient",
        options=options,
        method_options={"via": "gate"},
    )
    for found in (scores, many, alone):
        assert torch.equal(found.values, expected.values) and found.trust == expected.trust
    assert scores.provenance["rows_per_pass"] == 2 and (tmp_path / "scores.safetensors").exists()
    checked = attributor.check(scores, recording, 8, options=options)
    assert [check.to_dict() for check in checked] == expected.trust
    other = attributor.check(scores, recording, 8, options=options, holdout_fractions=(0.1, 0.3))
    assert [check.fraction for check in other] == [0.1, 0.3]


def test_what_a_call_does_not_know_is_named(pipeline, recording) -> None:
    attributor = Attributor(pipeline, kind="neuron", method="gradient")
    for call in (
        lambda: attributor.run(recording, hold_out=8),
        lambda: attributor.run_many({"cat": recording}, hold_out=8),
        lambda: cad_fast.attribute(pipeline, recording, hold_out=8),
    ):
        with pytest.raises(TypeError, match="a run has no setting 'hold_out'"):
            call()
    scores = attributor.run(recording, progress=False)
    with pytest.raises(
        TypeError, match="a check has no setting 'output_dir'; it has: rows_per_pass, holdout_fractions"
    ):
        attributor.check(scores, recording, output_dir="runs")
