"""Slots: modules whose forward can run each group of rows under an edit of its own, or as ever, call by call.

What a slot runs is told by its plan, which changes between calls. Under torch.compile a slot is one op that looks its
plan up when it runs, so that no plan is part of a compiled graph and none makes it compile anew.
"""

from __future__ import annotations

import copy
import functools
import itertools
import threading
import weakref
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet, WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..diffusion.caches import diffusers_hooks_of
from ..diffusion.quantised import require_plain
from ..diffusion.structure import Layer
from ..ops.edited_conv2d import edited_conv2d
from ..ops.edited_linear import edited_linear
from ..remembered import remembered_output
from .forms import geometry, padded_images
from .surroundings import PROJECTION, Surroundings, modules_by_path, runs_fused

WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# How many numbers of rows a plan keeps its bounds for.
_KEPT_SIZES = 64
# How many inputs a slot looks out for: with guidance in two calls, the conditional text comes every other time.
_INPUTS = 2
_numbers = itertools.count()
_slots: WeakValueDictionary[int, Slot] = WeakValueDictionary()
_opening = threading.Lock()


@dataclass
class Plan:
    """The edits of one module's rows, group by group. A plan of one group is for whatever rows the module sees.

    bounds: [G + 1], where each group of the denoiser's rows begins and ends; offsets: [G + 1], int64, on the CPU: group
    g has the entries offsets[g] to offsets[g + 1]; indices: [E], int64, flat into the weight, ascending in each group;
    factors: [E], float32.
    """

    bounds: list[int]
    offsets: Tensor
    indices: Tensor
    factors: Tensor
    number: int = field(default_factory=itertools.count().__next__, init=False)
    _scaled: dict[int, Tensor] = field(default_factory=dict)

    @property
    def uniform(self) -> bool:
        """Whether all rows are under the same edits, so that it does not matter which is which."""
        return len(self.bounds) == 2

    def rows(self, seen: int) -> Tensor:
        """``bounds`` for a module that sees ``seen`` rows, a multiple of the denoiser's; int64, on the CPU."""
        rows = self._scaled.get(seen)
        if rows is None:
            if len(self._scaled) >= _KEPT_SIZES:  # experts see another number of rows in each call
                self._scaled.clear()
            scaled = [0, seen] if self.uniform else [bound * (seen // self.bounds[-1]) for bound in self.bounds]
            with torch.inference_mode(False):
                rows = self._scaled[seen] = torch.tensor(scaled)
        return rows

    def entries_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """``indices`` and ``factors`` on the device; they stay there."""
        if self.indices.device != device:
            # What inference tensors need on a GPU cannot be kept from call to call.
            with torch.inference_mode(False):
                self.indices, self.factors = self.indices.to(device), self.factors.to(device)
        return self.indices, self.factors


class Slot:
    """What runs in place of one module's forward; as ever while ``plan`` is None. One per module, for all users."""

    def __init__(
        self, name: str, module: Layer, attention: nn.Module | None, surroundings: Surroundings | None
    ) -> None:
        self.name, self.module = name, module
        self.plan: Plan | None = None
        self._thread: int | None = None
        self._ran = False
        self._seen: deque[weakref.ref[Tensor]] = deque(maxlen=_INPUTS)
        self._attention, self._surroundings = attention, surroundings
        self._users: WeakSet[Any] = WeakSet()
        self.number = next(_numbers)
        _slots[self.number] = self

    @classmethod
    def open(
        cls, name: str, module: Layer, attention: nn.Module | None, modules: Mapping[str, nn.Module], user: Any
    ) -> Slot:
        """The module's slot, made if there is none, until each user closes it. TypeError if it cannot have one."""
        with _opening:
            slot = slot_of(module)
            if slot is None:
                _check_layer(name, module)
                slot = cls(name, module, attention, Surroundings(name, module, modules))
                # On this instance alone. Under the hooks that load weights first, not around them.
                _innermost(module).put(slot.forward)
            slot._users.add(user)
            return slot

    def close(self, user: Any) -> None:
        """Give the module its own forward back when this was the last user."""
        with _opening:
            self._users.discard(user)
            if self._users or slot_of(self.module) is not self:
                return
            if self._surroundings is not None:
                self._surroundings.close()
            _innermost(self.module).put(None)

    def check(self) -> None:
        """Check that an edit of the module can act.

        Raises:
            TypeError: its weights are of a dtype that cannot be edited.
            ValueError: the module is not in use, or an adapter has changed its weight or reads it.
        """
        if self.module.weight.dtype not in WEIGHT_DTYPES:
            known = ", ".join(map(str, WEIGHT_DTYPES))
            raise TypeError(
                f"{self.name}.weight is {self.module.weight.dtype}, expected one of {known}. For layerwise casting put "
                "edits into the weights (Edit.fuse) first"
            )
        if self._attention is not None and runs_fused(self._attention):
            raise ValueError(f"{self.name} is not in use, its attention runs fused projections: unfuse them first")
        if self._surroundings is not None:
            self._surroundings.check()

    def begin(self, plan: Plan) -> None:
        """Run this thread's calls under a plan, until ``end``.

        Raises:
            RuntimeError: the module runs under other edits now. They are left.
        """
        with _opening:
            if self.plan is not None:
                raise RuntimeError(
                    f"{self.name} is running under other edits now: one call of the denoiser at a time, with the edits "
                    "of one EditManager, or those of hooks"
                )
            self.plan, self._thread, self._ran = plan, threading.get_ident(), False
        if self._surroundings is not None:
            self._surroundings.begin()

    def end(self) -> None:
        """Run as ever again."""
        self.plan = None

    @property
    def left_out(self) -> str | None:
        """The module that ran since ``begin`` without calling this one; None if this one ran, or neither did."""
        return None if self._ran or self._surroundings is None else self._surroundings.caller_that_ran

    def forward(self, input: Tensor) -> Tensor:  # named as torch names it, for those who give it by name
        if torch.compiler.is_compiling():
            return torch.ops.cad_fast_rows.slot(input, self.module.weight, self.module.bias, self.number)
        return self.run(input)

    def run(self, x: Tensor, *, fresh: bool = False) -> Tensor:
        """The module's output for x [R * m, ...], the denoiser having R rows, each under its edit.

        A linear whose input comes again, such as a text's keys and values in every step, gives the output that it gave,
        unless ``fresh``.
        """
        plan, module = self.plan, self.module
        if plan is None:
            return type(module).forward(module, x)  # type: ignore[arg-type]  # each type with its own module
        if self._thread != threading.get_ident():
            raise RuntimeError(
                f"{self.name} is running under the edits of a call in another thread: one call of the denoiser at a "
                "time, or a denoiser of its own for each thread"
            )
        self._ran = True
        shape, of_denoiser = x.shape, plan.bounds[-1]
        known = len(shape) > 1 and shape[0] and not shape[0] % of_denoiser
        if not known and not plan.uniform:
            raise ValueError(
                f"{self.name} was called with an input of shape {list(x.shape)} while the denoiser has "
                f"{of_denoiser} rows: expected the rows, or so many times their number, along the first dimension"
            )
        if isinstance(module, nn.Linear):
            if not fresh and self._comes_again(x):
                return self._as_before(x, module, plan)
            return _edited(x, module, plan)
        indices, factors = plan.entries_on(x.device)
        images = padded_images(x if len(shape) == 4 else x[None], module)
        rows = plan.rows(len(images))
        edits = (rows, plan.offsets, indices, factors)
        y = edited_conv2d(images, module.weight, *edits, module.bias, *geometry(module))
        return y if len(shape) == 4 else y[0]

    def _comes_again(self, x: Tensor) -> bool:
        """Whether the input is one of the last ones, and no gradient is asked for."""
        again = any(reference() is x for reference in self._seen)
        if not again:
            self._seen.append(weakref.ref(x))
        tensors = (x, self.module.weight, self.module.bias)
        return again and not (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors))

    def _as_before(self, x: Tensor, module: nn.Linear, plan: Plan) -> Tensor:
        """The output for an input that comes again, computed if it or the weights have changed since."""
        parts = [x, module.weight, *([] if module.bias is None else [module.bias])]
        make = functools.partial(_edited, x, module, plan)
        return remembered_output("an edited linear", parts, (self.number, plan.number), make)

    def __deepcopy__(self, memo: dict[int, Any]) -> Slot:
        # A copied module runs as ever: whoever edits the original does not know of it.
        copied = Slot.__new__(Slot)
        memo[id(self)] = copied
        Slot.__init__(copied, self.name, copy.deepcopy(self.module, memo), None, None)
        return copied


def _edited(x: Tensor, module: nn.Linear, plan: Plan) -> Tensor:
    """A linear's output for rows [R * m, ...], each under its edit."""
    indices, factors = plan.entries_on(x.device)
    flat = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    y = edited_linear(flat, module.weight, plan.rows(len(flat)), plan.offsets, indices, factors, module.bias)
    return y if x.dim() == 2 else y.view(*x.shape[:-1], y.shape[-1])


@dataclass(frozen=True)
class _Place:
    """Where a module's forward is kept: an entry of the module, or of the innermost of diffusers' hooks around it."""

    module: nn.Module
    entries: dict[str, Any]
    key: str

    @property
    def forward(self) -> Any:
        """What is there; None for the forward of the module's class."""
        return self.entries.get(self.key)

    def put(self, forward: Any) -> None:
        """Put a forward there; None for that of the module's class."""
        if forward is None and self.key == "forward" and self.entries is self.module.__dict__:
            self.entries.pop(self.key, None)
        else:
            self.entries[self.key] = forward or type(self.module).forward.__get__(self.module)


def _innermost(module: nn.Module) -> _Place:
    """Where the forward nearest to the module's own is kept, beneath the hooks of diffusers and of accelerate."""
    attached = diffusers_hooks_of(module)
    if attached is not None and attached._fn_refs:
        first = vars(attached._fn_refs[0])
        own = first["original_forward"] is None or _is_slot(first["forward"])
        return _Place(module, first, "forward" if own else "original_forward")
    return _Place(module, module.__dict__, "_old_forward" if "_old_forward" in module.__dict__ else "forward")


def slot_of(module: nn.Module) -> Slot | None:
    """The slot that the module has now."""
    forward = _innermost(module).forward
    return forward.__self__ if _is_slot(forward) else None


def _is_slot(forward: Any) -> bool:
    return isinstance(getattr(forward, "__self__", None), Slot)


def _check_layer(name: str, module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        require_plain(name, module.weight, "edited")
    own = _innermost(module).forward
    wrapped = own is not None and getattr(own, "__func__", None) not in (nn.Linear.forward, nn.Conv2d.forward)
    other = type(module).forward not in (nn.Linear.forward, nn.Conv2d.forward)
    # nn.MultiheadAttention reads the weights of its output linear and never calls it.
    if other or isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        raise TypeError(f"{name} is a {type(module).__name__}, which does not run as a plain linear or convolution")
    if wrapped:
        raise TypeError(
            f"{name} has a forward of its own already: is the denoiser inside cad_fast.rows, or offloaded layer by "
            "layer? Load edits before"
        )


def open_slots(denoiser: nn.Module, modules: Mapping[str, Layer], user: Any) -> dict[str, Slot]:
    """The slots of ``modules`` {path: module} of ``denoiser``; all of them, or none and an error."""
    by_path = modules_by_path(denoiser)
    opened: dict[str, Slot] = {}
    try:
        for name, module in modules.items():
            parent, _, last = name.rpartition(".")
            projection = PROJECTION.fullmatch(last)
            opened[name] = Slot.open(name, module, by_path.get(parent) if projection else None, by_path, user)
    except BaseException:
        for slot in opened.values():
            slot.close(user)
        raise
    return opened


_TAGS = (torch.Tag.cudagraph_unsafe,) if hasattr(torch.Tag, "cudagraph_unsafe") else ()


@torch.library.custom_op("cad_fast_rows::slot", mutates_args=(), tags=_TAGS)
def _slot(x: Tensor, weight: Tensor, bias: Tensor | None, number: int) -> Tensor:
    # Compiled code takes the output for its own, to be written into.
    return _slots[number].run(x, fresh=True).contiguous()


@_slot.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, number: int) -> Tensor:
    if weight.dim() == 2:
        return x.new_empty((*x.shape[:-1], weight.shape[0]))
    module = _slots[number].module
    assert isinstance(module, nn.Conv2d), "the weights of linears have two dimensions"
    images = padded_images(x, module)
    stride, padding, dilation, groups = geometry(module)
    shape = functional.conv2d(images, weight, bias, stride, padding, dilation, groups).shape
    return x.new_empty(shape)
