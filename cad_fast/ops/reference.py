"""The slow, obvious versions of all operators, in plain torch: the definition of right, on any device."""

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad
from torch.nn.grad import conv2d_input


def _bits_of(words: Tensor) -> Tensor:
    """Words [..., w] to their bits [..., w, 32], lowest first."""
    positions = torch.arange(32, dtype=torch.int32, device=words.device)
    return (words.unsqueeze(-1) >> positions) & 1


def pack_bits(mask: Tensor) -> Tensor:
    """See `cad_fast.ops.pack_bits`."""
    n = mask.shape[-1]
    words = (n + 31) // 32
    bits = pad((mask != 0).to(torch.int64), (0, 32 * words - n)).reshape(*mask.shape[:-1], words, 32)
    values = (bits << torch.arange(32, device=mask.device)).sum(-1)
    return torch.where(values < 2**31, values, values - 2**32).to(torch.int32)


def unpack_bits(words: Tensor, n: int) -> Tensor:
    """See `cad_fast.ops.unpack_bits`."""
    return _bits_of(words).flatten(-2)[..., :n].to(torch.bool, memory_format=torch.contiguous_format)


def count_bits(words: Tensor) -> Tensor:
    """See `cad_fast.ops.count_bits`."""
    return _bits_of(words).sum((-2, -1), dtype=torch.int64)


def gram_bits(words: Tensor) -> Tensor:
    """See `cad_fast.ops.gram_bits`."""
    return count_bits(words[:, None] & words[None]).to(torch.int32)


def bits_linear(x: Tensor, words: Tensor, n: int, transposed: bool) -> Tensor:
    """See `cad_fast.ops.bits_linear`."""
    bits = unpack_bits(words, n)
    terms = x[:, :, None] if transposed else x[:, None]
    return torch.where(bits, terms, 0.0).sum(1 if transposed else 2)


def keep(words: Tensor, weight: Tensor, factors: Tensor | None) -> Tensor:
    """What each variant multiplies each weight by: words [V, N, ceil(K / 32)] -> [V, *weight.shape], weight's dtype."""
    ablated = unpack_bits(words, weight.shape[1:].numel()).reshape(len(words), *weight.shape)
    factor = torch.zeros(len(words), device=words.device) if factors is None else factors
    factor = factor.to(weight.dtype).reshape(-1, *[1] * weight.dim())
    return torch.where(ablated, factor, torch.ones((), dtype=weight.dtype, device=weight.device))


def ablated(weight: Tensor, words: Tensor, factors: Tensor | None) -> Tensor:
    """Every variant's weight, [V, *weight.shape]; removed weights are exactly zero, whatever they were."""
    kept = keep(words, weight, factors)
    return torch.where(kept == 0, torch.zeros((), dtype=weight.dtype, device=weight.device), weight * kept)


def masked_linear(
    x: Tensor,
    weight: Tensor,
    words: Tensor,
    bias: Tensor | None = None,
    factors: Tensor | None = None,
    transposed: bool = False,
) -> Tensor:
    """See `cad_fast.ops.masked_linear`."""
    weights = ablated(weight, words, factors)
    y = x @ (weights if transposed else weights.mT)
    return y if bias is None else y + bias


def edited(weight: Tensor, indices: Tensor, factors: Tensor) -> Tensor:
    """A copy of the weight, the elements of these flat indices multiplied by their factors; factor 0 gives zero."""
    flat = weight.flatten().clone()
    product = flat[indices] * factors.to(weight.dtype)
    flat[indices] = torch.where(factors == 0, torch.zeros_like(product), product)
    return flat.reshape(weight.shape)


def edited_linear(
    x: Tensor,
    weight: Tensor,
    rows: Tensor,
    offsets: Tensor,
    indices: Tensor,
    factors: Tensor,
    bias: Tensor | None = None,
    transposed: bool = False,
) -> Tensor:
    """See `cad_fast.ops.edited_linear`."""
    parts = []
    for group in range(len(rows) - 1):
        entries = slice(int(offsets[group]), int(offsets[group + 1]))
        of_group = edited(weight, indices[entries], factors[entries])
        parts.append(x[int(rows[group]) : int(rows[group + 1])] @ (of_group if transposed else of_group.mT))
    y = torch.cat(parts)
    return y if bias is None else y + bias


def along(gates: Tensor, x: Tensor, dim: int) -> Tensor:
    """Gates [V, C] in the shape that multiplies x [V, ...], which has C entries in this dimension."""
    shape = [1] * x.dim()
    shape[0], shape[dim] = gates.shape
    return gates.reshape(shape)


def gated(x: Tensor, gates: Tensor, dim: int) -> Tensor:
    """X [V, ...] times its gates [V, C] along a dimension; zero where a gate is 0, even if x is infinite or NaN."""
    factors = along(gates, x, dim)
    return torch.where((factors == 0) & ~x.isfinite(), torch.zeros_like(x), x) * factors


def gated_linear(
    x: Tensor, weight: Tensor, gates: Tensor, bias: Tensor | None = None, transposed: bool = False
) -> Tensor:
    """See `cad_fast.ops.gated_linear`."""
    columns = weight.shape[1]
    each = gates.repeat_interleave(columns // max(1, gates.shape[1]), 1)
    if transposed:
        return gated(x @ weight, each, -1)
    y = gated(x, each, -1) @ weight.mT
    return y if bias is None else y + bias


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    input_size: list[int] | None,
) -> Tensor:
    """The convolution, or the transposed one to an input of this size."""
    if input_size is None:
        return conv2d(x, weight, bias, stride, padding, dilation, groups)
    shape = [len(x), weight.shape[1] * groups, *input_size]
    if x.numel() == 0:
        return x.new_zeros(shape)
    return conv2d_input(shape, weight, x, stride, padding, dilation, groups)


def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    words: Tensor,
    bias: Tensor | None,
    factors: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    input_size: list[int] | None = None,
) -> Tensor:
    """See `cad_fast.ops.masked_conv2d`."""
    weights = ablated(weight, words, factors)
    geometry = (stride, padding, dilation, groups, input_size)
    parts = [convolve(x[v], weights[v], bias, *geometry) for v in range(len(words))]
    return torch.stack(parts) if parts else convolve(x.flatten(0, 1), weight, bias, *geometry).unflatten(0, x.shape[:2])


def edited_conv2d(
    x: Tensor,
    weight: Tensor,
    rows: Tensor,
    offsets: Tensor,
    indices: Tensor,
    factors: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    input_size: list[int] | None = None,
) -> Tensor:
    """See `cad_fast.ops.edited_conv2d`."""
    parts = []
    for group in range(len(rows) - 1):
        entries = slice(int(offsets[group]), int(offsets[group + 1]))
        of_group = edited(weight, indices[entries], factors[entries])
        images = x[int(rows[group]) : int(rows[group + 1])]
        parts.append(convolve(images, of_group, bias, stride, padding, dilation, groups, input_size))
    return torch.cat(parts)


def gated_conv2d(
    x: Tensor,
    weight: Tensor,
    gates: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    input_size: list[int] | None = None,
) -> Tensor:
    """See `cad_fast.ops.gated_conv2d`."""
    geometry = (stride, padding, dilation, groups, input_size)
    images = x.flatten(0, 1) if input_size is None else gated(x, gates, 2).flatten(0, 1)
    y = convolve(images, weight, None, *geometry)
    y = y.reshape(*x.shape[:2], *y.shape[1:])
    if input_size is not None:
        return y
    y = gated(y, gates, 2)
    return y if bias is None else y + bias[:, None, None]


def masked_linear_scores(grad: Tensor, x: Tensor, weight: Tensor, words: Tensor, kept: Tensor, ablated: Tensor) -> None:
    """See `cad_fast.ops.masked_linear_scores`."""
    scores = weight.float() * (grad.float().mT @ x.float())
    is_ablated = unpack_bits(words, weight.shape[1])
    kept += torch.where(is_ablated, 0.0, scores).sum(0)
    ablated += torch.where(is_ablated, scores, 0.0).sum(0)


def seeded_mask(seed: int, first: int, variants: int, n: int, threshold: int, device: torch.device) -> Tensor:
    """See `cad_fast.ops.seeded_mask`."""
    index = torch.arange(n, device=device)
    blocks = index // 4
    words = []
    for variant in range(first, first + variants):
        counter = [blocks & 0xFFFFFFFF, blocks >> 32, torch.full_like(blocks, variant), torch.zeros_like(blocks)]
        draws = torch.stack(philox(counter, seed & 0xFFFFFFFF, seed >> 32), -1)
        words.append(pack_bits(draws.gather(-1, (index % 4).unsqueeze(-1)).squeeze(-1) < threshold))
    return torch.stack(words) if words else index.new_empty((0, (n + 31) // 32), dtype=torch.int32)


def philox(counter: list[Tensor], key0: int, key1: int) -> list[Tensor]:
    """Philox4x32-10 (Salmon et al., 2011): four counters below 2**32, int64, to four draws below 2**32, int64."""
    c0, c1, c2, c3 = counter
    for _ in range(10):
        high0, low0 = _wide_product(0xD2511F53, c0)
        high1, low1 = _wide_product(0xCD9E8D57, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ key0, low1, high0 ^ c3 ^ key1, low0
        key0, key1 = (key0 + 0x9E3779B9) & 0xFFFFFFFF, (key1 + 0xBB67AE85) & 0xFFFFFFFF
    return [c0, c1, c2, c3]


def _wide_product(constant: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of constant * x, without overflow of int64."""
    low = constant * (x & 0xFFFF)
    high = constant * (x >> 16) + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)
