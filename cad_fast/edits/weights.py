"""Put an edit into a denoiser's weights, and take it out again bit for bit.

A denoiser's weights are there once. While a thread has an edit in them for the length of a ``with`` block, other
threads can put none there, and none is put in or taken out halfway.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary, ref

import torch
from torch import Tensor, nn

from ..components.fingerprint import Fingerprint, fused_adapter
from ..diffusion.denoisers import denoiser_of, require_one_of_its_kind
from ..diffusion.quantised import require_plain
from ..diffusion.structure import Layer
from ..row_engine.surroundings import adapters_of, check_projections, modules_by_path
from .data import EditData

# Which edits are in which denoiser now, in the order they came.
_active: WeakKeyDictionary[nn.Module, list[AppliedEdit]] = WeakKeyDictionary()
# Held while weights change: short, and rarely wanted by two at once, so that one does for all denoisers.
_changing = threading.RLock()


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


def require_model(expected: Fingerprint, denoiser: nn.Module, fingerprint: Fingerprint, name: str) -> None:
    """Raise ValueError with the reason when a denoiser with this fingerprint is not the model of the edit ``name``."""
    adapter = fused_adapter(denoiser)
    if adapter is not None:
        raise ValueError(
            f"edit {name!r} is of the model without the adapter that is fused into {adapter}: unfuse the adapter "
            "(unfuse_lora), apply or load the edit, and fuse the adapter again, or leave it beside the weights"
        )
    expected.require_same(fingerprint, f"edit {name!r}")


class AppliedEdit:
    """An edit that is in a denoiser's weights, and the weights that it replaced."""

    def __init__(
        self, edit: EditData, denoiser: nn.Module, strength: float, fingerprint: Fingerprint, owner: int | None
    ) -> None:
        self.edit, self.strength, self.fingerprint = edit, strength, fingerprint
        self.owner = owner
        """The thread whose ``with`` block it is in the weights for, or None where it stays until ``undo``."""
        # Weakly, both: a model that nobody holds any more is freed, whatever edits are fused into it.
        self._denoiser: ref[nn.Module] | None = ref(denoiser)
        self._modules = WeakValueDictionary(edit.space.modules(denoiser))
        self._originals: dict[str, tuple[Tensor, Tensor]] = {}

    @property
    def active(self) -> bool:
        """Whether the edit is still in the weights of a model that there is."""
        return self._denoiser is not None and self._denoiser() is not None

    @property
    def modules(self) -> dict[str, Layer]:
        """The edited modules by path, as far as there are any longer."""
        return dict(self._modules)

    @property
    def _factor(self) -> float:
        return 1 - self.strength * (1 - self.edit.factor)

    @torch.no_grad()
    def replace(self) -> None:
        """Write the edited weights, and keep those that were there."""
        modules = self.modules
        for name, indices in self.edit.weight_indices().items():
            weight = modules[name].weight
            indices = indices.to(weight.device)
            values = weight.data.flatten()[indices]
            self._originals[name] = (indices, values)
            put_weights(weight, indices, multiplied(values, self._factor))

    def undo(self) -> None:
        """Restore the weights bit for bit; a second call does nothing.

        Only what the edit wrote is taken back. Weights that something else has changed since, such as a LoRA that was
        fused, are left as they are: the original would undo that too.

        Raises:
            RuntimeError: a later edit of the same weights is still in place: undo that one first. Or some weights have
                changed since; the message names their modules. The others are restored then, and the edit is over. Or
                its attentions run copies of the edited weights (fuse_qkv_projections); the edit is over, too.
        """
        with _changing:
            denoiser = None if self._denoiser is None else self._denoiser()
            if denoiser is None:
                return
            active = _active[denoiser]
            for later in active[active.index(self) + 1 :]:
                if self._overlaps(later):
                    raise RuntimeError(f"edit {later.edit.name!r} was applied over {self.edit.name!r}: undo it first")
            written = sum(len(indices) for indices, _ in self._originals.values())
            changed = self.restore()
            active.remove(self)
            self._denoiser = None
        self._require_no_copies(denoiser)
        if changed:
            names = ", ".join(list(changed)[:4]) + (", ..." if len(changed) > 4 else "")
            raise RuntimeError(
                f"{sum(changed.values())} weights of {names} have changed since edit {self.edit.name!r} was applied, "
                "as by a LoRA that was fused or a state dict that was loaded: they were left as they are, the other "
                f"{written - sum(changed.values())} were restored. Undo edits before what else changes weights"
            )

    def _require_no_copies(self, denoiser: nn.Module) -> None:
        try:
            check_projections(denoiser, self.modules)
        except ValueError as error:
            raise RuntimeError(
                f"edit {self.edit.name!r} is out of the weights, but projections were fused while it was in, and the "
                f"copies still have it: {error}"
            ) from error

    @torch.no_grad()
    def restore(self) -> dict[str, int]:
        """Write back what was there wherever the edit is still what stands there.

        Returns:
            How many weights of which module have changed since, and were left.
        """
        changed = {}
        # The last first: of modules that share one weight, only the first found it as it was.
        modules = self.modules
        for name, (indices, values) in reversed(self._originals.items()):
            if name not in modules:  # another module took its place, and nobody holds it any more
                changed[name] = len(indices)
                continue
            weight = modules[name].weight
            indices, values = indices.to(weight.device), values.to(weight.device)
            found, written = weight.data.flatten()[indices], multiplied(values, self._factor).to(weight.dtype)
            same = (found == written) | (found.isnan() & written.isnan())
            if not bool(same.all()):
                changed[name] = int((~same).sum())
                indices, values = indices[same], values[same]
            put_weights(weight, indices, values.to(weight.dtype))
        self._originals.clear()
        return changed

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


def apply_edit(edit: EditData, pipeline: Any, strength: float, owner: int | None = None) -> AppliedEdit:
    """Multiply the edit's weights in place; returns the handle that undoes it. Errors as for ``Edit.fuse``."""
    if not math.isfinite(strength):
        raise ValueError(f"strength is {strength}, expected a finite number")
    require_one_of_its_kind(pipeline)
    denoiser = _inner(denoiser_of(pipeline))
    with _changing:
        _require_own(denoiser, edit)
        fingerprint = intact_fingerprint(denoiser)
        require_model(edit.space.fingerprint, denoiser, fingerprint, edit.name)
        applied = AppliedEdit(edit, denoiser, strength, fingerprint, owner)
        check_projections(denoiser, applied.modules)
        _check_additions(denoiser, applied)
        for name, module in applied.modules.items():
            require_plain(name, module.weight, "edited")
            if module.weight.device.type == "meta":
                raise ValueError(f"{name}.weight is offloaded (meta device): apply the edit before offloading")
        try:
            applied.replace()
        except BaseException:
            applied.restore()
            raise
        _active.setdefault(denoiser, []).append(applied)
        return applied


@contextmanager
def applied_edit(edit: EditData, pipeline: Any, strength: float) -> Iterator[None]:
    """Have an edit in a denoiser's weights inside the context, where only this thread may put others there."""
    handle = apply_edit(edit, pipeline, strength, owner=threading.get_ident())
    try:
        yield
    finally:
        handle.undo()


def _check_additions(denoiser: nn.Module, applied: AppliedEdit) -> None:
    by_path = modules_by_path(denoiser)
    for name, layer in applied.modules.items():
        for adapter in adapters_of(layer, by_path.get(name)):
            if any(kind.__name__ in ("ShiraLayer", "SupertuningLayer") for kind in type(adapter).__mro__):
                raise ValueError(
                    f"{name} has a {type(adapter).__module__.split('.')[-2]} adapter, which adds to single weights, as "
                    f"an edit that was exported does: beside it edit {applied.edit.name!r} would act twice. Disable "
                    "the adapter first"
                )


def _require_own(denoiser: nn.Module, edit: EditData) -> None:
    for other in _active.get(denoiser, ()):
        if other.owner not in (None, threading.get_ident()):
            raise RuntimeError(
                f"edit {edit.name!r} cannot be applied: another thread has edit {other.edit.name!r} in the weights of "
                "this denoiser. Wait until it is done, give each thread a pipeline with a denoiser of its own, or have "
                "the edits in rows (EditManager.per_prompt)"
            )
