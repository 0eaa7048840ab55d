"""seeded_mask, wherever it runs: the bits of the reference, which are Philox's published ones."""

import pytest
import torch

from cad_fast.ops import reference, seeded_mask, unpack_bits
from tests.ops.places import Place, over, sizes

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


def drawn(place: Place, *arguments: float) -> torch.Tensor:
    """The words."""
    return place(seeded_mask, *arguments, device=place.device)


@over(n=sizes([0, 1, 31, 32, 33, 1000, 4097], [0, 1, 3, 31, 32, 33, 63, 64, 65, 97, 1000, 4097]))
@pytest.mark.parametrize(
    ("seed", "first", "fraction"),
    [(0, 0, 0.5), (2**64 - 1, 2**32 - 3, 0.03), (0x0123456789ABCDEF, 77, 0.97), (5, 2**31 - 1, 0), (5, 0, 1)],
)
def test_against_reference(place: Place, seed: int, first: int, n: int, fraction: float) -> None:
    words = drawn(place, seed, first, 3, n, fraction)
    expected = reference.seeded_mask(seed, first, 3, n, round(fraction * 2**32), torch.device("cpu"))
    assert words.dtype == torch.int32 and words.shape == (3, (n + 31) // 32)
    assert torch.equal(words, expected)
    assert torch.equal(words, seeded_mask(seed, first, 3, n, fraction, backend="reference"))


def test_published_draws(place: Place) -> None:
    for number, draw in enumerate(PUBLISHED[0][2]):
        for threshold, expected in ((draw, 0), (draw + 1, 1)):
            words = drawn(place, 0, 0, 1, 4, threshold / 2**32)
            assert int(words[0, 0]) >> number & 1 == expected


@over(also=("reference",))
def test_a_bit_depends_on_seed_variant_and_position_alone(place: Place) -> None:
    def draw(first: int, variants: int, n: int) -> torch.Tensor:
        return unpack_bits(drawn(place, 3, first, variants, n, 0.4), n)

    everything = draw(0, 9, 1000)
    assert torch.equal(draw(4, 3, 1000), everything[4:7])
    assert torch.equal(draw(8, 1, 333), everything[8:, :333])


@over(also=("reference",))
@pytest.mark.parametrize("n", [0, 1, 32, 45, 64, 1001])
def test_no_bit_and_all_bits(place: Place, n: int) -> None:
    assert not drawn(place, 5, 0, 3, n, 0).any()
    full = drawn(place, 5, 0, 3, n, 1)
    assert torch.equal(full, reference.pack_bits(torch.ones(3, n, dtype=torch.bool)))


@over(also=("reference",))
def test_no_variants(place: Place) -> None:
    assert drawn(place, 5, 0, 0, 70, 0.5).shape == (0, 3)
