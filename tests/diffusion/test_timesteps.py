"""Windows of timesteps: one object, whatever they are given as."""

from __future__ import annotations

import json
import math

import pytest
import torch

from cad_fast import TimestepWindow


@pytest.mark.parametrize("given", [(850, 1000), (1000, 850), [850.0, 1000], TimestepWindow(1000, 850)])
def test_two_numbers_in_either_order(given) -> None:
    window = TimestepWindow.of(given)
    assert window == TimestepWindow(1000, 850) and hash(window) == hash(TimestepWindow(1000.0, 850.0))
    assert TimestepWindow.from_list(json.loads(json.dumps(window.to_list()))) == window
    assert window.to_list() == [1000.0, 850.0]
    assert repr(window) == "TimestepWindow(highest=1000.0, lowest=850.0)" and str(window) == "1000 to 850"


def test_none_is_no_window() -> None:
    assert TimestepWindow.of(None) is None


def test_both_ends_are_in_it() -> None:
    window = TimestepWindow(0.75, 0.25)
    assert [window.contains(t) for t in (0.2, 0.25, 0.5, 0.75, 0.8)] == [False, True, True, True, False]
    assert window.contains(torch.tensor(0.75)) and not window.contains(torch.tensor(0.8))
    assert window.contains(torch.tensor([0.25, 0.75])) and not window.contains(torch.tensor([0.25, 0.8]))
    assert TimestepWindow(3, 3).contains(3)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: TimestepWindow(850, 1000), ValueError, "from 850 down to 1000 is empty, expected the highest first"),
        (lambda: TimestepWindow(math.nan, 0), ValueError, "highest is nan, expected a finite timestep"),
        (lambda: TimestepWindow(1000, -math.inf), ValueError, "lowest is -inf, expected a finite timestep"),
        (lambda: TimestepWindow("1000", 0), TypeError, "highest is '1000', expected a timestep"),
        (lambda: TimestepWindow(True, 0), TypeError, "highest is True, expected a timestep"),
        (lambda: TimestepWindow.of((1, 2, 3)), ValueError, r"is \(1, 2, 3\), expected two timesteps"),
        (lambda: TimestepWindow.of((1, math.nan)), ValueError, "an end of the window is nan"),
        (lambda: TimestepWindow.of((1, None)), TypeError, "an end of the window is None"),
        (lambda: TimestepWindow.of(3), TypeError, "is 3, expected two timesteps, a TimestepWindow or None"),
        (lambda: TimestepWindow.of("ab"), TypeError, "is 'ab', expected two timesteps"),
        (lambda: TimestepWindow.from_list([1]), ValueError, r"is \[1\], expected two timesteps"),
    ],
)
def test_what_is_no_window(make, error, message: str) -> None:
    with pytest.raises(error, match=message):
        make()
