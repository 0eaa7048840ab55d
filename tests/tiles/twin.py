"""The kernels for the tile unit on CPUs without one: builds them with g++ and twin.h in the place of the instructions.

They come as an extension module that has the instruction set `amx` wherever there is AVX-512 with bfloat16.
"""

import contextlib
import fcntl
import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

from cad_fast import __version__
from cad_fast.ops import backends

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
TWIN = Path(__file__).resolve().parent / "twin.h"
BUILD = ROOT / "build" / "tiles"

KERNELS = sorted(path.stem for path in (CSRC / "cpu" / "tiles").glob("*.cpp"))
"""The operators that have kernels for tiles."""

OPS = (*KERNELS, "masked_conv2d", "edited_conv2d")
"""Also those that call them."""

VECTORS = "-mavx2 -mfma -mf16c -mbmi -mbmi2 -mlzcnt -mpopcnt -mavx512f -mavx512bw -mavx512cd -mavx512dq -mavx512vl "
VECTORS += "-mavx512bf16 -mavx512vpopcntdq -mavx512vbmi -mgfni"
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g1")

CONFIG = f"""#pragma once
#define CAD_FAST_VERSION "{__version__}"
#define CAD_FAST_COMPILER "g++"
#define CAD_FAST_ARCHITECTURE "x86_64"
#define CAD_FAST_CXX_FLAGS "tile twin"
#define CAD_FAST_FOR_EACH_TARGET(X, ...) X(portable, "", __VA_ARGS__)
#define CAD_FAST_TILE_FLAGS "{VECTORS}"
#define CAD_FAST_FOR_EACH_OP(X) {" ".join(f"X({name})" for name in KERNELS)}
"""

Patch = tuple[str, str, str]
"""A file of csrc/cpu/tiles, or twin.h, a text that occurs in it once, and what takes its place."""


def why_not() -> str | None:
    """Why the twin cannot be built or run here; None if it can."""
    module = backends.native.imported()[0]
    if module is None:
        return str(backends.native.imported()[1])
    if shutil.which("g++") is None or importlib.util.find_spec("pybind11") is None:
        return "needs g++ and pybind11"
    reason = module.capabilities().get("avx512bf16", "not built for this architecture")
    return None if reason is None else f"avx512bf16: {reason}"


def sources(*patches: Patch) -> dict[str, str]:
    """All that is compiled, by path in csrc, after some changes."""
    texts = {str(path.relative_to(CSRC)): path.read_text() for path in sorted(CSRC.rglob("*.*")) if path.is_file()}
    texts = {name: text for name, text in texts.items() if not name.startswith("cuda/")}
    texts |= {"cpu/tiles/unit.h": TWIN.read_text(), "build_config.h": CONFIG}
    for name, old, new in patches:
        name = "cpu/tiles/unit.h" if name == TWIN.name else f"cpu/tiles/{name}"
        assert texts[name].count(old) == 1, f"{name} has {texts[name].count(old)} times: {old}"
        texts[name] = texts[name].replace(old, new)
    return texts


def compiled(texts: dict[str, str], units: Sequence[str], *flags: str) -> list[Path]:
    """Object files, those of an earlier call where nothing has changed."""
    key = hashlib.sha256(repr((sorted(texts.items()), units, flags)).encode()).hexdigest()[:16]
    folder = BUILD / key
    objects = [folder / f"{unit.replace('/', '-')}.o" for unit in units]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other test processes want the same
        if not (folder / "done").exists():
            for name, text in texts.items():
                path = folder / "csrc" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            for unit, target in zip(units, objects, strict=True):
                command = ["g++", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", *flags]
                command += ["-Wno-maybe-uninitialized", "-Wno-uninitialized"]  # as CMakeLists.txt, of AVX-512 headers
                command += [f"-I{folder / 'csrc'}", "-c", str(folder / "csrc" / unit), "-o", str(target)]
                result = subprocess.run(command, capture_output=True, text=True, check=False)
                assert result.returncode == 0 and not result.stderr, result.stderr[:4000]
            (folder / "done").touch()
    return objects


def build(*patches: Patch, flags: Sequence[str] = (), only: str = "") -> Path:
    """The extension module; one built from the same is used again.

    With `only`, the patches are in that operator alone. The flags are for the kernels.
    """
    import pybind11

    texts = sources()
    includes = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
    rest = {name: text for name, text in texts.items() if not name.startswith("cpu/tiles/")}
    runtime = sorted(name for name in texts if name.startswith("runtime/") and name.endswith(".cpp"))
    objects = compiled(rest, ["module.cpp", *runtime, *(f"{name}.cpp" for name in KERNELS)], "-O1", *includes)
    objects += compiled(rest, [f"cpu/{name}.cpp" for name in KERNELS], "-O1", "-DCAD_FAST_TARGET=portable")
    patched = sources(*patches)
    for name in KERNELS:
        own = patched if only in ("", name) else texts
        own = {path: text for path, text in own.items() if path.endswith(".h") or path == f"cpu/tiles/{name}.cpp"}
        own_flags = ["-O3", "-DCAD_FAST_TARGET=amx", *VECTORS.split(), *flags]
        objects += compiled(own, [f"cpu/tiles/{name}.cpp"], *own_flags)
    key = hashlib.sha256(repr(objects).encode()).hexdigest()[:16]
    library = BUILD / f"_C-{key}.so"
    if not library.exists():
        part = library.with_suffix(f".{os.getpid()}")
        subprocess.run(["g++", "-shared", *flags, *map(str, objects), "-o", str(part)], check=True)
        os.replace(part, library)
    return library


class Module:
    """The extension module with the twin; what it lacks is that of the module in use otherwise."""

    def __init__(self, library: Path) -> None:
        spec = importlib.util.spec_from_file_location("tile_twin._C", library)
        self.twin: ModuleType = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.twin)
        self.twin.set_thread_pool(*backends.native.thread_pool()[0])
        self.twin.set_capability("amx")
        self.other = backends.native.module()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.twin, name) if hasattr(self.twin, name) else getattr(self.other, name)


@functools.cache
def load(library: Path) -> Module:
    """A module that `build` made."""
    return Module(library)


@contextlib.contextmanager
def in_use(module: Module) -> Iterator[None]:
    """The native backend calls it."""
    with mock.patch.object(backends.native, "imported", lambda: (module, None)):
        yield
