"""Runs the tests of the native kernels with AddressSanitizer and UndefinedBehaviorSanitizer in them. Run by
`make sanitize`.

Python itself is not built for this, so the sanitizer's library is loaded in front of it. Accesses by plain vector loads
and stores are checked like any other, those through masked or gathering intrinsics are not: the compiler adds no checks
to them. Arguments are passed on to pytest.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "sanitize"
PACKAGE = BUILD / "lib"

FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g1"

# Tests of the kernels; those of torch.compile and of fresh processes are slow under the sanitizer and add no kernel.
# The CUDA kernels in the shim and the tile unit's twin have a sanitizer of their own (their test_planted_bugs.py).
TESTS = "not opcheck and not compile and not process and not variable and not hundred_million and not shim and not twin"

CHECK = f"""
import sys
from cad_fast.ops import backends
module = backends.native.load()
assert module.__file__.startswith({str(PACKAGE)!r}), f"{{module.__file__}} is not the sanitized module"
assert "-fsanitize=address,undefined" in module.build_info()["flags"], module.build_info()["flags"]
"""

OPTIONS = {
    # Python and torch keep memory until they end, and torch frees with one allocator's function what another gave.
    "ASAN_OPTIONS": "detect_leaks=0:alloc_dealloc_mismatch=0:halt_on_error=1:abort_on_error=0",
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    "OMP_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONPATH": str(PACKAGE),
}


def build() -> None:
    """A copy of the package with a sanitized extension module, in a folder of its own."""
    shutil.rmtree(PACKAGE, ignore_errors=True)
    command = [sys.executable, "setup.py", "--quiet", "build", "--build-base", BUILD, "--build-lib", PACKAGE]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"CXXFLAGS": FLAGS, "CAD_FAST_BUILD_CUDA": "off"}, check=True)


def runtime(library: str) -> str:
    """Path of one of the compiler's libraries."""
    compiler = os.environ.get("CXX", "g++").split()
    result = subprocess.run([*compiler, f"-print-file-name={library}"], capture_output=True, text=True, check=True)
    path = result.stdout.strip()
    if not os.path.isabs(path):
        sys.exit(f"make sanitize needs {library}, which {compiler[0]} does not have")
    return path


def main() -> None:
    """Build, make sure that the sanitized module is the one in use, and run the tests."""
    build()
    # The C++ library too: the sanitizer looks for its functions when it starts, and Python does not bring it.
    preload = " ".join(map(runtime, ("libasan.so", "libstdc++.so.6")))
    environment = os.environ | OPTIONS | {"LD_PRELOAD": preload}
    # With pytest's usual capture a report would go to a file that is gone when the sanitizer ends the process.
    options = ["-q", "--capture=sys", "-p", "no:cacheprovider", "--rootdir", ROOT, "-c", ROOT / "pyproject.toml"]
    tests = ["-m", "not slow and not gpu", "-k", TESTS, ROOT / "tests" / "ops"]
    pytest = [sys.executable, "-m", "pytest", *options, *tests, *sys.argv[1:]]
    # Started elsewhere: python -m pytest puts the current folder in front of the sanitized package.
    for command in ([sys.executable, "-c", CHECK], pytest):
        status = subprocess.run([str(part) for part in command], cwd=PACKAGE, env=environment, check=False).returncode
        if status:
            sys.exit(status)


if __name__ == "__main__":
    main()
