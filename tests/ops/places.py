"""Where the cases of tests/ops/cases run: a backend, the device it runs on, what it computes, and how it is called.

What a process offers is known when it collects tests. With TRITON_INTERPRET=1 it is the Triton kernels on the CPU and
nothing else (tests/kernels/test_interpreted.py). Otherwise it is the native kernels with each instruction set, those
for the tile unit on its twin of tests/tiles, the CUDA kernels in the shim of tests/cuda, and on a GPU the kernels for
it, marked gpu.
"""

import contextlib
import functools
import inspect
import itertools
import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from cad_fast.ops import backends, dispatch
from cad_fast.ops.registry import OPS
from tests.cuda import simt
from tests.kernels.judge import assert_right
from tests.ops import exact
from tests.tiles import twin

CAPABILITIES = ("portable", "avx2", "avx512", "avx512bf16", "amx")
HALVES = (torch.bfloat16, torch.float16)
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ON_CPUS, ELSEWHERE = backends.vendor.ON_CPUS, ("masked_linear", "gated_linear", "masked_conv2d", "gated_conv2d")
"""What the backend "vendor" runs."""
ON_THE_CPU = ("rows", "offsets")
"""Arguments that stay there, wherever the others are."""

if INTERPRETED:
    from tests.kernels import interpreter

    interpreter.mend()


@dataclass(frozen=True)
class Place:
    """One way to run an operator. Called with an operator and its arguments, all on the CPU, as are the results."""

    name: str
    backend: str
    kind: str
    """native, reference, interpreted, shim or gpu: what sizes are chosen by."""
    dtypes: tuple[torch.dtype, ...] = (torch.float32, *HALVES)
    device: str = "cpu"
    float32_precision: str = "ieee"

    @property
    def marks(self) -> list[pytest.MarkDecorator]:
        """Of the tests that run there."""
        return [pytest.mark.gpu] if self.kind == "gpu" else []

    @contextlib.contextmanager
    def in_use(self) -> Iterator["Place"]:
        """What a test is given. The test is skipped, with the reason, if the place is not there."""
        with pytest.MonkeyPatch.context() as patches:
            patches.setenv("CAD_FAST_FLOAT32_PRECISION", self.float32_precision)
            yield self

    def to(self, tensor: Tensor) -> Tensor:
        """The tensor there, with its strides, and where it begins in its memory; itself if it is there already."""
        if tensor.device.type == self.device:
            return tensor
        if tensor.requires_grad or torch._C._functorch.is_batchedtensor(tensor):
            return tensor.to(self.device)
        memory = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
        return memory.to(self.device).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())

    def __call__(self, op: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """The result of an operator there."""
        given = {**dict(zip(inspect.signature(op).parameters, arguments, strict=False)), **options}
        for name, value in given.items():
            if isinstance(value, Tensor) and (self.device == "cpu" or name not in ON_THE_CPU):
                given[name] = self.to(value)
        result = op(**given, backend=self.backend)
        return result.cpu() if isinstance(result, Tensor) else result

    def check(self, op: Callable[..., Tensor], *arguments: Any, **options: Any) -> Tensor:
        """The result, which must have the dtype of x and be as near to that in float64 as rounding explains."""
        actual = self(op, *arguments, **options)
        assert actual.dtype == arguments[0].dtype
        self.assert_right(actual, getattr(exact, op.__name__)(*arguments, **options))
        return actual

    def assert_right(self, actual: Tensor, right: exact.Exact) -> None:
        """As `tests.kernels.judge.assert_right`."""
        assert_right(actual, right)


@contextlib.contextmanager
def using(capability: str) -> Iterator[None]:
    """The native kernels with an instruction set; skips the test if there is none."""
    module = backends.native.load()
    if module is None:
        pytest.skip(str(backends.native.why_not()))
    reason = module.capabilities().get(capability, "not built for this architecture")
    if reason is not None:
        pytest.skip(f"{capability}: {reason}")
    before = module.capability()
    module.set_capability(capability)
    try:
        yield
    finally:
        module.set_capability(before)


class Native(Place):
    """The native kernels with the instruction set that names the place."""

    @contextlib.contextmanager
    def in_use(self) -> Iterator[Place]:
        with using(self.name):
            yield self


class TileTwin(Place):
    """The native kernels for the tile unit, on its twin in plain C++."""

    @contextlib.contextmanager
    def in_use(self) -> Iterator[Place]:
        if (reason := twin.why_not()) is not None:
            pytest.skip(reason)
        with twin.in_use(twin.load(twin.build())):
            yield self


@functools.cache
def shim_library() -> backends.cuda.Library:
    """The CUDA kernels as they are, for the CPU."""
    return simt.load(simt.build())


@dataclass(frozen=True)
class Shim(Place):
    """The CUDA kernels on the CPU, thread by thread, on tensors between guard zones."""

    order: int = 0
    guarded: simt.Guarded | None = None

    @contextlib.contextmanager
    def in_use(self) -> Iterator[Place]:
        if (reason := simt.why_not()) is not None:
            pytest.skip(reason)
        guarded = simt.Guarded(0)
        can_run = mock.patch.dict(dispatch.PREDICATES, cuda=lambda op, arguments: None)
        with can_run, simt.in_use(shim_library(), self.order, guarded):
            yield replace(self, guarded=guarded)

    def to(self, tensor: Tensor) -> Tensor:
        """A copy between guard zones, but of what has other strides, or a gradient."""
        return self.guarded.copy(tensor) if tensor.is_contiguous() and not tensor.requires_grad else tensor


def all_places(op: str, every_way: bool) -> list[Place]:
    """What this process offers, whether the operator runs there or not.

    Args:
        op: the operator's name; only some have kernels for the tile unit.
        every_way: in each order of threads that the shim knows, and with each way to multiply float32 that keeps its
            precision; else in one.
    """
    if INTERPRETED:
        return [Place("triton", "triton", "interpreted"), Place("vendor", "vendor", "interpreted", HALVES)]
    places: list[Place] = [Native(name, "native", "native", (torch.float32, torch.bfloat16)) for name in CAPABILITIES]
    if op in twin.OPS:
        places += [TileTwin("amx-twin", "native", "native", (torch.bfloat16,))]
    places += [Place("reference", "reference", "reference")]
    places += [Place("vendor-cpu", "vendor", "native", (torch.float32, torch.bfloat16))]
    orders = simt.ORDERS if every_way else {"shuffled": simt.ORDERS["shuffled"]}
    places += [Shim(f"shim-{name}", "cuda", "shim", order=order) for name, order in orders.items()]
    places += [
        Place(f"triton-{precision}", "triton", "gpu", device="cuda", float32_precision=precision)
        for precision in (("ieee", "tf32x3") if every_way else ("ieee",))
    ]
    places += [Place("cuda", "cuda", "gpu", device="cuda"), Place("vendor", "vendor", "gpu", HALVES, "cuda")]
    return places


Values = Callable[[Place, torch.dtype], list]
"""Of a parameter, where they depend on the place."""


def sizes(small: list, large: list, halves: list | None = None, **of_kind: list) -> Values:
    """Small ones in the interpreter (`halves` of dtypes of 16 bits), large ones elsewhere, others by kind of place.

    Where there are none the test does not run.
    """

    def values(place: Place, dtype: torch.dtype) -> list:
        if place.kind != "interpreted":
            return of_kind.get(place.kind, large)
        return small if halves is None or dtype not in HALVES else halves

    return values


def over(
    *, every_way: bool = False, also: Collection[str] = (), **parameters: Values
) -> Callable[[Callable], Callable]:
    """Say more of the places of a test.

    Args:
        every_way: as in `all_places`.
        also: backends without kernels of their own, which promise less: "reference" and "vendor".
        parameters: of the test, with values that depend on the place (`sizes`).
    """

    def mark(test: Callable) -> Callable:
        test.over = (every_way, also, parameters)
        return test

    return mark


def parametrize(metafunc: pytest.Metafunc, op: str) -> None:
    """Give a test that asks for a `place` each in turn, with each `dtype` there and its own sizes, if it asks."""
    every_way, also, parameters = getattr(metafunc.function, "over", (False, (), {}))
    names = ["place", *["dtype"] * ("dtype" in metafunc.fixturenames), *parameters]
    rows = []
    for place in all_places(op, every_way):
        wanted = place.backend in also if place.backend in ("reference", "vendor") else True
        if not wanted or place.backend not in OPS[op].implementations:
            continue
        if place.backend == "vendor" and op not in (ON_CPUS if place.kind == "native" else ELSEWHERE):
            continue
        dtypes = place.dtypes if "dtype" in names else (torch.float32,)
        if "dtype" not in names and torch.float32 not in place.dtypes:
            continue
        for dtype in dtypes:
            for values in itertools.product(*(values(place, dtype) for values in parameters.values())):
                row = [place, *[dtype] * ("dtype" in names), *values]
                name = "-".join([place.name, *map(str, row[1:])])
                rows.append(pytest.param(*row, marks=place.marks, id=name))
    metafunc.parametrize(names, rows, indirect=["place"])
