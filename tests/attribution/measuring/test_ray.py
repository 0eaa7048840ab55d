"""Measuring on a Ray cluster: the same bits, though workers die."""

from __future__ import annotations

import os

import pytest
import torch

from cad_fast.attribution import Attributor
from cad_fast.attribution.measuring.measurer import Measurer
from cad_fast.objectives import CallableObjective
from tests.attribution.common import interrupt


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
