"""Progress bars and schedulers of pipelines, also of those within a pipeline, are as before a run."""

import contextlib

import pytest

from cad_fast.diffusion.context import own_scheduler, silent, with_inner
from tests.families.registry import FAMILIES
from tests.pipelines import stable_diffusion


@pytest.fixture
def combined():
    return FAMILIES["kandinsky-2.2"].pipeline()


def bars(pipeline):
    return [vars(each).get("_progress_bar_config") for each in with_inner(pipeline)]


@pytest.mark.parametrize("fails", [False, True])
def test_progress_bars_of_pipelines_within_a_pipeline(combined, fails) -> None:
    combined.prior_pipe.set_progress_bar_config(desc="prior")
    del combined.decoder_pipe._progress_bar_config
    before = bars(combined)
    assert before == [None, {"desc": "prior"}, None]
    with contextlib.suppress(OSError), silent(combined):
        assert bars(combined)[1:] == [{"desc": "prior", "disable": True}, {"disable": True}]
        if fails:
            raise OSError
    assert bars(combined) == before
    combined.set_progress_bar_config(disable=True)


def test_progress_bars_of_one_pipeline() -> None:
    pipeline = stable_diffusion()
    before = bars(pipeline)
    with silent(pipeline):
        assert pipeline._progress_bar_config["disable"]
    assert bars(pipeline) == before


def test_schedulers_of_pipelines_within_a_pipeline(combined) -> None:
    before = [combined.scheduler, combined.prior_pipe.scheduler]
    with own_scheduler(combined) as scheduler:
        assert scheduler is combined.scheduler is combined.decoder_pipe.scheduler
        assert scheduler is not before[0] and combined.prior_pipe.scheduler is not before[1]
    assert [combined.decoder_pipe.scheduler, combined.prior_pipe.scheduler] == before
    assert combined.scheduler is before[0]
