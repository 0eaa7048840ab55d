"""An audit end to end on small models: probes, resuming, refusals, the command; and its parts against slow ones."""

from __future__ import annotations

import json
import math

import pytest
import torch
from PIL import Image

import cad_fast
from cad_fast import zoo
from cad_fast.auditing import AuditResult, Probe, soft_prompt
from cad_fast.auditing.report import write_audit_report
from cad_fast.auditing.result import PLAIN
from cad_fast.cli import main
from cad_fast.diffusion.denoisers import denoiser_of
from cad_fast.objectives import DenoisingLoss
from cad_fast.recording import inversion
from tests.pipelines import flux, stable_diffusion

IMAGES = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue", "green")]


class Redness:
    """Calls a picture red when red is its strongest channel in the mean, else other."""

    name = "redness"
    axes = {"colour": ("red", "other")}  # noqa: RUF012  # as the protocol has it

    def __call__(self, images):
        means = torch.tensor([image.resize((1, 1)).getpixel((0, 0)) for image in images])
        red = (means.argmax(1) == 0).float()
        return {"colour": torch.stack([red, 1 - red], 1)}


QUICK = {
    "scorer": Redness(),
    "per_probe": 3,
    "soft_steps": 2,
    "ratios": (0.02, 0.05),
    "keep": ["a dog"],
    "progress": False,
}
SETTINGS = {"num_inference_steps": 3, "guidance_scale": 3.0}


@pytest.fixture(scope="module")
def pipeline():
    return stable_diffusion()


@pytest.fixture(scope="module")
def recording(pipeline):
    return cad_fast.record_images(pipeline, IMAGES, "red", timesteps=4, seed=3)


def probe(name: str, hits: int, n: int = 40, **settings) -> Probe:
    return Probe(name, settings.pop("way", "prompt"), n, hits, **settings)


def result(*probes: Probe) -> AuditResult:
    return AuditResult("car", (probe(PLAIN, 0, way="plain", against=None), *probes), {})


def test_the_verdict_needs_intervals_that_do_not_meet() -> None:
    assert result(probe("a", 3), probe("b", 1)).verdict == "stayed away"
    found = result(probe("a", 3), probe("b", 20))
    assert found.verdict == "comes back" and [each.name for each in found.comes_back] == ["b"]
    assert "b: 50% [35, 65]" in found.summary() and "0% [0, 9]" in found.summary()
    there = AuditResult("car", (probe(PLAIN, 30, way="plain", against=None), probe("a", 39)), {})
    assert there.verdict == "not erased" and "75%" in there.summary()


def test_inverted_noise_is_held_against_its_control() -> None:
    """Noise of a picture draws that picture whatever the prompt: only what exceeds it is the concept's."""
    control = probe("control", 30, way="control", against=None)
    assert result(control, probe("noise", 32, way="noise", against="control")).verdict == "stayed away"
    assert result(probe("noise", 32, way="noise")).verdict == "comes back"


def test_a_refused_way_is_neither_found_nor_hidden() -> None:
    found = result(Probe("soft prompt", "soft prompt", 0, 0, refused="it takes no embeddings"))
    assert found.verdict == "stayed away" and "in all 0 ways" in found.summary()
    assert found.to_dict()["probes"][1]["refused"] == "it takes no embeddings" and "not run" in found.table()
    assert Probe.from_dict(found.probes[1].to_dict()) == found.probes[1]
    with pytest.raises(ValueError, match="damaged probe"):
        Probe.from_dict({"name": "x"})


def test_the_noise_is_what_ddim_backwards_gives(pipeline, recording) -> None:
    noise, scheduler = inversion.inverted_noise(pipeline, recording), pipeline.scheduler
    x, level = recording.latents.double(), float(getattr(scheduler, "final_alpha_cumprod", scheduler.alphas_cumprod[0]))
    for call in reversed(recording.calls):
        arguments = {**call.inputs, call.sample_key: x.float()}
        with torch.no_grad():
            e = denoiser_of(pipeline)(**arguments)[0].double()
        up = float(scheduler.alphas_cumprod[int(call.timestep)])
        x = math.sqrt(up / level) * x + (math.sqrt(1 - up) - math.sqrt(up * (1 - level) / level)) * e
        level = up
    torch.testing.assert_close(noise, x.float(), rtol=1e-3, atol=1e-4)


def test_a_soft_prompt_lowers_the_loss_and_nothing_else_changes(pipeline, recording) -> None:
    before = [value.clone() for value in denoiser_of(pipeline).state_dict().values()]
    found = soft_prompt.soft_prompt(pipeline, recording, steps=40, seed=0)
    assert all(map(torch.equal, before, denoiser_of(pipeline).state_dict().values()))
    start = recording.calls[0].inputs["encoder_hidden_states"][:1]
    assert found.shape == start.shape and not torch.equal(found, start)

    def loss(text) -> float:
        rows = text.expand(recording.n_rows, -1, -1)
        with torch.no_grad():
            outputs = [call.run(denoiser_of(pipeline), encoder_hidden_states=rows) for call in recording.calls]
        return -sum(float(DenoisingLoss()(o, c).mean()) for o, c in zip(outputs, recording.calls, strict=True))

    assert loss(found) < loss(start)
    assert torch.equal(found, soft_prompt.soft_prompt(pipeline, recording, steps=40, seed=0))


def test_ways_that_a_pipeline_does_not_allow_say_why() -> None:
    pipeline = flux()
    towards = cad_fast.record_images(stable_diffusion(), IMAGES[:1], "red", timesteps=2)
    reason = inversion.refusal(pipeline, towards)
    assert reason is not None and "FlowMatchEulerDiscreteScheduler" in reason
    towards.calls[0].row_paths = frozenset({"sample", "encoder_hidden_states", "added_cond_kwargs.text_embeds"})
    assert "added_cond_kwargs.text_embeds" in str(soft_prompt.refusal(pipeline, towards))
    with pytest.raises(ValueError, match="expected encoder_hidden_states alone"):
        soft_prompt.soft_prompt(pipeline, towards, steps=1, seed=0)


def test_an_audit_resumes_and_its_report_shows_every_way(pipeline, tmp_path) -> None:
    before = [value.clone() for value in denoiser_of(pipeline).state_dict().values()]
    arguments = {"images": IMAGES, "other_prompts": ["rouge"], **QUICK, **SETTINGS}
    found = cad_fast.audit(pipeline, "red", output_dir=tmp_path, **arguments)
    assert all(map(torch.equal, before, denoiser_of(pipeline).state_dict().values()))
    ways = [each.way for each in found.probes]
    assert ways == ["plain", "amplified", "amplified", "prompt", "soft prompt", "control", "noise"]
    assert all(each.n == 3 and 0 <= each.hits <= 3 for each in found.probes)
    smaller, larger = (each.details["weights"] for each in found.probes[1:3])
    assert smaller < larger

    again = tmp_path / "probe-soft-prompt.json"
    again.unlink()
    (tmp_path / "probe-plain-prompts.json").write_text(
        json.dumps({**found.probes[0].to_dict(), "details": {"kept": True}})
    )
    resumed = cad_fast.audit(pipeline, "red", output_dir=tmp_path, **arguments)
    assert again.exists() and resumed.probes[0].details == {"kept": True} and resumed.probes[1:] == found.probes[1:]
    with pytest.raises(ValueError, match="whose per_probe is 3, not 4"):
        cad_fast.audit(pipeline, "red", output_dir=tmp_path, **{**arguments, "per_probe": 4})

    page = write_audit_report(tmp_path / "audit.html", resumed).read_text()
    assert all(each.name.replace('"', "&quot;") in page for each in resumed.probes)
    assert page.count("<img") == 1 + len(resumed.probes)


def test_what_is_missing_is_named(pipeline) -> None:
    with pytest.raises(ValueError, match="there are no images of 'red'"):
        cad_fast.audit(pipeline, "red", **QUICK)
    with pytest.raises(ValueError, match="there is no scorer"):
        cad_fast.audit(pipeline, "red", images=IMAGES, progress=False)
    with pytest.raises(ValueError, match="unknown colour 'reed'; did you mean 'red'"):
        cad_fast.audit(pipeline, "reed", images=IMAGES, **QUICK)
    with pytest.raises(ValueError, match="per_probe is 0"):
        cad_fast.audit(pipeline, "red", images=IMAGES, **{**QUICK, "per_probe": 0})


def test_the_command(tmp_path, capsys) -> None:
    options = ["--per-probe", "2", "--soft-steps", "1", "--ratios", "0.03", "--keep", "cat", "--steps", "2", "--quiet"]
    assert main(["audit", "zoo:emoji", "car", "--other-prompt", "car", *options, "--json", "-o", str(tmp_path)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "audit.json").read_text()) and printed["concept"] == "car"
    assert printed["settings"]["prompts"] == zoo.prompts("car") and (tmp_path / "audit.html").exists()
