"""Denoisers that cannot draw several requests in one pass: one at a time, or refused at the start."""

import copy
import logging
import types

import diffusers
import pytest
from diffusers.models.attention_processor import AttnProcessor

from cad_fast.serving.engine.batcher import Batcher
from cad_fast.serving.engine.edited_passes import RowWise
from cad_fast.serving.engine.intercept import for_one_run, intercepted
from cad_fast.serving.engine.jobs import RequestedEdit
from tests.families.registry import FAMILIES
from tests.pipelines import flux, stable_diffusion
from tests.serving.common import ROUNDING, Alone, distance, random_edit
from tests.serving.engine.test_batcher import WAIT, Seen, batcher_of, job

__all__ = ["batcher_of"]

SMALL = {"guidance_scale": 5.0, "height": 16, "width": 16}


class Mixing(AttnProcessor):
    """An attention processor under which a row depends on the others of its batch."""

    def __call__(self, *args, **kwargs):
        output = super().__call__(*args, **kwargs)
        return output + output.mean(0, keepdim=True)


def drawn_as_alone(batcher, pipeline, jobs) -> None:
    tickets = [batcher.submit(each) for each in jobs]
    drawn = [ticket.future.result(WAIT)[0] for ticket in tickets]
    alone = Alone(pipeline)
    for each, picture in zip(jobs, drawn, strict=True):
        assert distance(picture, alone.draw(each)) <= ROUNDING


def said(caplog, text) -> list[str]:
    return [record.getMessage() for record in caplog.records if text in record.getMessage()]


def test_rows_that_depend_on_each_other_go_one_request_at_a_time(batcher_of, caplog) -> None:
    pipeline = copy.deepcopy(stable_diffusion())
    pipeline.unet.mid_block.attentions[0].transformer_blocks[0].attn1.set_processor(Mixing())
    edit = random_edit(pipeline, "edit", 1)
    seen = Seen()
    batcher = batcher_of(pipeline, max_batch_size=8, observer=seen)
    jobs = [job(f"job{i}", seed=i, arguments=SMALL, edits=(RequestedEdit(edit),) * (i % 2)) for i in range(4)]
    with caplog.at_level(logging.WARNING):
        drawn_as_alone(batcher, pipeline, jobs)
    assert {pictures for pictures, _, _ in seen.passes} == {1}
    lines = said(caplog, "one picture at a time")
    assert len(lines) == 1 and "a row of UNet2DConditionModel depends on the others" in lines[0]


def perturbed():
    parts = copy.deepcopy(stable_diffusion()).components
    pipeline = diffusers.StableDiffusionPAGPipeline(**parts, requires_safety_checker=False, pag_applied_layers=["mid"])
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_a_pipeline_that_changes_its_denoiser_draws_one_request_after_the_other(batcher_of, caplog) -> None:
    """Perturbed attention has processors for as long as a call lasts, here of calls that do not end together."""
    pipeline = perturbed()
    edit = random_edit(pipeline, "edit", 1)
    batcher = batcher_of(pipeline, max_batch_size=8)
    before = dict(pipeline.unet.attn_processors)
    jobs = [
        job(
            f"job{i}",
            seed=i,
            arguments={**SMALL, "pag_scale": 30.0, "num_inference_steps": 2 + 2 * i},
            edits=(RequestedEdit(edit),) * (i % 2),
        )
        for i in range(3)
    ]
    with caplog.at_level(logging.WARNING):
        drawn_as_alone(batcher, pipeline, jobs)
    (line,) = said(caplog, "one after the other")
    assert "StableDiffusionPAGPipeline changes its denoiser" in line and "attn1.processor" in line
    batcher.close()
    assert pipeline.unet.attn_processors == before


def test_a_request_that_fails_leaves_no_change_in_the_denoiser(batcher_of) -> None:
    pipeline = perturbed()
    batcher = batcher_of(pipeline, max_batch_size=8)
    before = dict(pipeline.unet.attn_processors)
    arguments = {**SMALL, "pag_scale": 30.0}

    def fails(*_):
        raise OSError("full")

    bad = job("bad", arguments={**arguments, "callback_on_step_end": fails})
    tickets = [batcher.submit(each) for each in (job("good", seed=1, arguments=arguments), bad)]
    assert tickets[0].future.result(WAIT)
    with pytest.raises(OSError, match="full"):
        tickets[1].future.result(WAIT)
    batcher.close()
    assert pipeline.unet.attn_processors == before


class Switching(diffusers.StableDiffusionPipeline):
    """A pipeline that sets a configuration of its denoiser for a call, and leaves it there."""

    def __call__(self, *args, shift=0.0, **kwargs):
        self.unet.register_to_config(shift=shift)
        return super().__call__(*args, **kwargs)


def test_what_a_pipeline_sets_on_its_denoiser_reaches_the_denoiser(batcher_of) -> None:
    pipeline = Switching(**copy.deepcopy(stable_diffusion()).components, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)

    def shifted(unet, args, output):
        return (output[0] + unet.config.get("shift", 0.0), *output[1:])

    pipeline.unet.register_forward_hook(shifted)
    batcher = batcher_of(pipeline, max_batch_size=8)
    jobs = [job(f"job{i}", seed=i, arguments={**SMALL, "shift": float(i)}) for i in range(3)]
    drawn_as_alone(batcher, pipeline, jobs)
    batcher.close()
    assert "shift" not in pipeline.unet.config


def test_pipelines_within_a_pipeline_run_the_edited_denoiser(batcher_of) -> None:
    """The combined pipeline calls the denoiser by a pipeline that it is made of."""
    pipeline = FAMILIES["kandinsky-2.2"].pipeline()
    assert pipeline.decoder_pipe.unet is pipeline.unet
    edits = [random_edit(pipeline, f"edit{i}", i, share=0.3) for i in range(2)]
    arguments = {"height": 64, "width": 64, "prior_num_inference_steps": 2, "num_inference_steps": 2}
    jobs = [job(f"job{i}", seed=i, arguments=arguments, edits=(RequestedEdit(edits[i]),)) for i in range(2)]
    seen = Seen()
    drawn_as_alone(batcher_of(pipeline, max_batch_size=8, observer=seen), pipeline, jobs)
    assert {pictures for pictures, _, _ in seen.passes} == {2}


def test_each_request_has_a_guider_of_its_own(batcher_of) -> None:
    """It counts the steps of a run, and keeps a momentum."""
    pipeline = FAMILIES["hunyuan-image"].pipeline()
    arguments = {**FAMILIES["hunyuan-image"].for_prompts(None), "output_type": "pil"}
    jobs = [job(f"job{i}", seed=i, steps=2 + i, arguments=arguments) for i in range(2)]
    drawn_as_alone(batcher_of(pipeline, max_batch_size=8), pipeline, jobs)
    one = for_one_run(intercepted(pipeline, lambda *_: None).twin)
    assert one.guider is not pipeline.guider and one.scheduler is not pipeline.scheduler


@pytest.mark.parametrize("holder", [list, lambda unet: {"unet": unet}, lambda unet: types.SimpleNamespace(unet=unet)])
def test_a_denoiser_that_is_held_elsewhere_too_is_not_served(holder) -> None:
    pipeline = copy.deepcopy(stable_diffusion())
    pipeline.helper = holder([pipeline.unet]) if holder is list else holder(pipeline.unet)
    with pytest.raises(ValueError, match=r"StableDiffusionPipeline.helper holds the denoiser too"):
        Batcher(pipeline, RowWise(pipeline))


def test_a_denoiser_with_a_cache_is_not_served() -> None:
    pipeline = copy.deepcopy(flux())
    pipeline.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(ValueError, match=r"has a cache \(FirstBlockCacheConfig\).*call disable_cache before"):
        Batcher(pipeline, RowWise(pipeline))
    pipeline.transformer.disable_cache()
    Batcher(pipeline, RowWise(pipeline))
