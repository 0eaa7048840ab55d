"""pack_bits in Triton: a word is the sum of its shifted bits."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cad_fast.kernels import configs


@triton.jit
def pack_bits_kernel(mask, words, count, n, width, BW: tl.constexpr):
    word = tl.program_id(0).to(tl.int64) * BW + tl.arange(0, BW)
    bit = tl.arange(0, 32)
    element = (word % width * 32)[:, None] + bit[None, :]
    inside = (word < count)[:, None] & (element < n)
    values = tl.load(mask + (word // width * n)[:, None] + element, mask=inside, other=0)
    packed = tl.sum((values != 0).to(tl.uint32) << bit[None, :].to(tl.uint32), 1)
    tl.store(words + word, packed.to(tl.int32, bitcast=True), mask=word < count)


def run(mask: Tensor) -> Tensor:
    """See `cad_fast.ops.pack_bits`."""
    n = mask.shape[-1]
    mask = mask.contiguous().view(torch.uint8)
    words = torch.empty((*mask.shape[:-1], (n + 31) // 32), dtype=torch.int32, device=mask.device)
    if words.numel() > 0:
        grid = (triton.cdiv(words.numel(), configs.BLOCK_WORDS),)
        pack_bits_kernel[grid](
            mask, words, words.numel(), n, words.shape[-1], BW=configs.BLOCK_WORDS, **configs.OPTIONS_OF_BITS
        )
    return words
