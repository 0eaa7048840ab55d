"""Whether the gradients of an operator are those of the reference, once and twice."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def assert_gradients_right(
    function: Callable[..., Tensor], right: Callable[..., Tensor], inputs: Sequence[Tensor], limit: float = 1e-4
) -> None:
    """Require that a function of float32 has the gradients that another has in float64.

    Args:
        function: of tensors like the inputs.
        right: the other one.
        inputs: what the gradients are of, all of them together.
        limit: how far a gradient may be off, relative to it and to its largest element.
    """
    pairs = zip(_gradients(function, inputs, torch.float32), _gradients(right, inputs, torch.float64), strict=True)
    for mine, expected in pairs:
        atol = limit * float(expected.detach().abs().max())
        torch.testing.assert_close(mine.double(), expected, rtol=limit, atol=atol)


def _gradients(function: Callable[..., Tensor], inputs: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    own = [t.detach().to(dtype).requires_grad_() for t in inputs]
    first = torch.autograd.grad(function(*own).pow(3).sum(), own, create_graph=True)
    once = torch.autograd.grad(function(*own).pow(3).sum(), own)
    return [*first, *once, *torch.autograd.grad(sum(g.pow(2).sum() for g in first), own)]
