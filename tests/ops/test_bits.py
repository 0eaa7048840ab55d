"""pack_bits, unpack_bits and count_bits: every instruction set against the reference."""

import pytest
import torch

from cad_fast.ops import count_bits, pack_bits, reference, unpack_bits

SIZES = [0, 1, 7, 31, 32, 33, 63, 64, 65, 95, 96, 97, 512, 545, 1000, 4097]
LEADING = [(), (1,), (3,), (2, 5), (0,), (2, 0, 3)]


def random_mask(*shape: int) -> torch.Tensor:
    return torch.rand(shape) < torch.rand(())


def random_words(*shape: int) -> torch.Tensor:
    return torch.randint(-(2**31), 2**31, shape, dtype=torch.int64).to(torch.int32)


def same(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    return actual.dtype == expected.dtype and actual.shape == expected.shape and torch.equal(actual, expected)


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


@pytest.mark.parametrize("leading", LEADING, ids=str)
@pytest.mark.parametrize("n", SIZES)
def test_against_reference(capability: str, n: int, leading: tuple[int, ...]) -> None:
    mask = random_mask(*leading, n)
    words = pack_bits(mask, backend="native")
    assert same(words, reference.pack_bits(mask))
    assert same(unpack_bits(words, n, backend="native"), mask)
    assert same(count_bits(words, backend="native"), reference.count_bits(words))


@pytest.mark.parametrize("n", [1, 31, 32, 50, 64, 100, 4097])
def test_arbitrary_words(capability: str, n: int) -> None:
    words = random_words(3, (n + 31) // 32)  # bits behind the last element are ignored by unpack_bits only
    assert same(unpack_bits(words, n, backend="native"), reference.unpack_bits(words, n))
    assert same(count_bits(words, backend="native"), reference.count_bits(words))


def test_any_nonzero_byte_counts_as_set(capability: str) -> None:
    mask = torch.arange(256, dtype=torch.uint8).repeat(3)[5:-3]
    assert same(pack_bits(mask, backend="native"), reference.pack_bits(mask != 0))


@pytest.mark.parametrize(
    "view",
    [lambda x: x.t(), lambda x: x[:, ::2], lambda x: x[1:, 3:], lambda x: x[:1].expand(4, -1), lambda x: x.flip(1)],
    ids=["transposed", "every-second", "offset", "expanded", "flipped"],
)
def test_strides(capability: str, view) -> None:
    mask = view(random_mask(67, 131))
    assert same(pack_bits(mask, backend="native"), reference.pack_bits(mask))
    words = view(random_words(67, 131))
    n = 32 * words.shape[-1] - 5
    assert same(unpack_bits(words, n, backend="native"), reference.unpack_bits(words, n))
    assert same(count_bits(words, backend="native"), reference.count_bits(words))


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
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            words = pack_bits(mask, backend="native")
            results.append((words, unpack_bits(words, shape[1], backend="native"), count_bits(words, backend="native")))
    finally:
        torch.set_num_threads(threads)
    for words, unpacked, counts in results:
        assert same(words, results[0][0])
        assert same(unpacked, mask)
        assert same(counts, mask.sum(-1))


@pytest.mark.slow
def test_hundred_million(capability: str) -> None:
    mask = torch.randint(0, 2, (100_000_007,), dtype=torch.bool)
    words = pack_bits(mask, backend="native")
    assert int(count_bits(words, backend="native")) == int(mask.sum())
    assert same(unpack_bits(words, mask.numel(), backend="native"), mask)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_vmap(native, backend: str) -> None:
    mask = random_mask(4, 70, 5)
    words = torch.vmap(lambda m: pack_bits(m, backend=backend), in_dims=2)(mask)
    assert same(words, pack_bits(mask.permute(2, 0, 1)))
    assert same(torch.vmap(lambda w: unpack_bits(w, 70, backend=backend))(words), mask.permute(2, 0, 1))
    assert same(torch.vmap(lambda w: count_bits(w, backend=backend), in_dims=1)(words), count_bits(words).t())


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
