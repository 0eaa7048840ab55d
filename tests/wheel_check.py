"""Builds sdist and wheel, installs the wheel outside the checkout, and uses it there. Run by `make wheel-check`.

The wheel is built with build isolation from the unpacked sdist, so a file missing from the sdist is noticed. The
dependencies are those of the Python that runs this: fetching torch again would prove nothing.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

BUILD_SDIST = """
import sys
from setuptools.build_meta import build_sdist
build_sdist(sys.argv[1], {"--global-option": "--quiet"})
"""

ROUND_TRIP = """
import importlib.util, pathlib, sys, torch, cad_fast
from cad_fast.ops import backend_report, count_bits, pack_bits, unpack_bits

where = pathlib.Path(cad_fast.__file__).resolve()
assert where.is_relative_to(pathlib.Path(sys.prefix).resolve()), f"imported from {where}"
mask = torch.rand(3, 1001) < 0.3
words = pack_bits(mask, backend="native")
assert torch.equal(unpack_bits(words, 1001, backend="native"), mask)
assert torch.equal(count_bits(words, backend="native"), mask.sum(-1))
assert backend_report()["native"]["available"]
if importlib.util.find_spec("triton"):
    ops = [op for op, report in backend_report()["ops"].items() if "triton" in report["backends"]]
    assert ops
    for kernel in ["configs", *ops]:
        module = importlib.import_module(f"cad_fast.kernels.{kernel}")
        assert pathlib.Path(module.__file__).parent == where.parent / "kernels", module.__file__
"""


def run(*command: str | Path, cwd: Path) -> None:
    """Run a command outside of any PYTHONPATH; stop with its exit status if it fails."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    subprocess.run([str(part) for part in command], cwd=cwd, env=environment, check=True)


def check_contents(wheel: Path) -> None:
    """The wheel holds the extension module, all data files of the checkout, and no sources of the kernels."""
    names = set(zipfile.ZipFile(wheel).namelist())
    data = [
        path
        for pattern in ("*.json", "*.safetensors", "*.txt", "*.md", "*.png")
        for path in (ROOT / "cad_fast" / "zoo").rglob(pattern)
    ]
    expected = {path.relative_to(ROOT).as_posix() for path in [*data, ROOT / "cad_fast" / "py.typed"]}
    expected |= {f"cad_fast/kernels/{path.name}" for path in (ROOT / "kernels").glob("*.py")}
    expected |= {f"cad_fast/serving/http/page/{path.name}" for path in (ROOT / "cad_fast/serving/http/page").iterdir()}
    expected.add("cad_fast/_C" + sysconfig.get_config_var("EXT_SUFFIX"))
    if shutil.which("nvcc") and os.environ.get("CAD_FAST_BUILD_CUDA") != "off":
        expected.add("cad_fast/libcad_fast_cuda.so")
    missing = sorted(expected - names)
    assert not missing, f"missing from the wheel: {missing}"
    stray = sorted(
        name for name in names if name.endswith((".cpp", ".cu", ".cuh", ".h", ".part")) or name.startswith("tests/")
    )
    assert not stray, f"not meant for the wheel: {stray}"


def main() -> None:
    """Build, install, use."""
    with tempfile.TemporaryDirectory(prefix="cad-fast-wheel-") as name:
        work = Path(name)
        run(sys.executable, "-c", BUILD_SDIST, work, cwd=ROOT)
        sdist = next(work.glob("*.tar.gz"))
        run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", work, sdist, cwd=work)
        wheel = next(work.glob("*.whl"))
        check_contents(wheel)

        venv = work / "venv"
        run(sys.executable, "-m", "venv", venv, cwd=work)
        run(venv / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-deps", wheel, cwd=work)
        site = Path(sysconfig.get_path("purelib", vars={"base": str(venv)}))
        (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        run(venv / "bin" / "python", "-c", ROUND_TRIP, cwd=work)
        run(venv / "bin" / "cad-fast", "env", cwd=work)
        print(f"wheel-check: {wheel.name} ({wheel.stat().st_size / 1e6:.2f} MB) builds, installs and runs")


if __name__ == "__main__":
    main()
