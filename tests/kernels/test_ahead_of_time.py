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


def is_quick(arithmetic: str, config: configs.Config, entries: tuple, dtype: torch.dtype, other: bool) -> bool:
    """Of each architecture, the largest tiles for float16 one way, and those for exact float32 the other way."""
    return config == entries[-1] and (arithmetic, dtype, other) in {
        ("half", torch.float16, False),
        ("ieee", torch.float32, True),
    }


def used(op: str, target: tuple[str, str]) -> tuple[configs.Config, ...]:
    """The entries of the tables that an operator uses for an architecture and an arithmetic."""
    return configs.PRODUCT[target] if op.startswith("masked") else (configs.EDITED[target],)


PRODUCTS = [
    pytest.param(
        op,
        name,
        arithmetic,
        config,
        dtype,
        other,
        marks=[] if is_quick(arithmetic, config, used(op, (name, arithmetic)), dtype, other) else pytest.mark.slow,
        id=f"{op}-{name}-{arithmetic}-{config.block_rows}-{str(dtype)[6:]}-{'other' if other else 'one'}",
    )
    for op in launches.PRODUCTS
    for name, arithmetic in configs.PRODUCT
    for config in used(op, (name, arithmetic))
    for dtype in DTYPES.get(arithmetic, [torch.float32])
    for other in (False, True)
]


@pytest.mark.parametrize(("op", "name", "arithmetic", "config", "dtype", "other"), PRODUCTS)
def test_products(
    monkeypatch, op: str, name: str, arithmetic: str, config: configs.Config, dtype: torch.dtype, other: bool
) -> None:
    precision = "ieee" if arithmetic == "half" else arithmetic
    launch = launches.PRODUCTS[op]
    (kernel,) = ahead.compiled(name, lambda: launch(config.block_rows, dtype, precision, other), monkeypatch)
    assert kernel.metadata.num_warps == config.num_warps
    ahead.assert_fits(name, kernel)
    if arithmetic != "ieee" or name == "gfx942":
        ahead.assert_uses_matrix_instructions(name, kernel)


@pytest.mark.parametrize(("name", "arithmetic"), configs.SCORES)
def test_scores(monkeypatch, name: str, arithmetic: str) -> None:
    precision = "ieee" if arithmetic == "half" else arithmetic
    for dtype in DTYPES.get(arithmetic, [torch.float32]):
        launch = launches.launch_masked_linear_scores
        (kernel,) = ahead.compiled(name, lambda: launch(dtype, precision), monkeypatch)  # noqa: B023
        assert kernel.metadata.num_warps == configs.SCORES[name, arithmetic].num_warps
        ahead.assert_fits(name, kernel)
        if arithmetic != "ieee" or name == "gfx942":
            ahead.assert_uses_matrix_instructions(name, kernel)


@pytest.mark.parametrize("name", ahead.TARGETS)
@pytest.mark.parametrize("op", launches.BITS)
def test_kernels_on_bits(monkeypatch, op: str, name: str) -> None:
    (kernel,) = ahead.compiled(name, launches.BITS[op], monkeypatch)
    ahead.assert_fits(name, kernel)


def test_every_kernel_is_compiled() -> None:
    kernels = {path.stem for path in (Path(__file__).parents[2] / "kernels").glob("*.py")}
    shared = {"configs", "entries", "patches", "tiles"}
    assert kernels - shared == {*launches.PRODUCTS, *launches.BITS, "masked_linear_scores"}


def test_the_table_is_whole() -> None:
    assert set(configs.PRODUCT) == set(configs.SCORES) == set(configs.EDITED)
    assert {name for name, _ in configs.PRODUCT} == set(configs.ARCHITECTURES) == set(ahead.TARGETS)
    for (name, _), entries in configs.PRODUCT.items():
        assert [entry.block_rows for entry in entries] == sorted({entry.block_rows for entry in entries})
        for entry in entries:
            # The packed words are read 32 elements at a time.
            assert entry.block_m % 32 == 0 == entry.block_depth % 32, name
