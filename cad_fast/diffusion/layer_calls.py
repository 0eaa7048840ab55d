"""The input of a call of a linear or convolution, which callers give by place or as ``input=``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def input_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """Return the input among the arguments that a forward hook of a layer was given."""
    return args[0] if args else kwargs["input"]


def with_input(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], replacement: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments with another input, given the way the first was."""
    if args:
        return (replacement, *args[1:]), dict(kwargs)
    return args, {**kwargs, "input": replacement}
