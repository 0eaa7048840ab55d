"""Arguments of the recording functions."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn

from cad_fast.diffusion.arguments import scheduler_config_of
from cad_fast.diffusion.denoisers import denoiser_of
from cad_fast.recording.call import DenoiserCall
from cad_fast.recording.record import record
from tests.pipelines import flux, stable_diffusion
from tests.recording.common import make


def test_seeds() -> None:
    _, recording = make("sd", "a cat", seeds=[4, 4])
    assert recording.prompts == ["a cat"] * 2 and torch.equal(recording.latents[0], recording.latents[1])
    assert make("sd")[1].seeds == [0, 1, 2]


def test_arguments_that_do_not_fit_are_refused() -> None:
    pipeline = stable_diffusion()
    for name in ("generator", "num_images_per_prompt", "output_type"):
        with pytest.raises(ValueError, match=name):
            record(pipeline, "a cat", **{name: 2})
    for arguments, message in [
        ({"prompts": []}, "no prompts"),
        ({"prompts": ["a"], "seeds": [1, 2]}, "1 prompts and 2 seeds"),
        ({"prompts": "a", "batch_size": 0}, "batch_size is 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            record(pipeline, **arguments)


def test_denoiser_of() -> None:
    assert denoiser_of(flux()) is flux().transformer
    assert denoiser_of(flux().transformer) is flux().transformer
    with pytest.raises(TypeError, match=r"whose parts are scheduler, vae"):
        denoiser_of(SimpleNamespace(components={"vae": 1, "scheduler": 2}))
    with pytest.raises(TypeError, match="got int"):
        denoiser_of(3)


def test_a_module_that_is_no_denoiser_is_refused() -> None:
    pipeline = SimpleNamespace(unet=nn.Linear(2, 2), scheduler=None)
    with pytest.raises(ValueError, match=r"Linear\.forward takes \(input\)"):
        record(_Callable(pipeline.unet), "a cat", progress=False)


class _Callable:
    def __init__(self, unet: nn.Module) -> None:
        self.unet = unet

    def __call__(self, prompt, generator):
        return [self.unet(torch.zeros(1, 2))]


def test_a_scheduler_has_one_config_whether_made_or_loaded(tmp_path) -> None:
    made = DDIMScheduler(beta_schedule="scaled_linear", timestep_spacing="trailing")
    made.save_pretrained(tmp_path)
    loaded = DDIMScheduler.from_pretrained(tmp_path)
    configs = [scheduler_config_of(SimpleNamespace(scheduler=scheduler)) for scheduler in (made, loaded)]
    assert configs[0] == configs[1] and configs[0]["timestep_spacing"] == "trailing"


def test_calls_made_by_hand() -> None:
    call = DenoiserCall(
        step=0,
        timestep=torch.tensor([1.0, 2.0]),
        inputs={"sample": torch.zeros(2, 4, 2, 2), "timestep": torch.tensor([1, 2]), "text": [torch.ones(2, 3), None]},
        sample_key="sample",
        output=torch.zeros(2, 4, 2, 2),
    )
    assert call.row_paths == {"sample", "timestep", "text.0"} and call.rows == 2
    assert call.select_rows(torch.tensor([1])).timestep.tolist() == [2.0]
    assert "rows=2, with output" in repr(call)
    with pytest.raises(ValueError, match="output has shape"):
        DenoiserCall(0, 1.0, call.inputs, "sample", output=torch.zeros(3))
    with pytest.raises(ValueError, match="'latents' is not a tensor"):
        DenoiserCall(0, 1.0, call.inputs, "latents", output=None)
