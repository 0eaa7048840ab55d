"""Drives CMake for the native kernels; everything else about the package is declared in pyproject.toml.

CAD_FAST_SKIP_NATIVE=1 leaves the kernels out: the package is then pure Python and uses its reference operators.
CAD_FAST_BUILD_CUDA says whether the CUDA kernels are built: auto (the default; where there is an nvcc), on or off.
"""

import importlib
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
SKIP_NATIVE = os.environ.get("CAD_FAST_SKIP_NATIVE", "0") not in ("", "0")
BUILD_CUDA = os.environ.get("CAD_FAST_BUILD_CUDA") or "auto"
CUDA_LIBRARY = "libcad_fast_cuda.so"
WAY_OUT = "CAD_FAST_SKIP_NATIVE=1 builds the pure-Python package instead"


def find_program(name: str, bin_dir_variable: str) -> str | None:
    """Path of a build program: the one its Python package brings, else the one on PATH."""
    try:
        bin_dir = getattr(importlib.import_module(name), bin_dir_variable)
    except (ImportError, AttributeError):
        return shutil.which(name)
    return shutil.which(name, path=str(bin_dir)) or shutil.which(name)


def find_compiler() -> str | None:
    """Path of the C++ compiler that CMake would take: $CXX, else a usual name on PATH."""
    if os.environ.get("CXX"):
        return shutil.which(shlex.split(os.environ["CXX"])[0])
    return next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)


def pybind11_cmake_dir() -> str | None:
    """Folder of pybind11's CMake files, or None if pybind11 is not installed."""
    try:
        return importlib.import_module("pybind11").get_cmake_dir()
    except (ImportError, AttributeError):
        return None


def require_build_tools() -> dict[str, str]:
    """Where each build tool is; exits with one sentence naming all that are missing."""
    python_h = Path(sysconfig.get_path("include"), "Python.h")
    found = {
        "a C++ compiler ($CXX, c++, g++ or clang++)": find_compiler(),
        "cmake": find_program("cmake", "CMAKE_BIN_DIR"),
        "ninja": find_program("ninja", "BIN_DIR"),
        "pybind11": pybind11_cmake_dir(),
        "the Python headers (Python.h)": str(python_h) if python_h.exists() else None,
    }
    missing = [name for name, path in found.items() if path is None]
    if missing:
        sys.exit(f"cad_fast: cannot build the native kernels without {' and '.join(missing)}; {WAY_OUT}.")
    return {name: path for name, path in found.items() if path is not None}


def find_nvcc() -> str | None:
    """Path of nvcc if the CUDA kernels are to be built; exits if they must be and there is none."""
    if BUILD_CUDA not in ("auto", "on", "off"):
        sys.exit(f"cad_fast: CAD_FAST_BUILD_CUDA must be auto, on or off, got {BUILD_CUDA!r}.")
    if BUILD_CUDA == "off":
        return None
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    beside = os.pathsep.join(os.path.join(home, "bin") for home in homes if home)
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path=beside)
    if nvcc is None and BUILD_CUDA == "on":
        sys.exit("cad_fast: CAD_FAST_BUILD_CUDA=on needs nvcc, on PATH or in $CUDA_HOME/bin.")
    return nvcc


class BuildNative(build_ext):
    """Builds cad_fast._C and the library of CUDA kernels with CMake."""

    def build_extension(self, ext: Extension) -> None:
        """Configure, build, and leave the extension module where setuptools expects it."""
        tools = require_build_tools()
        nvcc = find_nvcc()
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        build_dir = self.native_build_dir()
        configure = [
            tools["cmake"],
            *("-S", str(ROOT), "-B", str(build_dir), "-G", "Ninja"),
            f"-DCMAKE_MAKE_PROGRAM={tools['ninja']}",
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
            f"-DCAD_FAST_VERSION={self.distribution.get_version()}",
            f"-DCAD_FAST_OUTPUT_DIR={output.parent}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={tools['pybind11']}",
            f"-DCAD_FAST_NVCC={nvcc or ''}",
        ]
        way_out = WAY_OUT if nvcc is None else f"CAD_FAST_BUILD_CUDA=off leaves out the CUDA kernels, {WAY_OUT}"
        for command in (configure, [tools["cmake"], "--build", str(build_dir)]):
            if subprocess.run(command, check=False).returncode:
                sys.exit(f"cad_fast: the native kernels did not build (the output above says why); {way_out}.")

    def copy_extensions_to_source(self) -> None:
        """Also the CUDA library, for an editable install; one of an earlier build does not stay behind."""
        super().copy_extensions_to_source()
        for ext in self.extensions:
            built = Path(self.build_lib, *ext.name.split(".")[:-1], CUDA_LIBRARY)
            target = ROOT.joinpath(*ext.name.split(".")[:-1], CUDA_LIBRARY)
            target.unlink(missing_ok=True)  # a process that has loaded it keeps its own
            if built.exists():
                self.copy_file(str(built), str(target))

    def native_build_dir(self) -> Path:
        """Kept between editable builds, so that they are incremental; fresh for a wheel.

        Build isolation puts cmake and pybind11 into a new folder each time, and a cache would remember the old ones.
        """
        if self.editable_mode or self.inplace:
            return ROOT / "build" / f"native-{sysconfig.get_config_var('SOABI')}"
        build_dir = Path(self.build_temp).resolve() / "native"
        shutil.rmtree(build_dir, ignore_errors=True)
        return build_dir


class BuildPython(build_py):
    """Copies the Triton kernels of the top-level kernels/ into cad_fast/kernels/ of a wheel."""

    def run(self) -> None:
        """Run the usual command, then copy; an editable install finds kernels/ in the checkout itself."""
        super().run()
        if self.editable_mode:
            return
        for source in sorted((ROOT / "kernels").glob("*.py")):
            target = Path(self.build_lib, "cad_fast", "kernels", source.name)
            self.mkpath(str(target.parent))
            self.copy_file(str(source), str(target))


setup(
    ext_modules=[] if SKIP_NATIVE else [Extension("cad_fast._C", sources=[])],
    cmdclass={"build_ext": BuildNative, "build_py": BuildPython},
)
