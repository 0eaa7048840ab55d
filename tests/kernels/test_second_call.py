"""A second call with the same edit allocates the result and launches its kernel: nothing else, and nothing stale.

The kernels are not run: what would be launched is noted, on a machine without a GPU, and torch's operators are counted.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")

from triton.runtime import jit

import cad_fast
from cad_fast import Ablation, ComponentSpace, envs, remembered
from cad_fast.kernels import configs
from cad_fast.ops import backends, checks, dispatch, use_backend
from cad_fast.row_engine.slots import Plan, Slot

VIEWS = {"view", "_unsafe_view", "reshape", "flatten", "unflatten", "select", "permute", "movedim"}


@pytest.fixture(autouse=True)
def poisoned_allocations() -> None:
    """Not here: to fill them is an operator too."""


class Operators(TorchDispatchMode):
    """Notes what torch runs inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(function).split(".")[1]
        if not name.startswith("resolve_"):  # asked for by tolist, which reads the tensor itself
            self.names.append(name)
        return function(*args, **(kwargs or {}))


class Launches:
    """Stands in for the GPU: every tensor on the CPU counts as on it, and kernels are noted, not run."""

    def __init__(self) -> None:
        self.arguments: list[tuple[Any, ...]] = []

    def launched(self, call: Callable[[], Any]) -> tuple[list[tuple[Any, ...]], list[str]]:
        """The arguments of the kernels that a call launches, and the operators of torch that it runs."""
        self.arguments = []
        with Operators() as operators:
            call()
        return self.arguments, operators.names


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Launches:
    """A pretended one, with Triton."""
    launches = Launches()

    def note(function: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        launches.arguments.append(args)

    monkeypatch.setattr(jit.JITFunction, "run", note)
    monkeypatch.setattr(configs, "architecture", lambda device: "sm_90")
    monkeypatch.setattr(backends.triton, "why_not", lambda op, args: None)
    monkeypatch.setitem(dispatch.PREDICATES, "triton", lambda op, args: None)
    monkeypatch.setattr(checks.edits, "remembers", lambda indices: True)
    monkeypatch.setattr(dispatch, "untraced", lambda *tensors: True)  # the counting itself is no reason to trace
    return launches


def linear_case(transposed: bool = False, shape: tuple[int, int] = (40, 70)) -> list[Any]:
    n, k = shape
    edit = torch.tensor([0, 3, 3, 5]), torch.tensor([1, 80, 2000, 4, 5]), torch.tensor([0.0, 0.5, 2.0, 0.0, 0.5])
    return [
        torch.randn(9, n if transposed else k),
        torch.randn(n, k),
        torch.tensor([0, 2, 8, 9]),
        *edit,
        None,
        transposed,
    ]


def conv_case(transposed: bool = False, groups: int = 1, channels_last: bool = False) -> list[Any]:
    weight = torch.randn(8, 12 // groups, 3, 3)
    x = torch.randn(9, 8 if transposed else 12, 5, 6)
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    edit = torch.tensor([0, 3, 3, 5]), torch.tensor([1, 30, 200, 4, 5]), torch.tensor([0.0, 0.5, 2.0, 0.0, 0.5])
    same = ([1, 1], [1, 1], [1, 1], groups, [5, 6] if transposed else None)
    return [x, weight, torch.tensor([0, 2, 8, 9]), *edit, None, *same]


CASES = {
    "linear": ("edited_linear", linear_case),
    "linear transposed": ("edited_linear", lambda: linear_case(True)),
    "linear with strides": ("edited_linear", lambda: [*linear_case()[:4], *strided(linear_case()[4:6]), None, False]),
    "conv2d": ("edited_conv2d", conv_case),
    "conv2d transposed": ("edited_conv2d", lambda: conv_case(True)),
    "conv2d in groups": ("edited_conv2d", lambda: conv_case(groups=2)),
    "conv2d channels last": ("edited_conv2d", lambda: conv_case(channels_last=True)),
}
cases = pytest.mark.parametrize(("op", "case"), CASES.values(), ids=CASES)


def strided(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.repeat_interleave(2)[::2] for tensor in tensors]


def tensors_of(arguments: tuple[Any, ...]) -> list[Tensor]:
    return [
        one for each in arguments for one in (each if isinstance(each, tuple) else [each]) if isinstance(one, Tensor)
    ]


@cases
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
def test_the_second_call_allocates_the_result_alone(gpu: Launches, op: str, case: Callable, mode: Callable) -> None:
    args = case()
    with mode():
        first, many = gpu.launched(lambda: dispatch.run(op, "triton", *args))
        second, few = gpu.launched(lambda: dispatch.run(op, "triton", *args))
    assert len(first) == len(second) == 1
    assert len(many) > 40
    assert few.count("empty") == 1
    assert len(few) <= 4 and set(few) <= {"empty", *VIEWS}
    passed = {id(tensor) for tensor in tensors_of(first[0])}
    assert sum(id(tensor) not in passed for tensor in tensors_of(second[0])) == 1, "more than the result is new"


@cases
def test_rows_and_offsets_may_be_made_anew(gpu: Launches, op: str, case: Callable) -> None:
    args = case()
    dispatch.run(op, "triton", *args)
    args[2], args[3] = args[2].clone(), args[3].clone()
    assert len(gpu.launched(lambda: dispatch.run(op, "triton", *args))[1]) <= 4


@cases
def test_inference_tensors_are_prepared_in_every_call(gpu: Launches, op: str, case: Callable) -> None:
    args = case()
    with torch.inference_mode():
        args[5] = args[5].clone()
        for change in (1, 2):
            args[5].fill_(change)  # which nobody counts
            ((*_,),), names = gpu.launched(lambda: dispatch.run(op, "triton", *args))
            assert len(names) > 40
            assert change in set(factors_passed(gpu.arguments[0], args).tolist())


def factors_passed(arguments: tuple[Any, ...], args: list[Any]) -> Tensor:
    """Of the arguments of a kernel, the factors of its entries: they are the last of float32."""
    return [tensor for tensor in tensors_of(arguments) if tensor.dtype == torch.float32][-1]


CHANGES = {
    "a factor": lambda args: args[5].__setitem__(1, 7.0),
    "a factor to 0": lambda args: args[5].__setitem__(1, 0.0),
    "an index": lambda args: args[4].__setitem__(1, 90),
    "other factors": lambda args: args.__setitem__(5, args[5] + 1),
    "other offsets": lambda args: args.__setitem__(3, torch.tensor([0, 1, 3, 5])),
    "offsets in place": lambda args: args[3].copy_(torch.tensor([0, 1, 3, 5])),
    "offsets by numpy": lambda args: args[3].numpy().__setitem__(1, 2),
    "rows": lambda args: args[2].copy_(torch.tensor([0, 1, 2, 9])),
    "rows by numpy": lambda args: args[2].numpy().__setitem__(1, 5),
}


@pytest.mark.parametrize("op", ["edited_linear", "edited_conv2d"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_is_kept_follows_a_change(gpu: Launches, op: str, change: Callable) -> None:
    args = linear_case() if op == "edited_linear" else conv_case()
    dispatch.run(op, "triton", *args)
    before = gpu.arguments[-1]
    change(args)
    dispatch.run(op, "triton", *args)
    changed = gpu.arguments[-1]
    fresh = [each.clone() if isinstance(each, Tensor) else each for each in args]
    dispatch.run(op, "triton", *fresh)
    assert same(changed, gpu.arguments[-1]), "the change was not followed"
    assert not same(changed, before), "this change shows in nothing"


def same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    """Whether two launches have the same arguments but for the result, the fifth."""
    tensors = [tensors_of((*arguments[:4], *arguments[5:])) for arguments in (one, other)]
    return len(one) == len(other) and all(map(torch.equal, *tensors))


def test_two_shapes_and_both_ways_have_entries_of_their_own(gpu: Launches) -> None:
    first = linear_case()
    seen = []
    for shape in ((40, 70), (50, 64)):
        for transposed in (False, True):
            args = linear_case(transposed, shape)
            args[3:6] = first[3:6]
            fresh = [each.clone() if isinstance(each, Tensor) else each for each in args]
            for given in (args, fresh, args):
                dispatch.run("edited_linear", "triton", *given)
            assert all(same(gpu.arguments[-1], other) for other in gpu.arguments[-3:])
            assert not any(same(gpu.arguments[-1], other) for other in seen)
            seen.append(gpu.arguments[-1])


def test_an_evicted_edit_is_prepared_again(gpu: Launches, monkeypatch: pytest.MonkeyPatch) -> None:
    edits = [linear_case() for _ in range(3)]
    dispatch.run("edited_linear", "triton", *edits[0])
    expected = gpu.arguments[-1]
    remembered.forget()
    monkeypatch.setitem(
        envs.VARIABLES, "CAD_FAST_REMEMBERED_BYTES", envs.Variable("CAD_FAST_REMEMBERED_BYTES", "4000", "")
    )
    before = remembered.report()["evicted"]
    for _ in range(2):
        for args in edits:
            dispatch.run("edited_linear", "triton", *args)
            assert same(gpu.arguments[-1], expected) or args is not edits[0]
    assert remembered.report()["evicted"] > before
    assert remembered.report()["bytes"] <= 4000


@pytest.mark.parametrize("op", ["edited_linear", "edited_conv2d"])
def test_wrong_values_are_refused_after_right_ones(gpu: Launches, op: str) -> None:
    args = linear_case() if op == "edited_linear" else conv_case()
    dispatch.run(op, "triton", *args)
    for position, change, message in (
        (4, (1, 1), r"indices\[1\] = 1 must be above"),
        (4, (1, 10**6), r"indices\[1\] = 1000000 is out of range"),
        (3, (1, 6), "offsets must ascend from 0 to 5"),
        (2, (1, 10), "rows must ascend from 0 to 9"),
    ):
        wrong = [each.clone() if isinstance(each, Tensor) else each for each in args]
        dispatch.run(op, "triton", *wrong)
        wrong[position][change[0]] = change[1]
        with pytest.raises(ValueError, match=message):
            dispatch.run(op, "triton", *wrong)


@pytest.mark.parametrize("share", [0.3, 0.015], ids=["masked", "edited"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
def test_rows_under_ablations(gpu: Launches, share: float, mode: Callable) -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    space = ComponentSpace.of(model, "weight", "all")
    ablations = [Ablation.random(space.n, share, seed=v) for v in range(3)]
    with mode(), cad_fast.rows(model, ablations, space), use_backend("triton"):
        x = torch.randn(6, 5, 64)
        model(x)
        launches, operators = gpu.launched(lambda: model(x))
    assert len(launches) == 2
    assert set(operators) <= {"empty", *VIEWS}
    assert operators.count("empty") == 2
    assert len(operators) <= 2 * 4


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
def test_slots(gpu: Launches, mode: Callable) -> None:
    linear, convolution = nn.Linear(64, 64), nn.Conv2d(8, 8, 3, padding=1)
    edit = torch.tensor([0, 2, 4]), torch.tensor([1, 2, 0, 5]), torch.tensor([0.0, 0.5, 0.0, 2.0])
    with mode(), use_backend("triton"):
        inputs = torch.randn(6, 5, 64), torch.randn(6, 8, 4, 4)
        for module, x in zip((linear, convolution), inputs, strict=True):
            slot = Slot.open("it", module, None, {"it": module}, self := nn.Module())
            slot.begin(Plan([0, 2, 6], *edit))
            module(torch.zeros_like(x))  # another: on a CPU, which this is, an input that comes again is looked at
            launches, operators = gpu.launched(lambda module=module, x=x: module(x))
            slot.close(self)
            assert len(launches) == 1
            assert set(operators) <= {"empty", *VIEWS}
            assert len(operators) <= 4


class Library:
    """Stands in for that of the CUDA kernels: notes what is called."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def function(self, name: str) -> Callable[..., Any]:
        """Of the right name."""
        assert name == "edit_positions"
        return lambda edits, n, k, transposed: edits * n

    def call(self, name: str, *args: Any) -> None:
        """Notes it."""
        self.calls.append((name, *args))
        if name == "plan_edits":
            args[-1][0], args[-1][1], args[-1][2] = 3, 2, 1


@pytest.fixture
def library(gpu: Launches, monkeypatch: pytest.MonkeyPatch) -> Library:
    """A pretended one."""
    library = Library()
    monkeypatch.setattr(backends.cuda, "load", lambda: library)
    monkeypatch.setattr(backends.cuda, "on_device", lambda device, call: call(0))
    return library


@pytest.mark.parametrize("case", ["linear", "linear transposed", "linear with strides"])
def test_the_second_call_in_cuda(gpu: Launches, library: Library, case: str) -> None:
    args = CASES[case][1]()
    backends.cuda.edited_linear(*args)
    assert [name for name, *_ in library.calls] == ["plan_edits", "plan_edits", "edited_linear"]
    before = library.calls.pop()
    library.calls.clear()
    _, operators = gpu.launched(lambda: backends.cuda.edited_linear(*args))
    assert operators == ["empty"]
    ((name, *arguments),) = library.calls
    different = [
        i for i, (one, other) in enumerate(zip(before[1:], arguments, strict=True)) if one is not other and one != other
    ]
    assert name == "edited_linear" and set(different) <= {8}, "more than the result is new"


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_is_kept_for_cuda_follows_a_change(gpu: Launches, library: Library, change: Callable) -> None:
    args = linear_case()
    backends.cuda.edited_linear(*args)
    library.calls.clear()
    change(args)
    backends.cuda.edited_linear(*args)
    assert [name for name, *_ in library.calls] == ["plan_edits", "plan_edits", "edited_linear"]


@pytest.mark.parametrize("op", ["edited_linear", "edited_conv2d"])
def test_the_way_back_has_entries_that_are_kept_too(gpu: Launches, op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # through torch's dispatcher, as autograd has it
    monkeypatch.setattr(jit.JITFunction, "run", lambda *args, **options: None)
    monkeypatch.setattr(configs, "architecture", lambda device: "sm_90")
    monkeypatch.setitem(dispatch.PREDICATES, "triton", lambda op, args: None)
    monkeypatch.setattr(checks.edits, "remembers", lambda indices: True)
    args = linear_case() if op == "edited_linear" else conv_case()
    args[0].requires_grad_()
    call = cad_fast.ops.edited_linear if op == "edited_linear" else cad_fast.ops.edited_conv2d
    counts = []
    for _ in range(3):
        before = remembered.report()["prepared"]
        call(*args, backend="triton").sum().backward()
        counts.append(remembered.report()["prepared"] - before)
    assert counts[0] >= 3 and counts[1:] == [0, 0]
