"""What is checked of every family: each result against something slow and obvious."""

from __future__ import annotations

import contextlib
import copy
import functools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import cad_fast
from cad_fast import Ablation, Attributor, CallableObjective, ComponentSpace, Edit, EditManager, Recording
from cad_fast.diffusion.denoisers import denoiser_of, output_tensor
from cad_fast.diffusion.layers import match_modules
from cad_fast.recording.call import DenoiserCall
from cad_fast.serving.engine.batcher import Batcher
from cad_fast.serving.engine.edited_passes import RowWise
from cad_fast.serving.engine.jobs import PictureJob, RequestedEdit
from tests.row_truth import ablated_copy, distance

from . import structure
from .family import Family

PROMPTS = ("a cat", "two red dogs on a car")
STEPS = 2
# Relative distances: what rounding makes at most, and what an edit makes at least.
EQUAL, CHANGED = 1e-4, 1e-3
# How far two prompts must be apart: in models with random weights the text counts for little.
TEXT = 1e-5
WAIT = 60


def as_tensor(result: Any) -> Tensor:
    """What a pipeline returned, whatever its form: float64 [rows, ...]."""
    if isinstance(result, Tensor):
        return result.detach().double()
    if isinstance(result, np.ndarray):
        return torch.from_numpy(result).double()
    return torch.stack([torch.from_numpy(np.asarray(each, dtype=np.float64)) for each in result])


def generators(family: Family, seeds: Sequence[int]) -> Any:
    """One generator per row, or one for all where the pipeline takes no list."""
    made = [torch.Generator().manual_seed(seed) for seed in seeds]
    return made[0] if family.one_generator else made


def output_type(family: Family) -> dict[str, str]:
    """The argument ``output_type`` where there is one."""
    return {} if family.output_type is None else {"output_type": family.output_type}


@torch.no_grad()
def draw(family: Family, run: Any, **more: Any) -> Tensor:
    """The latents of the family's prompts, by its pipeline or by something that is called like it."""
    prompts = list(PROMPTS[: family.prompts])
    arguments = {**family.for_prompts(len(prompts)), **output_type(family), "num_inference_steps": STEPS, **more}
    arguments.setdefault("generator", generators(family, [5, 6][: len(prompts)]))
    return as_tensor(run(prompt=prompts, **arguments)[0])


@functools.lru_cache(maxsize=1)
def recording_of(family: Family) -> Recording:
    """All rows from one seed, so that nothing but the prompt tells them apart."""
    prompts = list(PROMPTS[: family.prompts])
    arguments = family.for_prompts(len(prompts))
    seeds = [5] * len(prompts)
    return cad_fast.record(
        family.pipeline(), prompts, seeds=seeds, num_inference_steps=STEPS, progress=False, **arguments
    )


def edit_of(family: Family, name: str, seed: int, fraction: float = 0.2, factor: float = 0.0) -> Edit:
    """An edit of random weights in every linear and convolution."""
    space = ComponentSpace.of(family.pipeline(), "weight", "all")
    return Edit.from_indices(name, space, Ablation.random(space.n, fraction, seed).indices, factor)


@contextlib.contextmanager
def by_hand(family: Family, edit: Edit) -> Iterator[Any]:
    """The pipeline with the weights of its denoiser multiplied one by one inside the context."""
    pipeline = family.pipeline()
    modules = dict(denoiser_of(pipeline).named_modules())
    kept = {name: modules[name].weight.clone() for name in edit.weight_indices()}
    with torch.no_grad():
        for name, indices in edit.weight_indices().items():
            modules[name].weight.view(-1)[indices] *= edit.factor
    try:
        yield pipeline
    finally:
        with torch.no_grad():
            for name, weight in kept.items():
                modules[name].weight.copy_(weight)


def drawn_by_hand(family: Family, edit: Edit) -> Tensor:
    """What ``draw`` gives with the weights changed by hand."""
    with by_hand(family, edit) as pipeline:
        return draw(family, pipeline)


class Mismatch(AssertionError):
    """A result is not what it has to be."""


def require(condition: bool, message: str) -> None:
    """Fail with the message unless the condition holds."""
    if not condition:
        raise Mismatch(message)


def require_equal(first: Tensor, second: Tensor, what: str) -> None:
    """Fail where the rows of two results differ by more than rounding."""
    require(first.shape == second.shape, f"{what}: shape {list(first.shape)} and {list(second.shape)}")
    require(bool(first.isfinite().all()), f"{what}: not finite")
    apart = distance(first, second)
    require(apart < EQUAL, f"{what}: apart by {apart:.2g}")


def require_changed(first: Tensor, second: Tensor, what: str) -> None:
    """Fail where a row of two results is the same."""
    for row in range(len(first)):
        apart = distance(first[row : row + 1], second[row : row + 1])
        require(apart > CHANGED, f"{what}: row {row} is the same ({apart:.2g})")


def record(family: Family) -> None:
    """Every step is recorded once, conditional apart from unconditional, and replays to what was recorded."""
    recording, denoiser = recording_of(family), denoiser_of(family.pipeline())
    require(recording.n_steps == family.calls, f"{recording.n_steps} of {family.calls} calls were recorded")
    for call in recording.calls:
        require((call.unconditional_output is None) == family.unguided, "guidance is not recorded as it is")
        with torch.no_grad():
            require_equal(call.run(denoiser), call.output, f"replay of step {call.step}")
            if call.unconditional_inputs is not None:
                replayed = output_tensor(denoiser(**call.unconditional_inputs))
                require_equal(replayed, call.unconditional_output, f"replay of the unconditional step {call.step}")
    first = recording.calls[0]
    if family.prompts > 1 and torch.equal(first.sample[0], first.sample[1]):  # of one noise, before the first step
        require_prompts_apart(first)
    if recording.latents is not None and family.output_type in (None, "latent"):
        alone = draw(family, family.pipeline(), generator=generators(family, recording.seeds))
        require_equal(recording.latents.double(), alone, "the latents and those of a call that nobody records")


def require_prompts_apart(call: DenoiserCall) -> None:
    """Fail unless two prompts tell two conditional rows of one noise apart, and no unconditional ones."""
    apart = distance(call.output[:1], call.output[1:2])
    require(apart > TEXT, f"the conditional outputs of two prompts are the same ({apart:.2g})")
    if call.unconditional_output is not None:
        other = distance(call.unconditional_output[:1], call.unconditional_output[1:2])
        require(other < apart / 10, f"the unconditional outputs of one noise are apart by {other:.2g}")


def edit(family: Family) -> None:
    """An edit changes the result as the weights changed by hand do, and is undone bit for bit."""
    pipeline, made = family.pipeline(), edit_of(family, "edit", 1)
    before = copy.deepcopy(denoiser_of(pipeline).state_dict())
    plain = draw(family, pipeline)
    with made.applied(pipeline):
        edited = draw(family, pipeline)
    require_changed(edited, plain, "the edited result")
    require_equal(edited, drawn_by_hand(family, made), "the edited result and that by hand")
    after = denoiser_of(pipeline).state_dict()
    require(all(torch.equal(value, after[name]) for name, value in before.items()), "a weight is not as it was")
    require(torch.equal(draw(family, pipeline), plain), "the result is not as it was")


def manager(family: Family) -> None:
    """Prompts under an edit each, in one call, give what a whole call under each edit gives."""
    pipeline = family.pipeline()
    edits = [edit_of(family, "first", 1), edit_of(family, "second", 2, factor=0.4)][: family.prompts]
    expected = [drawn_by_hand(family, each) for each in edits]
    plain = draw(family, pipeline)
    held = EditManager(pipeline)
    try:
        names = [held.load_edit(each) for each in edits]
        mixed = draw(family, held, edit_names=names)
        for row, whole in enumerate(expected):
            require_equal(mixed[row : row + 1], whole[row : row + 1], f"prompt {row} and the call under its edit")
        require_changed(mixed, plain, "the edited result")
        held.set_edits(names[0])
        require_equal(draw(family, pipeline), expected[0], "one edit for all prompts")
    finally:
        held.close()
    require(torch.equal(draw(family, pipeline), plain), "the result is not as it was")


def file(family: Family) -> None:
    """An edit read from its file does what the one that was written did."""
    pipeline, made = family.pipeline(), edit_of(family, "edit", 3)
    with tempfile.TemporaryDirectory() as folder:
        made.save_pretrained(folder)
        read = cad_fast.load_edit(folder, pipeline)
    with made.applied(pipeline):
        expected = draw(family, pipeline)
    with read.applied(pipeline):
        require(torch.equal(draw(family, pipeline), expected), "the edit that was read does something else")


def rows(family: Family) -> None:
    """Several ablations in one pass give what a copy of the denoiser with each gives."""
    denoiser, recorded = denoiser_of(family.pipeline()), recording_of(family).calls[-1]
    space = ComponentSpace.of(denoiser, "weight", "all")
    ablations = [Ablation.random(space.n, 0.2, 1), None, Ablation.random(space.n, 0.1, 2, factor=0.5)]
    with torch.no_grad(), cad_fast.rows(denoiser, ablations, space):
        outputs = recorded.select_rows(list(range(recorded.rows)) * len(ablations)).run(denoiser)
    for ablation, output in zip(ablations, outputs.split(recorded.rows), strict=True):
        with torch.no_grad():
            expected = recorded.run(ablated_copy(denoiser, space, ablation))
        require_equal(output, expected, f"rows under {ablation}")
    require_changed(outputs[: recorded.rows], outputs[recorded.rows : 2 * recorded.rows], "the ablated rows")


def energy(output: Tensor, call: DenoiserCall) -> Tensor:
    """An objective that needs neither guidance nor a target: the mean square of a row's output."""
    return output.float().flatten(1).square().mean(1)


def scores_of(family: Family, space: ComponentSpace) -> Tensor:
    """The gradient scores of a space, for ``energy``."""
    attributor = Attributor(family.pipeline(), CallableObjective(energy, "energy"), space, method="gradient")
    return attributor.run(recording_of(family), progress=False).values


def slow_gradients(family: Family, leaves_of: Callable[[nn.Module], list[Tensor]]) -> list[Tensor]:
    """The gradients of ``energy``, mean over calls and rows, at leaves of a copy of the denoiser."""
    twin = copy.deepcopy(denoiser_of(family.pipeline()))
    leaves, calls = leaves_of(twin), recording_of(family).calls
    total = torch.stack([energy(call.run(twin), call).mean() for call in calls]).mean()
    gradients = torch.autograd.grad(total, leaves, allow_unused=True)
    return [torch.zeros_like(leaf) if one is None else one for leaf, one in zip(leaves, gradients, strict=True)]


def require_scores(scores: Tensor, expected: Tensor) -> None:
    """Fail where scores are not those expected, or all zero."""
    require(bool(expected.isfinite().all()), "the expected scores are not finite")
    require(bool(expected.any()), "the expected scores are all zero")
    apart = float((scores - expected).norm() / expected.norm())
    require(apart < EQUAL, f"scores are apart by {apart:.2g}")


def weights(family: Family) -> None:
    """Scores of the weights of one module of the default target are w times dJ/dw by plain autograd."""
    space = ComponentSpace.of(family.pipeline(), "weight", family.target)
    space = space.restrict([space.entries[0].module])

    def weight(twin: nn.Module) -> list[Tensor]:
        return [space.modules(twin)[space.entries[0].module].weight.requires_grad_(True)]

    gradient = slow_gradients(family, weight)[0]
    kept = space.modules(family.pipeline())[space.entries[0].module].weight
    require_scores(scores_of(family, space), (kept * gradient).flatten())


def gated_scores(family: Family, space: ComponentSpace) -> Tensor:
    """dJ/dgate by plain autograd, of a gate on all columns of a component in what its module reads."""
    gate = torch.ones(space.n, requires_grad=True)

    def gates(twin: nn.Module) -> list[Tensor]:
        for entry, module in zip(space, space.modules(twin).values(), strict=True):
            component = torch.full((entry.columns,), space.n)  # of columns without one
            for number in range(entry.count):
                columns = entry.weight_indices(torch.tensor([number])) % entry.columns
                component[columns] = entry.offset + number
            module.register_forward_pre_hook(functools.partial(_through_gate, gate, component))
        return [gate]

    return slow_gradients(family, gates)[0]


def _through_gate(gate: Tensor, component: Tensor, module: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    wide = torch.cat([gate, gate.new_ones(1)])[component]
    wide = wide[:, None, None] if isinstance(module, nn.Conv2d) else wide
    return (inputs[0] * wide, *inputs[1:])


def _gated(family: Family, kind: Any, expected: dict[str, int]) -> None:
    space = ComponentSpace.of(family.pipeline(), kind)
    counts = {entry.module: entry.count for entry in space}
    missing = {name: count for name, count in expected.items() if counts.get(name) != count}
    extra = sorted(counts.keys() - expected.keys())
    require(not extra, f"{len(extra)} modules have no {kind}s: {', '.join(extra[:2])}")
    require(not missing, f"{len(missing)} of {len(expected)} modules with {kind}s are not counted: {[*missing][:2]}")
    scores = scores_of(family, space)
    require_scores(scores, gated_scores(family, space))


def preset(family: Family) -> None:
    """The preset feed-forward names the layers that diffusers' classes have, and no others."""
    denoiser = denoiser_of(family.pipeline())
    named = set(match_modules(denoiser, "feed-forward"))
    sure, maybe = structure.feed_forward(denoiser)
    missing, extra = sorted(sure - named), sorted(named - sure - maybe)
    require(not extra, f"{len(extra)} modules are in no feed-forward layer: {', '.join(extra[:2])}")
    require(not missing, f"{len(missing)} of {len(sure)} modules are missing: {', '.join(missing[:2])}")


def neurons(family: Family) -> None:
    """All hidden units are components, and their scores are dJ/dgate by plain autograd."""
    _gated(family, "neuron", structure.hidden_units(denoiser_of(family.pipeline())))


def heads(family: Family) -> None:
    """All attention heads are components, and their scores are dJ/dgate by plain autograd."""
    _gated(family, "head", structure.heads(denoiser_of(family.pipeline())))


def served(family: Family) -> None:
    """Two requests under different edits, served together, give what each gives when it is drawn alone."""
    pipeline = family.pipeline()
    edits = [edit_of(family, "first", 1), edit_of(family, "second", 2, factor=0.4)]
    arguments = {**family.for_prompts(None), **output_type(family), "num_inference_steps": STEPS}
    jobs = [
        PictureJob(each.name, prompt, seed=seed, arguments=arguments, edits=(RequestedEdit(each),))
        for each, prompt, seed in zip(edits, PROMPTS, (5, 6), strict=True)
    ]
    batcher = Batcher(pipeline, RowWise(pipeline), batch_timeout=0.2).start()
    try:
        drawn = [ticket.future.result(WAIT) for ticket in [batcher.submit(job) for job in jobs]]
    finally:
        batcher.close(timeout=WAIT)
    for each, job, pictures in zip(edits, jobs, drawn, strict=True):
        plain = alone(pipeline, job)
        with by_hand(family, each):
            expected = alone(pipeline, job)
        require_equal(as_tensor(pictures), expected, f"request {job.id}, served and alone")
        require_changed(expected, plain, f"request {job.id}")


@torch.no_grad()
def alone(pipeline: Any, job: PictureJob) -> Tensor:
    """What a request gives by a call of its own."""
    generator = torch.Generator().manual_seed(job.seed)
    return as_tensor([pipeline(prompt=job.prompt, generator=generator, **job.arguments)[0][0]])


CHECKS: dict[str, Callable[[Family], None]] = {
    check.__name__: check for check in (record, edit, manager, file, rows, served, preset, weights, neurons, heads)
}
