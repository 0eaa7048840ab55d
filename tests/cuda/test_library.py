"""The library of CUDA kernels as nvcc made it: registers, instructions, and what it says where there is no GPU."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from cad_fast import __version__
from cad_fast.ops import backend_report, backends, masked_linear
from tests.cuda import simt

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
HOPPER = "sm_90a"  # with instructions that no later architecture has

built = pytest.mark.skipif(not backends.cuda.PATH.exists(), reason="the CUDA kernels were not built")


def cuobjdump() -> str | None:
    """Path of cuobjdump: that of CUDA, or the one that triton brings."""
    triton = importlib.util.find_spec("triton")
    bundled = Path(triton.origin).parent / "backends" / "nvidia" / "bin" if triton and triton.origin else None
    return shutil.which("cuobjdump") or (shutil.which("cuobjdump", path=str(bundled)) if bundled else None)


def dump(*arguments: str | Path, cwd: Path | None = None) -> str:
    """What cuobjdump prints."""
    if cuobjdump() is None:
        pytest.skip("needs cuobjdump, of CUDA or of triton")
    command = [cuobjdump(), *map(str, arguments), str(backends.cuda.PATH)]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=cwd).stdout


def kind(function: str) -> str:
    """Which template a kernel comes from."""
    return re.search(r"(wgmma_product|mma_linear|fma_linear_of_few|fma_linear|find_positions)", function)[1]


@built
def test_every_kernel_is_there_for_every_architecture_and_keeps_to_registers() -> None:
    kernels = {architecture: Counter() for architecture in (*ARCHITECTURES, HOPPER)}
    architecture = function = ""
    for line in dump("-res-usage").splitlines():
        if found := re.match(r"arch = (\w+)", line):
            architecture = found[1]
        elif found := re.match(r" Function (\w+):", line):
            function = found[1]
        elif found := re.match(r"  REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", line):
            registers, stack, shared, local = map(int, found.groups())
            assert (stack, local) == (0, 0), f"{function} for {architecture} spills"
            threads = 384 if architecture == HOPPER else 2 * 128  # of all blocks that are to be on a multiprocessor
            assert registers <= 255 and threads * registers <= 65536, f"{function}: too many registers for its blocks"
            assert shared <= 1024, f"{function}: all but what CUDA reserves is asked for at the launch"
            kernels[architecture][kind(function)] += 1
    one = {"mma_linear": 24, "fma_linear": 8, "fma_linear_of_few": 4, "find_positions": 1}
    assert kernels == dict.fromkeys(ARCHITECTURES, one) | {HOPPER: {"wgmma_product": 48}}


def instructions(architecture: str) -> dict[str, Counter]:
    """How often each kernel has each instruction."""
    counts: dict[str, Counter] = {}
    for line in dump("-sass", "-arch", architecture).splitlines():
        if found := re.search(r"Function : (\w+)", line):
            counts[found[1]] = Counter()
            current = counts[found[1]]
        elif found := re.match(r"\s+/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\w+ )?\s*([A-Z][\w.]*)", line):
            current[found[1]] += 1
    return counts


@built
def test_hopper_kernels_use_hoppers_own_instructions() -> None:
    counts = {name: count for name, count in instructions("sm_90").items() if kind(name) == "wgmma_product"}
    counts = counts or instructions(HOPPER)
    assert len(counts) == 48
    for function, count in counts.items():
        names = Counter({name.split(".")[0]: 0 for name in count})
        for name, number in count.items():
            names[name.split(".")[0]] += number
        assert names["HGMMA"] >= 4 and names["HMMA"] == 0, f"{function} multiplies otherwise"
        assert names["UTMALDG"] >= 2, f"{function} does not copy tiles"
        assert names["LDL"] == names["STL"] == 0, f"{function} uses local memory"
        # A wait for all products between two of them would mean that the compiler has put them in a row.
        waits = sum(number for name, number in count.items() if name.startswith("WARPGROUP.DEPBAR"))
        assert waits >= 2, f"{function} waits too seldom to have products under way"


@built
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_kernels_use_the_instructions_they_are_written_for(architecture: str) -> None:
    counts = {name: count for name, count in instructions(architecture).items() if kind(name) != "wgmma_product"}
    assert len(counts) == 37
    for function, count in counts.items():
        assert not any(name.startswith(("LDL", "STL")) for name in count), f"{function} uses local memory"
        if kind(function) == "find_positions":
            continue
        vectors = sum(number for name, number in count.items() if name.startswith("LDGSTS") and name.endswith(".128"))
        words = sum(number for name, number in count.items() if name.startswith("LDGSTS")) - vectors
        assert vectors > 0, f"{function} copies nothing asynchronously"
        assert (words > 0) == ("Mask" in function), f"{function}: packed masks are copied by words"
        if kind(function) == "mma_linear":
            matrix = "HMMA.16816.F32.BF16" if "BFloat16" in function else "HMMA.16816.F32"
            assert count[matrix] >= 8 and any(name.startswith("LDSM") for name in count), function
            assert count["FFMA"] == 0
        else:
            assert count["FFMA"] >= 32 and not any(name.startswith("HMMA") for name in count), function


@built
@pytest.mark.slow
def test_newer_devices_can_compile_the_ptx(tmp_path: Path) -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("needs nvcc")
    dump("-xptx", "all", cwd=tmp_path)
    files = sorted(tmp_path.glob("*.ptx"))
    assert len(files) >= 2
    for file in files:
        command = [
            "nvcc",
            "-cubin",
            "-arch=sm_120",
            "-Xptxas",
            "--warn-on-spills,-Werror",
            file,
            "-o",
            tmp_path / "x.cubin",
        ]
        subprocess.run(command, check=True)


@built
def test_it_loads_without_a_gpu_and_says_so() -> None:
    code = (
        "import json, torch; from cad_fast.ops import backend_report, masked_linear\n"
        "print(json.dumps(backend_report()['cuda']))\n"
        "words = torch.zeros(1, 2, 1, dtype=torch.int32)\n"
        "try: masked_linear(torch.zeros(1, 1, 9), torch.zeros(2, 9), words, backend='cuda')\n"
        "except RuntimeError as error: print(error)\n"
    )
    environment = {"CUDA_VISIBLE_DEVICES": "", "PATH": "/usr/bin", "PYTHONPATH": str(simt.ROOT)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    report, message = result.stdout.splitlines()
    report = json.loads(report)
    assert not report["available"] and report["why_not"].startswith("there is no CUDA device")
    assert report["build"]["version"] == __version__
    assert report["build"]["architectures"] == [*ARCHITECTURES, "compute_100", HOPPER]
    assert re.fullmatch(r"\d+\.\d+\.\d+", report["build"]["nvcc"])
    assert message.startswith("masked_linear cannot run on the cuda backend: there is no CUDA device")


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch):
    """Forgets what was found about the library, now and afterwards."""
    backends.cuda.load_or_reason.cache_clear()
    yield
    monkeypatch.undo()
    backends.cuda.load_or_reason.cache_clear()


ARGUMENTS = torch.zeros(1, 1, 9), torch.zeros(2, 9), torch.zeros(1, 2, 1, dtype=torch.int32)


def test_a_missing_library_is_named(fresh, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(backends.cuda, "PATH", tmp_path / "none.so")
    with pytest.raises(RuntimeError, match=r"cuda backend: cad_fast was installed without its CUDA kernels"):
        masked_linear(*ARGUMENTS, backend="cuda")
    report = backend_report()["cuda"]
    assert report["build"] is None and "CAD_FAST_BUILD_CUDA" in report["why_not"]


def test_a_broken_library_is_named(fresh, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"nothing")
    monkeypatch.setattr(backends.cuda, "PATH", broken)
    with pytest.raises(RuntimeError, match=r"broken.so does not load: .*file too short|invalid ELF header"):
        masked_linear(*ARGUMENTS, backend="cuda")


@built
def test_a_stale_library_is_refused(fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends.cuda, "__version__", "999")
    with pytest.raises(RuntimeError, match=r"was built for version .*, this is 999: install cad_fast again"):
        masked_linear(*ARGUMENTS, backend="cuda")


def test_what_the_kernels_cannot_take_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnCuda(torch.Tensor):
        device = torch.device("cuda:0")

    monkeypatch.setattr(backends.cuda, "load_or_reason", lambda: (None, None))
    monkeypatch.setattr(backends.cuda, "no_device", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Some GPU")
    monkeypatch.setattr(backends.cuda, "unsupported_index", backends.cuda.unsupported_index.__wrapped__)
    assert backends.cuda.why_not("masked_linear", ARGUMENTS) == "the CUDA kernels run on cuda, a tensor is on cpu"
    x = torch.zeros(1, dtype=torch.float64).as_subclass(OnCuda)
    assert "a tensor is torch.float64" in backends.cuda.why_not("masked_linear", (x,))
    for capability, expected in (
        ((7, 5), "the CUDA kernels need compute capability 8.0, Some GPU has 7.5"),
        ((8, 6), None),
        ((12, 0), None),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index, has=capability: has)
        assert backends.cuda.why_not("masked_linear", (torch.zeros(1).as_subclass(OnCuda),)) == expected


def test_calls_are_made_on_the_device_and_in_its_current_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    current, seen = [0], []

    class OnDevice:
        def __init__(self, device: torch.device) -> None:
            self.device = device

        def __enter__(self) -> None:
            current.append(self.device.index)

        def __exit__(self, *_: object) -> None:
            current.pop()

    class Library:
        def call(self, name: str, index: int) -> None:
            seen.append((name, index, current[-1]))

    monkeypatch.setattr(torch.cuda, "device", OnDevice)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[-1])
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: 70 + index, raising=False)
    monkeypatch.setattr(backends.cuda, "load", Library)
    for index in (0, 1):
        backends.cuda.on_device(torch.device("cuda", index), lambda stream: seen.append((stream, current[-1])))
    assert seen == [("use_device", 0, 0), (70, 0), ("use_device", 1, 1), (71, 1)]
    assert current == [0]
