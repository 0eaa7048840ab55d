"""seeded_mask: Philox's published numbers, every instruction set against the reference, and statistics."""

import pytest
import torch

from cad_fast.ops import count_bits, reference, seeded_mask, unpack_bits

SIZES = [0, 1, 3, 31, 32, 33, 63, 64, 65, 97, 1000, 4097]

# Counter, key and draws of the test of Philox4x32-10 that comes with the authors' library Random123.
PUBLISHED = [
    ([0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


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


@pytest.mark.parametrize("n", SIZES)
def test_against_reference(capability: str, n: int) -> None:
    for seed, first, fraction in ((0, 0, 0.5), (2**64 - 1, 2**32 - 3, 0.03), (0x0123456789ABCDEF, 77, 0.97)):
        words = seeded_mask(seed, first, 3, n, fraction, backend="native")
        expected = reference.seeded_mask(seed, first, 3, n, round(fraction * 2**32), torch.device("cpu"))
        assert words.dtype == torch.int32 and words.shape == (3, (n + 31) // 32)
        assert torch.equal(words, expected)
        assert torch.equal(words, seeded_mask(seed, first, 3, n, fraction, backend="reference"))


@pytest.mark.parametrize("begin", [2**29 - 5, 2**29 - 1, 2**29, 2**40 + 7])
def test_positions_behind_the_first_half_of_the_counter(native, capability: str, begin: int) -> None:
    """A mask that long does not fit into memory, but its words can be drawn from any one on."""
    count, seed, row, threshold = 9, 42, 5, 2**31
    words = native_words(native, seed, row, begin, begin + count, threshold)
    blocks = torch.arange(8 * begin, 8 * (begin + count))
    counter = [blocks & 0xFFFFFFFF, blocks >> 32, torch.full_like(blocks, row), torch.zeros_like(blocks)]
    draws = torch.stack(reference.philox(counter, seed, 0), -1).flatten()
    assert torch.equal(words[0], reference.pack_bits(draws < threshold))


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_a_bit_depends_on_seed_variant_and_position_alone(native, backend: str) -> None:
    def draw(first: int, variants: int, n: int) -> torch.Tensor:
        return unpack_bits(seeded_mask(3, first, variants, n, 0.4, backend=backend), n)

    everything = draw(0, 9, 1000)
    assert torch.equal(draw(4, 3, 1000), everything[4:7])
    assert torch.equal(draw(8, 1, 333), everything[8:, :333])


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("n", [0, 1, 32, 45, 64, 1001])
def test_no_bit_and_all_bits(native, backend: str, n: int) -> None:
    assert not seeded_mask(5, 0, 3, n, 0, backend=backend).any()
    full = seeded_mask(5, 0, 3, n, 1, backend=backend)
    assert torch.equal(full, reference.pack_bits(torch.ones(3, n, dtype=torch.bool)))


def test_no_variants(native) -> None:
    for backend in ("native", "reference"):
        assert seeded_mask(5, 0, 0, 70, 0.5, backend=backend).shape == (0, 3)


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
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(seeded_mask(1, 2, *shape, 0.3, backend="native"))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[1], results[0]) and torch.equal(results[2], results[0])


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
