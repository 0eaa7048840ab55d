"""What is checked of every family: each result against something slow and obvious."""

from __future__ import annotations

import copy
import functools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import cad_fast
from cad_fast import Ablation, Attributor, CallableObjective, ComponentSpace, Edit, EditManager, Recording
from cad_fast.diffusion.denoisers import denoiser_of, output_tensor
from cad_fast.recording.call import DenoiserCall
from cad_fast.serving.engine.batcher import Batcher
from cad_fast.serving.engine.edited_passes import RowWise
from cad_fast.serving.engine.jobs import PictureJob, RequestedEdit
from tests.row_truth import ablated_copy, distance, multipliers
from tests.serving.common import Alone

from .family import Family

PROMPTS = ("a cat", "two red dogs on a car")
STEPS = 2
# Relative distances: what rounding makes at most, and what an edit makes at least.
EQUAL, CHANGED = 1e-4, 1e-3
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
    arguments.setdefault("generator", generators(family, [5, 6]))
    return as_tensor(run(prompts, **arguments)[0])


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


@torch.no_grad()
def by_hand(family: Family, edit: Edit) -> Any:
    """A copy of the whole pipeline whose weights are multiplied one by one."""
    twin = copy.deepcopy(family.pipeline())
    modules = dict(denoiser_of(twin).named_modules())
    for name, indices in edit.weight_indices().items():
        weight = modules[name].weight
        weight.view(-1)[indices] = weight.view(-1)[indices] * edit.factor
    return twin


def require_equal(first: Tensor, second: Tensor, what: str) -> None:
    """Fail where the rows of two results differ by more than rounding."""
    assert first.shape == second.shape, f"{what}: shape {list(first.shape)} and {list(second.shape)}"
    assert bool(first.isfinite().all()), f"{what}: not finite"
    apart = distance(first, second)
    assert apart < EQUAL, f"{what}: apart by {apart:.2g}"


def require_changed(first: Tensor, second: Tensor, what: str) -> None:
    """Fail where a row of two results is the same."""
    for row in range(len(first)):
        apart = distance(first[row : row + 1], second[row : row + 1])
        assert apart > CHANGED, f"{what}: row {row} is the same ({apart:.2g})"


def record(family: Family) -> None:
    """Every step is recorded once, conditional apart from unconditional, and replays to what was recorded."""
    recording, denoiser = recording_of(family), denoiser_of(family.pipeline())
    assert recording.n_steps == family.calls, f"{recording.n_steps} of {family.calls} calls were recorded"
    for call in recording.calls:
        assert (call.unconditional_output is None) == family.unguided, "guidance is not recorded as it is"
        with torch.no_grad():
            require_equal(call.run(denoiser), call.output, f"replay of step {call.step}")
            if not family.unguided:
                require_equal(
                    output_tensor(denoiser(**call.unconditional_inputs)),
                    call.unconditional_output,
                    f"replay of the unconditional step {call.step}",
                )
    first = recording.calls[0]
    if family.prompts > 1:
        require_changed(first.output[:1], first.output[1:2], "the conditional output of another prompt")
    if family.prompts > 1 and not family.unguided:
        require_equal(*first.unconditional_output.double().split(1), "the unconditional outputs of one seed")
    if recording.latents is not None:
        alone = draw(family, family.pipeline(), generator=generators(family, recording.seeds))
        require_equal(recording.latents.double(), alone, "the latents and those of a call that nobody records")


def edit(family: Family) -> None:
    """An edit changes the result as the weights changed by hand do, and is undone bit for bit."""
    pipeline, made = family.pipeline(), edit_of(family, "edit", 1)
    before = copy.deepcopy(denoiser_of(pipeline).state_dict())
    plain = draw(family, pipeline)
    with made.applied(pipeline):
        edited = draw(family, pipeline)
    require_changed(edited, plain, "the edited result")
    require_equal(edited, draw(family, by_hand(family, made)), "the edited result and that by hand")
    after = denoiser_of(pipeline).state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items()), "a weight is not as it was"
    assert torch.equal(draw(family, pipeline), plain), "the result is not as it was"


def manager(family: Family) -> None:
    """Prompts under an edit each, in one call, give what a whole call under each edit gives."""
    pipeline = family.pipeline()
    edits = [edit_of(family, "first", 1), edit_of(family, "second", 2, factor=0.4)][: family.prompts]
    expected = [draw(family, by_hand(family, each)) for each in edits]
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
    assert torch.equal(draw(family, pipeline), plain), "the result is not as it was"


def file(family: Family) -> None:
    """An edit read from its file does what the one that was written did."""
    pipeline, made = family.pipeline(), edit_of(family, "edit", 3)
    with tempfile.TemporaryDirectory() as folder:
        made.save_pretrained(folder)
        read = cad_fast.load_edit(folder, pipeline)
    assert read == made or read.components.keys() == made.components.keys()
    with made.applied(pipeline):
        expected = draw(family, pipeline)
    with read.applied(pipeline):
        assert torch.equal(draw(family, pipeline), expected), "the edit that was read does something else"


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
    assert bool(expected.any()), "the expected scores are all zero"
    apart = float((scores - expected).norm() / expected.norm())
    assert apart < EQUAL, f"scores are apart by {apart:.2g}"


def weights(family: Family) -> None:
    """Scores of the weights of a feed-forward linear are w times dJ/dw by plain autograd."""
    space = ComponentSpace.of(family.pipeline(), "weight")
    space = space.restrict([space.entries[len(space.entries) // 2].module])

    def weight(twin: nn.Module) -> list[Tensor]:
        return [space.modules(twin)[space.entries[0].module].weight.requires_grad_(True)]

    gradient = slow_gradients(family, weight)[0]
    kept = space.modules(family.pipeline())[space.entries[0].module].weight
    require_scores(scores_of(family, space), (kept * gradient).flatten())


def gated_scores(family: Family, space: ComponentSpace) -> Tensor:
    """dJ/dgate by plain autograd, of a gate on every block of columns that the modules of a space read."""

    def gates(twin: nn.Module) -> list[Tensor]:
        made = []
        for entry, module in zip(space, space.modules(twin).values(), strict=True):
            gate = torch.ones(entry.count, requires_grad=True)
            wide = functools.partial(torch.repeat_interleave, gate, entry.block)
            module.register_forward_pre_hook(lambda _, inputs, wide=wide: (inputs[0] * wide(), *inputs[1:]))
            made.append(gate)
        return made

    return torch.cat(slow_gradients(family, gates))


def _gated(family: Family, kind: Any) -> None:
    space = ComponentSpace.of(family.pipeline(), kind)
    scores = scores_of(family, space)
    require_scores(scores, gated_scores(family, space))


def neurons(family: Family) -> None:
    """Scores of hidden units are dJ/dgate by plain autograd."""
    _gated(family, "neuron")


def heads(family: Family) -> None:
    """Scores of attention heads are dJ/dgate by plain autograd."""
    _gated(family, "head")


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
    alone = Alone(pipeline)
    for job, pictures in zip(jobs, drawn, strict=True):
        with torch.no_grad():
            expected = as_tensor([alone.draw(job)])
            plain = as_tensor([alone.draw(replace(job, edits=()))])
        require_equal(as_tensor(pictures), expected, f"request {job.id}, served and alone")
        require_changed(expected, plain, f"request {job.id}")


CHECKS: dict[str, Callable[[Family], None]] = {
    check.__name__: check for check in (record, edit, manager, file, rows, weights, neurons, heads, served)
}
