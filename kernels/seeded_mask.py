"""seeded_mask in Triton: Philox4x32-10, eight blocks of four draws to each word."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cad_fast.kernels import configs


@triton.jit
def philox(c0, c1, c2, c3, k0, k1):
    """Four draws, uint32, for counters and keys, uint32."""
    for _ in tl.static_range(10):
        a, b = c0, c2
        c0 = tl.umulhi(tl.full(b.shape, 0xCD9E8D57, tl.uint32), b) ^ c1 ^ k0
        c1 = b * tl.full(b.shape, 0xCD9E8D57, tl.uint32)
        c2 = tl.umulhi(tl.full(a.shape, 0xD2511F53, tl.uint32), a) ^ c3 ^ k1
        c3 = a * tl.full(a.shape, 0xD2511F53, tl.uint32)
        k0 += tl.full(k0.shape, 0x9E3779B9, tl.uint32)
        k1 += tl.full(k1.shape, 0xBB67AE85, tl.uint32)
    return c0, c1, c2, c3


@triton.jit(do_not_specialize=["key0", "key1", "first", "threshold"])  # any of them may be 1, a constant to Triton
def seeded_mask_kernel(words, key0, key1, first, n, width, threshold, BW: tl.constexpr):
    word = tl.program_id(0).to(tl.int64) * BW + tl.arange(0, BW)
    row = tl.program_id(1).to(tl.int64)
    part = tl.arange(0, 8)
    block = word[:, None] * 8 + part[None, :]
    c0, c1 = block.to(tl.uint32), (block >> 32).to(tl.uint32)
    zero = tl.zeros((BW, 8), dtype=tl.uint32)
    variant = zero + (first + row).to(tl.uint32)
    d0, d1, d2, d3 = philox(c0, c1, variant, zero, zero + key0.to(tl.uint32), zero + key1.to(tl.uint32))
    # The threshold may be 2**32, so it is compared as 64 bits.
    bits = (d0.to(tl.int64) < threshold).to(tl.uint32)
    bits |= (d1.to(tl.int64) < threshold).to(tl.uint32) << 1
    bits |= (d2.to(tl.int64) < threshold).to(tl.uint32) << 2
    bits |= (d3.to(tl.int64) < threshold).to(tl.uint32) << 3
    packed = tl.sum(bits << (4 * part)[None, :].to(tl.uint32), 1)
    # Of the last word, only what is before element n.
    left = n - word * 32
    behind = tl.full((BW,), 0xFFFFFFFF, tl.uint32) >> (32 - tl.minimum(left, 32)).to(tl.uint32)
    packed = (packed & behind).to(tl.int32, bitcast=True)
    tl.store(words + row * width + word, packed, mask=word < width)


def run(seed: int, first: int, variants: int, n: int, threshold: int, device: torch.device) -> Tensor:
    """See `cad_fast.ops.seeded_mask`."""
    width = (n + 31) // 32
    words = torch.empty((variants, width), dtype=torch.int32, device=device)
    if words.numel() == 0:
        return words
    block = configs.BLOCK_WORDS
    # Variants are the second dimension of the grid, which has a limit.
    for begin in range(0, variants, configs.MOST_PROGRAMS):
        part = words[begin : begin + configs.MOST_PROGRAMS]
        grid = (triton.cdiv(width, block), len(part))
        seeded_mask_kernel[grid](
            part, seed & 0xFFFFFFFF, seed >> 32, first + begin, n, width, threshold, BW=block, **configs.OPTIONS_OF_BITS
        )
    return words
