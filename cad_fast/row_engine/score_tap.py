"""Scores of single weights at the ablated networks, taken while gradients flow back through the rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..diffusion.structure import Layer
from ..ops.dispatch import backend_for_later
from ..ops.masked_linear_scores import masked_linear_scores
from .forms import Edited, Masked, convolve, geometry, group_images, group_rows, linear


@dataclass
class Record:
    """Where one module's scores add up: over the variants that keep a weight, and over those that ablate it.

    words: [V, N, ceil(K / 32)], int32; kept, ablated: [N, K], float32.
    """

    words: Tensor
    kept: Tensor
    ablated: Tensor
    anchor: Tensor


def run_scored(form: Masked | Edited, module: Layer, x: Tensor, variants: int, record: Record) -> Tensor:
    """As ``run_form``, and the way back adds to the record. Called several times before it, all calls add up."""
    if isinstance(module, nn.Linear):
        x3 = group_rows(x, variants)
        y = _tap(linear(form, x3, module), x3, module, record)
        return y.reshape(*x.shape[:-1], y.shape[-1])
    images = group_images(x, module, variants)
    y = _tap(convolve(form, images, module), images, module, record)
    return y.reshape(len(x), *y.shape[-3:])


def _tap(y: Tensor, x: Tensor, module: Layer, record: Record) -> Tensor:
    if y._is_view():  # as torch.stack returns them; autograd forbids changing such a result of a custom op in place
        y = y.clone()
    return _ScoreTap.apply(y, record.anchor, x.detach(), module, record)


class _ScoreTap(torch.autograd.Function):
    """Passes a module's output on, and on the way back takes the scores from its gradient and the module's input.

    autograd skips what no gradient is asked of, and neither the weights nor, usually, the denoiser's inputs ask for
    one. ``anchor``, a scalar that requires a gradient but takes no part, makes the output depend on something that
    does, so that the graph is recorded from the first scored module on; nothing is ever added to its gradient.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, anchor: Tensor, x: Tensor, module: Layer, record: Record) -> Tensor:
        ctx.module, ctx.record = module, record
        ctx.words = record.words  # those of this call, should the ablations be swapped before the way back
        ctx.backend = backend_for_later()
        ctx.save_for_backward(x, module.weight)
        ctx.mark_dirty(y)  # y itself goes on: a view of it could not be changed in place by what follows
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        x, weight = ctx.saved_tensors
        groups = grad.reshape(*x.shape[:2], *grad.shape[-1 if x.dim() == 3 else -3 :])
        if isinstance(ctx.module, nn.Linear):
            record = ctx.record
            masked_linear_scores(
                groups, x, weight.detach(), ctx.words, record.kept, record.ablated, backend=ctx.backend
            )
        else:
            _score_convolution(groups, x, weight.detach(), ctx.module, ctx.words, ctx.record, ctx.backend)
        return grad, None, None, None, None


def _score_convolution(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    module: nn.Conv2d,
    words: Tensor,
    record: Record,
    backend: str | None,
) -> None:
    """As a linear on patches; unfolded one variant at a time, which takes kh * kw times the memory of its input."""
    stride, padding, dilation, groups = geometry(module)
    rows = weight.shape[0] // groups
    matrix = weight.reshape(len(weight), -1)
    for variant in range(len(x)):
        for group, images in enumerate(x[variant].chunk(groups, 1)):
            own = slice(group * rows, (group + 1) * rows)
            patches = functional.unfold(images, module.kernel_size, tuple(dilation), tuple(padding), tuple(stride))
            masked_linear_scores(
                grad[variant, :, own].flatten(2).transpose(1, 2).reshape(1, -1, rows),
                patches.transpose(1, 2).reshape(1, -1, patches.shape[1]),
                matrix[own],
                words[variant : variant + 1, own],
                record.kept[own],
                record.ablated[own],
                backend=backend,
            )
