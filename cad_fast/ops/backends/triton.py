"""Calls the Triton kernels, and says why they cannot run; triton is imported when they are wanted and not before."""

import functools
import importlib
import importlib.util
from collections.abc import Callable
from importlib import metadata
from typing import Any

import torch

from cad_fast import envs

LEAST_CAPABILITY = (8, 0)
AMD = ("gfx942",)
PRECISIONS = ("ieee", "tf32", "tf32x3")


def of(op: str, products: bool = False) -> Callable[..., Any]:
    """The Triton implementation of an operator, in kernels/<op>.py; `products`: whether it multiplies float32."""

    def implementation(*args: Any, **options: Any) -> Any:
        run = kernel(op)
        if products:
            options["precision"] = float32_precision()
        device = device_of(args)
        if device is None or device.type != "cuda" or device.index == torch.cuda.current_device():
            return run(*args, **options)
        with torch.cuda.device(device):  # kernels are launched on the current device
            return run(*args, **options)

    return implementation


@functools.cache
def kernel(op: str) -> Callable[..., Any]:
    """What launches the kernel of an operator."""
    return importlib.import_module(f"cad_fast.kernels.{op}").run


def float32_precision() -> str:
    """How products of float32 are computed: CAD_FAST_FLOAT32_PRECISION.

    Raises:
        ValueError: it is set to something else.
    """
    precision = envs.get("CAD_FAST_FLOAT32_PRECISION")
    if precision not in PRECISIONS:
        raise ValueError(f"CAD_FAST_FLOAT32_PRECISION is {precision!r}: expected {', '.join(PRECISIONS)}")
    return precision


def device_of(args: tuple[Any, ...]) -> torch.device | None:
    """Where an operator with these arguments runs: the device of the first tensor, or the one asked for."""
    for arg in args:
        if isinstance(arg, torch.Tensor):
            return arg.device
        if isinstance(arg, torch.device):
            return arg
    return None


def why_not(op: str, args: tuple[Any, ...]) -> str | None:
    """Why the Triton kernels cannot run this operator on these arguments; None if they can."""
    if reason := not_installed():
        return reason
    device = device_of(args)
    if device is None or device.type == "cuda":
        return unsupported(device)
    if device.type == "cpu" and interpreted():
        return None
    return f"the triton kernels run on cuda, a tensor is on {device}"


def report() -> dict[str, Any]:
    """What `backend_report` says about Triton; imports nothing."""
    reason = not_installed() or unsupported(None)
    return {"available": reason is None, "why_not": reason, "version": _version()}


def not_installed() -> str | None:
    """Why triton is not there; None if it is."""
    return None if installed() else "triton is not installed: pip install 'cad-fast[triton]'"


def unsupported(device: torch.device | None) -> str | None:
    """Why a CUDA device, or the current one, cannot run the kernels; None if it can."""
    index = None if device is None else device.index
    # Where CUDA has been initialised and a device has a number, as that of a tensor has, nobody need be asked.
    if (index is None or not torch.cuda.is_initialized()) and not torch.cuda.is_available():
        return "there is no CUDA device"
    return unsupported_index(torch.cuda.current_device() if index is None else index)


@functools.cache
def unsupported_index(index: int) -> str | None:
    name = torch.cuda.get_device_name(index)
    if torch.version.hip:
        architecture = torch.cuda.get_device_properties(index).gcnArchName.split(":")[0]
        known = " and ".join(AMD)
        return None if architecture in AMD else f"the triton kernels know {known} of AMD, {name} is {architecture}"
    capability = torch.cuda.get_device_capability(index)
    if capability >= LEAST_CAPABILITY:
        return None
    least, has = (".".join(map(str, number)) for number in (LEAST_CAPABILITY, capability))
    return f"the triton kernels need compute capability {least}, {name} has {has}"


@functools.cache
def installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def _version() -> str | None:
    for distribution in ("triton", "triton-rocm", "pytorch-triton-rocm", "triton-windows"):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return None


def interpreted() -> bool:
    """Whether TRITON_INTERPRET=1 has kernels run on the CPU, slowly, as in the tests."""
    return bool(importlib.import_module("triton").knobs.runtime.interpret)
