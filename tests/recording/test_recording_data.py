"""Selecting, joining, saving and loading recordings, and outputs under a base prompt."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
from diffusers.configuration_utils import FrozenDict
from torch import nn

from cad_fast.diffusion.arguments import scheduler_config_of
from cad_fast.diffusion.denoisers import denoiser_of
from cad_fast.diffusion.generation import Generation
from cad_fast.recording.data import Recording
from cad_fast.recording.record import with_base
from tests.pipelines import stable_diffusion, stable_diffusion_xl
from tests.recording.common import PROMPTS, STEPS, assert_same, close, every_pipeline, make


def test_select() -> None:
    _, recording = make("sd")
    assert recording.select(steps=[2, 0]).timesteps == [1.0, 667.0]
    assert recording.select(timesteps=(334, 667)).timesteps == [667.0, 334.0]
    some = recording.select(rows=[2, 2, -3])
    assert some.prompts == ["dog", "dog", "a cat"] and some.seeds == [2, 2, 0]
    assert torch.equal(some.calls[1].output, recording.calls[1].output[[2, 2, 0]])
    with pytest.raises(ValueError, match="no recorded call"):
        recording.select(timesteps=(2, 3))
    with pytest.raises(ValueError, match=r"steps \[7\]"):
        recording.select(steps=[7])
    with pytest.raises(IndexError, match="among the 3 rows"):
        recording.select(rows=[3])
    with pytest.raises(ValueError, match="mask"):
        recording.select(rows=[True, False, True])


def test_rows_can_be_repeated_where_a_shared_input_is_as_long() -> None:
    pipeline, recording = make("flux", PROMPTS[:1])
    call = recording.calls[0].select_rows([0] * 16)  # 16 positions, too
    assert call.inputs["img_ids"].shape == (16, 3)
    with torch.no_grad():
        close(call.run(pipeline.transformer)[7], recording.calls[0].output[0])
    _, many = make("flux", ["a cat"] * 16, batch_size=16)
    assert many.select(rows=[0]).calls[0].inputs["img_ids"].shape == (16, 3)


def test_an_input_shared_by_all_rows_stays_shared() -> None:
    """FluxPipeline gives one row of negative prompt to any number; in a batch of one it looks like a row's own."""
    _, full = make("flux-true-cfg")
    shared = full.calls[0].unconditional_inputs["encoder_hidden_states"][:1].clone()
    parts = [full.select(rows=[0, 1]), full.select(rows=[2])]
    for part in parts:
        for call in part.calls:
            call.unconditional_inputs["encoder_hidden_states"] = shared
            call.unconditional_row_paths = None
            call.__post_init__()
    assert "encoder_hidden_states" not in parts[0].calls[0].unconditional_row_paths
    assert "encoder_hidden_states" in parts[1].calls[0].unconditional_row_paths
    joined = Recording.concat(parts)
    for rows in ([0], [2, 1]):
        assert joined.select(rows=rows).calls[0].unconditional_inputs["encoder_hidden_states"] is shared
    assert "3 rows, 3 steps, samples [16, 16]" in repr(joined)


def test_concat() -> None:
    _, first = make("sdxl", PROMPTS[:2])
    _, second = make("sdxl", PROMPTS[2:], seeds=2)
    joined = Recording.concat([first, second])
    assert_same(joined, make("sdxl")[1])
    assert joined.calls[0].inputs["encoder_hidden_states"] is joined.calls[2].inputs["encoder_hidden_states"]
    with pytest.raises(ValueError, match="differ in timesteps"):
        Recording.concat([first, second.select(steps=[0])])
    with pytest.raises(ValueError, match="differ in guidance_scale"):
        Recording.concat([first, make("sdxl", guidance_scale=3.0)[1]])
    with pytest.raises(ValueError, match="different models"):
        Recording.concat([first, make("sd")[1]])
    with pytest.raises(ValueError, match="no recordings"):
        Recording.concat([])


@every_pipeline
def test_save_and_load(name: str, tmp_path) -> None:
    pipeline, recording = make(name)
    recording = with_base(recording, pipeline, "a photo", progress=False)
    loaded = Recording.load(recording.save(tmp_path / "deep" / "folder"))
    assert_same(recording, loaded)
    loaded.check(denoiser_of(pipeline))
    for field in ("generation", "scheduler_config", "prediction_type", "fingerprint", "denoiser_calls"):
        assert getattr(loaded, field) == getattr(recording, field)
    for a, b in zip(recording.calls, loaded.calls, strict=True):
        assert a.inputs.keys() == b.inputs.keys() and a.row_paths == b.row_paths
        assert torch.equal(a.base_output, b.base_output)
    assert not list(tmp_path.rglob("*.part"))


def test_files_name_the_steps_and_the_guidance_as_ever(tmp_path) -> None:
    _, recording = make("sd", eta=0.5)
    recording.save(tmp_path)
    written = json.loads((tmp_path / "recording.json").read_text())
    names = ("num_inference_steps", "guidance_scale", "pipeline_kwargs")
    assert [written[name] for name in names] == [3, 7.5, {"eta": 0.5}] and "generation" not in written
    with pytest.raises(ValueError, match="generation has no num_inference_steps"):
        replace(recording, generation=Generation())


def test_damaged_files_are_refused(tmp_path) -> None:
    _, recording = make("sd")
    recording.save(tmp_path)
    plain, tensors = tmp_path / "recording.json", tmp_path / "recording.safetensors"
    text, data = plain.read_text(), tensors.read_bytes()

    tensors.write_bytes(data[:-100])
    with pytest.raises(ValueError, match=r"recording\.safetensors is truncated"):
        Recording.load(tmp_path)
    tensors.write_bytes(data)

    damages = {
        text[:-50]: "not valid JSON",
        text.replace('"save_id": "', '"save_id": "0'): "belongs to another save",
        text.replace('"format": 1', '"format": 99'): "format 99",
        text.replace("t00001", "t99999"): "tensor t99999 is missing",
        text.replace('"seeds"', '"sods"'): "entry 'seeds' is missing",
        json.dumps({**json.loads(text), "prompts": ["one"]}): "rows, but there are 1 prompts",
        json.dumps({**json.loads(text), "calls": [3]}): "not a whole recording",
        json.dumps({**json.loads(text), "calls": [{"inputs": {"pickle": 1}}]}): "not a whole recording",
    }
    for damaged, message in damages.items():
        plain.write_text(damaged)
        with pytest.raises(ValueError, match=message):
            Recording.load(tmp_path)
    plain.unlink()
    with pytest.raises(FileNotFoundError):
        Recording.load(tmp_path)


def test_check_tells_another_model() -> None:
    pipeline, recording = make("sd")
    other = copy.deepcopy(pipeline.unet)
    nn.init.normal_(other.conv_in.weight)
    with pytest.raises(ValueError, match="was made for another model"):
        recording.check(other)
    edited = copy.deepcopy(pipeline.unet)
    edited.register_forward_hook(lambda module, args, output: (output[0] * 1.05,))
    with pytest.raises(ValueError, match="another output than recorded: it differs by 5%"):
        recording.check(edited)


@every_pipeline
def test_base_output_is_that_of_a_recording_under_the_base_prompt(name: str) -> None:
    """At the first step both have the same sample, so that a recording of the base prompts gives what is expected."""
    pipeline, recording = make(name)
    texts = ["a photo", "photo of a house", "ship"]
    based = with_base(recording, pipeline, texts, batch_size=2, progress=False)
    _, expected = make(name, texts)
    close(based.calls[0].base_output, expected.calls[0].output)
    again = with_base(recording, pipeline, PROMPTS, progress=False)
    for call in again.calls:
        close(call.base_output, call.output)
    assert not torch.allclose(based.calls[2].base_output, based.calls[2].output, atol=1e-6)
    assert based.denoiser_calls == STEPS + 1 + 2 * (STEPS + 1)


def test_with_base_refuses() -> None:
    pipeline, recording = make("sd")
    with pytest.raises(ValueError, match="2 base prompts for 3 rows"):
        with_base(recording, pipeline, ["a", "b"])
    with pytest.raises(ValueError, match="another model"):
        with_base(recording, stable_diffusion_xl(), "a")


def test_the_scheduler_config_is_the_same_whatever_the_order_of_its_defaults() -> None:
    pipeline = stable_diffusion()
    names = list(pipeline.scheduler.config["_use_default_values"])
    assert len(names) > 1
    configs = []
    for order in (names, names[::-1]):
        pipeline.scheduler._internal_dict = FrozenDict({**pipeline.scheduler.config, "_use_default_values": order})
        configs.append(scheduler_config_of(pipeline))
    assert configs[0] == configs[1]
