"""The table of all operators. One `register` call per operator file puts it there."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch.library import CustomOpDef


@dataclass(frozen=True)
class Op:
    """An operator and its implementations by backend."""

    name: str
    custom_op: CustomOpDef
    implementations: Mapping[str, Callable[..., Any]]
    runs: Counter[str] = field(default_factory=Counter)
    """How often each backend ran in this process."""
    ways: Counter[str] = field(default_factory=Counter)
    """How often the native backend multiplied in which way, where it has several."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Why a backend was passed over when that happened last."""


OPS: dict[str, Op] = {}


def register(op: Op) -> None:
    """Add an operator; its name must be new and that of its custom op."""
    if op.name in OPS:
        raise ValueError(f"operator {op.name} is registered twice")
    if op.custom_op._qualname != f"cad_fast::{op.name}":
        raise ValueError(f"operator {op.name} is registered with the custom op {op.custom_op._qualname}")
    OPS[op.name] = op
