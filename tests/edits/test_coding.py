"""Rice-coded components: every set comes back as it was, and no bytes decode to anything else than a set in range."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cad_fast.components.fingerprint import Fingerprint
from cad_fast.components.space import KINDS, ComponentSpace, ModuleComponents
from cad_fast.edits import Edit
from cad_fast.edits.files.coding import MAX_COUNT, decode_sorted, encode_sorted, encoded_size


@st.composite
def sorted_numbers(draw):
    count = draw(st.integers(1, MAX_COUNT) | st.integers(1, 200))
    numbers = draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=60, unique=True))
    return sorted(numbers), count


@settings(deadline=None, database=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(sorted_numbers())
def test_coding_round_trip(case):
    numbers, count = case
    payload, bits = encode_sorted(torch.tensor(numbers))
    least, most = encoded_size(len(numbers), bits, count)
    assert payload.dtype == torch.uint8 and least <= len(payload) <= most
    decoded = decode_sorted(payload, len(numbers), bits, count)
    assert decoded.dtype == torch.int64 and decoded.tolist() == numbers
    assert slow_decode(payload.tolist(), len(numbers), bits) == numbers


def slow_decode(payload, k, bits):
    """Bit by bit, as ``encode_sorted`` says."""
    flags = "".join(f"{byte:08b}" for byte in payload)
    unary = flags[8 * ((k * bits + 7) // 8) :]
    numbers, last = [], -1
    for i in range(k):
        rest, unary = unary.index("1"), unary[unary.index("1") + 1 :]
        low = int(flags[i * bits : (i + 1) * bits] or "0", 2)
        last += (rest << bits) + low + 1
        numbers.append(last)
    assert len(unary) < 8 and "1" not in unary
    return numbers


@settings(deadline=None, database=None, max_examples=300)
@given(st.binary(min_size=0, max_size=40), st.integers(-1, 60), st.integers(-1, 40), st.integers(-1, 2**40))
def test_any_bytes_decode_to_sorted_numbers_in_range_or_are_refused(data, k, bits, count):
    try:
        numbers = decode_sorted(torch.from_numpy(np.frombuffer(data, np.uint8).copy()), k, bits, count)
    except ValueError:
        return
    assert len(numbers) == k and 0 <= numbers[0] and numbers[-1] < count and bool((numbers.diff() > 0).all())


def test_what_a_payload_cannot_be_is_said():
    payload, bits = encode_sorted(torch.tensor([3, 90, 500]))
    for k, count, message in [
        (3, 500, "component 500 is outside 0..499"),
        (2, 501, "encode 3 components, expected 2|bytes, expected"),
        (200, 501, r"bytes, expected \d+ to \d+ for 200 of 501"),
        (0, 501, "impossible"),
        (502, 501, "impossible"),
    ]:
        with pytest.raises(ValueError, match=message):
            decode_sorted(payload, k, bits, count)


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
