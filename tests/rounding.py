"""How far a right result may be from the exact one: from the lengths of its sums and the dtype, the same on every CPU.

The bounds are those of Higham and Mary ("A new approach to probabilistic rounding error analysis", 2019). A sum of n
terms in any order is off by at most n * u * (the sum of their absolute values), u being the unit roundoff. Roundings
are as often up as down, and then LAMBDA * sqrt(n) takes the place of n. What plain torch gets on the CPU at hand says
nothing: it sums in another order on each.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

LAMBDA = 4.0
"""How many standard deviations count, if every rounding were as large as it may be: each is exceeded with probability
2 * exp(-LAMBDA**2 / 2) at most. Roundings spread over all sizes, and that makes them nine standard deviations."""

PRODUCTS = {"ieee": 0.0, "tf32x3": 2.0**-19}
"""By how much a product of two float32 may be off, by CAD_FAST_FLOAT32_PRECISION: three products in TF32 leave out that
of the small halves, and cut these halves short."""


@dataclass(frozen=True)
class Exact:
    """A result in float64, and what its error depends on. All tensors have the shape of the result."""

    value: Tensor
    size: Tensor
    """The sum of the absolute values of all that is added up."""
    square: Tensor
    """The sum of their squares."""
    length: int
    """How many terms a sum has at most."""
    rounded_terms: int = 0
    """How often each term may be rounded to the dtype of the result before it is added up."""
    rounded_sums: int = 0
    """How often sums of part of the terms may be rounded to that dtype on the way."""
    rounded: tuple[Tensor, ...] = ()
    """Values on the way, like a sum before the bias, that may be rounded to that dtype."""


def unit_roundoff(dtype: torch.dtype) -> float:
    """The largest relative error of rounding to nearest."""
    return torch.finfo(dtype).eps / 2


def growth(count: int) -> float:
    """By how many unit roundoffs this many roundings may add up."""
    return min(float(count), LAMBDA * count**0.5)


def bound(exact: Exact, dtype: torch.dtype, product: float = 0.0) -> Tensor:
    """What the error of each element may be at most, in float64.

    Args:
        exact: the result.
        dtype: that of the result to be judged; its sums are in float32, in float64 if it is float64.
        product: by how much each product may be off besides, relative to it (`PRODUCTS`).

    Returns:
        The bounds, of the shape of the result.
    """
    unit = unit_roundoff(dtype)
    # Of n products n are rounded, and n - 1 of their sums.
    sums = growth(exact.length + 1) * unit_roundoff(torch.promote_types(dtype, torch.float32)) * exact.size
    deviation = exact.square.sqrt()
    terms = torch.minimum(LAMBDA * deviation, exact.size) * (exact.rounded_terms**0.5 * unit + product)
    # Of terms with any signs the sums are about as large as the root of their squares.
    partial = LAMBDA * unit * exact.rounded_sums**0.5 * deviation
    before = sums + terms + partial
    smallest = max(torch.finfo(torch.float32).tiny, torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps)
    values = sum((value.abs() + before for value in (exact.value, *exact.rounded)), torch.zeros_like(before))
    return before + unit * values + smallest


def network_bound(network: nn.Module, dtype: torch.dtype) -> float:
    """How far the output of a network in this dtype may be from that in a wider one, as a share of its norm.

    Each layer rounds its output. The errors are independent, so that they add up as the root of their number.
    """
    layers = sum(1 for module in network.modules() if not any(module.children()))
    return layers**0.5 * unit_roundoff(dtype)


def assert_right(actual: Tensor, exact: Exact, product: float = 0.0) -> None:
    """Require that a result is finite and no element farther from the exact one than its bound."""
    assert actual.shape == exact.value.shape, f"the shape is {list(actual.shape)}, not {list(exact.value.shape)}"
    assert actual.isfinite().all(), "the result is not finite"
    if actual.numel() == 0:
        return
    excess = (actual.double() - exact.value).abs() / bound(exact, actual.dtype, product)
    worst = int(excess.argmax())
    at = [int(i) for i in torch.unravel_index(torch.tensor(worst), actual.shape)]
    assert excess.flatten()[worst] <= 1, (
        f"element {at} is {actual.flatten()[worst].item()}, not {exact.value.flatten()[worst].item()}: its error is "
        f"{excess.flatten()[worst].item():.3g} times what rounding explains, as is that of {int((excess > 1).sum())} "
        f"of {actual.numel()} elements"
    )
