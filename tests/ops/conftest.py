"""Fixtures for the operators: every instruction set that is built in and runs here."""

from collections.abc import Iterator
from types import ModuleType

import pytest

from cad_fast.ops import backends
from tests.ops import places


@pytest.fixture
def native() -> ModuleType:
    """The extension module, with the instruction set put back afterwards."""
    module = backends.native.load()
    if module is None:
        pytest.skip(backends.native.why_not())
    before = module.capability()
    yield module
    module.set_capability(before)


@pytest.fixture(params=places.CAPABILITIES)
def capability(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set in turn, in use."""
    with places.using(request.param):
        yield request.param
