"""pack_bits, unpack_bits and count_bits on the CPU: the definition, addresses, threads, and errors."""

import pytest
import torch

from cad_fast.ops import count_bits, pack_bits, reference, unpack_bits
from tests.ops.bits import random_mask, random_words, same
from tests.ops.calls import with_threads


def test_reference_is_the_definition() -> None:
    mask = random_mask(2, 75)
    words = reference.pack_bits(mask)
    assert words.shape == (2, 3)
    for row in range(2):
        for i in range(96):
            bit = (int(words[row, i // 32]) >> (i % 32)) & 1
            assert bit == (bool(mask[row, i]) if i < 75 else 0)
    assert same(reference.unpack_bits(words, 75), mask)
    assert same(reference.count_bits(words), mask.sum(-1))


@pytest.mark.parametrize("shift", [0, 1, 3, 17])
@pytest.mark.parametrize("n", [1, 33, 64, 200])
def test_unaligned_addresses_and_nothing_written_outside(native, capability: str, n: int, shift: int) -> None:
    rows, row_words, canary = 3, (n + 31) // 32, 0xA7
    mask = random_mask(rows, n)
    words = reference.pack_bits(mask)

    def placed(content: torch.Tensor) -> torch.Tensor:
        raw = content.contiguous().view(torch.uint8).flatten()
        memory = torch.full((raw.numel() + 128,), canary, dtype=torch.uint8)
        memory[64 + shift : 64 + shift + raw.numel()] = raw
        return memory

    def framed(memory: torch.Tensor, size: int) -> torch.Tensor:
        assert (memory[: 64 + shift] == canary).all() and (memory[64 + shift + size :] == canary).all()
        return memory[64 + shift : 64 + shift + size]

    source, packed = placed(mask), placed(torch.full((rows, row_words), -1, dtype=torch.int32))
    native.pack_bits(source.data_ptr() + 64 + shift, packed.data_ptr() + 64 + shift, rows, n)
    assert torch.equal(framed(packed, 4 * rows * row_words), words.view(torch.uint8).flatten())

    unpacked = placed(torch.full((rows, n), 255, dtype=torch.uint8))
    native.unpack_bits(packed.data_ptr() + 64 + shift, unpacked.data_ptr() + 64 + shift, rows, n)
    assert torch.equal(framed(unpacked, rows * n), mask.view(torch.uint8).flatten())

    counts = torch.full((rows,), -1, dtype=torch.int64)
    native.count_bits(packed.data_ptr() + 64 + shift, counts.data_ptr(), rows, row_words)
    assert torch.equal(counts, mask.sum(-1))


@pytest.mark.parametrize("shape", [(1, 3_000_001), (70_001, 45), (3, 2_500_000)], ids=str)
def test_thread_settings_give_equal_results(capability: str, shape: tuple[int, int]) -> None:
    mask = random_mask(*shape)

    def results() -> tuple[torch.Tensor, ...]:
        words = pack_bits(mask, backend="native")
        return words, unpack_bits(words, shape[1], backend="native"), count_bits(words, backend="native")

    all_results = with_threads((1, 2, 3), results)
    for words, unpacked, counts in all_results:
        assert same(words, all_results[0][0])
        assert same(unpacked, mask)
        assert same(counts, mask.sum(-1))


@pytest.mark.slow
def test_hundred_million(capability: str) -> None:
    mask = torch.randint(0, 2, (100_000_007,), dtype=torch.bool)
    words = pack_bits(mask, backend="native")
    assert int(count_bits(words, backend="native")) == int(mask.sum())
    assert same(unpack_bits(words, mask.numel(), backend="native"), mask)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: pack_bits([True, False]), TypeError, "mask must be a tensor, got list"),
        (lambda: pack_bits(torch.ones(3)), TypeError, "mask must have dtype torch.bool or torch.uint8"),
        (lambda: pack_bits(torch.tensor(True)), ValueError, "mask must have at least one dimension"),
        (lambda: unpack_bits(torch.zeros(2), 40), TypeError, "words must have dtype torch.int32, got torch.float32"),
        (lambda: unpack_bits(random_words(2), 65), ValueError, r"words must hold ceil\(65 / 32\) = 3 words, got 2"),
        (lambda: unpack_bits(random_words(2), 40.0), TypeError, "n must be an int, got float"),
        (lambda: unpack_bits(random_words(2), -1), ValueError, "n must not be negative, got -1"),
        (lambda: count_bits(torch.tensor(3, dtype=torch.int32)), ValueError, "words must have at least one dimension"),
        (lambda: count_bits(torch.zeros(3, dtype=torch.int64)), TypeError, "words must have dtype torch.int32"),
    ],
)
def test_errors_name_the_argument(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.gpu
def test_cuda_tensors_run_on_the_reference() -> None:
    mask = random_mask(3, 77).cuda()
    words = pack_bits(mask)
    assert words.is_cuda and same(words.cpu(), reference.pack_bits(mask.cpu()))
    assert same(unpack_bits(words, 77), mask)
    with pytest.raises(RuntimeError, match="native kernels run on cpu"):
        pack_bits(mask, backend="native")
