"""count_bits in Triton: the bits of each word counted in parallel, in pairs, fours and bytes, and then summed."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cad_fast.kernels import configs


@triton.jit
def count_bits_kernel(words, counts, width, BW: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    total = tl.zeros((BW,), dtype=tl.int64)
    for start in range(0, width, BW):
        word = start + tl.arange(0, BW)
        bits = tl.load(words + row * width + word, mask=word < width, other=0).to(tl.uint32, bitcast=True)
        bits = bits - ((bits >> 1) & 0x55555555)
        bits = (bits & 0x33333333) + ((bits >> 2) & 0x33333333)
        bits = (bits + (bits >> 4)) & 0x0F0F0F0F
        bits += bits >> 8
        bits += bits >> 16
        total += (bits & 63).to(tl.int64)
    tl.store(counts + row, tl.sum(total, 0))


def run(words: Tensor) -> Tensor:
    """See `cad_fast.ops.count_bits`."""
    words = words.contiguous()
    counts = torch.zeros(words.shape[:-1], dtype=torch.int64, device=words.device)
    if words.numel() > 0:
        count_bits_kernel[(counts.numel(),)](
            words, counts, words.shape[-1], BW=configs.BLOCK_COUNTED, **configs.OPTIONS_OF_BITS
        )
    return counts
