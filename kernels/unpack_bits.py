"""unpack_bits in Triton: every element reads its word, which its neighbours read too."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cad_fast.kernels import configs


@triton.jit
def unpack_bits_kernel(words, mask, count, n, width, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    element = at % n
    word = tl.load(words + at // n * width + element // 32, mask=at < count, other=0)
    bit = (word >> (element % 32).to(tl.int32)) & 1
    tl.store(mask + at, bit.to(tl.uint8), mask=at < count)


def run(words: Tensor, n: int) -> Tensor:
    """See `cad_fast.ops.unpack_bits`."""
    words = words.contiguous()
    mask = torch.empty((*words.shape[:-1], n), dtype=torch.bool, device=words.device)
    if mask.numel() > 0:
        block = 32 * configs.BLOCK_WORDS
        grid = (triton.cdiv(mask.numel(), block),)
        unpack_bits_kernel[grid](
            words, mask.view(torch.uint8), mask.numel(), n, words.shape[-1], BLOCK=block, **configs.OPTIONS_OF_BITS
        )
    return mask
