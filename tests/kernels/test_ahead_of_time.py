"""Every configuration of every Triton kernel compiles for every architecture, fits, and uses matrix instructions."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from cad_fast.kernels import configs
from tests.kernels import ahead, launches

DTYPES = {"half": [torch.float16, torch.bfloat16]}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled kernels neither come from the user's cache nor go there."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def is_quick(name: str, arithmetic: str, config: configs.Config, dtype: torch.dtype, other: bool) -> bool:
    """Of each architecture, the largest tiles for float16 one way, and the largest for exact float32 the other way."""
    largest = config == configs.PRODUCT[name, arithmetic][-1]
    return largest and (arithmetic, dtype, other) in {("half", torch.float16, False), ("ieee", torch.float32, True)}


PRODUCTS = [
    pytest.param(
        op,
        name,
        arithmetic,
        config,
        dtype,
        other,
        marks=[] if is_quick(name, arithmetic, config, dtype, other) else pytest.mark.slow,
        id=f"{op}-{name}-{arithmetic}-{config.block_rows}-{str(dtype)[6:]}-{'other' if other else 'one'}",
    )
    for op in launches.PRODUCTS
    for (name, arithmetic), entries in configs.PRODUCT.items()
    for config in entries
    for dtype in DTYPES.get(arithmetic, [torch.float32])
    for other in (False, True)
]


@pytest.mark.parametrize(("op", "name", "arithmetic", "config", "dtype", "other"), PRODUCTS)
def test_products(
    monkeypatch, op: str, name: str, arithmetic: str, config: configs.Config, dtype: torch.dtype, other: bool
) -> None:
    precision = "ieee" if arithmetic == "half" else arithmetic
    kernels = ahead.compiled(
        name, lambda: launches.PRODUCTS[op](config.block_rows, dtype, precision, other), monkeypatch
    )
    (kernel,) = kernels
    assert kernel.metadata.num_warps == config.num_warps
    ahead.assert_fits(name, kernel)
    if arithmetic != "ieee" or name == "gfx942":
        ahead.assert_uses_matrix_instructions(name, kernel)


def test_the_table_is_whole() -> None:
    assert {name for name, _ in configs.PRODUCT} == set(configs.ARCHITECTURES) == set(ahead.TARGETS)
    for (name, _), entries in configs.PRODUCT.items():
        assert [entry.block_rows for entry in entries] == sorted({entry.block_rows for entry in entries})
        for entry in entries:
            # The packed words are read 32 elements at a time.
            assert entry.block_m % 32 == 0 == entry.block_depth % 32, name
