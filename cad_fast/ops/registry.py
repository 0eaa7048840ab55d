"""The table of all operators. `define` makes them, and `implement` puts them there."""

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
"""By name."""
