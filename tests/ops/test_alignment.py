"""An operator has one name in every layer: what the registry knows, and the files, agree."""

import ast
import ctypes
import re
from pathlib import Path

import pytest
import torch

from cad_fast import ops
from cad_fast.ops import backends, reference
from cad_fast.ops.registry import OPS
from tests.ops.samples import SAMPLES

ROOT = Path(__file__).resolve().parents[2]

NO_OPERATORS = {
    "cad_fast/ops": {
        "crossover",
        "define",
        "dispatch",
        "edit_masks",
        "edit_plans",
        "image_rows",
        "layout",
        "on_host",
        "reference",
        "registry",
    },
    "csrc": {"module"},
    "csrc/cuda": {"library", "wgmma_linear"},
    "kernels": {"ablated_weights", "channels_last", "configs", "entries", "gate_channels", "patches", "tiles"},
}
"""Files that are there for all operators."""

TESTED_TOGETHER = {
    "pack_bits": "bits",
    "unpack_bits": "bits",
    "count_bits": "bits",
    "gram_bits": "products_of_bits",
    "bits_linear": "products_of_bits",
}

each_op = pytest.mark.parametrize("op", OPS.values(), ids=list(OPS))


def stems(folder: str, pattern: str) -> set[str]:
    """The names of the files of a folder, without those that are for all operators."""
    return {path.stem for path in (ROOT / folder).glob(pattern)} - NO_OPERATORS.get(folder, set()) - {"__init__"}


def names(backend: str) -> set[str]:
    """The operators that have an implementation for a backend."""
    return {op.name for op in OPS.values() if backend in op.implementations}


def test_every_operator_has_its_file_and_every_file_its_operator() -> None:
    assert stems("cad_fast/ops", "*.py") == set(OPS)


def test_every_custom_op_is_in_the_registry() -> None:
    names = {name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("cad_fast::")}
    assert names == set(OPS)


@each_op
def test_public_function_reference_and_docstring(op) -> None:
    assert "reference" in op.implementations and callable(getattr(reference, op.name))
    assert all(heading in getattr(ops, op.name).__doc__ for heading in ("Args:", "Returns:", "Raises:"))


@each_op
def test_samples_and_tests(op) -> None:
    assert SAMPLES[op.name]()
    assert (ROOT / "tests" / "ops" / f"test_{TESTED_TOGETHER.get(op.name, op.name)}.py").exists()


def test_every_operator_has_its_cases_and_every_file_of_cases_its_operator() -> None:
    assert stems("tests/ops/cases", "test_*.py") == {f"test_{name}" for name in OPS}


def test_native_kernels() -> None:
    kernels = {kernel for op in OPS.values() for kernel in op.kernels}
    assert stems("csrc", "*.cpp") == stems("csrc/cpu", "*.cpp") == kernels
    assert all((ROOT / "csrc" / f"{kernel}.h").exists() for kernel in kernels)
    assert all(bool(op.kernels) == ("native" in op.implementations) for op in OPS.values())


def test_triton_kernels() -> None:
    assert stems("kernels", "*.py") == names("triton")


def test_cuda_kernels() -> None:
    assert stems("csrc/cuda", "*.cu") == names("cuda")
    assert names("cuda") <= set(backends.cuda.FUNCTIONS)


def declared_functions() -> dict[str, tuple]:
    """The functions of csrc/cuda/api.h by their names without prefix: types of result and parameters, as ctypes."""

    def type_of(declaration: str) -> object:
        if "*" in declaration:
            return ctypes.c_char_p if "char" in declaration else ctypes.c_void_p
        return {"int": ctypes.c_int, "std::int64_t": ctypes.c_int64, "void": None}[declaration.split()[0]]

    text = re.sub(r"//.*", "", (ROOT / "csrc" / "cuda" / "api.h").read_text())
    functions = {}
    for result, name, parameters in re.findall(r'"default"\)\)\) ([^;()]*?)\s*cad_fast_cuda_(\w+)\(([^)]*)\);', text):
        given = [type_of(parameter.strip()) for parameter in parameters.split(",") if parameter.strip()]
        functions[name] = (type_of(result), given)
    return functions


def test_the_table_of_cuda_functions_is_that_of_the_header() -> None:
    assert declared_functions() == backends.cuda.FUNCTIONS


def private_uses(path: Path) -> list[str]:
    """Private names of the operators' modules that a file uses and that are not its own."""
    tree, modules, found = ast.parse(path.read_text()), set(), []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and re.search(r"\bops\b", node.module or ""):
            modules |= {alias.asname or alias.name for alias in node.names}
            found += [alias.name for alias in node.names if alias.name.startswith("_")]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            root = node.value
            while isinstance(root, ast.Attribute):
                root = root.value
            if isinstance(root, ast.Name) and root.id in modules:
                found.append(ast.unparse(node))
    return found


def test_no_private_name_is_used_elsewhere() -> None:
    files = [path for folder in ("cad_fast", "kernels", "bench", "tests") for path in (ROOT / folder).rglob("*.py")]
    assert {str(path.relative_to(ROOT)): uses for path in files if (uses := private_uses(path))} == {}


@pytest.mark.parametrize(
    ("code", "uses"),
    [
        ("from cad_fast.ops.dispatch import _first_that_can_run", ["_first_that_can_run"]),
        ("from cad_fast.ops import backends\nbackends.native._x()", ["backends.native._x"]),
        ("from ..ops import dispatch\nprint(dispatch._chosen.get())", ["dispatch._chosen"]),
        ("from cad_fast.ops import dispatch\nself._x, dispatch.run, dispatch.__name__", []),
    ],
)
def test_a_private_use_is_seen(tmp_path: Path, code: str, uses: list[str]) -> None:
    (tmp_path / "code.py").write_text(code)
    assert private_uses(tmp_path / "code.py") == uses
