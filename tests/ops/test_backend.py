"""The choice of a backend, the instruction set, the thread pool, and the report on all of them."""

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from cad_fast.ops import (
    backend_report,
    backends,
    can_run,
    count_bits,
    crossover,
    dispatch,
    edited_linear,
    get_backend,
    masked_linear,
    pack_bits,
    use_backend,
)
from cad_fast.ops.registry import OPS

MASK = torch.tensor([[True, False, True]])


@pytest.fixture
def without_native(monkeypatch: pytest.MonkeyPatch) -> str:
    """As after an installation with CAD_FAST_SKIP_NATIVE=1; returns the reason given."""
    reason = "cad_fast was installed without its native kernels"
    monkeypatch.setattr(backends.native, "imported", lambda: (None, reason))
    monkeypatch.setattr(dispatch, "warned", set())
    return reason


def in_fresh_process(code: str, **environment: str) -> subprocess.CompletedProcess:
    """Run code with these CAD_FAST_ variables and no others."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("CAD_FAST_")}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=inherited | environment, capture_output=True, text=True, check=False)


def test_unknown_backend() -> None:
    known = "auto, hopper, cuda, triton, vendor, native or reference"
    with pytest.raises(ValueError, match=f"unknown backend 'fast': expected {known}"):
        pack_bits(MASK, backend="fast")
    with pytest.raises(ValueError, match="unknown backend"), use_backend("fast"):
        pass


def test_environment_and_context_set_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAD_FAST_BACKEND", "reference")
    assert get_backend() == "reference"
    with use_backend("auto"):
        assert get_backend() == "auto"
    assert get_backend() == "reference"
    before = OPS["pack_bits"].runs["reference"]
    pack_bits(MASK)
    assert OPS["pack_bits"].runs["reference"] == before + 1
    monkeypatch.setenv("CAD_FAST_BACKEND", "fast")
    with pytest.raises(ValueError, match="unknown backend 'fast'"):
        pack_bits(MASK)
    assert "unknown backend 'fast'" in backend_report()["error"]


def test_explicit_native_raises_where_there_is_none(without_native: str) -> None:
    assert not can_run("pack_bits", "native", MASK)
    with pytest.raises(RuntimeError, match=f"pack_bits cannot run on the native backend: {without_native}"):
        pack_bits(MASK, backend="native")


def test_automatic_choice_falls_back_and_says_so_once(without_native: str, recwarn: pytest.WarningsRecorder) -> None:
    with pytest.warns(RuntimeWarning, match=without_native):
        words = pack_bits(MASK, backend="auto")
    assert words.tolist() == [[5]]
    recwarn.clear()
    count_bits(words, backend="auto")
    assert not recwarn.list
    report = backend_report()
    assert report["native"] == {"available": False, "why_not": without_native, "build": None}
    assert report["ops"]["pack_bits"]["passed_over"]["native"] == without_native
    assert report["threads"]["pool"] == "serial"


def test_capability_variable_needs_native(without_native: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAD_FAST_CPU_CAPABILITY", "portable")
    backends.native.apply_capability.cache_clear()
    with pytest.raises(backends.native.NativeUnavailableError, match=without_native):
        pack_bits(MASK, backend="auto")


def test_stale_extension_is_refused(native, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends.native, "__version__", "999")
    backends.native.imported.cache_clear()
    try:
        assert "is 999: install cad_fast again" in backends.native.why_not()
    finally:
        monkeypatch.undo()
        backends.native.imported.cache_clear()
    assert backends.native.why_not() is None


def test_other_devices_are_refused_by_native(native) -> None:
    assert can_run("pack_bits", "native", MASK)
    elsewhere = MASK.to("meta")
    with pytest.raises(RuntimeError, match="the native kernels run on cpu, a tensor is on meta"):
        can_run("pack_bits", "native", elsewhere, raise_error=True)


def test_native_refuses_float16_and_the_reference_runs(native, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "warned", set())
    x, weight, words = torch.ones(1, 2, 3).half(), torch.ones(4, 3).half(), torch.tensor([[[1]] * 4]).int()
    with pytest.warns(RuntimeWarning, match="native kernels compute float32 and bfloat16, a tensor is torch.float16"):
        y = masked_linear(x, weight, words)
    assert y.dtype == torch.float16 and (y == 2).all()
    with pytest.raises(RuntimeError, match="native backend: the native kernels compute float32 and bfloat16"):
        masked_linear(x, weight, words, backend="native")


def test_triton_says_why_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends.triton, "installed", lambda: True)
    monkeypatch.setattr(backends.triton, "interpreted", lambda: False)
    with pytest.raises(RuntimeError, match="the triton kernels run on cuda, a tensor is on cpu"):
        can_run("masked_linear", "triton", torch.zeros(1), raise_error=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    report = backend_report()["triton"]
    assert (report["available"], report["why_not"]) == (False, "there is no CUDA device")
    monkeypatch.setattr(backends.triton, "installed", lambda: False)
    with pytest.raises(RuntimeError, match=re.escape("triton is not installed: pip install 'cad-fast[triton]'")):
        can_run("masked_linear", "triton", torch.zeros(1), raise_error=True)


@pytest.mark.parametrize(
    ("capability", "reason"),
    [((7, 5), "the triton kernels need compute capability 8.0, Some GPU has 7.5"), ((8, 0), None), ((12, 0), None)],
)
def test_triton_needs_a_capability(monkeypatch, capability: tuple[int, int], reason: str | None) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Some GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    assert backends.triton.unsupported_index.__wrapped__(0) == reason


@pytest.mark.parametrize(
    ("rows", "outputs", "depth", "first"),
    [
        (1, 5120, 640, "hopper"),
        (16, 1280, 640, "triton"),
        (17, 1280, 640, "hopper"),
        (1023, 5120, 640, "hopper"),
        (1024, 5120, 640, "vendor"),
        (1024, 5120, 1280, "hopper"),
        (4096, 5120, 1280, "vendor"),
    ],
)
def test_the_choice_on_gpus_depends_on_the_rows_of_a_variant(rows: int, outputs: int, depth: int, first: str) -> None:
    class OnCuda(torch.Tensor):
        device = torch.device("cuda")

    for variants in (1, 16):
        x = torch.zeros(1).expand(variants, rows, depth).as_subclass(OnCuda)
        weight = torch.zeros(1).expand(outputs, depth)
        order = crossover.order("masked_linear", (x, weight, None, None, None, False))
        assert order[0] == first and order[-1] == "reference" and {"triton", "cuda", "hopper", "vendor"} < set(order)


def test_triton_is_imported_only_when_wanted() -> None:
    # torch and diffusers may import triton on their own, so that it is in sys.modules says nothing.
    code = (
        "import sys; sys.modules['triton'] = None; import torch, cad_fast.ops as ops; "
        "ops.pack_bits(torch.tensor([True])); print(ops.backend_report()['triton']['why_not']); "
        "print('cad_fast.kernels' in sys.modules)"
    )
    result = in_fresh_process(code)
    expected = ["triton is not installed: pip install 'cad-fast[triton]'", "False"]
    assert result.stdout.splitlines() == expected, result.stderr


def test_compiled_graphs_obey_the_choice_in_force(native) -> None:
    compiled = torch.compile(lambda mask: count_bits(pack_bits(mask)), backend="aot_eager", fullgraph=True)
    for backend in ("native", "reference", "native"):
        with use_backend(backend):
            before = OPS["pack_bits"].runs[backend]
            assert compiled(MASK).tolist() == [2]
            assert OPS["pack_bits"].runs[backend] > before


@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "in another thread"])
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_the_way_back_runs_where_the_way_there_did(native, backend: str, elsewhere: bool) -> None:
    """On a GPU it runs in threads of autograd's, which know of no `use_backend`."""
    x = torch.randn(2, 3, 4, requires_grad=True)
    other = "native" if backend == "reference" else "reference"
    with use_backend(backend):
        y = masked_linear(x, torch.randn(5, 4), torch.zeros(2, 5, 1, dtype=torch.int32))
        before = dict(OPS["masked_linear"].runs)
        if elsewhere:
            with ThreadPoolExecutor(1) as threads:
                threads.submit(y.sum().backward).result()
    if not elsewhere:
        with use_backend(other):
            y.sum().backward()
    runs = OPS["masked_linear"].runs
    assert runs[backend] == before[backend] + 1 and runs[other] == before.get(other, 0)


def test_report_is_json(native) -> None:
    pack_bits(MASK)
    report = json.loads(json.dumps(backend_report()))
    assert report["error"] is None
    assert report["cpu"]["in_use"] == native.capability()
    assert report["cpu"]["capabilities"]["portable"] is None
    assert report["ops"]["pack_bits"]["ran"]["native"] >= 1
    assert set(report["native"]["build"]) == {"version", "compiler", "architecture", "flags", "targets"}


def test_features_agree_with_torch(native) -> None:
    capability = torch.backends.cpu.get_cpu_capability()
    if capability == "AVX2":
        assert native.capabilities()["avx2"] is None
    if capability == "AVX512":
        assert native.capabilities()["avx512"] is None


def test_features_agree_with_the_kernel(native) -> None:
    cpuinfo = Path("/proc/cpuinfo")
    flags = (
        next((line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")), None)
        if cpuinfo.exists()
        else None
    )
    if flags is None:
        pytest.skip("no /proc/cpuinfo with x86 flags")
    linux_names = {"bmi": "bmi1", "lzcnt": "abm", "avx512vpopcntdq": "avx512_vpopcntdq", "avx512bf16": "avx512_bf16"}
    for feature, present in native.cpu_features().items():
        assert present == (linux_names.get(feature, feature) in flags.split()), feature


def test_every_flag_of_a_target_can_be_detected(native) -> None:
    for target, flags in native.build_info()["targets"].items():
        names = {flag: flag.removeprefix("-m").replace("-", "_") for flag in flags.split()}
        unknown = [flag for flag, name in names.items() if name not in native.cpu_features()]
        assert not unknown, f"{target} needs {unknown}, which csrc/runtime/cpu.cpp does not detect"


REPORT = "import json; from cad_fast.ops import backend_report; print(json.dumps(backend_report()['cpu']))"


def test_capability_variable_selects(capability: str) -> None:
    result = in_fresh_process(REPORT, CAD_FAST_CPU_CAPABILITY=capability)
    report = json.loads(result.stdout)
    assert (report["in_use"], report["forced"]) == (capability, capability)


PACK = "import torch, cad_fast.ops as ops; ops.pack_bits(torch.tensor([True]))"


def test_unknown_capability_raises(native) -> None:
    result = in_fresh_process(PACK, CAD_FAST_CPU_CAPABILITY="sse9")
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ValueError: CAD_FAST_CPU_CAPABILITY: 'sse9' is not among the compiled instruction sets")


def test_unsupported_capability_raises(native) -> None:
    unsupported = {name: reason for name, reason in native.capabilities().items() if reason}
    if not unsupported:
        pytest.skip("this CPU supports all that is built")
    name, reason = unsupported.popitem()
    result = in_fresh_process(PACK, CAD_FAST_CPU_CAPABILITY=name)
    last = result.stderr.strip().splitlines()[-1]
    assert last == f"ValueError: CAD_FAST_CPU_CAPABILITY: '{name}' cannot run here: {reason}"


@pytest.fixture
def torch_threads():
    """Lets a test change torch's number of threads."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_small_loops_are_not_split(native, torch_threads) -> None:
    torch_threads(2)
    assert [(begin, end) for begin, end, _ in native.parallel_ranges(100, 100)] == [(0, 100)]


@pytest.mark.skipif(backends.native.thread_pool()[1] is not None, reason=str(backends.native.thread_pool()[1]))
def test_loops_follow_torch_threads(native, torch_threads) -> None:
    for count in (1, 2, 3):
        torch_threads(count)
        ranges = sorted(native.parallel_ranges(3000, 10))
        assert len(ranges) == count == backend_report()["threads"]["count"]
        assert [begin for begin, _, _ in ranges] == [0, *(end for _, end, _ in ranges[:-1])]
        assert ranges[-1][1] == 3000
        assert len({thread for _, _, thread in ranges}) == count
    assert backend_report()["threads"]["pool"] == "torch"


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads through /proc")
def test_loops_start_no_threads_of_their_own(native, torch_threads) -> None:
    torch_threads(2)
    torch.rand(1 << 20).sqrt()  # torch's own pool is up from here on
    before = set(os.listdir("/proc/self/task"))
    for _ in range(3):
        native.parallel_ranges(3000, 10)
        pack_bits(torch.ones(1 << 22, dtype=torch.bool), backend="native")
    assert set(os.listdir("/proc/self/task")) <= before


def test_without_a_pool_loops_are_serial_and_the_report_says_why(native, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = torch.rand(5, 500_001) < 0.5
    expected = pack_bits(mask, backend="native")
    monkeypatch.setattr(backends.native, "thread_pool", lambda: ((0, 0), "torch 2.6.0 has no torch_parallel_for"))
    backends.native.imported.cache_clear()
    try:
        report = backend_report()["threads"]
        assert (report["pool"], report["count"]) == ("serial", 1)
        assert report["why_serial"] == "torch 2.6.0 has no torch_parallel_for"
        assert len(native.parallel_ranges(3000, 10)) == 1
        assert torch.equal(pack_bits(mask, backend="native"), expected)
    finally:
        monkeypatch.undo()
        backends.native.imported.cache_clear()
    assert backends.native.load().has_thread_pool() == (backends.native.thread_pool()[1] is None)


def test_environment_is_read_in_one_module() -> None:
    package = Path(dispatch.__file__).parents[1]
    readers = [
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if "CAD_FAST_" in (text := path.read_text()) and ("os.environ" in text or "getenv" in text)
    ]
    assert readers == ["envs.py"]


def test_the_report_says_which_way_was_taken(native) -> None:
    before = dict(OPS["masked_linear"].ways)
    x, weight = torch.randn(2, 300, 40), torch.randn(33, 40)
    words = pack_bits(torch.rand(2, 33, 40) < 0.5)
    masked_linear(x, weight, words, backend="native")
    masked_linear(x[:, :1], weight, words, backend="native", factors=torch.ones(2))
    nothing, ends = torch.empty(0, dtype=torch.int64), torch.tensor([0, 300])
    edited_linear(x[0], weight, ends, torch.zeros(2, dtype=torch.int64), nothing, torch.empty(0), backend="native")
    ways = backend_report()["ops"]
    for way in ("packed panels, written anew for each variant", "one row per variant"):
        assert ways["masked_linear"]["ways"][way] == before.get(way, 0) + 1
    assert ways["edited_linear"]["ways"]["packed panels, dense"] >= 1


@pytest.mark.parametrize(
    ("tiles", "capability", "rows"), [(False, "avx512", 0), (True, "avx512", 64), (True, "amx", 0)]
)
def test_the_choice_on_cpus_depends_on_the_rows_of_a_variant(
    native, monkeypatch: pytest.MonkeyPatch, tiles: bool, capability: str, rows: int
) -> None:
    monkeypatch.setattr(crossover, "torch_has_tiles", lambda: tiles)
    monkeypatch.setattr(crossover.native, "load", lambda: type("Module", (), {"capability": lambda _: capability})())
    for variants in (1, 16):
        for dtype in (torch.float32, torch.bfloat16):
            for count in (0, 1, 63, 64, 4096):
                x, weight = torch.zeros(1, dtype=dtype).expand(variants, count, 8), torch.zeros(3, 8, dtype=dtype)
                order = crossover.order("masked_linear", (x, weight, None, None, None, False))
                vendor = dtype == torch.bfloat16 and rows > 0 and count >= rows
                assert order == ("vendor", "native", "reference")[not vendor :]
    table = crossover.cpu_table().report()
    assert table["measured"] == (not tiles) and table["rows"] == ({"torch.bfloat16": rows} if rows else {})


def test_pairs_of_bfloat16_are_multiplied_where_they_are_asked_for(native) -> None:
    if native.capabilities().get("avx512bf16", "not built") is not None:
        pytest.skip("this CPU has no pairs of bfloat16")
    vendor = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "vendor_id" in line), "")
    code = "from cad_fast.ops.backends import native; print(native.module().bfloat16_capability())"
    asked = in_fresh_process(code, CAD_FAST_CPU_CAPABILITY="avx512bf16").stdout.strip()
    assert asked == "avx512bf16"
    if native.capability() == "avx512bf16":
        assert in_fresh_process(code).stdout.strip() == ("avx512" if "GenuineIntel" in vendor else "avx512bf16")
