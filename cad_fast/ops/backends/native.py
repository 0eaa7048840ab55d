"""Loads the extension module cad_fast._C, and remembers why if it cannot."""

import ctypes
import functools
import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from cad_fast import __version__, envs
from cad_fast.ops.checks import linear
from cad_fast.ops.registry import OPS


class NativeUnavailableError(RuntimeError):
    """The native kernels were asked for explicitly, but there are none."""


@functools.cache
def imported() -> tuple[ModuleType | None, str | None]:
    """The extension module, or the reason why there is none."""
    try:
        loaded = importlib.import_module("cad_fast._C")
    except ModuleNotFoundError as error:
        if error.name != "cad_fast._C":
            raise
        return None, "cad_fast was installed without its native kernels"
    except ImportError as error:
        return None, f"cad_fast._C does not load: {error}"
    built = loaded.build_info()["version"]
    if built != __version__:
        return None, f"cad_fast._C was built for version {built}, this is {__version__}: install cad_fast again"
    addresses, _ = thread_pool()
    loaded.set_thread_pool(*addresses)
    return loaded, None


@functools.cache
def apply_capability(name: str) -> None:
    loaded, reason = imported()
    if loaded is None:
        raise NativeUnavailableError(f"CAD_FAST_CPU_CAPABILITY={name} cannot be used: {reason}")
    try:
        loaded.set_capability(name)
    except ValueError as error:
        raise ValueError(f"CAD_FAST_CPU_CAPABILITY: {error}") from None


def load() -> ModuleType | None:
    """cad_fast._C with the thread pool and the instruction set chosen, or None: see `why_not`.

    Raises:
        ValueError: CAD_FAST_CPU_CAPABILITY names an instruction set that is unknown or cannot run here.
        NativeUnavailableError: CAD_FAST_CPU_CAPABILITY is set, but there are no native kernels.
    """
    capability = envs.get("CAD_FAST_CPU_CAPABILITY")
    if capability:
        apply_capability(capability)
    return imported()[0]


def module() -> ModuleType:
    """cad_fast._C, as `load` gives it.

    Raises:
        NativeUnavailableError: there are no native kernels.
        ValueError: as `load`.
    """
    loaded = load()
    if loaded is None:
        raise NativeUnavailableError(str(why_not()))
    return loaded


def has_tiles(dtype: torch.dtype) -> bool:
    """Whether the linear kernels multiply this dtype on the tile unit."""
    return dtype == torch.bfloat16 and module().capability() == "amx"


def why_not() -> str | None:
    """Why there are no native kernels; None if there are."""
    load()
    return imported()[1]


def why_not_run(op: str, args: tuple[Any, ...]) -> str | None:
    """Why the native kernels cannot run this operator on these arguments; None if they can."""
    loaded = load()
    if loaded is None:
        return why_not()
    for kernel in OPS[op].kernels:
        if not hasattr(loaded, kernel):
            return f"cad_fast._C was built before {kernel} was added: install cad_fast again"
    for arg in args:
        if isinstance(arg, torch.Tensor) and arg.device.type != "cpu":
            return f"the native kernels run on cpu, a tensor is on {arg.device}"
        if isinstance(arg, torch.device) and arg.type != "cpu":
            return f"the native kernels run on cpu, the result is wanted on {arg}"
        if isinstance(arg, torch.Tensor) and arg.dtype == torch.float16:
            return "the native kernels compute float32 and bfloat16, a tensor is torch.float16"
    return None


@functools.cache
def thread_pool() -> tuple[tuple[int, int], str | None]:
    """Addresses of torch's C functions for parallel loops, or zeros and the reason why loops run serially."""
    names = ("torch_parallel_for", "torch_get_num_threads")
    libraries = {"win32": "torch_cpu.dll", "darwin": "libtorch_cpu.dylib"}
    file_name = libraries.get(sys.platform, "libtorch_cpu.so")
    beside_torch = Path(torch.__file__).parent / "lib" / file_name
    try:
        # torch has loaded this library already, so this finds the loaded one and adds nothing to the process.
        library = ctypes.CDLL(str(beside_torch) if beside_torch.exists() else file_name)
        functions = [getattr(library, name) for name in names]
    except OSError as error:
        return (0, 0), f"torch's CPU library was not found: {error}"
    except AttributeError:
        return (0, 0), f"torch {torch.__version__} has no torch_parallel_for (it came with 2.10)"
    first, second = (ctypes.cast(function, ctypes.c_void_p).value or 0 for function in functions)
    return (first, second), None


def gate_channels(source: Tensor, target: Tensor, gates: Tensor, bias: Tensor | None, images: int, last: bool) -> None:
    """Target = source times gates, but for the bias in it; both [rows, channels, positions], channels last or not.

    The memory of both is dense and in the order that `last` says; they may be the same. ``images`` rows a variant.
    """
    channels = gates.shape[1]
    gates, bias = gates.float().contiguous(), linear.contiguous(bias)
    module().gate_channels(
        source.data_ptr(),
        target.data_ptr(),
        gates.data_ptr(),
        linear.address(bias),
        len(gates),
        images,
        channels,
        source.numel() // max(1, len(gates) * images * channels),
        last,
        source.dtype == torch.bfloat16,
    )
