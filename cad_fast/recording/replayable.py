"""Check that what was recorded can be run again: before a recording is handed out, not when somebody needs it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..diffusion.caches import cache_of
from ..diffusion.generation import require_own_arguments
from ..diffusion.trees import SHARED_NAMES, leaves
from .call import DenoiserCall
from .data import REPLAY_TOLERANCE, Recording


def require_prompts(pipeline: Any) -> None:
    """Raise ValueError for a pipeline that takes no prompts, or would swallow them among other arguments."""
    require_own_arguments(pipeline)
    parameters = inspect.signature(pipeline.__call__).parameters
    if "prompt" not in parameters:
        takes = ", ".join(name for name in parameters if name not in ("args", "kwargs"))
        raise ValueError(f"{type(pipeline).__name__} takes no argument 'prompt', only: {takes}")


def require_no_cache(denoiser: nn.Module) -> None:
    """Raise ValueError for a denoiser that skips layers by what it computed in the step before."""
    cache = cache_of(denoiser)
    if cache is not None:
        raise ValueError(
            f"{type(denoiser).__name__} has a cache ({cache[0]}): what a call gives depends on the calls before it, "
            f"and no recorded call could be replayed. Remove it first ({cache[1]})"
        )


def require_replayable(call: DenoiserCall, denoiser: nn.Module) -> None:
    """Raise ValueError when running a call that was just recorded does not give what it gave.

    The message names the inputs that do not have one entry for each row: rows of theirs cannot be told apart.
    """
    if call.output is None:
        return
    try:
        with torch.no_grad():
            output = call.run(denoiser).float()
    except Exception as error:  # whatever the denoiser raises, this is why
        text = " ".join(str(error).split())[:200]
        raise ValueError(f"{_cannot(call)}: {type(error).__name__}: {text}. {_suspects(call)}") from error
    recorded = call.output.to(output.device)
    if output.shape != recorded.shape:
        raise ValueError(
            f"{_cannot(call)}: it gives {list(output.shape)}, not {list(recorded.shape)}. {_suspects(call)}"
        )
    distance = ((output - recorded.float()).norm() / recorded.float().norm().clamp(min=1e-20)).item()
    if not distance <= REPLAY_TOLERANCE[recorded.dtype]:
        raise ValueError(f"{_cannot(call)}: it gives something else, by {100 * distance:.2g}%. {_suspects(call)}")


def require_given(recording: Recording, given: Mapping[str, Any], instead: Sequence[str] = ()) -> None:
    """Raise ValueError naming an argument that the recording could not keep and that was not given again.

    Args:
        recording: made by ``record``.
        given: arguments of the pipeline's call.
        instead: parts of names that are not needed, since they are given in another way.
    """
    missing = [n for n in recording.not_kept if n not in given and not any(part in n for part in instead)]
    if missing:
        raise ValueError(
            f"the recording was made with {', '.join(missing)}, which it could not keep: pass it again, for these rows"
        )


def _cannot(call: DenoiserCall) -> str:
    return f"the denoiser's call at step {call.step} cannot be replayed"


def _suspects(call: DenoiserCall) -> str:
    """The inputs whose rows are not known."""
    known = (call.row_paths or frozenset()) | {call.sample_key, call.timestep_key}
    unknown = [
        f"{path} {list(leaf.shape)}"
        for path, leaf in leaves(call.inputs)
        if isinstance(leaf, Tensor) and leaf.ndim > 1 and path not in known and not SHARED_NAMES & set(path.split("."))
    ]
    second = [
        f"{path} {list(leaf.shape)}"
        for path, leaf in leaves(call.inputs)
        if isinstance(leaf, Tensor) and leaf.ndim > 2 and path != call.sample_key
        if leaf.shape[1] in (call.rows, 2 * call.rows)
    ]
    if second and not unknown:
        return f"Are the rows of {', '.join(second)} in the second dimension? Rows are read along the first"
    if unknown:
        rows = f"{call.rows} row{'s' if call.rows > 1 else ''}"
        return f"Not known to have one entry for each of {rows} along the first dimension: {', '.join(unknown)}"
    return "Does the denoiser keep something between calls, or does a hook or processor change it?"
