"""Calls the library of CUDA kernels, and says why they cannot run; it loads without a GPU and without CUDA."""

import ctypes
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cad_fast import __version__
from cad_fast.ops.checks import edits, linear
from cad_fast.remembered import remembered

PATH = Path(__file__).resolve().parents[2] / "libcad_fast_cuda.so"
LEAST_CAPABILITY = (8, 0)
TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}

_POINTER, _SIZE, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int

# As csrc/cuda/api.h declares them.
FUNCTIONS = {
    "masked_linear": (_INT, [_POINTER] * 6 + [_SIZE] * 4 + [_INT] * 2 + [_POINTER]),
    "plan_edits": (_INT, [_POINTER] * 2 + [_SIZE, _INT] + [_POINTER] * 2),
    "edit_positions": (_SIZE, [_SIZE] * 3 + [_INT]),
    "edited_linear": (_INT, [_POINTER] * 9 + [_SIZE] * 2 + [_INT] * 2 + [_POINTER]),
    "wgmma_linear": (_INT, [_POINTER] * 7 + [_SIZE] * 4 + [_POINTER] + [_SIZE] * 2 + [_INT] * 2 + [_POINTER]),
    "wgmma_conv2d": (_INT, [_POINTER] * 7 + [_SIZE] * 4 + [_POINTER] * 2 + [_INT, _POINTER]),
    "wide_tile": (None, [_SIZE, _POINTER]),
    "device_count": (_INT, []),
    "use_device": (_INT, [_INT]),
    "message": (ctypes.c_char_p, [_INT]),
    "build_info": (ctypes.c_char_p, []),
}


class Library:
    """The library at a path; its functions go by their names without `cad_fast_cuda_`. OSError if it does not load."""

    def __init__(self, path: Path) -> None:
        self.loaded = ctypes.CDLL(str(path))

    @functools.cache  # noqa: B019 - one library per process
    def function(self, name: str) -> Callable[..., Any]:
        """A function by its name."""
        function = getattr(self.loaded, f"cad_fast_cuda_{name}")
        function.restype, function.argtypes = FUNCTIONS[name]
        return function

    def call(self, name: str, *args: Any) -> None:
        """Call a function that returns an error code.

        Raises:
            RuntimeError: it returned one; the message says what it means.
        """
        code = self.function(name)(*args)
        if code:
            raise RuntimeError(f"the CUDA kernels failed in {name}: {self.message(code)}")

    def message(self, code: int) -> str:
        """What an error code means."""
        return self.function("message")(code).decode()

    def build_info(self) -> dict[str, Any]:
        """The version, that of nvcc, and the architectures."""
        return json.loads(self.function("build_info")())


@functools.cache
def load_or_reason() -> tuple[Library | None, str | None]:
    """The library, or the reason why there is none."""
    if not PATH.exists():
        return None, "cad_fast was installed without its CUDA kernels (CAD_FAST_BUILD_CUDA, docs/environment.md)"
    try:
        library = Library(PATH)
    except OSError as error:
        return None, f"{PATH.name} does not load: {error}"
    built = library.build_info()["version"]
    if built != __version__:
        return None, f"{PATH.name} was built for version {built}, this is {__version__}: install cad_fast again"
    return library, None


def load() -> Library:
    """The library.

    Raises:
        RuntimeError: there is none, or it does not load; the message says why.
    """
    library, reason = load_or_reason()
    if library is None:
        raise RuntimeError(reason)
    return library


@functools.cache
def no_device() -> str | None:
    """Why there is no device to run on; None if there is one."""
    count = load().function("device_count")()
    if count > 0:
        return None
    return "there is no CUDA device" + (f": {load().message(-count)}" if count < 0 else "")


@functools.cache
def unsupported_index(index: int) -> str | None:
    """Why a device cannot run the kernels; None if it can."""
    capability = torch.cuda.get_device_capability(index)
    if capability >= LEAST_CAPABILITY:
        return None
    least, has = (".".join(map(str, number)) for number in (LEAST_CAPABILITY, capability))
    return f"the CUDA kernels need compute capability {least}, {torch.cuda.get_device_name(index)} has {has}"


def why_not(op: str, args: tuple[Any, ...]) -> str | None:
    """Why the CUDA kernels cannot run an operator on these arguments; None if they can."""
    reason = load_or_reason()[1] or no_device()
    if reason is not None:
        return reason
    x = args[0]
    if x.device.type != "cuda":
        return f"the CUDA kernels run on cuda, a tensor is on {x.device}"
    if x.dtype not in TYPES:
        return f"the CUDA kernels compute {', '.join(map(str, TYPES))}, a tensor is {x.dtype}"
    return unsupported_index(x.device.index)


def report() -> dict[str, Any]:
    """What `backend_report` says about the CUDA kernels."""
    library, reason = load_or_reason()
    reason = reason or no_device()
    devices = []
    if reason is None and torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            capability = ".".join(map(str, torch.cuda.get_device_capability(index)))
            name = torch.cuda.get_device_name(index)
            devices.append({"name": name, "capability": capability, "why_not": unsupported_index(index)})
    return {
        "available": reason is None and any(device["why_not"] is None for device in devices),
        "why_not": reason,
        "build": library.build_info() if library else None,
        "devices": devices,
    }


def on_device(device: torch.device, call: Callable[[int], None]) -> None:
    """Call with the current stream of the device, on which it is the current one."""
    index = device.index
    if index != torch.cuda.current_device():
        with torch.cuda.device(device):
            on_device(device, call)
        return
    load().call("use_device", index)
    # As Triton asks for it: torch.cuda.current_stream takes ten times as long, and this runs in every call.
    call(torch._C._cuda_getCurrentRawStream(index))


def masked_linear(
    x: Tensor, weight: Tensor, words: Tensor, bias: Tensor | None, factors: Tensor | None, transposed: bool
) -> Tensor:
    """See `cad_fast.ops.masked_linear`; the arguments are checked."""
    x, weight, words = x.contiguous(), weight.contiguous(), words.contiguous()
    bias, factors = linear.contiguous(bias), linear.contiguous(factors)
    n, k = weight.shape
    variants, rows, _ = x.shape
    y = torch.empty((variants, rows, k if transposed else n), dtype=x.dtype, device=x.device)
    pointers = [linear.address(tensor) for tensor in (x, weight, words, bias, factors, y)]
    sizes = (variants, rows, n, k, transposed, TYPES[x.dtype])
    on_device(x.device, lambda stream: load().call("masked_linear", *pointers, *sizes, stream))
    return y


def edited_linear(
    x: Tensor,
    weight: Tensor,
    rows: Tensor,
    offsets: Tensor,
    indices: Tensor,
    factors: Tensor,
    bias: Tensor | None,
    transposed: bool,
) -> Tensor:
    """See `cad_fast.ops.edited_linear`; the arguments are checked but for the values of rows, offsets and indices."""
    edits.check_values(x, weight, rows, offsets, indices)
    x, weight, bias = x.contiguous(), weight.contiguous(), linear.contiguous(bias)
    shape = (*weight.shape, transposed, TYPES[x.dtype])
    prepared = remembered(
        "edited_linear in CUDA",
        [indices, factors],
        (*shape, tuple(rows.tolist()), tuple(offsets.tolist())),
        lambda: _prepare(rows, offsets, indices, factors, shape),
    )
    y = torch.empty((x.shape[0], weight.shape[1 if transposed else 0]), dtype=x.dtype, device=x.device)
    indices = indices if prepared.indices is None else prepared.indices
    factors = factors if prepared.factors is None else prepared.factors
    pointers = [t.data_ptr() for t in (x, weight, prepared.plan)]
    of_edit = [t.data_ptr() for t in (indices, factors, prepared.positions)]
    arguments = (*pointers, prepared.sizes, *of_edit, linear.address(bias), y.data_ptr(), *shape)
    on_device(x.device, lambda stream: load().call("edited_linear", *arguments, stream))
    return y


class _Prepared(NamedTuple):
    """What an edited_linear needs beside its arguments, for one edit, and one division of rows among groups.

    plan, sizes: how the rows are divided among blocks. positions: where the kernels look up each row's entries; every
    call writes the same there, so calls in several streams may share it. indices, factors: copies that are contiguous,
    or None where the arguments are.
    """

    plan: Tensor
    sizes: ctypes.Array
    positions: Tensor
    indices: Tensor | None
    factors: Tensor | None


def _prepare(
    rows: Tensor, offsets: Tensor, indices: Tensor, factors: Tensor, shape: tuple[int, int, bool, int]
) -> _Prepared:
    n, k, transposed, dtype = shape
    plan, sizes = _plan(rows.contiguous(), offsets.contiguous(), dtype)
    count = load().function("edit_positions")(sizes[1], n, k, transposed)
    positions = torch.empty(count, dtype=torch.int32, device=indices.device)
    copies = [None if tensor.is_contiguous() else tensor.contiguous() for tensor in (indices, factors)]
    return _Prepared(plan.to(indices.device), sizes, positions, *copies)


def _plan(rows: Tensor, offsets: Tensor, dtype: int) -> tuple[Tensor, ctypes.Array]:
    """How the rows are divided among blocks: a tensor for the kernels, and sizes for the library."""
    sizes = (ctypes.c_int64 * 3)()
    arguments = (rows.data_ptr(), offsets.data_ptr(), len(rows) - 1, dtype)
    load().call("plan_edits", *arguments, None, sizes)
    plan = torch.empty(3 * sizes[0] + 2 * sizes[1], dtype=torch.int32)
    load().call("plan_edits", *arguments, plan.data_ptr(), sizes)
    return plan, sizes
