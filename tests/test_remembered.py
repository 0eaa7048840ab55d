"""What is remembered with tensors: found for the same ones unchanged, and never for any others."""

import gc
import itertools
import threading
import weakref

import pytest
import torch
from torch import Tensor

from cad_fast import remembered as module
from cad_fast.ops import backend_report
from cad_fast.remembered import Memory

CPU = torch.device("cpu")


class Maker:
    """Makes values of so many bytes, and counts them."""

    def __init__(self, nbytes: int = 8) -> None:
        self.nbytes, self.count = nbytes, 0

    def __call__(self) -> Tensor:
        self.count += 1
        return torch.full((self.nbytes,), self.count, dtype=torch.int8)


@pytest.fixture
def memory() -> Memory:
    """One with room for 100 bytes and 6 values."""
    return Memory(lambda: 100, 6)


@pytest.fixture
def make() -> Maker:
    """Makes values of 8 bytes."""
    return Maker()


def test_the_same_tensors_unchanged(memory: Memory, make: Maker) -> None:
    indices, factors = torch.arange(3), torch.ones(3)
    first = memory.get("x", [indices, factors], 1, make)
    assert memory.get("x", [indices, factors], 1, make) is first
    assert memory.report() == {
        "entries": 1,
        "bytes": 8,
        "captured": 0,
        "found": 1,
        "prepared": 1,
        "evicted": 0,
        "too_large": 0,
    }


def test_equal_tensors_other_names_keys_and_orders_are_others(memory: Memory, make: Maker) -> None:
    indices, factors = torch.arange(3), torch.ones(3)
    calls = [
        ("x", [indices, factors], 1),
        ("x", [indices, factors], 2),
        ("y", [indices, factors], 1),
        ("x", [factors, indices], 1),
        ("x", [indices, factors.clone()], 1),
        ("x", [indices[:], factors], 1),
    ]
    values = [memory.get(*call, make) for call in calls]
    assert make.count == len(values) == len({int(value[0]) for value in values})


CHANGES = {
    "an element": lambda t: t.__setitem__(0, 9),
    "through a view": lambda t: t[1:].zero_(),
    "through detach": lambda t: t.detach().zero_(),
    "in place": lambda t: t.mul_(2),
    "resized": lambda t: t.resize_(2),
    "other memory": lambda t: t.set_(torch.ones(4)),
    "other data": lambda t: setattr(t, "data", torch.ones(4)),
    "other strides": lambda t: t.as_strided_((2,), (2,)),
    "under inference_mode": lambda t: torch.inference_mode()(t.zero_)(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_is_followed(memory: Memory, make: Maker, change) -> None:
    for position in range(2):
        tensors = [torch.ones(4), torch.ones(4)]
        memory.get("x", tensors, 1, make)
        change(tensors[position])
        before = make.count
        memory.get("x", tensors, 1, make)
        assert make.count == before + 1
        assert memory.report()["entries"] == 1  # what the change made useless is gone
        del tensors


def test_a_value_goes_with_any_of_its_tensors(memory: Memory, make: Maker) -> None:
    for position in range(2):
        tensors = [torch.ones(4), torch.ones(4)]
        value = weakref.ref(memory.get("x", tensors, 1, make))
        assert value() is not None
        gc.disable()
        try:
            del tensors[position]
            assert value() is None
        finally:
            gc.enable()
        assert memory.report()["entries"] == 0
        assert not memory._owners


@pytest.mark.parametrize("sweeps", [True, False], ids=["swept", "before anybody has swept"])
def test_a_reused_id_finds_nothing(memory: Memory, make: Maker, monkeypatch, sweeps: bool) -> None:
    if not sweeps:
        monkeypatch.setattr(memory, "_sweep", lambda: None)
    base, ids = torch.ones(4), set()
    for number in range(1, 100):
        tensor = base.view(4)  # its memory, version and shape say nothing either
        ids.add(id(tensor))
        memory.get("x", [tensor], 1, make)
        assert make.count == number
        del tensor
    assert len(ids) < 99, "no id was used again, so that this test shows nothing"


def test_tensors_that_go_while_the_lock_is_held_are_swept_after(memory: Memory, make: Maker) -> None:
    tensors = [torch.ones(4)]
    memory.get("x", tensors, 1, make)
    with memory._lock:
        tensors.clear()  # as when garbage is collected in the midst of a method
        assert len(memory._entries) == 1
    other = torch.ones(4)
    memory.get("x", [other], 2, make)
    assert memory.report()["entries"] == 1


def test_inference_tensors_are_never_kept(memory: Memory, make: Maker) -> None:
    with torch.inference_mode():
        tensor = torch.ones(4)
        for _ in range(3):
            memory.get("x", [tensor], 1, make)
    memory.get("x", [tensor, torch.ones(3)], 1, make)
    assert make.count == 4
    assert memory.report()["entries"] == 0


def test_ordinary_tensors_are_kept_under_inference_mode(memory: Memory, make: Maker) -> None:
    tensor = torch.ones(4)
    with torch.inference_mode():
        first = memory.get("x", [tensor], 1, make)
        assert memory.get("x", [tensor], 1, make) is first
    assert not first.is_inference()
    assert memory.get("x", [tensor], 1, make) is first


def test_the_least_recently_used_go_first(memory: Memory) -> None:
    tensors, make = [torch.ones(1) for _ in range(4)], Maker(30)
    for tensor in (*tensors[:3], tensors[0], tensors[3]):
        memory.get("x", [tensor], 1, make)
    report = memory.report()
    assert (report["entries"], report["bytes"], report["evicted"]) == (3, 90, 1)
    before = make.count
    for tensor in (tensors[0], tensors[2], tensors[3]):
        memory.get("x", [tensor], 1, make)
    assert make.count == before
    memory.get("x", [tensors[1]], 1, make)
    assert make.count == before + 1
    assert len(memory._owners) == 3


def test_the_number_is_limited_too(memory: Memory) -> None:
    tensors, make = [torch.ones(1) for _ in range(9)], Maker(0)
    for tensor in tensors:
        memory.get("x", [tensor], 1, make)
    assert memory.report()["entries"] == 6


def test_what_is_too_large_is_not_kept(memory: Memory) -> None:
    tensor, make = torch.ones(1), Maker(101)
    for _ in range(2):
        memory.get("x", [tensor], 1, make)
    report = memory.report()
    assert (make.count, report["entries"], report["too_large"]) == (2, 0, 2)


@pytest.mark.parametrize("given", ["0", "1000", "-1", "2GiB"])
def test_the_limit_is_read_from_the_environment(monkeypatch, make: Maker, given: str) -> None:
    monkeypatch.setenv("CAD_FAST_REMEMBERED_BYTES", given)
    memory, tensor = Memory(), torch.ones(1)
    if not given.isdecimal():
        with pytest.raises(ValueError, match=f"CAD_FAST_REMEMBERED_BYTES is '{given}': expected a number of bytes"):
            memory.get("x", [tensor], 1, make)
        return
    memory.get("x", [tensor], 1, make)
    memory.get("x", [tensor], 1, lambda: None)
    assert memory.report()["entries"] == (given != "0")


def test_values_without_tensors_to_follow(memory: Memory, make: Maker) -> None:
    first = memory.get("x", [], (1, 2), make, CPU)
    assert memory.get("x", [], (1, 2), make, CPU) is first
    assert memory.get("x", [], (1, 3), make, CPU) is not first
    assert memory.get("x", [], (1, 2), make, torch.device("meta")) is not first


def test_a_value_must_not_keep_its_tensors_alive(memory: Memory) -> None:
    tensor = torch.ones(4)
    with pytest.raises(ValueError, match="what x prepared shares memory with what it was made from"):
        memory.get("x", [tensor], 1, lambda: (None, (tensor[2:],)))
    assert memory.report()["entries"] == 0


def test_an_error_is_not_remembered(memory: Memory, make: Maker) -> None:
    tensor = torch.ones(4)
    with pytest.raises(ZeroDivisionError):
        memory.get("x", [tensor], 1, lambda: 1 // 0)
    memory.get("x", [tensor], 1, make)
    assert make.count == 1


class Streams:
    """Streams and graphs as `Memory` sees them, on the CPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stream, self.capturing, self.recorded = 1, False, []
        monkeypatch.setattr(module, "_stream_of", lambda device: (self.stream, self.capturing))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.stream)
        monkeypatch.setattr(Tensor, "record_stream", lambda tensor, stream: self.recorded.append((len(tensor), stream)))


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Streams:
    """Stands in for those of a GPU."""
    return Streams(monkeypatch)


def test_memory_waits_for_every_stream_once(memory: Memory, make: Maker, streams: Streams) -> None:
    tensor = torch.ones(4)
    for stream in (1, 1, 2, 2, 1, 3):
        streams.stream = stream
        memory.get("x", [tensor], 1, make)
    assert make.count == 1
    assert streams.recorded == [(8, 2), (8, 3)]


def test_a_capture_prepares_nothing(memory: Memory, make: Maker, streams: Streams) -> None:
    tensor, streams.capturing = torch.ones(4), True
    with pytest.raises(RuntimeError, match="x has prepared nothing for these tensors as they are now"):
        memory.get("x", [tensor], 1, make)
    with torch.inference_mode():
        untracked = torch.ones(4)
    with pytest.raises(RuntimeError, match="x cannot be captured in a CUDA graph with tensors made under"):
        memory.get("x", [untracked], 1, make)
    assert make.count == 0


def test_what_was_captured_stays_while_its_tensors_do(memory: Memory, streams: Streams) -> None:
    tensor, others, make = torch.ones(4), [torch.ones(1) for _ in range(5)], Maker(60)
    value = weakref.ref(memory.get("x", [tensor], 1, make))
    streams.capturing = True
    assert memory.get("x", [tensor], 1, make) is value()
    streams.capturing = False
    for other in others:
        memory.get("x", [other], 1, make)
    assert memory.report()["evicted"] == 4
    tensor[0] = 2
    memory.get("x", [tensor], 1, make)
    memory.forget()
    report = memory.report()
    assert (report["entries"], report["bytes"], report["captured"]) == (1, 60, 1)
    assert value() is not None
    del tensor
    assert value() is None
    assert not memory._owners and not memory._captured


def test_many_threads(memory: Memory) -> None:
    shared = [torch.full((4,), float(number)) for number in range(8)]
    wrong = []

    def work(seed: int) -> None:
        for step in range(400):
            number = (seed * 7 + step * 3) % len(shared)
            own = torch.full((4,), float(step % 5))
            for tensor in (shared[number], own):
                value = memory.get("x", [tensor], 1, lambda tensor=tensor: tensor.sum().view(1))
                if value.item() != 4 * tensor[0].item():
                    wrong.append((seed, step))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    del shared[:]
    assert memory.report()["entries"] == 0
    assert not memory._owners


def test_values_are_searched_for_tensors() -> None:
    a, b = torch.ones(1), torch.ones(2)
    assert [len(t) for t in itertools.chain(module.tensors_of((a, (None, (b,)), "c")), module.tensors_of(3))] == [1, 2]


def test_the_report_has_it() -> None:
    assert backend_report()["remembered"].keys() == Memory().report().keys() | {"limit"}
