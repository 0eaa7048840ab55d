"""What is about the Triton kernels alone: interpreted where TRITON_INTERPRET=1 (test_interpreted.py), else on a GPU.

Without a GPU and without the interpreter they are skipped like any test marked gpu. The cases of the operators, which
the Triton kernels share with all backends, are in tests/ops/cases.
"""

from pathlib import Path

import pytest
import torch

from tests.ops.places import INTERPRETED  # which mends the interpreter

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the cases gpu where they are not interpreted, before `-m` chooses."""
    for item in items:
        if HERE in item.path.parents and not INTERPRETED:
            item.add_marker(pytest.mark.gpu)
            if "interpreter" in item.path.stem:
                item.add_marker(pytest.mark.skip(reason="about the interpreter"))


@pytest.fixture
def device() -> torch.device:
    """Where the kernels run."""
    return torch.device("cpu" if INTERPRETED else "cuda")


@pytest.fixture(params=["ieee"] if INTERPRETED else ["ieee", "tf32x3"])
def precision(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Ways to multiply float32 that keep its precision; the interpreter has but one."""
    monkeypatch.setenv("CAD_FAST_FLOAT32_PRECISION", request.param)
    return request.param
