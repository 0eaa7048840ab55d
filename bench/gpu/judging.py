"""What a case of a check is, and whether what an operator gave for it is right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cad_fast import envs, ops
from tests.rounding import PRODUCTS, Exact, bound

Run = Callable[[str, Sequence[Any], str | None], Sequence[Tensor]]


@dataclass(frozen=True)
class Value:
    """An operator that returns its result."""

    def __call__(self, op: str, arguments: Sequence[Any], backend: str | None) -> Sequence[Tensor]:
        return [getattr(ops, op)(*arguments, backend=backend)]


@dataclass(frozen=True)
class Sums:
    """An operator that adds to its last two arguments; of what is not finite the first alone is judged."""

    kept_alone: bool = False

    def __call__(self, op: str, arguments: Sequence[Any], backend: str | None) -> Sequence[Tensor]:
        sums = [argument.clone() for argument in arguments[-2:]]
        getattr(ops, op)(*arguments[:-2], *sums, backend=backend)
        return sums[:1] if self.kept_alone else sums


@dataclass(frozen=True)
class Case:
    """A name, arguments of an operator, and the exact result for them: of floats `Exact`, else the very tensor."""

    name: str
    arguments: Callable[[], tuple[Any, ...]]
    exact: Callable[..., Exact | Tensor | tuple[Exact, ...]]
    run: Run = Value()


@dataclass(frozen=True)
class Verdict:
    """Whether a result is right; by how much it is off."""

    right: bool
    message: str = ""
    error: float | None = None
    """The norm of the error by that of the result."""
    excess: float | None = None
    """The largest error of an element by what rounding explains; more than 1 is wrong."""


def judge(actual: Tensor, expected: Exact | Tensor) -> Verdict:
    """Compare a result with the exact one.

    Args:
        actual: what the operator gave.
        expected: the exact result in float64, with what its rounding depends on, or a tensor to be equal to.

    Returns:
        The verdict.
    """
    right = expected.value if isinstance(expected, Exact) else expected
    if actual.shape != right.shape:
        return Verdict(False, f"the shape is {list(actual.shape)}, not {list(right.shape)}")
    if isinstance(expected, Tensor):
        actual = actual.to(expected.device)
        wrong = int((actual != expected).sum()) if actual.dtype == expected.dtype else actual.numel()
        return Verdict(wrong == 0, f"{wrong} of {actual.numel()} elements differ" if wrong else "")
    if actual.numel() == 0:
        return Verdict(True, error=0.0, excess=0.0)
    unwritten = int((~actual.isfinite()).sum())
    if unwritten:
        return Verdict(False, f"{unwritten} of {actual.numel()} elements are not finite")
    product = PRODUCTS[envs.get("CAD_FAST_FLOAT32_PRECISION")] if actual.dtype == torch.float32 else 0.0
    off = actual.double() - right
    excess = off.abs() / bound(expected, actual.dtype, product)
    worst = float(excess.max())
    error = float(off.norm() / right.norm().clamp(min=1e-30))
    if worst <= 1:
        return Verdict(True, "", error, worst)
    at = [int(i) for i in torch.unravel_index(excess.argmax().cpu(), actual.shape)]
    message = (
        f"element {at} is {actual[tuple(at)].item()}, not {right[tuple(at)].item()}: {worst:.3g} times what rounding "
        f"explains; so are {int((excess > 1).sum())} of {actual.numel()} elements; relative error {error:.2e}"
    )
    return Verdict(False, message, error, worst)
