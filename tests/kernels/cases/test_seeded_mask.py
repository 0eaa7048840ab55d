"""seeded_mask in Triton: the same bits as on the CPU."""

import pytest
import torch

from cad_fast.ops import seeded_mask
from tests.ops.test_seeded_mask import PUBLISHED


@pytest.mark.parametrize("n", [0, 1, 31, 32, 33, 1000, 4097])
@pytest.mark.parametrize(
    ("seed", "first", "fraction"),
    [(0, 0, 0.5), (2**64 - 1, 2**32 - 3, 0.03), (0x0123456789ABCDEF, 77, 0.97), (5, 2**31 - 1, 0), (5, 0, 1)],
)
def test_bits_are_those_of_the_cpu(device, seed: int, first: int, n: int, fraction: float) -> None:
    words = seeded_mask(seed, first, 3, n, fraction, device=device, backend="triton")
    for backend in ("native", "reference"):
        assert torch.equal(words.cpu(), seeded_mask(seed, first, 3, n, fraction, backend=backend))


@pytest.mark.parametrize(("counter", "key", "draws"), PUBLISHED[:1], ids=["zeros"])
def test_published_draws(device, counter: list[int], key: list[int], draws: list[int]) -> None:
    for number, draw in enumerate(draws):
        for threshold, expected in ((draw, 0), (draw + 1, 1)):
            words = seeded_mask(0, 0, 1, 4, threshold / 2**32, device=device, backend="triton")
            assert int(words[0, 0]) >> number & 1 == expected


def test_more_variants_than_a_grid_is_wide(device, monkeypatch: pytest.MonkeyPatch) -> None:
    configs = pytest.importorskip("cad_fast.kernels.configs")
    monkeypatch.setattr(configs, "MOST_PROGRAMS", 4)
    words = seeded_mask(3, 1, 11, 70, 0.3, device=device, backend="triton")
    assert torch.equal(words.cpu(), seeded_mask(3, 1, 11, 70, 0.3, backend="reference"))
