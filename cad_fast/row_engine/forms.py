"""The forms in which one module's ablations are held while rows run under them, and its forward under each form."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..components.module_components import ModuleComponents
from ..diffusion.structure import Layer
from ..ops.edited_conv2d import edited_conv2d
from ..ops.edited_linear import edited_linear
from ..ops.gated_conv2d import gated_conv2d
from ..ops.gated_linear import gated_linear
from ..ops.masked_conv2d import masked_conv2d
from ..ops.masked_linear import masked_linear
from .gates import fuses, keep_columns, keep_filters, scale_columns, scale_filters

SomeForm = TypeVar("SomeForm", bound="Form")


@dataclass(frozen=True)
class Form:
    """What the forms share: their tensors, and moving with the weights."""

    def tensors(self) -> list[Tensor]:
        return [value for field in fields(self) if isinstance(value := getattr(self, field.name), Tensor)]

    @property
    def device(self) -> torch.device:
        return self.tensors()[-1].device

    @property
    def requires_grad(self) -> bool:
        """Whether gradients go through the form's own tensors."""
        return any(tensor.requires_grad for tensor in self.tensors())

    def to(self: SomeForm, device: torch.device) -> SomeForm:
        """The same form with its tensors on ``device``, but for those that the ops read on the CPU."""
        moved = {
            field.name: value.to(device)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor) and field.name != "offsets"
        }
        return replace(self, **moved)


@dataclass(frozen=True)
class Masked(Form):
    """One bit per weight and variant.

    words: [V, N, ceil(K / 32)], int32; factors: [V], float32, or None if all are 0.
    """

    words: Tensor
    factors: Tensor | None


@dataclass(frozen=True)
class Edited(Form):
    """The ablated weights listed: variant v has the entries offsets[v]:offsets[v + 1].

    offsets: [V + 1], int64, on the CPU; indices: [E], int64, flat into the weight; factors: [E], float32.
    """

    offsets: Tensor
    indices: Tensor
    factors: Tensor


@dataclass(frozen=True)
class Gated(Form):
    """A gate per component of a coarser kind.

    gates: [V, count], the weight's dtype; entry: the components; scales: whether any gate is neither 0 nor 1, or gates
    need gradients; keep: bool, [V, columns] or [V, filters], if any gate is 0 and none needs a gradient (a dropped
    activation is then exactly zero, even if it was infinite).
    """

    gates: Tensor
    entry: ModuleComponents
    scales: bool
    keep: Tensor | None


AnyForm = Masked | Edited | Gated


def run_form(form: AnyForm, module: Layer, x: Tensor, variants: int) -> Tensor:
    """The module's output for x [V * B, ...], each group of B rows under its variant."""
    if isinstance(form, Gated):
        return _gated(form, module, x)
    if isinstance(module, nn.Linear):
        y = linear(form, group_rows(x, variants), module)
        return y.reshape(*x.shape[:-1], y.shape[-1])
    y = convolve(form, group_images(x, module, variants), module)
    return y.reshape(len(x), *y.shape[-3:])


def group_rows(x: Tensor, variants: int) -> Tensor:
    """A linear's input [V * B, ..., K] as [V, R, K]."""
    return x.reshape(variants, math.prod(x.shape[:-1]) // variants, x.shape[-1])


def linear(form: Masked | Edited, x: Tensor, module: nn.Linear) -> Tensor:
    """[V, R, K] -> [V, R, N], or the same as [V * R, N]."""
    if isinstance(form, Masked):
        return masked_linear(x, module.weight, form.words, module.bias, form.factors)
    edits = (_bounds(x), form.offsets, form.indices, form.factors)
    return edited_linear(x.flatten(0, 1), module.weight, *edits, module.bias)


def _bounds(x: Tensor) -> Tensor:
    """[V + 1], int64, on the CPU: where the rows of each variant of x [V, R, ...] begin and end."""
    if torch.compiler.is_compiling():
        return torch.arange(x.shape[0] + 1) * x.shape[1]
    return _kept_bounds(*x.shape[:2])


@functools.lru_cache(maxsize=1024)
@torch.inference_mode(False)  # inference tensors cannot be saved for the way back
def _kept_bounds(variants: int, rows: int) -> Tensor:
    return torch.arange(variants + 1) * rows


def padded_images(x: Tensor, module: nn.Conv2d) -> Tensor:
    """A convolution's input, padded where the ops cannot do it themselves."""
    if _pads_first(module):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        return functional.pad(x, module._reversed_padding_repeated_twice, mode=mode)
    return x


def group_images(x: Tensor, module: nn.Conv2d, variants: int) -> Tensor:
    """A convolution's input [V * B, C, H, W] as [V, B, C, H, W], padded as by ``padded_images``."""
    return padded_images(x, module).unflatten(0, (variants, len(x) // variants))


def _pads_first(module: nn.Conv2d) -> bool:
    return module.padding_mode != "zeros" or isinstance(module.padding, str)


def geometry(module: nn.Conv2d) -> tuple[list[int], list[int], list[int], int]:
    """Stride, padding, dilation and groups, for images as ``padded_images`` gives them."""
    padding = [0, 0] if isinstance(module.padding, str) or _pads_first(module) else list(module.padding)
    return list(module.stride), padding, list(module.dilation), module.groups


def convolve(form: Masked | Edited, x: Tensor, module: nn.Conv2d) -> Tensor:
    """[V, B, C, H, W] -> [V, B, N, H', W'], or the same as [V * B, N, H', W']."""
    if isinstance(form, Masked):
        return masked_conv2d(x, module.weight, form.words, module.bias, form.factors, *geometry(module))
    edits = (_bounds(x), form.offsets, form.indices, form.factors)
    return edited_conv2d(x.flatten(0, 1), module.weight, *edits, module.bias, *geometry(module))


def _gated(form: Gated, module: Layer, x: Tensor) -> Tensor:
    variants = len(form.gates)
    if isinstance(module, nn.Linear):
        if fuses("gated_linear", x, module.weight, form.gates, x.numel(), form.keep is not None):
            gates = form.gates if form.entry.span is None else form.entry.per_column(form.gates, 1.0)
            y = gated_linear(group_rows(x, variants), module.weight, gates, module.bias)
            return y.reshape(*x.shape[:-1], y.shape[-1])
        x = scale_columns(x, form.entry.per_column(form.gates, 1.0)) if form.scales else x
        x = x if form.keep is None else keep_columns(x, form.keep)
        return functional.linear(x, module.weight, module.bias)
    area = x.shape[-2] * x.shape[-1] // (module.stride[0] * module.stride[1])
    elements = len(x) * len(module.weight) * area
    if fuses("gated_conv2d", x, module.weight, form.gates, elements, form.keep is not None):
        images = group_images(x, module, variants)
        return gated_conv2d(images, module.weight, form.gates, module.bias, *geometry(module)).flatten(0, 1)
    y = nn.Conv2d.forward(module, x)
    y = scale_filters(y, form.gates, module.bias) if form.scales else y
    return y if form.keep is None else keep_filters(y, form.keep, module.bias)
