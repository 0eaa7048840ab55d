"""Edits as masks and runs of rows, as the Hopper kernels take them; a stand-in for these computes in plain torch."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from cad_fast import remembered
from cad_fast.ops import backends, checks, reference
from cad_fast.ops.registry import OPS
from tests.ops import exact
from tests.rounding import assert_right

SEGMENTS, MOST = 2, 3
"""Of the stand-in's tiles: so many runs in a block, so many rows in a run."""


class Kernels:
    """Computes what the kernels would, run by run, and notes how it was called."""

    def __init__(self) -> None:
        self.calls = 0

    def function(self, name: str) -> Callable[[int, Any], None]:
        assert name == "wide_tile"

        def wide_tile(rows: int, sizes: Any) -> None:
            sizes[0], sizes[1] = MOST, SEGMENTS

        return wide_tile

    def linear(
        self, x: Tensor, weight: Tensor, words: Tensor, bias, factors, transposed: bool, runs, y: Tensor
    ) -> None:
        self.calls += 1
        for mask, first, count in runs.table.view(-1, 3).tolist():
            own = slice(first, first + count)
            factor = None if factors is None else factors[mask, None]
            y[own] = reference.masked_linear(x[None, own], weight, words[mask, None], bias, factor, transposed)[0]

    def convolution(self, x: Tensor, weight: Tensor, words: Tensor, bias, factors, geometry, runs, y: Tensor) -> None:
        self.calls += 1
        images, flat = x.movedim(-1, -3), y.view(-1, y.shape[-1])
        for mask, first, count in runs.table.view(-1, 3).tolist():
            factor = None if factors is None else factors[mask, None]
            masked = reference.ablated(weight.flatten(1), words[mask, None], factor)[0].view(weight.shape)
            all_rows = reference.convolve(images, masked.permute(0, 3, 1, 2), bias, *geometry)
            own = slice(first, first + count)
            flat[own] = all_rows.movedim(-3, -1).reshape(flat.shape)[own]


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernels]:
    stand_in = Kernels()
    _forget()
    monkeypatch.setattr(backends.cuda, "load", lambda: stand_in)
    monkeypatch.setattr(backends.hopper, "linear_of_runs", stand_in.linear)
    monkeypatch.setattr(backends.hopper, "convolution_of_runs", stand_in.convolution)
    yield stand_in
    _forget()


def _forget() -> None:
    """Nothing that the stand-in has said may reach other tests, nor the other way round."""
    remembered.forget()
    backends.hopper.tile_of.cache_clear()


def edit(elements: int, shares: list[int], mixed: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Offsets, indices and factors: of groups of so many entries, one factor in each, or several in the last."""
    parts = [torch.randperm(elements)[:count].sort().values for count in shares]
    factors = [torch.full((count,), [0.0, 0.5, -1.0][g % 3]) for g, count in enumerate(shares)]
    if mixed:
        factors[-1] = torch.rand(shares[-1])
    return torch.tensor([0, *shares]).cumsum(0), torch.cat(parts), torch.cat(factors)


def linear_case(mixed: bool, transposed: bool = False) -> list[Any]:
    n, k, rows = 24, 40, torch.tensor([0, 4, 4, 5, 12])
    x = torch.randn(12, n if transposed else k)
    bias = None if transposed else torch.randn(n)
    return [x, torch.randn(n, k), rows, *edit(n * k, [30, 5, 0, 70], mixed), bias, transposed]


def convolution_case(mixed: bool) -> list[Any]:
    x, weight = torch.randn(5, 64, 4, 3), torch.randn(6, 64, 3, 3)
    rows = torch.tensor([0, 2, 3, 3, 5])
    return [
        x,
        weight,
        rows,
        *edit(weight.numel(), [300, 0, 5, 70], mixed),
        torch.randn(6),
        [1, 1],
        [1, 1],
        [1, 1],
        1,
        None,
    ]


CASES = {
    "edited_linear": linear_case,
    "edited_linear, transposed": lambda mixed: linear_case(mixed, True),
    "edited_conv2d": convolution_case,
}


def hopper(op: str, *arguments: Any) -> Tensor:
    return OPS[op].implementations["hopper"](*arguments)


@pytest.mark.parametrize("mixed", [False, True], ids=["a factor a group", "mixed factors"])
@pytest.mark.parametrize("name", CASES)
def test_right_and_looked_up_the_second_time(name: str, mixed: bool, kernels: Kernels, monkeypatch) -> None:
    op, arguments = name.split(",")[0], CASES[name](mixed)
    first = hopper(op, *arguments)
    assert_right(first, getattr(exact, op)(*arguments))
    assert kernels.calls == 1 + mixed
    prepared = remembered.report()["prepared"]
    monkeypatch.setattr(checks.edits, "_check_indices", lambda *_: pytest.fail("the indices are looked at again"))
    monkeypatch.setattr(checks.edits, "check_bounds", lambda *_: pytest.fail("the rows are looked at again"))
    assert torch.equal(hopper(op, *arguments), first)
    assert remembered.report()["prepared"] == prepared
    equal = [a.clone() if i in (2, 3) else a for i, a in enumerate(arguments)]  # rows and offsets go by their values
    assert torch.equal(hopper(op, *equal), first)
    assert remembered.report()["prepared"] == prepared


@pytest.mark.parametrize("name", CASES)
def test_changes_are_followed(name: str, kernels: Kernels) -> None:
    op, arguments = name.split(",")[0], CASES[name](False)
    hopper(op, *arguments)
    arguments[2][1] -= 1
    assert_right(hopper(op, *arguments), getattr(exact, op)(*arguments))
    arguments[5][: int(arguments[3][1])] = 2.0
    assert_right(hopper(op, *arguments), getattr(exact, op)(*arguments))
    arguments[4][int(arguments[3][-2])] = 0
    assert_right(hopper(op, *arguments), getattr(exact, op)(*arguments))


BAD = {
    "rows must ascend from 0 to": lambda a: a[2].__setitem__(1, 9),
    "rows must ascend": lambda a: a[2].__setitem__(-1, 4),
    "offsets must ascend from 0 to": lambda a: a[3].__setitem__(1, 10**6),
    "is out of range for a weight of": lambda a: a[4].__setitem__(3, -1),
    "must be above the index before it in its group": lambda a: a[4].__setitem__(2, int(a[4][1])),
}


@pytest.mark.parametrize("again", [False, True], ids=["first call", "later call"])
@pytest.mark.parametrize("message", BAD)
@pytest.mark.parametrize("name", CASES)
def test_bad_values_are_refused(name: str, message: str, again: bool, kernels: Kernels) -> None:
    """In a call like one that was right before, too."""
    op, arguments = name.split(",")[0], CASES[name](True)
    if again:
        hopper(op, *arguments)
    BAD[message](arguments)
    with pytest.raises(ValueError, match=message):
        hopper(op, *arguments)


def test_fewer_rows_than_before_are_refused(kernels: Kernels) -> None:
    arguments = linear_case(False)
    hopper("edited_linear", *arguments)
    arguments[0] = arguments[0][:-1]
    with pytest.raises(ValueError, match="rows must ascend from 0 to 11"):
        hopper("edited_linear", *arguments)
