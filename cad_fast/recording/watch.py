"""Watch a pipeline's denoiser while it generates, and tell conditional from unconditional outputs by the data."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..diffusion.arguments import prompt_arguments
from ..diffusion.context import generators, own_scheduler, plain_tensors, silent, with_inner
from ..diffusion.denoisers import (
    ForwardSignature,
    PipelinePart,
    denoiser_name,
    denoiser_of,
    denoisers_in,
    output_tensor,
    timestep_value,
)
from ..diffusion.dtypes import one_dtype
from ..diffusion.trees import SCALARS, SHARED_NAMES, find_row_paths, leaves, map_arguments, same_leaf
from .call import DenoiserCall

KEPT_PER_INPUT = 4  # both halves, their whole and one to spare: enough to recognise what does not change


class StopGeneration(BaseException):
    """Ends a pipeline's run early; not an Exception, so that no pipeline catches it."""


class _Keeper:
    """Copies tensors to a device; one that holds the same values as a recent one at its place is that one."""

    def __init__(self, device: str | torch.device) -> None:
        self.device = torch.device(device)
        self._recent: dict[str, list[tuple[Tensor, int | None, Tensor]]] = {}

    def keep(self, path: str, tensor: Tensor) -> Tensor:
        recent = self._recent.setdefault(path, [])
        version = None if tensor.is_inference() else tensor._version
        for source, its_version, stored in recent:
            if source is tensor and version is not None and version == its_version:
                return stored
        stored = tensor.detach().to(self.device, copy=True)
        stored = next((known for _, _, known in recent if same_leaf(known, stored)), stored)
        recent.append((tensor, version, stored))
        del recent[:-KEPT_PER_INPUT]
        return stored


@dataclass
class _RawCall:
    inputs: dict[str, Any]
    output: Tensor
    timestep: float | Tensor
    rows: int


def _check_recordable(owner: str, path: str, leaf: Any) -> None:
    if isinstance(leaf, dict) and all(isinstance(key, str) for key in leaf):
        entries = list(leaf.values())
    elif isinstance(leaf, (list, tuple)):
        entries = list(leaf)
    elif isinstance(leaf, (Tensor, *SCALARS)):
        return
    else:
        raise ValueError(f"{owner}'s argument {path} holds a {type(leaf).__name__}, which cannot be recorded")
    for entry in entries:
        _check_recordable(owner, path, entry)


def _relative_distance(first: Tensor, second: Tensor) -> float:
    return ((first.float() - second.float()).norm() / second.float().norm().clamp(min=1e-30)).item()


class _Watched:
    """A scheduler's step that is being watched. A copy of the scheduler, which some pipelines make, has its own."""

    def __init__(self, watched: Callable[..., Any], step: Callable[..., Any]) -> None:
        functools.update_wrapper(self, step)  # pipelines ask for its signature
        self._call = watched

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        step: Any = self.__wrapped__  # type: ignore[attr-defined]
        owner = memo.get(id(getattr(step, "__self__", None)))
        return step if owner is None else getattr(type(owner), step.__name__).__get__(owner)


class DenoiserWatch:
    """Context manager that turns a pipeline run into ``calls``, one DenoiserCall per denoising step.

    Rows per call tell classifier-free guidance: as many as samples, one call per step: none; twice as many with
    equal halves: both in one batch; two calls at one timestep with one sample: one after the other. Which is the
    conditional one is told by what the pipeline hands its scheduler: a combination of the two with more of it.
    Where this cannot be told, the usual order is taken: unconditional first in a batch, last in two calls.
    """

    def __init__(
        self,
        pipeline: Any,
        n_samples: int,
        *,
        device: str | torch.device = "cpu",
        on_step: Callable[[], None] | None = None,
        stop_at_first: bool = False,
    ) -> None:
        self.denoiser: nn.Module = denoiser_of(pipeline)
        self._name = denoiser_name(pipeline)
        # Whoever names a part knows that there are others.
        chosen = isinstance(pipeline, (PipelinePart, nn.Module))
        self._others = {} if chosen else {n: m for n, m in denoisers_in(pipeline).items() if m is not self.denoiser}
        self.scheduler: Any = getattr(pipeline, "scheduler", None)
        """The scheduler that steps by the denoiser's outputs: of several, the pipeline's own until another one does."""
        self._schedulers = _schedulers_of(pipeline)
        self.signature = ForwardSignature.of(self.denoiser)
        self.n_samples = n_samples
        self.on_step = on_step
        self.stop_at_first = stop_at_first
        self.calls: list[DenoiserCall] = []
        self.last_sample: Tensor | None = None
        self.first_scheduler_timestep: float | None = None
        self.negated = False
        self._keeper = _Keeper(device)
        self._pending: list[_RawCall] = []
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> DenoiserWatch:
        handle = self.denoiser.register_forward_hook(self._after_forward, with_kwargs=True)
        self._undo.callback(handle.remove)
        for name, other in self._others.items():
            refuse = functools.partial(self._refuse_other, name)
            self._undo.callback(other.register_forward_pre_hook(refuse).remove)
        for scheduler in self._schedulers:
            self._wrap_step(scheduler)
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        self._undo.close()
        if error_type is None and self._pending:
            self._finish_step(None)

    def _wrap_step(self, scheduler: Any) -> None:
        instance_step, step = vars(scheduler).get("step"), scheduler.step

        def watched(model_output: Any, timestep: Any, *args: Any, **kwargs: Any) -> Any:
            ours = bool(self._pending)  # else another denoiser's, of a pipeline with several
            if ours or len(self._schedulers) == 1:
                if self.first_scheduler_timestep is None and isinstance(timestep, (int, float, Tensor)):
                    self.first_scheduler_timestep = float(torch.as_tensor(timestep).flatten()[0])
            if ours:
                self.scheduler = scheduler
                self._finish_step(model_output if isinstance(model_output, Tensor) else None)
            result = step(model_output, timestep, *args, **kwargs)
            if scheduler is self.scheduler:
                sample = result[0] if isinstance(result, tuple) else getattr(result, "prev_sample", None)
                self.last_sample = sample if isinstance(sample, Tensor) else None
            return result

        scheduler.step = _Watched(watched, step)

        def unwrap() -> None:
            if instance_step is None:
                del scheduler.step  # uncovers the method of the class
            else:
                scheduler.step = instance_step

        self._undo.callback(unwrap)

    def _refuse_other(self, name: str, *_: Any) -> None:
        raise ValueError(
            f"the pipeline runs the denoiser {name!r} beside {self._name!r}, whose calls alone would be recorded: "
            f"record one at a time, with PipelinePart(pipeline, {self._name!r}) or PipelinePart(pipeline, {name!r}) in "
            "place of the pipeline, or --part on the command line"
        )

    def _after_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        inputs = self.signature.bind(args, kwargs)
        for path, value in inputs.items():
            _check_recordable(self.signature.owner, path, value)
        kept = map_arguments(inputs, lambda path, leaf: self._keep(f"{path}#whole", leaf))
        sample = kept[self.signature.sample_key]
        stored = output_tensor(output).detach().to(self._keeper.device, copy=True)
        if not bool(stored.isfinite().all()):
            raise ValueError(
                f"step {len(self.calls)}: the output of {type(self.denoiser).__name__} is NaN or infinite somewhere. "
                "Does one of its weights, or an edit, overflow in this dtype?"
            )
        timestep = timestep_value(inputs[self.signature.timestep_key])
        raw = _RawCall(kept, stored, timestep, len(sample))
        if self._pending and self._begins_a_step(raw):
            self._finish_step(None)
        self._pending.append(raw)

    def _begins_a_step(self, raw: _RawCall) -> bool:
        """For pipelines that step by other means than their scheduler."""
        last, key = self._pending[-1], self.signature.sample_key
        if not same_leaf(last.timestep, raw.timestep):
            return True
        return last.rows == raw.rows and not same_leaf(last.inputs[key], raw.inputs[key])

    def _keep(self, path: str, leaf: Any) -> Any:
        return self._keeper.keep(path, leaf) if isinstance(leaf, Tensor) else leaf

    def _finish_step(self, guided: Tensor | None) -> None:
        pending, self._pending = self._pending, []
        rows = [raw.rows for raw in pending]
        n = self.n_samples
        if rows == [n]:
            call = self._make_call(pending[0], None)
            assert call.output is not None, "a call that was just made has its output"
            pair = _comparable(guided, call.output)
            self.negated |= pair is not None and bool((pair[0] * pair[1]).sum() < 0)
        elif rows == [2 * n]:
            call = self._make_call(*self._sorted(*self._halves(pending[0]), guided, conditional_first=False))
        elif rows == [n, n]:
            first, second = pending
            call = self._make_call(*self._sorted(first, second, guided, conditional_first=True))
        else:
            raise ValueError(
                f"step {len(self.calls)} made denoiser calls of {' and '.join(map(str, rows))} rows for {n} samples. "
                f"Understood are {n} rows (no guidance), {2 * n} rows, or twice {n} rows (classifier-free guidance); "
                "guidance with three terms, or several images per prompt, cannot be recorded"
            )
        self.calls.append(call)
        if self.on_step is not None:
            self.on_step()
        if self.stop_at_first:
            raise StopGeneration

    def _halves(self, raw: _RawCall) -> tuple[_RawCall, _RawCall]:
        n, key = self.n_samples, self.signature.sample_key
        row_paths = find_row_paths(raw.inputs, raw.rows)
        if not same_leaf(raw.inputs[key][:n], raw.inputs[key][n:]):
            raise ValueError(
                f"step {len(self.calls)} made one denoiser call of {raw.rows} rows for {n} samples, but its halves "
                f"differ in {key!r}: this is not classifier-free guidance and cannot be recorded"
            )

        def half(part: slice) -> _RawCall:
            def cut(path: str, leaf: Any) -> Any:
                return self._keep(path, leaf[part]) if path in row_paths else leaf

            timestep = raw.timestep[part] if isinstance(raw.timestep, Tensor) else raw.timestep
            return _RawCall(map_arguments(raw.inputs, cut), raw.output[part].clone(), timestep, n)

        return half(slice(0, n)), half(slice(n, None))

    def _sorted(
        self, first: _RawCall, second: _RawCall, guided: Tensor | None, *, conditional_first: bool
    ) -> tuple[_RawCall, _RawCall]:
        """The two as (conditional, unconditional)."""
        if same_leaf(first.inputs, second.inputs) and _relative_distance(first.output, second.output) > 0.05:
            unknown = _rowless(first.inputs, first.rows, self.signature.sample_key)
            if unknown:
                raise ValueError(
                    f"step {len(self.calls)}: {unknown} does not have one entry for each of the {2 * first.rows} rows "
                    "that the denoiser was called with, so that conditional and unconditional rows cannot be told apart"
                )
            raise ValueError(
                f"step {len(self.calls)} evaluated the denoiser twice on the same inputs, with different outputs: "
                "guidance that changes the model (such as perturbed attention) cannot be recorded"
            )
        parts = _parts_of(guided, first.output, second.output, first.inputs[self.signature.sample_key])
        if parts is not None:
            conditional_first = abs(parts[0]) > abs(parts[1])
            self.negated |= max(parts, key=abs) < 0
        return (first, second) if conditional_first else (second, first)

    def _make_call(self, conditional: _RawCall, unconditional: _RawCall | None) -> DenoiserCall:
        return DenoiserCall(
            step=len(self.calls),
            timestep=conditional.timestep,
            inputs=conditional.inputs,
            sample_key=self.signature.sample_key,
            timestep_key=self.signature.timestep_key,
            output=conditional.output,
            unconditional_inputs=None if unconditional is None else unconditional.inputs,
            unconditional_output=None if unconditional is None else unconditional.output,
        )


def _rowless(inputs: dict[str, Any], rows: int, sample_key: str) -> str:
    """The embeddings among the inputs of half a batch that were not halved, with their shapes."""
    whole = {
        path: list(leaf.shape)
        for path, leaf in leaves(inputs)
        if isinstance(leaf, Tensor) and leaf.ndim > 2 and path != sample_key and len(leaf) != rows
        if not SHARED_NAMES & set(path.split("."))
    }
    named = [f"{p} {shape}" for p, shape in whole.items() if 2 * rows in shape or shape[0] % (2 * rows) == 0]
    return ", ".join(named)


def _schedulers_of(pipeline: Any) -> list[Any]:
    """What steps in a pipeline and in those that it is made of, each once."""
    if isinstance(pipeline, nn.Module):
        return []
    held = [value for each in with_inner(pipeline) for value in vars(each).values()]
    held.append(getattr(pipeline, "scheduler", None))
    steps = [value for value in held if callable(getattr(value, "step", None)) and hasattr(value, "set_timesteps")]
    return list({id(scheduler): scheduler for scheduler in steps}.values())


def _comparable(guided: Tensor | None, output: Tensor) -> tuple[Tensor, Tensor] | None:
    """Both flat, in float64, where the scheduler was given an output of the denoiser's shape; None otherwise."""
    if guided is None or guided.ndim != output.ndim or guided.ndim < 2:
        return None
    output = output[:, : guided.shape[1]]  # learned variances are dropped before the scheduler
    if output.shape != guided.shape:
        return None
    return guided.detach().cpu().flatten().double(), output.cpu().flatten().double()


def _parts_of(guided: Tensor | None, first: Tensor, second: Tensor, sample: Tensor) -> tuple[float, float] | None:
    """How much of each output is in what the scheduler was given: guidance w makes it w and 1 - w, whatever its sign.

    By least squares; the larger part (w > 0.5) is that of the conditional output. Some pipelines (Cosmos) make a
    velocity of outputs and sample, so that the sample has a part too. None where it cannot be told.
    """
    pair, other = _comparable(guided, first), _comparable(guided, second)
    if pair is None or other is None:
        return None
    given, a, b = pair[0], pair[1], other[1]
    if not (a - b).norm() > 1e-5 * a.norm():
        return None
    # In terms of sum and difference, because the two outputs are nearly the same direction.
    beside = _comparable(guided, sample)
    basis = torch.stack([a + b, a - b, *([] if beside is None else [beside[1]])], 1)
    scale = basis.norm(dim=0)
    if not bool(scale.min() > 0):
        return None
    solution = torch.linalg.lstsq(basis / scale, given.unsqueeze(1)).solution.squeeze(1) / scale
    return (solution[0] + solution[1]).item(), (solution[0] - solution[1]).item()


def first_call(
    pipeline: Any, prompts: Sequence[str], seeds: Sequence[int], arguments: dict[str, Any]
) -> tuple[DenoiserCall, DenoiserWatch, Any]:
    """Start a run and stop it at its first scheduler step: (the call, the watch, the scheduler as the run set it).

    This costs one denoiser evaluation, and tells the conditional rows as a whole run would.
    """
    with plain_tensors(), silent(pipeline), own_scheduler(pipeline) as scheduler:
        watch = DenoiserWatch(pipeline, len(prompts), stop_at_first=True)
        try:
            with contextlib.suppress(StopGeneration), watch, one_dtype(pipeline):
                pipeline(**prompt_arguments(prompts, arguments), generator=generators(seeds))
        finally:
            if hasattr(pipeline, "maybe_free_model_hooks"):
                pipeline.maybe_free_model_hooks()
    if not watch.calls:
        raise ValueError("the pipeline finished without calling its denoiser")
    return watch.calls[0], watch, scheduler
