"""The operators in float64, called as they are, with what `tests.rounding` needs to know of each.

A weight is ablated or edited in its own dtype first, as the operators define it. The rest is the same formula for
values, for absolute values and for squares, as all operators are sums of products.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from cad_fast.ops import reference, unpack_bits
from tests.rounding import Exact


def _exact(formula: Callable[..., Tensor], length: int, *tensors: Tensor | None, **roundings) -> Exact:
    """The formula of tensors in float64, of their absolute values, and of their squares."""
    ways = (lambda t: t.double(), lambda t: t.double().abs(), lambda t: t.double().square())
    values = [formula(*(None if t is None else way(t) for t in tensors)) for way in ways]
    return Exact(*values, length, **roundings)


def _without(value: Tensor, bias: Tensor) -> Tensor:
    """What there was before the bias."""
    return value - bias.double()


def masked_linear(
    x: Tensor,
    weight: Tensor,
    words: Tensor,
    bias: Tensor | None = None,
    factors: Tensor | None = None,
    transposed: bool = False,
) -> Exact:
    """See `cad_fast.ops.masked_linear`."""

    def formula(x: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
        y = x @ (weights if transposed else weights.mT)
        return y if bias is None else y + bias

    return _exact(formula, x.shape[-1] + 1, x, reference.ablated(weight, words, factors), bias)


def edited_linear(
    x: Tensor,
    weight: Tensor,
    rows: Tensor,
    offsets: Tensor,
    indices: Tensor,
    factors: Tensor,
    bias: Tensor | None = None,
    transposed: bool = False,
) -> Exact:
    """See `cad_fast.ops.edited_linear`."""
    weights = _edited_weights(weight, offsets, indices, factors)

    def formula(x: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
        parts = [x[begin:end] @ (w if transposed else w.mT) for begin, end, w in _groups(rows, weights)]
        return torch.cat(parts) if bias is None else torch.cat(parts) + bias

    return _exact(formula, x.shape[-1] + 1, x, weights, bias)


def gated_linear(
    x: Tensor, weight: Tensor, gates: Tensor, bias: Tensor | None = None, transposed: bool = False
) -> Exact:
    """See `cad_fast.ops.gated_linear`: the gated input, or with `transposed` the product, is rounded before."""

    def formula(x: Tensor, weight: Tensor, gates: Tensor, bias: Tensor | None) -> Tensor:
        return reference.gated_linear(x, weight, gates, bias, transposed)

    exact = _exact(formula, x.shape[-1] + 1, x, weight, gates, bias, rounded_terms=0 if transposed else 1)
    return replace(exact, rounded=(exact.value,)) if transposed else exact


def masked_conv2d(
    x: Tensor, weight: Tensor, words: Tensor, bias: Tensor | None, factors: Tensor | None, *geometry
) -> Exact:
    """See `cad_fast.ops.masked_conv2d`."""
    weights = reference.ablated(weight, words, factors)

    def formula(x: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
        return torch.stack([_convolution(x[v], weights[v], bias, geometry) for v in range(len(x))])

    return _of_convolution(_exact(formula, _depth(weight, geometry), x, weights, bias), weight, bias, geometry)


def edited_conv2d(
    x: Tensor,
    weight: Tensor,
    rows: Tensor,
    offsets: Tensor,
    indices: Tensor,
    factors: Tensor,
    bias: Tensor | None,
    *geometry,
) -> Exact:
    """See `cad_fast.ops.edited_conv2d`."""
    weights = _edited_weights(weight, offsets, indices, factors)

    def formula(x: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
        return torch.cat([_convolution(x[b:e], w, bias, geometry) for b, e, w in _groups(rows, weights)])

    return _of_convolution(_exact(formula, _depth(weight, geometry), x, weights, bias), weight, bias, geometry)


def gated_conv2d(x: Tensor, weight: Tensor, gates: Tensor, bias: Tensor | None, *geometry) -> Exact:
    """See `cad_fast.ops.gated_conv2d`: what is gated is rounded before, the images or else torch's own convolution.

    The latter may have its bias, which the native pass takes out and adds again, so that gates of 1 change nothing.
    """

    def formula(x: Tensor, weight: Tensor, gates: Tensor, bias: Tensor | None) -> Tensor:
        return reference.gated_conv2d(x, weight, gates, bias, *geometry)

    exact = _exact(formula, _depth(weight, geometry), x, weight, gates, bias)
    if _is_transposed(geometry):
        return _of_convolution(replace(exact, rounded_terms=1), weight, None, geometry)
    if bias is None:
        return replace(exact, rounded=(exact.value,))
    before = _without(exact.value, bias[:, None, None])
    with_bias = before + (gates.double() * bias.double())[:, None, :, None, None]
    return replace(exact, rounded=(before, with_bias))


def masked_linear_scores(
    grad: Tensor, x: Tensor, weight: Tensor, words: Tensor, before: Tensor | None = None
) -> tuple[Exact, Exact]:
    """See `cad_fast.ops.masked_linear_scores`: what is added to the kept and the ablated elements of `before`."""
    is_ablated = unpack_bits(words, weight.shape[1])

    kept_before, ablated_before = (None, None) if before is None else before

    def without(other: Tensor, before: Tensor | None) -> Exact:
        def formula(grad: Tensor, x: Tensor, weight: Tensor, before: Tensor | None) -> Tensor:
            # Elements of the other side may be infinite or NaN.
            scores = (weight * (grad.mT @ x)).masked_fill(other, 0).sum(0)
            return scores if before is None else scores + before

        # Of each variant its rows and the product with the weight, and what was there before.
        return _exact(formula, len(grad) * (grad.shape[1] + 2) + 2, grad, x, weight, before)

    return without(is_ablated, kept_before), without(~is_ablated, ablated_before)


def _edited_weights(weight: Tensor, offsets: Tensor, indices: Tensor, factors: Tensor) -> Tensor:
    """The weight of every group, [groups, *weight.shape]."""
    parts = [slice(int(offsets[g]), int(offsets[g + 1])) for g in range(len(offsets) - 1)]
    return torch.stack([reference.edited(weight, indices[part], factors[part]) for part in parts])


def _groups(rows: Tensor, weights: Tensor) -> list[tuple[int, int, Tensor]]:
    """The first row of each group, the one behind its last, and its weight."""
    bounds = rows.tolist()
    return list(zip(bounds[:-1], bounds[1:], weights, strict=True))


def _is_transposed(geometry: Sequence) -> bool:
    return len(geometry) > 4 and geometry[4] is not None


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Sequence) -> Tensor:
    return reference.convolve(x, weight, bias, *geometry[:4], geometry[4] if _is_transposed(geometry) else None)


def _depth(weight: Tensor, geometry: Sequence) -> int:
    """How many products and biases make one value."""
    n, *per_filter = weight.shape
    return n // geometry[3] * math.prod(per_filter[1:]) if _is_transposed(geometry) else math.prod(per_filter) + 1


def _of_convolution(exact: Exact, weight: Tensor, bias: Tensor | None, geometry: Sequence) -> Exact:
    """Torch's own convolutions may round before the bias, and transposed what each tap of the kernel gives."""
    if _is_transposed(geometry):
        return replace(exact, rounded_sums=2 * math.prod(weight.shape[2:]))
    return exact if bias is None else replace(exact, rounded=(_without(exact.value, bias[:, None, None]),))
