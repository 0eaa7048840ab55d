"""seeded_mask on the CPU: Philox's published numbers, statistics, threads, and errors."""

import pytest
import torch

from cad_fast.ops import count_bits, reference, seeded_mask, unpack_bits
from tests.ops.calls import with_threads
from tests.ops.cases.test_seeded_mask import PUBLISHED


def native_words(native, seed: int, row: int, begin: int, end: int, threshold: int, rows: int = 1) -> torch.Tensor:
    words = torch.empty((rows, end - begin), dtype=torch.int32)
    native.seeded_mask(seed, row, rows, begin, end, threshold, words.data_ptr())
    return words


@pytest.mark.parametrize(("counter", "key", "draws"), PUBLISHED, ids=["zeros", "ones", "pi"])
def test_reference_gives_the_published_draws(counter: list[int], key: list[int], draws: list[int]) -> None:
    assert [int(draw) for draw in reference.philox([torch.tensor(c) for c in counter], *key)] == draws


@pytest.mark.parametrize(("counter", "key", "draws"), PUBLISHED, ids=["zeros", "ones", "pi"])
def test_kernel_gives_the_published_draws(
    native, capability: str, counter: list[int], key: list[int], draws: list[int]
) -> None:
    block, row = (low | high << 32 for low, high in (counter[:2], counter[2:]))
    seed = key[0] | key[1] << 32
    for begin in {block // 8, max(0, block // 8 - 1)}:  # as the first and, of a vector of two words, the second
        for number, draw in enumerate(draws):
            for threshold, expected in ((draw, 0), (draw + 1, 1)):
                words = native_words(native, seed, row, begin, block // 8 + 1, threshold)
                assert int(words[0, -1]) >> (4 * (block % 8) + number) & 1 == expected


@pytest.mark.parametrize("begin", [2**29 - 5, 2**29 - 1, 2**29, 2**40 + 7])
def test_positions_behind_the_first_half_of_the_counter(native, capability: str, begin: int) -> None:
    """A mask that long does not fit into memory, but its words can be drawn from any one on."""
    count, seed, row, threshold = 9, 42, 5, 2**31
    words = native_words(native, seed, row, begin, begin + count, threshold)
    blocks = torch.arange(8 * begin, 8 * (begin + count))
    counter = [blocks & 0xFFFFFFFF, blocks >> 32, torch.full_like(blocks, row), torch.zeros_like(blocks)]
    draws = torch.stack(reference.philox(counter, seed, 0), -1).flatten()
    assert torch.equal(words[0], reference.pack_bits(draws < threshold))


@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.5, 0.8])
def test_bits_are_as_frequent_as_asked_and_independent(native, fraction: float) -> None:
    variants, n = 8, 250_007
    words = seeded_mask(11, 0, variants, n, fraction)
    deviation = (n * fraction * (1 - fraction)) ** 0.5
    assert (count_bits(words) - n * fraction).abs().max() < 5 * deviation
    bits = unpack_bits(words, n).double() - fraction
    other_seed = unpack_bits(seeded_mask(12, 0, variants, n, fraction), n).double() - fraction
    pairs = {
        "neighbours": (bits[:, 1:], bits[:, :-1]),
        "draws of neighbouring blocks": (bits[:, 4:], bits[:, :-4]),
        "words": (bits[:, 32:], bits[:, :-32]),
        "variants": (bits[1:], bits[:-1]),
        "seeds": (bits, other_seed),
    }
    for name, (a, b) in pairs.items():
        correlation = (a * b).sum() / a.numel() / (fraction * (1 - fraction))
        assert abs(correlation) < 5 / a.numel() ** 0.5, name


@pytest.mark.parametrize("shape", [(1, 200_001), (701, 45), (3, 70_000)], ids=str)
def test_thread_settings_give_equal_results(capability: str, shape: tuple[int, int]) -> None:
    first, *others = with_threads((1, 2, 3), lambda: seeded_mask(1, 2, *shape, 0.3, backend="native"))
    assert all(torch.equal(other, first) for other in others)


@pytest.mark.parametrize("shift", [1, 2, 17])
def test_unaligned_addresses_and_nothing_written_outside(native, capability: str, shift: int) -> None:
    canary, words = 0xA7, 7
    memory = torch.full((4 * words + 128,), canary, dtype=torch.uint8)
    native.seeded_mask(9, 0, 1, 0, words, 2**31, memory.data_ptr() + 64 + shift)
    inside = slice(64 + shift, 64 + shift + 4 * words)
    expected = seeded_mask(9, 0, 1, 32 * words, 0.5, backend="reference")
    assert torch.equal(memory[inside], expected.view(torch.uint8).flatten())
    memory[inside] = canary
    assert (memory == canary).all()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((-1, 0, 1, 8, 0.5), ValueError, "seed must not be negative, got -1"),
        ((2**64, 0, 1, 8, 0.5), ValueError, r"seed must be below 2\*\*64, got 18446744073709551616"),
        ((1.0, 0, 1, 8, 0.5), TypeError, "seed must be an int, got float"),
        ((1, -1, 1, 8, 0.5), ValueError, "first must not be negative, got -1"),
        ((1, 0, -1, 8, 0.5), ValueError, "variants must not be negative, got -1"),
        ((1, 2**32, 1, 8, 0.5), ValueError, r"first \+ variants must be at most 2\*\*32, got 4294967296 \+ 1"),
        ((1, 0, 1, -8, 0.5), ValueError, "n must not be negative, got -8"),
        ((1, 0, 1, 8, "0.5"), TypeError, "fraction must be a float, got str"),
        ((1, 0, 1, 8, 1.5), ValueError, r"fraction must be in \[0, 1\], got 1.5"),
        ((1, 0, 1, 8, float("nan")), ValueError, r"fraction must be in \[0, 1\], got nan"),
    ],
)
def test_errors_name_the_argument(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        seeded_mask(*arguments)


def test_other_devices_are_refused_by_native(native) -> None:
    with pytest.raises(RuntimeError, match="the native kernels run on cpu, the result is wanted on cuda"):
        seeded_mask(1, 0, 1, 8, 0.5, device="cuda", backend="native")


@pytest.mark.gpu
def test_masks_are_the_same_on_every_device() -> None:
    words = seeded_mask(1, 2, 3, 1000, 0.3, device="cuda")
    assert words.is_cuda and torch.equal(words.cpu(), seeded_mask(1, 2, 3, 1000, 0.3))
