"""The slow, obvious versions of all operators, in plain torch: the definition of right, on any device."""

import torch
from torch import Tensor
from torch.nn.functional import pad


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
