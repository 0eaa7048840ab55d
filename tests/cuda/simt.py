"""The CUDA kernels on the CPU: builds them with g++ and the shim, and calls them as cad_fast calls the library."""

import contextlib
import ctypes
import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from cad_fast.ops import backends, pack_bits
from cad_fast.ops.registry import OPS

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "csrc" / "cuda"
SHIM = Path(__file__).resolve().parent / "shim"
BUILD = ROOT / "build" / "simt"

ORDERS = {"forward": 0, "reverse": 1, "shuffled": 7}

SANITIZE = ("-fsanitize=address", "-fno-omit-frame-pointer", "-g1")

Patch = tuple[str, str, str]
"""A file of csrc/cuda, a text that occurs in it once, and what takes its place."""


def build(*patches: Patch, flags: Sequence[str] = (), only: str = "") -> Path:
    """The kernels as a library for the CPU, after some changes; a library built from the same is used again.

    With `only`, those of one operator: that takes half the time.
    """
    sources = {path.name: path.read_text() for folder in (KERNELS, SHIM) for path in sorted(folder.glob("*.*"))}
    for name, old, new in patches:
        assert sources[name].count(old) == 1, f"{name} has {sources[name].count(old)} times: {old}"
        sources[name] = sources[name].replace(old, new)
    flags = ("-std=c++17", "-O1", "-fPIC", "-shared", "-DCAD_FAST_SIMT", "-Wall", "-Wextra", *flags)
    key = hashlib.sha256(repr((sorted(sources.items()), flags, only)).encode()).hexdigest()[:16]
    folder = BUILD / key
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other test processes want the same
        library = folder / "libsimt.so"
        if not library.exists():
            for name, text in sources.items():
                (folder / name).write_text(text)
            units = [
                name
                for name in sources
                if name.endswith(f"{only}.cu" if only else "_linear.cu") or name.endswith(".cpp")
            ]
            command = ["g++", *flags, "-Wno-unknown-pragmas", "-x", "c++", *units, "-o", "libsimt.part"]
            result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            assert result.returncode == 0 and not result.stderr, result.stderr[:4000]
            os.replace(folder / "libsimt.part", library)
    return library


def why_not() -> str | None:
    """Why the kernels cannot be run on the CPU here; None if they can."""
    if shutil.which("g++") is None:
        return "needs g++"
    return None if os.uname().machine == "x86_64" else "the shim is written for x86-64"


GUARD = 2048  # elements before and behind a tensor: some rows, and whole vectors, so that it keeps its alignment


class Guarded:
    """Tensors between guard zones of NaNs: what is read there shows in the results, what is written there is found."""

    def __init__(self, shift: int) -> None:
        self.shift = shift  # elements by which tensors are off their alignment
        self.buffers: list[tuple[Tensor, slice, Tensor]] = []

    def empty(self, shape: Sequence[int] | int, dtype: torch.dtype = torch.float32, device: object = None) -> Tensor:
        """Like torch.empty, but full of NaNs."""
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        count, first = torch.Size(shape).numel(), GUARD + self.shift * dtype.is_floating_point
        buffer = torch.full(
            (count + 2 * GUARD + 8,), float("nan") if dtype.is_floating_point else 0x5A5A5A, dtype=dtype
        )
        own = slice(first, first + count)
        self.buffers.append((buffer, own, buffer.clone()))
        return buffer[own].view(shape)

    def copy(self, tensor: Tensor | None) -> Tensor | None:
        """A copy between guard zones."""
        return None if tensor is None else self.empty(tensor.shape, tensor.dtype).copy_(tensor)

    def check(self) -> None:
        """Require that nothing was written outside the tensors."""
        for buffer, own, before in self.buffers:
            for zone in (slice(None, own.start), slice(own.stop, None)):
                same = (buffer[zone] == before[zone]) | (before[zone].isnan() & buffer[zone].isnan())
                assert same.all(), "the kernel wrote outside of its tensors"


@contextlib.contextmanager
def in_use(library: backends.cuda.Library, order: int, guarded: Guarded | None) -> Iterator[None]:
    """cad_fast.ops.backends.cuda calls it, for tensors on the CPU, with its allocations between guard zones."""
    library.loaded.simt_order(ctypes.c_int(order))
    patches = [
        mock.patch.object(backends.cuda, "load", lambda: library),
        mock.patch.object(backends.cuda, "on_device", lambda device, call: call(0)),
    ]
    if guarded is not None:
        patches.append(mock.patch.object(torch, "empty", guarded.empty))
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        yield
    if guarded is not None:
        guarded.check()


def load(path: Path) -> backends.cuda.Library:
    """A library that `build` made."""
    return backends.cuda.Library(path)


class Runner:
    """Calls the operators on one library."""

    def __init__(
        self,
        library: backends.cuda.Library,
        order: int = 0,
        shift: int = 0,
        guards: bool = True,
        backend: str = "cuda",
    ) -> None:
        self.library, self.order, self.shift, self.guards, self.backend = library, order, shift, guards, backend

    def __call__(self, op: str, *args: Any) -> Tensor:
        """The result of an operator on these arguments."""
        guarded = Guarded(self.shift) if self.guards else None
        copy = guarded.copy if guarded else lambda t: None if t is None else t.clone()
        args = [copy(a) if (a is None or isinstance(a, Tensor)) and strided(a) else a for a in args]
        with in_use(self.library, self.order, guarded):
            return OPS[op].implementations[self.backend](*args).clone()


def strided(tensor: Tensor | None) -> bool:
    """Whether a copy would be the same: not for tensors whose strides are to be tried."""
    return tensor is None or tensor.is_contiguous()


def masked_case(variants: int, rows: int, n: int, k: int, dtype: torch.dtype, transposed: bool) -> list:
    """Arguments of masked_linear, with a bias where there may be one."""
    x = torch.randn(variants, rows, n if transposed else k).to(dtype)
    words = pack_bits(torch.rand(variants, n, k) < 0.4)
    bias = None if transposed else torch.randn(n).to(dtype)
    return [x, torch.randn(n, k).to(dtype), words, bias, None, transposed]


def edited_case(
    sizes: Sequence[int], n: int, k: int, dtype: torch.dtype, transposed: bool, share: float = 0.1
) -> list[Tensor | bool | None]:
    """Arguments of edited_linear; every third group has no entries."""
    rows = torch.tensor([0, *sizes]).cumsum(0)
    chosen = [(torch.rand(n * k) < (share if g % 3 != 1 else 0)).nonzero().flatten() for g in range(len(sizes))]
    offsets, indices = torch.tensor([0, *map(len, chosen)]).cumsum(0), torch.cat(chosen)
    factors = torch.tensor([0.0, -1.0, 0.5, 3.0])[torch.randint(4, indices.shape)]
    x = torch.randn(int(rows[-1]), n if transposed else k).to(dtype)
    bias = None if transposed else torch.randn(n).to(dtype)
    return [x, torch.randn(n, k).to(dtype), rows, offsets, indices, factors, bias, transposed]


GEOMETRY = ([1, 1], 1, None)  # dilation, groups, no size to transpose to


def masked_convolution(variants: int, images: int, dtype: torch.dtype, kernel: int, stride: int) -> list:
    """Arguments of masked_conv2d, of sizes that the Hopper kernels take."""
    x = torch.randn(variants, images, 64, 5, 7).to(dtype)
    weight = torch.randn(40, 64, kernel, kernel).to(dtype)
    words = pack_bits(torch.rand(variants, 40, weight[0].numel()) < 0.4)
    padding = [kernel // 2] * 2
    return [x, weight, words, torch.randn(40).to(dtype), torch.randn(variants), [stride] * 2, padding, *GEOMETRY]


def edited_convolution(sizes: Sequence[int], dtype: torch.dtype, kernel: int, stride: int) -> list:
    """Arguments of edited_conv2d, of such sizes; groups of so many images, of which every third has no entries."""
    rows = torch.tensor([0, *sizes]).cumsum(0)
    x = torch.randn(int(rows[-1]), 64, 9, 8).to(dtype)
    weight = torch.randn(72, 64, kernel, kernel).to(dtype)
    chosen = [torch.arange(g, weight.numel(), 31 if g % 3 != 1 else weight.numel() + 1) for g in range(len(sizes))]
    chosen[1:2] = [chosen[0][:0]] if len(sizes) > 1 else []
    offsets, indices = torch.tensor([0, *map(len, chosen)]).cumsum(0), torch.cat(chosen)
    factors = torch.tensor([0.0, -1.0, 0.5])[torch.randint(3, indices.shape)]
    factors[: len(chosen[0])] = 0.5
    padding = [kernel // 2] * 2
    return [x, weight, rows, offsets, indices, factors, None, [stride] * 2, padding, *GEOMETRY]
