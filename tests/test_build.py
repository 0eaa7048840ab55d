"""The build: kernels without torch, what setup.py does without a compiler or without kernels, one version."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import cad_fast
from cad_fast.ops import backends

ROOT = Path(__file__).resolve().parents[1]
KERNELS = sorted((ROOT / "csrc" / "cpu").glob("*.cpp")) + sorted((ROOT / "csrc" / "cpu" / "tiles").glob("*.cpp"))
MANY_TILES = {"masked_linear", "gated_linear", "edited_linear"}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What a build needs, with a package of nearly nothing."""
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    for name in ("setup.py", "pyproject.toml", "CMakeLists.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "README.md").write_text("# cad_fast\n")
    (tmp_path / "cad_fast").mkdir()
    shutil.copy(ROOT / "cad_fast" / "version.py", tmp_path / "cad_fast")
    (tmp_path / "cad_fast" / "__init__.py").touch()
    return tmp_path


def setup_py(checkout: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    inherited = {key: value for key, value in os.environ.items() if key not in ("CXX", "CAD_FAST_SKIP_NATIVE")}
    command = [sys.executable, "setup.py", "--quiet", *arguments]
    return subprocess.run(
        command, cwd=checkout, env=inherited | environment, capture_output=True, text=True, check=False
    )


def test_skip_native_builds_pure_python(checkout: Path) -> None:
    result = setup_py(checkout, "build", CAD_FAST_SKIP_NATIVE="1", PATH="")
    assert result.returncode == 0, result.stderr
    assert list(checkout.glob("build/lib/cad_fast/__init__.py"))
    assert not list(checkout.glob("build/**/*_C*"))


@pytest.mark.parametrize(
    ("environment", "missing"),
    [
        ({"PATH": "/nonexistent"}, "a C++ compiler ($CXX, c++, g++ or clang++)"),
        ({"CXX": "no-such-compiler"}, "a C++ compiler ($CXX, c++, g++ or clang++)"),
        ({"PYTHONPATH": "without", "PATH": "/nonexistent"}, "a C++ compiler ($CXX, c++, g++ or clang++) and cmake"),
    ],
    ids=["compiler", "CXX", "compiler-and-cmake"],
)
def test_missing_tools_are_named_in_one_sentence(checkout: Path, environment: dict[str, str], missing: str) -> None:
    (checkout / "without").mkdir()
    (checkout / "without" / "cmake.py").write_text("raise ImportError")
    result = setup_py(checkout, "build_ext", **environment)
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1] == (
        f"cad_fast: cannot build the native kernels without {missing}; "
        "CAD_FAST_SKIP_NATIVE=1 builds the pure-Python package instead."
    )
    assert "Traceback" not in result.stderr


def test_a_wrong_wish_for_cuda_is_named(checkout: Path) -> None:
    result = setup_py(checkout, "build_ext", CAD_FAST_BUILD_CUDA="yes")
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1] == "cad_fast: CAD_FAST_BUILD_CUDA must be auto, on or off, got 'yes'."


@pytest.mark.skipif(Path("/usr/local/cuda/bin/nvcc").exists(), reason="nvcc is found here whatever PATH is")
def test_cuda_that_must_be_built_needs_nvcc(checkout: Path) -> None:
    tools = checkout / "bin"
    tools.mkdir()
    (tools / "g++").symlink_to(shutil.which("g++"))
    environment = {"PATH": str(tools), "CUDA_HOME": "", "CUDA_PATH": ""}
    result = setup_py(checkout, "build_ext", CAD_FAST_BUILD_CUDA="on", **environment)
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1] == (
        "cad_fast: CAD_FAST_BUILD_CUDA=on needs nvcc, on PATH or in $CUDA_HOME/bin."
    )


def test_an_editable_install_has_the_cuda_library_of_its_own_build_or_none(checkout: Path) -> None:
    # A build that makes empty files: what is of interest is where they go.
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    library = "$<IF:$<BOOL:${CAD_FAST_NVCC}>,libcad_fast_cuda.so,nothing>"
    (checkout / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.20)\nproject(empty NONE)\n"
        "file(MAKE_DIRECTORY ${CAD_FAST_OUTPUT_DIR})\n"
        f"add_custom_target(files ALL COMMAND ${{CMAKE_COMMAND}} -E touch _C{suffix} {library} "
        "WORKING_DIRECTORY ${CAD_FAST_OUTPUT_DIR} VERBATIM)\n"
    )
    tools = checkout / "bin"
    tools.mkdir()
    (tools / "nvcc").write_text("#!/bin/sh\n")
    (tools / "nvcc").chmod(0o755)
    path = os.pathsep.join([str(tools), os.environ["PATH"]])
    installed = checkout / "cad_fast" / "libcad_fast_cuda.so"
    for asked in ("on", "off"):
        result = setup_py(checkout, "build_ext", "--inplace", CAD_FAST_BUILD_CUDA=asked, PATH=path)
        assert result.returncode == 0, result.stderr
        assert installed.exists() == (asked == "on")
        shutil.rmtree(checkout / "build")


def test_kernels_know_no_torch() -> None:
    pattern = re.compile(r"#\s*include\s*[<\"](torch|ATen|c10|caffe2)/")
    sources = [path for path in (ROOT / "csrc").rglob("*") if path.is_file()]
    assert sources
    assert not [path for path in sources if pattern.search(path.read_text())]


def test_version_is_the_package_version() -> None:
    module = backends.native.load()
    if module is None:
        pytest.skip(backends.native.why_not())
    assert module.build_info()["version"] == cad_fast.__version__


@pytest.mark.parametrize(
    "source",
    # Those of many register tiles take the compiler a minute each.
    [
        pytest.param(
            path,
            id=f"{path.parent.name}-{path.stem}",
            marks=[pytest.mark.slow] if path.stem in MANY_TILES and path.parent.name == "cpu" else [],
        )
        for path in KERNELS
    ],
)
def test_kernels_share_no_code_between_instruction_sets(source: Path, tmp_path: Path) -> None:
    """A weak function could be merged across instruction sets, and a static initialiser would run on every CPU."""
    compiler, nm, module = shutil.which("g++"), shutil.which("nm"), backends.native.load()
    if not (compiler and nm and module):
        pytest.skip("needs g++, nm and the native kernels")
    flags = module.build_info()["targets"]
    tiles = flags.pop("amx", "")
    config = (ROOT / "csrc" / "build_config.h.in").read_text()
    target_list = "".join(f' X({target}, "", __VA_ARGS__)' for target in flags)
    config = config.replace("@CAD_FAST_TARGET_LIST@", target_list).replace("@CAD_FAST_OP_LIST@", "")
    config = config.replace("#cmakedefine CAD_FAST_TILE_FLAGS", "#define CAD_FAST_TILE_FLAGS")
    if source.parent.name == "tiles":
        flags = {"amx": tiles}
    (tmp_path / "build_config.h").write_text(config)
    for target, target_flags in flags.items():
        compiled = tmp_path / f"{target}.o"
        command = [compiler, "-std=c++17", "-O3", "-fPIC", f"-DCAD_FAST_TARGET={target}", *target_flags.split()]
        command += [f"-I{ROOT / 'csrc'}", f"-I{tmp_path}", "-c", str(source), "-o", str(compiled)]
        subprocess.run(command, check=True)
        symbols = subprocess.run([nm, "--demangle", str(compiled)], check=True, capture_output=True, text=True).stdout
        shared = [line for line in symbols.splitlines() if " W " in line or "_GLOBAL__sub_I" in line]
        assert not shared
        exported = [line.split(" T ")[1] for line in symbols.splitlines() if " T " in line]
        assert exported and all(name.startswith(f"cad_fast::{target}::{source.stem}") for name in exported)


def test_only_the_kernels_for_tiles_use_them() -> None:
    """Other code runs where nobody asked whether there are tiles."""
    objdump, module = shutil.which("objdump"), backends.native.load()
    if not (objdump and module) or "amx" not in module.build_info()["targets"]:
        pytest.skip("needs objdump and native kernels with amx")
    command = [objdump, "--disassemble", "--demangle", "--no-show-raw-insn", module.__file__]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found, function = {}, ""
    for line in listing.splitlines():
        if named := re.fullmatch(r"[0-9a-f]+ <(.*)>:", line):
            function = named[1]
        elif used := re.search(r"\t(tdp\w+|tile\w+|ldtilecfg|sttilecfg)\b", line):
            found.setdefault(used[1], set()).add(function)
    assert found.keys() == {"tdpbf16ps", "tileloadd", "tilestored", "tilezero", "ldtilecfg", "tilerelease"}
    others = {name for names in found.values() for name in names if not re.match("(void )?cad_fast::amx::", name)}
    assert not others
