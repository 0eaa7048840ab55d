"""Fixtures for the operators: every instruction set that is built in and runs here."""

from types import ModuleType

import pytest

from cad_fast.ops import backends


@pytest.fixture
def native() -> ModuleType:
    """The extension module, with the instruction set put back afterwards."""
    module = backends.native.load()
    if module is None:
        pytest.skip(backends.native.why_not())
    before = module.capability()
    yield module
    module.set_capability(before)


@pytest.fixture(params=["portable", "avx2", "avx512", "avx512bf16"])
def capability(request: pytest.FixtureRequest, native: ModuleType) -> str:
    """Each instruction set in turn, in use."""
    reason = native.capabilities().get(request.param, "not built for this architecture")
    if reason is not None:
        pytest.skip(f"{request.param}: {reason}")
    native.set_capability(request.param)
    return request.param
