"""Components as gaps: every set comes back as it was, and no gaps decode to anything but a set in range."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from cad_fast.choices import KINDS
from cad_fast.components.fingerprint import Fingerprint
from cad_fast.components.module_components import ModuleComponents
from cad_fast.components.space import ComponentSpace
from cad_fast.edits import Edit
from cad_fast.edits.files.coding import MAX_COUNT, decode_gaps, encode_gaps


@st.composite
def sorted_numbers(draw):
    count = draw(st.integers(1, MAX_COUNT) | st.integers(1, 200))
    numbers = draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=60, unique=True))
    return sorted(numbers), count


@settings(deadline=None, database=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(sorted_numbers())
def test_coding_round_trip(case):
    numbers, count = case
    gaps = encode_gaps(torch.tensor(numbers))
    widest = max(b - a - 1 for a, b in zip([-1, *numbers], numbers, strict=False))
    assert gaps.dtype == (torch.uint16 if widest < 2**16 else torch.int32)
    decoded = decode_gaps(gaps, count)
    assert decoded.dtype == torch.int64 and decoded.tolist() == numbers


@settings(deadline=None, database=None, max_examples=300)
@given(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=40), st.integers(1, 2**31))
def test_any_gaps_decode_to_sorted_numbers_in_range_or_are_refused(gaps, count):
    try:
        numbers = decode_gaps(torch.tensor(gaps, dtype=torch.int32), count)
    except ValueError:
        return
    assert len(numbers) == len(gaps) and bool((numbers.diff() > 0).all())
    assert not len(numbers) or (0 <= numbers[0] and numbers[-1] < count)


def test_what_gaps_cannot_be_is_said():
    gaps = encode_gaps(torch.tensor([3, 90, 500]))
    with pytest.raises(ValueError, match=r"component 500, outside 0\.\.499"):
        decode_gaps(gaps, 500)
    with pytest.raises(ValueError, match="a gap is -1"):
        decode_gaps(torch.tensor([3, -1], dtype=torch.int32), 500)


def test_numpy_alone_reads_the_components(tmp_path):
    """As docs/edit-files.md says, without this package."""
    entry = ModuleComponents("to_k", "weight", (400, 500), 1, 0)
    components = torch.tensor([0, 1, 70_000, 199_999])
    edit = Edit("e", ComponentSpace([entry], Fingerprint("Net", "0" * 64, ())), {"to_k": components})
    edit.save_pretrained(tmp_path)
    gaps = load_file(tmp_path / "edit_model.safetensors")["to_k"]
    assert (np.cumsum(gaps.astype(np.int64) + 1) - 1).tolist() == components.tolist()


def test_the_digest_covers_all_that_decides_which_weights_change():
    def edit(name="e", kind="head", shape=(8, 12), block=3, indices=(0, 2), factor=0.0, module="to_out.0", model="Net"):
        space = ComponentSpace([ModuleComponents(module, kind, shape, block, 0)], Fingerprint(model, "0" * 64, ()))
        return Edit(name, space, {module: torch.tensor(indices)}, factor)

    first = edit()
    others = [
        edit(kind="weight", block=1),
        edit(shape=(6, 12)),
        edit(block=4),
        edit(indices=(0, 1)),
        edit(factor=0.5),
        edit(module="to_out.1"),
    ]
    assert len({first.digest(), *(other.digest() for other in others)}) == 7
    assert edit(name="f").digest() == edit(model="Other").digest() == first.digest()
    assert first == edit() and hash(first) == hash(edit()) and first != edit(name="f") and first != edit(model="Other")
    assert first != 3 and all(first != other for other in others)


@st.composite
def edits(draw):
    kind = draw(st.sampled_from(KINDS))
    entries, components, offset = [], {}, 0
    for i in range(draw(st.integers(1, 4))):
        rank = 4 if kind == "filter" else draw(st.sampled_from((2, 4)))
        shape = tuple(draw(st.lists(st.integers(1, 9), min_size=rank, max_size=rank)))
        columns = int(np.prod(shape[1:]))
        divisors = [b for b in range(1, columns + 1) if columns % b == 0]
        block = draw(st.sampled_from(divisors)) if kind == "head" else 1
        entries.append(ModuleComponents(f"blocks.{i}.to_k", kind, shape, block, offset))
        count = entries[-1].count
        offset += count
        chosen = draw(st.sets(st.integers(0, count - 1), min_size=1, max_size=count))
        components[entries[-1].module] = torch.tensor(sorted(chosen))
    fingerprint = Fingerprint("Net", "0" * 64, tuple(draw(st.lists(st.floats(-1, 1), max_size=4))))
    name = draw(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True))
    provenance = draw(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=9), max_size=3))
    return Edit(name, ComponentSpace(entries, fingerprint), components, draw(st.floats(-9, 9)), provenance)


@settings(deadline=None, database=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(edits())
def test_any_edit_survives_the_round_trip(tmp_path_factory, edit):
    folder = tmp_path_factory.getbasetemp() / "round_trip"
    edit.save_pretrained(folder)
    again = Edit.from_pretrained(folder)
    assert (again.name, again.factor, again.provenance) == (edit.name, edit.factor, edit.provenance)
    assert again.digest() == edit.digest() and again.space == edit.space
    assert again.space.fingerprint == edit.space.fingerprint
    assert again.n_weights == sum(len(indices) for indices in again.weight_indices().values())
