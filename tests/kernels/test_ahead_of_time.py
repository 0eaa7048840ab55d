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


def is_quick(
    op: str, name: str, arithmetic: str, config: configs.Config, entries: tuple, dtype: torch.dtype, other: bool
) -> bool:
    """Of each architecture, the largest tiles for float16 one way, and those for exact float32 the other way.

    Of convolutions with channels last for one of NVIDIA's and AMD's: the kernels are those of all.
    """
    if op.endswith("_last") and name not in ("sm_90", "gfx942"):
        return False
    return config == entries[-1] and (arithmetic, dtype, other) in {
        ("half", torch.float16, False),
        ("ieee", torch.float32, True),
    }


PRODUCTS = [
    pytest.param(
        op,
        name,
        arithmetic,
        config,
        dtype,
        other,
        marks=[] if is_quick(op, name, arithmetic, config, entries, dtype, other) else pytest.mark.slow,
        id=f"{op}-{name}-{arithmetic}-{config.block_rows}-{str(dtype)[6:]}-{'other' if other else 'one'}",
    )
    for op in launches.PRODUCTS
    for (name, arithmetic), entries in configs.PRODUCTS[op].items()
    for config in entries
    for dtype in DTYPES.get(arithmetic, [torch.float32])
    for other in (False, True)
]


@pytest.mark.parametrize(("op", "name", "arithmetic", "config", "dtype", "other"), PRODUCTS)
def test_products(
    monkeypatch, op: str, name: str, arithmetic: str, config: configs.Config, dtype: torch.dtype, other: bool
) -> None:
    precision = "ieee" if arithmetic == "half" else arithmetic
    launch = launches.PRODUCTS[op]
    *before, kernel = ahead.compiled(name, lambda: launch(config.block_rows, dtype, precision, other), monkeypatch)
    for smaller in before:  # one that reorders bits
        ahead.assert_fits(name, smaller)
    assert kernel.metadata.name == f"{op.removesuffix('_last')}_kernel"
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
@pytest.mark.parametrize("op", launches.WITHOUT_PRODUCT)
def test_kernels_on_bits(monkeypatch, op: str, name: str) -> None:
    (kernel,) = ahead.compiled(name, launches.WITHOUT_PRODUCT[op], monkeypatch)
    ahead.assert_fits(name, kernel)


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32, 2**64 - 1])
def test_seeds_of_every_type(monkeypatch, seed: int) -> None:
    assert ahead.compiled("sm_90", lambda: launches.launch_of_size("seeded_mask", 1, False, seed), monkeypatch)


OPERATORS = [op for op in launches.PRODUCTS if not op.endswith("_last")]
WAYS = [(op, transposed) for op in OPERATORS for transposed in (False, True)]
WAYS += [(op, False) for op in ("masked_linear_scores", *launches.WITHOUT_PRODUCT)]


@pytest.mark.parametrize("size", [1, 33])
@pytest.mark.parametrize(("op", "transposed"), WAYS)
def test_sizes_that_triton_treats_apart(monkeypatch, op: str, size: int, transposed: bool) -> None:
    assert ahead.compiled("sm_90", lambda: launches.launch_of_size(op, size, transposed, 1), monkeypatch)


def test_every_kernel_is_compiled() -> None:
    kernels = {path.stem for path in (Path(__file__).parents[2] / "kernels").glob("*.py")}
    shared = {"channels_last", "configs", "entries", "patches", "tiles"}
    assert kernels - shared == {*OPERATORS, *launches.WITHOUT_PRODUCT, "masked_linear_scores"}


@pytest.mark.parametrize("op", configs.PRODUCTS)
def test_the_tables_are_whole(op: str) -> None:
    table = configs.PRODUCTS[op]
    assert set(table) == set(configs.SCORES)
    assert {name for name, _ in table} == set(configs.ARCHITECTURES) == set(ahead.TARGETS)
    for (name, _), entries in table.items():
        assert [entry.block_rows for entry in entries] == sorted({entry.block_rows for entry in entries})
        if op.startswith("edited"):
            # The number of rows must not change the order in which a row's result is summed.
            assert len({(entry.block_m, entry.block_depth) for entry in entries}) == 1
        for entry in entries:
            # The packed words are read 32 elements at a time.
            assert entry.block_m % 32 == 0 == entry.block_depth % 32, name
