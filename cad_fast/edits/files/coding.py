"""Sorted component numbers in few bytes: Rice-coded gaps, decoded by array operations."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

MAX_COUNT = 2**31 - 1  # components of one module; gaps and their sums then stay far inside int64
MAX_BITS = 30


def encode_sorted(indices: Tensor) -> tuple[Tensor, int]:
    """(uint8 [bytes], bits): sorted int64 [k], k > 0, without repetition, in 0..2^31-2, as Rice-coded gaps.

    A gap (the number of components skipped) is cut into its ``bits`` low bits, stored side by side, most significant
    first, and the rest in unary: so many zero bits and a one. The low bits of all gaps come first, filled up to whole
    bytes, then all the unary parts, filled up likewise. ``bits`` is the number that makes the whole shortest. Gaps
    between random components follow a geometric distribution, for which this is the best prefix code (Rice 1979,
    Golomb 1966).
    """
    numbers = indices.numpy()
    gaps = np.diff(numbers, prepend=-1) - 1
    # The optimum lies near the mean gap; clustered components pull it down.
    candidates = range(min(MAX_BITS, int(gaps.mean()).bit_length() + 1) + 1)
    bits = min(candidates, key=lambda b: len(gaps) * b + int((gaps >> b).sum()))
    low = (gaps[:, None] >> np.arange(bits - 1, -1, -1)) & 1
    ends = np.cumsum((gaps >> bits) + 1) - 1
    unary = np.zeros(int(ends[-1]) + 1, np.uint8)
    unary[ends] = 1
    return torch.from_numpy(np.concatenate([np.packbits(low.astype(np.uint8)), np.packbits(unary)])), bits


def encoded_size(k: int, bits: int, count: int) -> tuple[int, int]:
    """The least and the greatest number of bytes that ``k`` of ``count`` components can take at ``bits``."""
    low = (k * bits + 7) // 8
    return low + (k + 7) // 8, low + (k + ((count - k) >> bits) + 7) // 8


def decode_sorted(payload: Tensor, k: int, bits: int, count: int) -> Tensor:
    """What ``encode_sorted`` was given: sorted int64 [k] in 0..count-1, from uint8 [bytes].

    Takes up to about 80 bytes of memory per component, after ``k`` was checked against the length of ``payload``.
    Raises ValueError when the numbers do not fit together, or the payload is not the encoding of ``k`` components.
    """
    if not (0 < k <= count <= MAX_COUNT and 0 <= bits <= MAX_BITS):
        raise ValueError(f"{k} of {count} components in {bits} bits is impossible")
    least, most = encoded_size(k, bits, count)
    if not least <= len(payload) <= most:
        raise ValueError(f"{len(payload)} bytes, expected {least} to {most} for {k} of {count} components")
    data = payload.numpy()
    n_low = (k * bits + 7) // 8
    flags = np.unpackbits(data[n_low:])
    ends = np.flatnonzero(flags)
    if len(ends) != k or len(flags) - ends[-1] > 8:
        raise ValueError(f"its bytes encode {len(ends)} components, expected {k}")
    gaps = ends.copy()
    gaps[1:] -= ends[:-1] + 1
    if bits:
        gaps <<= bits
        gaps |= _unpack(data[:n_low], k, bits)
    gaps[1:] += 1
    numbers = np.cumsum(gaps, out=gaps)
    if numbers[-1] >= count:
        raise ValueError(f"component {numbers[-1]} is outside 0..{count - 1}")
    return torch.from_numpy(numbers)


def _unpack(data: np.ndarray, k: int, bits: int) -> np.ndarray:
    """The ``k`` numbers of ``bits`` bits each that lie side by side in ``data`` uint8; int64 [k]."""
    padded = np.zeros(len(data) + 8, np.uint8)
    padded[:-8] = data
    # Eight bytes from every byte on, of which each number takes those it begins in; its bits are moved to the front,
    # what stands before them falls off, and then to the end.
    words = np.ndarray((len(data),), ">u8", padded, strides=(1,))
    starts = np.arange(0, k * bits, bits)
    numbers = words[starts >> 3].astype(np.uint64)
    numbers <<= (starts & 7).view(np.uint64)
    numbers >>= np.uint64(64 - bits)
    return numbers.view(np.int64)
