"""Every operator's samples, by way of torch's dispatcher: Triton agrees with the reference, and the schema holds."""

import copy

import pytest
import torch
from torch.utils._pytree import tree_leaves

from cad_fast.ops.registry import OPS
from tests.ops.samples import SAMPLES

OF_THE_SOLVERS = {"bits_linear", "gram_bits"}
"""On the CPU alone: a regression is solved there, wherever its ablations ran."""

CASES = [
    pytest.param(op, number, id=f"{op.name}-{number}")
    for op in OPS.values()
    if op.name not in OF_THE_SOLVERS
    for number in range(len(SAMPLES[op.name]()))
]


def moved(op: str, argument: object, position: int, device: torch.device) -> object:
    """A sample's argument on the device; rows and offsets stay on the CPU."""
    if isinstance(argument, torch.device):
        return device
    if not isinstance(argument, torch.Tensor) or (op.startswith("edited") and position in (2, 3)):
        return argument
    return argument.detach().to(device).requires_grad_(argument.requires_grad)


@pytest.mark.parametrize(("op", "number"), CASES)
def test_triton_agrees_with_the_reference(device, op, number: int) -> None:
    assert "triton" in op.implementations
    sample = [moved(op.name, argument, i, device) for i, argument in enumerate(SAMPLES[op.name]()[number])]
    results = []
    for backend in ("triton", "reference"):
        before = op.runs[backend]
        arguments = copy.deepcopy(sample)
        result = op.custom_op(*arguments, backend)
        assert op.runs[backend] == before + 1
        results.append([leaf for leaf in tree_leaves((result, arguments)) if isinstance(leaf, torch.Tensor)])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize(("op", "number"), CASES)
def test_schema(device, op, number: int) -> None:
    sample = [moved(op.name, argument, i, device) for i, argument in enumerate(SAMPLES[op.name]()[number])]
    torch.library.opcheck(op.custom_op, (*sample, "triton"), test_utils=("test_schema", "test_faketensor"))
