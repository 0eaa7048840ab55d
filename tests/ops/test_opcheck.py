"""torch's own checks on every operator that is registered, and that none was left out."""

import copy
from pathlib import Path

import pytest
import torch
from torch.utils._pytree import tree_leaves

from cad_fast.ops import can_run
from cad_fast.ops.dispatch import BACKENDS
from cad_fast.ops.registry import OPS
from tests.ops.samples import SAMPLES

ROOT = Path(__file__).resolve().parents[2]

CASES = [
    pytest.param(op, number, backend, id=f"{op.name}-{number}-{backend or 'in-force'}")
    for op in OPS.values()
    for number in range(len(SAMPLES[op.name]()))
    for backend in (None, "auto", *op.implementations)
]


@pytest.mark.parametrize(("op", "number", "backend"), CASES)
def test_opcheck(op, number: int, backend: str | None) -> None:
    sample = SAMPLES[op.name]()[number]
    if backend in BACKENDS and not can_run(op.name, backend, *sample):
        pytest.skip(f"{backend} cannot run here")
    torch.library.opcheck(op.custom_op, (*sample, backend))


@pytest.mark.parametrize("op", OPS.values(), ids=list(OPS))
def test_backends_agree_on_the_samples(op) -> None:
    for sample in SAMPLES[op.name]():
        results = []
        for backend in op.implementations:
            if can_run(op.name, backend, *sample):
                arguments = copy.deepcopy(sample)
                result = op.custom_op(*arguments, backend)
                # The arguments too: an operator may update them in place.
                tensors = [leaf for leaf in tree_leaves((result, arguments)) if isinstance(leaf, torch.Tensor)]
                results.append(tensors)
        for result in results[1:]:
            torch.testing.assert_close(result, results[0])


def test_every_operator_file_registers_its_operator() -> None:
    files = {path.stem for path in (ROOT / "cad_fast" / "ops").glob("*.py") if not path.stem.startswith("_")}
    assert files - {"crossover", "define", "dispatch", "reference", "registry"} == set(OPS)


def test_every_custom_op_is_in_the_registry() -> None:
    names = {name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("cad_fast::")}
    assert names == set(OPS)


def test_every_kernel_belongs_to_an_operator() -> None:
    kernels = {path.stem for path in (ROOT / "csrc" / "cpu").glob("*.cpp")}
    bindings = {path.stem for path in (ROOT / "csrc").glob("*.cpp")} - {"module"}
    assert kernels == bindings == {op.name for op in OPS.values() if "native" in op.implementations}


@pytest.mark.parametrize("op", OPS.values(), ids=list(OPS))
def test_every_operator_has_a_reference_and_a_docstring(op) -> None:
    function = getattr(__import__("cad_fast.ops", fromlist=[op.name]), op.name)
    assert "reference" in op.implementations
    assert all(heading in function.__doc__ for heading in ("Args:", "Returns:", "Raises:"))
