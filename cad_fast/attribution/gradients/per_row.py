"""Gradients of single rows, each at its own ablated network: a row of weight * dJ/dw per row of the denoiser."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...components.ablation import Ablation
from ...components.module_components import ModuleComponents
from ...components.space import ComponentSpace
from ...diffusion.layer_calls import input_of
from ...diffusion.structure import Layer
from ...objectives import Objective
from ...recording.call import DenoiserCall
from ...row_engine.engine import rows
from ...row_engine.forms import geometry, group_images

# Gets, for a module of the space, its entry and w_i dJ_v/dw_i of every variant, float32 [V, count].
Take = Callable[[ModuleComponents, Tensor], None]


def row_gradients(
    denoiser: nn.Module,
    objective: Objective,
    space: ComponentSpace,
    call: DenoiserCall,
    ablations: Sequence[Ablation],
    take: Take,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run row v of ``call`` forward and backward under ``ablations[v]``.

    The gradients w_i dJ_v/dw_i are those at the ablated networks, also where the ablation removed w_i. They are handed
    on module by module, so that those of all weights are never there at once.

    Args:
        denoiser: The module that is run. Its parameters must not require gradients.
        objective: J.
        space: Single weights.
        call: V rows.
        ablations: V of them.
        take: Gets the gradients of each module, on the way back: once, or once per call of a module that is called
            several times, whose gradients add up.

    Returns:
        The predictions and dJ_v / d(prediction), float32 [V, elements]; and J, float32 [V].
    """
    with rows(denoiser, ablations, space), _tapped(denoiser, space, len(ablations), take), torch.enable_grad():
        output = call.run(denoiser)
        leaf = output.detach().requires_grad_()
        values = objective(leaf, call)
        (cotangent,) = torch.autograd.grad(values.sum(), leaf)
        if output.requires_grad:  # else no module of the space has an effect
            torch.autograd.backward(output, cotangent)
    flat = [call.prediction(part).detach().float().flatten(1) for part in (output, cotangent)]
    return flat[0], flat[1], values.detach()


@contextmanager
def _tapped(denoiser: nn.Module, space: ComponentSpace, variants: int, take: Take) -> Iterator[None]:
    """Have every way back through the space's modules hand on its gradients."""
    handles = []
    for entry, module in zip(space, space.modules(denoiser).values(), strict=True):
        handles.append(module.register_forward_hook(_tap(entry, variants, take), with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tap(entry: ModuleComponents, variants: int, take: Take) -> Any:
    def hook(module: Layer, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        x = input_of(args, kwargs).detach()
        if not output.requires_grad:  # nothing before it asks for a gradient: the graph begins here
            output = output.detach().requires_grad_()

        def back(grad: Tensor) -> None:
            take(entry, _per_row(module, x, grad, variants))

        output.register_hook(back)
        return output

    return hook


def _per_row(module: Layer, x: Tensor, grad: Tensor, variants: int) -> Tensor:
    """Return w * dJ/dw for each variant, float32 [V, count], from the module's input and the gradient of its output."""
    weight = module.weight.detach().float()
    if isinstance(module, nn.Linear):
        inputs = x.reshape(variants, -1, x.shape[-1]).float()
        grads = grad.reshape(variants, -1, grad.shape[-1]).float()
        return (torch.bmm(grads.transpose(1, 2), inputs) * weight).flatten(1)
    images = group_images(x, module, variants).float()
    stride, padding, dilation, groups = geometry(module)
    grads = grad.unflatten(0, (variants, -1)).float()
    parts = [
        torch.nn.grad.conv2d_weight(image, weight.shape, of_image, stride, padding, dilation, groups)
        for image, of_image in zip(images, grads, strict=True)
    ]
    return (torch.stack(parts) * weight).flatten(1)
