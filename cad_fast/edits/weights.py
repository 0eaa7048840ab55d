"""Put an edit into a denoiser's weights, and take it out again bit for bit."""

from __future__ import annotations

import math
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..components.fingerprint import Fingerprint
from ..diffusion.denoisers import denoiser_of
from .data import EditData

# Which edits are in which denoiser now, in the order they came.
_active: WeakKeyDictionary[nn.Module, list[AppliedEdit]] = WeakKeyDictionary()


def _inner(denoiser: nn.Module) -> nn.Module:
    """What torch.compile wraps, whose modules have the names that edits know; else the denoiser itself."""
    return getattr(denoiser, "_orig_mod", denoiser)


def active_edits(pipeline: Any) -> list[AppliedEdit]:
    """The edits now in the weights of the pipeline's denoiser, oldest first."""
    return list(_active.get(_inner(denoiser_of(pipeline)), ()))


def intact_fingerprint(denoiser: nn.Module) -> Fingerprint:
    """The denoiser's fingerprint, disregarding the edits now in its weights."""
    denoiser = _inner(denoiser)
    active = _active.get(denoiser)
    return active[0].fingerprint if active else Fingerprint.of(denoiser)


class AppliedEdit:
    """An edit that is in a denoiser's weights, and the weights that it replaced."""

    def __init__(self, edit: EditData, denoiser: nn.Module, strength: float, fingerprint: Fingerprint) -> None:
        self.edit, self.strength, self.fingerprint = edit, strength, fingerprint
        self._denoiser: nn.Module | None = denoiser
        self._modules = edit.space.modules(denoiser)
        self._originals: dict[str, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def _replace(self) -> None:
        factor = 1 - self.strength * (1 - self.edit.factor)
        for name, indices in self.edit.weight_indices().items():
            weight = self._modules[name].weight
            indices = indices.to(weight.device)
            values = weight.data.flatten()[indices]
            self._originals[name] = (indices, values)
            put_weights(weight, indices, multiplied(values, factor))

    def undo(self) -> None:
        """Restore the weights bit for bit; a second call does nothing.

        Raises RuntimeError when a later edit of the same weights is still in place: undo that one first.
        """
        denoiser = self._denoiser
        if denoiser is None:
            return
        active = _active[denoiser]
        for later in active[active.index(self) + 1 :]:
            if self._overlaps(later):
                raise RuntimeError(f"edit {later.edit.name!r} was applied over {self.edit.name!r}: undo it first")
        self._restore()
        active.remove(self)
        self._denoiser = None

    @torch.no_grad()
    def _restore(self) -> None:
        # The last first: of modules that share one weight, only the first found it as it was.
        for name, (indices, values) in reversed(self._originals.items()):
            weight = self._modules[name].weight
            put_weights(weight, indices.to(weight.device), values.to(weight.device))
        self._originals.clear()

    def _overlaps(self, other: AppliedEdit) -> bool:
        shared = self._originals.keys() & other._originals.keys()
        return any(bool(torch.isin(self._originals[name][0], other._originals[name][0]).any()) for name in shared)


def multiplied(values: Tensor, factor: float) -> Tensor:
    """Weights times a factor. A product with 0 would keep the sign of zero, and NaN for an infinite weight."""
    return torch.zeros_like(values) if factor == 0 else values * factor


def put_weights(weight: Tensor, indices: Tensor, values: Tensor) -> None:
    """Write values [k] to the elements int64 [k] of a weight, in its logical order."""
    if weight.is_contiguous():
        weight.data.view(-1)[indices] = values
    else:  # channels_last weights have no flat view in logical order
        weight.data[torch.unravel_index(indices, weight.shape)] = values


def apply_edit(edit: EditData, pipeline: Any, strength: float) -> AppliedEdit:
    """Multiply the edit's weights in place; returns the handle that undoes it. Errors as for ``Edit.fuse``."""
    if not math.isfinite(strength):
        raise ValueError(f"strength is {strength}, expected a finite number")
    denoiser = _inner(denoiser_of(pipeline))
    fingerprint = intact_fingerprint(denoiser)
    edit.space.fingerprint.require_same(fingerprint, f"edit {edit.name!r}")
    applied = AppliedEdit(edit, denoiser, strength, fingerprint)
    for name, module in applied._modules.items():
        if not module.weight.is_floating_point():
            raise ValueError(f"{name}.weight is {module.weight.dtype}: edits need floating-point weights")
        if module.weight.device.type == "meta":
            raise ValueError(f"{name}.weight is offloaded (meta device): apply the edit before offloading")
    try:
        applied._replace()
    except BaseException:
        applied._restore()
        raise
    _active.setdefault(denoiser, []).append(applied)
    return applied
