"""Runs that stop when they have reached or spent enough: the same scores as a run of that size, and the reason."""

from __future__ import annotations

import pytest
import torch

from cad_fast.attribution import Attributor, StopWhen, stop

PARTS = {"fraction": 0.25}


ROWS = 6  # two pictures, three steps


def attributor_of(pipeline, method: str, **options) -> Attributor:
    return Attributor(pipeline, kind="head", method=method, **PARTS, **options)


def test_a_budget_of_rows_ends_after_whole_partitions(pipeline, recording) -> None:
    budget = StopWhen(row_evaluations=2 * 4 * ROWS + 1)  # one partition and a little more
    scores = attributor_of(pipeline, "ablated_gradient", partitions=5).run(recording, stop_when=budget, progress=False)
    expected = attributor_of(pipeline, "ablated_gradient", partitions=2).run(recording, progress=False)
    assert torch.equal(scores.values, expected.values) and torch.equal(scores.standard_error, expected.standard_error)
    assert scores.provenance["estimate"]["partitions"] == 2
    assert scores.provenance["cost"]["backward_passes"] == expected.provenance["cost"]["backward_passes"]
    assert scores.provenance["stop_when"]["reason"] == "96 row evaluations were spent of 49"


def test_r_is_waited_for_on_ablations_of_its_own(pipeline, recording) -> None:
    attributor = attributor_of(pipeline, "ablated_gradient", partitions=3)
    easy = attributor.run(recording, stop_when=StopWhen(r=0.1, ablations=16), holdout=16, progress=False)
    assert easy.provenance["estimate"]["partitions"] == 1
    kept = easy.provenance["stop_when"]
    assert kept["reason"] == f"r reached {kept['r']:.3f}, asked for 0.1"
    assert kept["r"] not in [check["pearson"] for check in easy.trust]
    hard = attributor.run(recording, stop_when=StopWhen(r=0.999999, ablations=16), progress=False)
    assert hard.provenance["estimate"]["partitions"] == 3
    assert hard.provenance["stop_when"]["reason"] == "none was reached"


def test_a_width_is_reached_with_more_partitions(pipeline, recording) -> None:
    attributor = attributor_of(pipeline, "ablated_gradient", partitions=8)
    run = {"rows_per_pass": ROWS, "progress": False}

    def width(scores) -> float:
        return 2 * 1.96 * float(scores.standard_error.double().square().mean().sqrt() / scores.values.double().std())

    first = width(attributor.run(recording, stop_when=StopWhen(interval_width=1e9), **run))
    scores = attributor.run(recording, stop_when=StopWhen(interval_width=0.8 * first), **run)
    assert 1 < scores.provenance["estimate"]["partitions"] < 8
    assert width(scores) <= 0.8 * first
    assert "the interval width reached" in scores.provenance["stop_when"]["reason"]


def test_seconds_are_counted(monkeypatch) -> None:
    now = [10.0]
    monkeypatch.setattr(stop.time, "perf_counter", lambda: now[0])
    watch = stop.Watch(StopWhen(seconds=5))
    now[0] = 14.9
    assert not watch.enough(torch.randn(4), None, 1) and watch.reason is None
    now[0] = 15.5
    assert watch.enough(torch.randn(4), None, 1) and watch.reason == "5.5 seconds were spent of 5"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "needs r, interval_width, seconds or row_evaluations"),
        ({"r": 1.0}, r"r is 1\.0, expected between 0 and 1"),
        ({"seconds": -1}, "seconds is -1, expected above 0"),
        ({"r": 0.9, "ablations": 3}, "ablations is 3, expected at least 8"),
    ],
)
def test_wrong_settings(arguments, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StopWhen(**arguments)


def test_methods_that_cannot_stop_say_so(pipeline, recording) -> None:
    with pytest.raises(ValueError, match="method 'gradient' cannot stop early"):
        Attributor(pipeline).run(recording, stop_when=StopWhen(seconds=1), progress=False)
    with pytest.raises(ValueError, match="interval_width goes with ablated_gradient"):
        attributor_of(pipeline, "regression").run(recording, stop_when=StopWhen(interval_width=1), progress=False)
