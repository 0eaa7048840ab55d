"""What ``recording.json`` must hold, entry by entry: it may come from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ..diffusion.trees import leaves
from ..texts import require_printable
from .call import OUTPUT_NAMES
from .joining import ROW_PATH_NAMES

_MOST = 2**63


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_whole(value: Any) -> bool:
    return type(value) is int and abs(value) <= 2 * _MOST


def _list_of(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(check(entry) for entry in value)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_count(value: Any) -> bool:
    return _is_whole(value) and value >= 0


_STATE: dict[str, tuple[Callable[[Any], bool], str]] = {
    "prompts": (_list_of(_is_text), "a list of texts"),
    "seeds": (_list_of(_is_whole), "a list of whole numbers"),
    "calls": (_list_of(_is_object), "a list of objects"),
    "scheduler_config": (_is_object, "an object"),
    "prediction_type": (lambda value: value is None or _is_text(value), "a text or null"),
    "fingerprint": (_is_object, "an object"),
    "n_images": (lambda value: value is None or _is_count(value), "a whole number or null"),
    "denoiser_calls": (_is_count, "a whole number from 0 on"),
    "row_kwargs": (lambda value: _is_object(value) and all(map(_is_list, value.values())), "an object of lists"),
    "not_kept": (_list_of(_is_text), "a list of texts"),
    "base_prompts": (lambda value: value is None or _list_of(_is_text)(value), "a list of texts or null"),
}
_OPTIONAL = {"denoiser_calls", "row_kwargs", "not_kept", "base_prompts"}
_CALL: dict[str, tuple[Callable[[Any], bool], str]] = {
    "step": (_is_count, "a whole number from 0 on"),
    "timestep": (lambda value: _is_finite(value) or _is_object(value), "a number, or a tensor"),
    "inputs": (_is_object, "an object"),
    "sample_key": (_is_text, "a text"),
    "timestep_key": (_is_text, "a text"),
    **{name: (_list_of(_is_text), "a list of texts") for name in ROW_PATH_NAMES},
}


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and abs(value) < 1e300


def check_state(state: Mapping[str, Any]) -> None:
    """Raises ValueError naming the entry of a recording that is of the wrong kind, KeyError for one that is missing."""
    for name in _STATE.keys() - _OPTIONAL:
        if name not in state:
            raise KeyError(name)
    _check(state, _STATE, "")
    require_printable(state["fingerprint"], "'fingerprint'")


def check_call(call: Any) -> None:
    """The same of one of its calls."""
    if not isinstance(call, dict):
        raise ValueError("a call is no object")
    _check(call, _CALL, "of a call ")


def _check(value: Mapping[str, Any], entries: Mapping[str, tuple[Callable[[Any], bool], str]], where: str) -> None:
    for name, (fits, kind) in entries.items():
        if name in value and not fits(value[name]):
            raise ValueError(f"{name!r} {where}is {value[name]!r:.60}, expected {kind}")


def require_tensors(arguments: Mapping[str, Any]) -> None:
    """Raises ValueError naming what of an unpacked call is neither a tensor nor null where only these can be."""
    for name in OUTPUT_NAMES:
        if not isinstance(arguments[name], Tensor | None):
            raise ValueError(f"{name!r} of a call is {arguments[name]!r:.60}, expected a tensor or null")
    if not isinstance(arguments["inputs"], dict):
        raise ValueError("'inputs' of a call are no arguments by name")
    if not isinstance(arguments["unconditional_inputs"], dict | None):
        raise ValueError("'unconditional_inputs' of a call are no arguments by name")
    sample = arguments["inputs"].get(arguments["sample_key"])
    rows = len(sample) if isinstance(sample, Tensor) and sample.ndim else None
    for inputs, paths in zip(("inputs", "unconditional_inputs"), ROW_PATH_NAMES, strict=True):
        held = dict(leaves(arguments[inputs] or {}))
        for path in arguments[paths]:
            leaf = held.get(path)
            if not isinstance(leaf, Tensor) or not leaf.ndim or len(leaf) != rows:
                raise ValueError(f"{paths!r} of a call has {path[:60]!r}, which is no input with an entry per row")
    timestep = arguments["timestep"]
    per_row = isinstance(timestep, Tensor) and timestep.ndim == 1 and len(timestep) == rows
    if not per_row and not isinstance(timestep, float | int):
        raise ValueError(f"'timestep' of a call is {timestep!r:.60}, expected a number, or one per row")
