"""The checks of sparse edits that are remembered, as they are for indices on a GPU."""

import pytest
import torch

from cad_fast.ops import checks

X, WEIGHT, ROWS, OFFSETS = torch.zeros(3, 8), torch.zeros(5, 8), torch.tensor([0, 1, 3]), torch.tensor([0, 2, 4])


@pytest.fixture
def indices(monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """Indices that were found right, on the CPU but remembered as on a GPU."""
    monkeypatch.setattr(checks.edits, "remembers", lambda indices: True)
    indices = torch.tensor([7, 39, 0, 1])
    checks.edits.check_values(X, WEIGHT, ROWS, OFFSETS, indices)
    return indices


def test_what_was_right_is_not_looked_at_again(indices: torch.Tensor) -> None:
    indices.data[0] = 99  # a change that torch does not see either
    checks.edits.check_values(X, WEIGHT, ROWS, OFFSETS, indices)


def test_a_change_is_noticed(indices: torch.Tensor) -> None:
    indices[0] = 99
    with pytest.raises(ValueError, match=r"indices\[0\] = 99 is out of range"):
        checks.edits.check_values(X, WEIGHT, ROWS, OFFSETS, indices)


def test_another_weight_or_other_offsets_are_noticed(indices: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"indices\[1\] = 39 is out of range"):
        checks.edits.check_values(X, WEIGHT[:4], ROWS, OFFSETS, indices)
    with pytest.raises(ValueError, match=r"indices\[2\] = 0 must be above"):
        checks.edits.check_values(X, WEIGHT, ROWS, torch.tensor([0, 1, 4]), indices)


def test_rows_are_checked_every_time(indices: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="rows must ascend from 0 to 3"):
        checks.edits.check_values(X, WEIGHT, torch.tensor([0, 4, 3]), OFFSETS, indices)
