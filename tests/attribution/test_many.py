"""Many concepts from the same ablated passes, against one run each; and measuring on a Ray cluster."""

from __future__ import annotations

import os

import pytest
import torch

import cad_fast
from cad_fast import Ablation, ConceptErasure
from cad_fast.attribution import Attributor, Scores, StopWhen, load_many
from cad_fast.attribution import run as run_module
from cad_fast.attribution.measuring.measure import measure_all
from cad_fast.attribution.measuring.measurer import Measurer
from cad_fast.attribution.measuring.plans import MeasuringPlan, Target
from cad_fast.attribution.regression import draws
from cad_fast.objectives import CallableObjective
from cad_fast.recording.record import with_base
from tests.attribution.common import interrupt
from tests.pipelines import stable_diffusion
from tests.row_truth import ablated_copy


@pytest.fixture(scope="module")
def pipeline():
    return stable_diffusion()


@pytest.fixture(scope="module")
def recordings(pipeline):
    def one(prompts):
        return cad_fast.record(pipeline, prompts, num_inference_steps=3, guidance_scale=3.0, progress=False)

    return one(["a cat", "a dog"]), one(["a red car"])


@pytest.fixture(scope="module")
def concepts(pipeline, recordings):
    """Concepts that share a recording, have a window, need another output, or a recording of their own."""
    animals, car = recordings
    mean = CallableObjective(lambda output, call: output.flatten(1).mean(1), "mean")
    late = ConceptErasure(timesteps=(0, max(animals.timesteps) - 1))
    based = with_base(car, pipeline, "a thing", progress=False)
    return {
        "animal": animals,
        "late animal": (late, animals),
        "mean of animals": (mean, animals),
        "car/red": car,
        "car, not a thing": (ConceptErasure(base="base"), based),
    }


def slow_j(denoiser, target: Target, space, ablation: Ablation) -> float:
    values = []
    copy = ablated_copy(denoiser, space, ablation)
    with torch.no_grad():
        for call in target.recording.calls:
            if target.objective.active(call):
                values.append(target.objective(call.run(copy), call).double())
    return float(torch.cat(values).mean())


@pytest.mark.parametrize("rows_per_pass", [1, 5, 40])
@pytest.mark.parametrize("kind", ["head", "filter"])
def test_j_of_each_concept_is_that_of_ablated_copies(pipeline, concepts, kind: str, rows_per_pass: int) -> None:
    space = cad_fast.ComponentSpace.of(pipeline, kind)
    targets = [Target(*c) if isinstance(c, tuple) else Target(ConceptErasure(), c) for c in concepts.values()]
    ablations = [Ablation.random(space.n, 0.2, seed) for seed in range(3)]
    measurer = Measurer(pipeline.unet, targets, space, rows_per_pass)
    found = measure_all(measurer, ablations, progress=False)
    expected = torch.tensor([[slow_j(pipeline.unet, t, space, a) for a in ablations] for t in targets]).double()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_every_row_goes_through_once(concepts) -> None:
    targets = [Target(*c) if isinstance(c, tuple) else Target(ConceptErasure(), c) for c in concepts.values()]
    plan = MeasuringPlan.of(targets, 4)
    rows = [(number, call, row) for pieces in plan.passes for number, call, rows in pieces for row in rows]
    assert len(rows) == len(set(rows)) == 3 * (2 + 1 + 1)  # three recordings, whatever the number of concepts on them
    assert plan.n_rows == [6, 4, 6, 3, 3]
    assert MeasuringPlan.of(targets[:3], 6).cost(10) == MeasuringPlan.of(targets[:1], 6).cost(10)


@pytest.mark.parametrize("both", [False, True], ids=["recorded", "both-branches"])
def test_objectives_of_both_branches_share_passes_with_others(pipeline, recordings, both: bool) -> None:
    animals, _ = recordings
    space = cad_fast.ComponentSpace.of(pipeline, "head")
    ablations = [Ablation.random(space.n, 0.3, seed) for seed in range(4)]
    targets = [Target(ConceptErasure(both_branches=True), animals), Target(ConceptErasure(), animals)]
    together = measure_all(Measurer(pipeline.unet, targets, space, 12), ablations, progress=False)
    alone = measure_all(Measurer(pipeline.unet, [targets[not both]], space, 12), ablations, progress=False)
    torch.testing.assert_close(together[int(not both)], alone[0], rtol=1e-4, atol=1e-6)
    assert not torch.allclose(together[0], together[1])


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


def test_until_sees_the_ablations_in_order_even_where_they_come_in_another(pipeline, recordings, monkeypatch) -> None:
    space = cad_fast.ComponentSpace.of(pipeline, "head")
    ablations = [Ablation.random(space.n, 0.3, seed) for seed in range(9)]
    measurer = Measurer(pipeline.unet, [Target(ConceptErasure(), recordings[1])], space, 6)
    expected = measure_all(measurer, ablations, progress=False)

    def backwards(measurer, ablations):
        def compute(groups):
            with measurer:
                for first, count in groups[::-1]:
                    yield first, measurer.measure(ablations[first : first + count])

        return compute

    monkeypatch.setattr("cad_fast.attribution.measuring.measure.locally", backwards)
    seen = []

    def until(j):
        seen.append(j.shape[1])
        return j.shape[1] >= 6

    assert torch.equal(measure_all(measurer, ablations, until=until, progress=False), expected[:, :6])
    assert seen == [2, 4, 6]


@pytest.mark.parametrize("draw", ["partitions", "bernoulli"])
def test_drawn_ablations_are_made_when_asked_for(draw: str) -> None:
    drawn = draws.Drawn(draw, 103, 0.1, 5, 27)
    listed = list(drawn)
    assert len(listed) == len(drawn) == 27 and drawn[3:7] == listed[3:7] and drawn[-1] == listed[26]
    assert torch.equal(drawn.design().words, torch.stack([one.packed for one in listed]))
    assert torch.equal(drawn.design(11, in_memory=False).words, drawn.design(11).words)
    if draw == "partitions":
        for start in (0, 10):
            assert sum(one.mask.int() for one in listed[start : start + 10]).tolist() == [1] * 103
    assert len({one.packed.numpy().tobytes() for one in listed}) == 27
    with pytest.raises(IndexError, match="ablation 27 of 27"):
        drawn[27]


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


@pytest.fixture(scope="module")
def ray_cluster():
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20)
    yield ray
    ray.shutdown()


def deadly(flag: str, driver: int) -> CallableObjective:
    """J by which the first worker to have measured 6 times kills itself in the middle of a group, once."""
    calls: list[int] = []

    def fn(output, call):
        import os
        import signal

        calls.append(1)
        if len(calls) > 6 and os.getpid() != driver:
            try:
                os.close(os.open(flag, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        return (output.float() - call.unconditional_output.float()).square().flatten(1).sum(1)

    return CallableObjective(fn, "deadly", needs="unconditional_output")


@pytest.mark.slow
def test_ray_gives_the_same_bits_though_a_worker_dies(pipeline, recordings, ray_cluster, tmp_path) -> None:
    attributor = Attributor(pipeline, kind="head", method="regression", ablations=60, fraction=0.2)
    flag = tmp_path / "died"
    concepts = {"animal": recordings[0], "deadly": (deadly(str(flag), os.getpid()), recordings[1])}
    settings = {"rows_per_pass": 12, "progress": False}
    expected = attributor.run_many(concepts, **settings)
    found = attributor.run_many(concepts, executor="ray", workers=2, output_dir=tmp_path / "run", **settings)
    assert flag.exists()
    for name, scores in found.items():
        assert torch.equal(scores.values, expected[name].values)
        assert torch.equal(scores.standard_error, expected[name].standard_error)
    # A run begun here goes on there: the store is the same.
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, Measurer, "measure", 10)
        with pytest.raises(KeyboardInterrupt):
            attributor.run_many(concepts, output_dir=tmp_path / "other", **settings)
    resumed = attributor.run_many(
        concepts, executor="ray", workers=2, output_dir=tmp_path / "other", resume=True, **settings
    )
    assert all(torch.equal(resumed[name].values, expected[name].values) for name in concepts)


@pytest.mark.slow
def test_ray_workers_that_keep_dying_and_errors_in_them(pipeline, recordings, ray_cluster) -> None:
    attributor = Attributor(pipeline, kind="head", method="regression", ablations=20, fraction=0.2)
    driver = os.getpid()

    def die(output, call):
        import os

        if os.getpid() != driver:
            os._exit(1)
        return output.flatten(1).sum(1)

    def fail(output, call):
        raise ValueError("no such concept")

    def run(fn):
        target = (CallableObjective(fn, "own"), recordings[1])
        return attributor.run_many({"own": target}, executor="ray", workers=2, progress=False)

    with pytest.raises(RuntimeError, match="6 workers were lost in a row"):
        run(die)
    with pytest.raises(ValueError, match="no such concept"):
        run(fail)
