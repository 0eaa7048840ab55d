"""For all tests: fixed seeds, poisoned allocations, float32 in full, and GPU tests only where there is a GPU."""

import functools

import pytest
import torch

with torch.device("meta"):
    torch.empty(1)  # torch notes once which functions allocate: these, and not the poisoned ones below


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked gpu are skipped, with the reason, where there is no CUDA device."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def seed() -> None:
    """Every test starts from the same random state, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def float32_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless told otherwise cuDNN convolves float32 in TF32, and a reference on a GPU is right to 3 digits only."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def _poisoned(allocate):
    @functools.wraps(allocate)
    def wrapper(*args, **kwargs):
        tensor = allocate(*args, **kwargs)
        if tensor.is_floating_point() or tensor.is_complex():
            return tensor.fill_(float("nan"))
        return tensor.fill_(True if tensor.dtype == torch.bool else 0x5A)

    return wrapper


@pytest.fixture(autouse=True)
def poisoned_allocations(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.empty returns garbage that shows, so that an element never written cannot pass by luck."""
    monkeypatch.setattr(torch, "empty", _poisoned(torch.empty))
    monkeypatch.setattr(torch, "empty_like", _poisoned(torch.empty_like))
