"""The fixture `place` of the shared cases: one body per operator for every backend (`tests.ops.places`)."""

from collections.abc import Iterator

import pytest

from tests.ops import places


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The file's name says which operator it is about."""
    if "place" in metafunc.fixturenames:
        places.parametrize(metafunc, metafunc.module.__name__.rpartition("test_")[2])


@pytest.fixture
def place(request: pytest.FixtureRequest) -> Iterator[places.Place]:
    """Each place in turn, in use."""
    with request.param.in_use() as place:
        yield place
