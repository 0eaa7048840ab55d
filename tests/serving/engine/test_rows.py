"""Denoisers that cannot draw several requests in one pass: one at a time, or refused at the start."""

import copy
import logging

import diffusers
import pytest

from cad_fast.serving.engine.batcher import Batcher
from cad_fast.serving.engine.edited_passes import RowWise
from cad_fast.serving.engine.jobs import RequestedEdit
from tests.pipelines import flux, stable_diffusion
from tests.serving.common import ROUNDING, Alone, distance, random_edit
from tests.serving.engine.test_batcher import WAIT, Seen, batcher_of, job

__all__ = ["batcher_of"]


def test_perturbed_attention_goes_one_request_at_a_time(batcher_of, caplog) -> None:
    """Its processors cut the batch in thirds, which are not those of a batch of several requests."""
    parts = copy.deepcopy(stable_diffusion()).components
    pipeline = diffusers.StableDiffusionPAGPipeline(**parts, requires_safety_checker=False, pag_applied_layers=["mid"])
    pipeline.set_progress_bar_config(disable=True)
    edit = random_edit(pipeline, "edit", 1)
    seen = Seen()
    batcher = batcher_of(pipeline, max_batch_size=8, observer=seen)
    arguments = {"pag_scale": 3.0, "guidance_scale": 5.0, "height": 16, "width": 16}
    jobs = [job(f"job{i}", seed=i, arguments=arguments, edits=(RequestedEdit(edit),) * (i % 2)) for i in range(4)]
    with caplog.at_level(logging.WARNING):
        drawn = [ticket.future.result(WAIT)[0] for ticket in [batcher.submit(each) for each in jobs]]
    alone = Alone(pipeline)
    for each, picture in zip(jobs, drawn, strict=True):
        pipeline_alone = alone.draw(each)
        assert distance(picture, pipeline_alone) <= ROUNDING
    assert {pictures for pictures, _, _ in seen.passes} == {1}
    said = [record.getMessage() for record in caplog.records if "one picture at a time" in record.getMessage()]
    assert len(said) == 1 and "a row of UNet2DConditionModel depends on the others" in said[0]


def test_a_denoiser_with_a_cache_is_not_served() -> None:
    pipeline = copy.deepcopy(flux())
    pipeline.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(ValueError, match=r"has a cache \(FirstBlockCacheConfig\).*call disable_cache before"):
        Batcher(pipeline, RowWise(pipeline))
    pipeline.transformer.disable_cache()
    Batcher(pipeline, RowWise(pipeline))
