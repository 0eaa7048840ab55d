"""Every operator's samples in Triton, by way of torch's dispatcher: results are right, and the schema holds."""

import copy

import pytest
import torch

from cad_fast.ops.registry import OPS
from tests.kernels.judge import assert_right
from tests.ops import exact
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


def tensors_of(arguments: list) -> list[torch.Tensor]:
    return [argument.detach() for argument in arguments if isinstance(argument, torch.Tensor)]


@pytest.mark.parametrize(("op", "number"), CASES)
def test_triton_is_right(device, op, number: int) -> None:
    """Bits as the reference has them; sums as near to those in float64 as rounding explains.

    What the reference itself gives on a GPU is the vendor's, and rounded in another order.
    """
    assert "triton" in op.implementations
    sample = [moved(op.name, argument, i, device) for i, argument in enumerate(SAMPLES[op.name]()[number])]
    results, arguments = [], []
    for backend in ("triton", "reference"):
        before = op.runs[backend]
        arguments.append(copy.deepcopy(sample))
        results.append(op.custom_op(*arguments[-1], backend))
        assert op.runs[backend] == before + 1
    mine, expected = results
    on_cpu = [t.detach().cpu() if isinstance(t, torch.Tensor) else t for t in sample]
    if op.name == "masked_linear_scores":
        *operands, kept, ablated = on_cpu
        sums = tensors_of(arguments[0])[-2:]
        for actual, right in zip(sums, exact.masked_linear_scores(*operands, (kept, ablated)), strict=True):
            assert_right(actual.cpu(), right)
        inputs = [tensors_of(given)[:-2] for given in (arguments[0], sample)]
    else:
        assert mine.dtype == expected.dtype and mine.shape == expected.shape
        if not mine.is_floating_point():
            assert torch.equal(mine, expected)
        elif mine.numel():
            assert_right(mine.detach().cpu(), getattr(exact, op.name)(*on_cpu))
        inputs = [tensors_of(given) for given in (arguments[0], sample)]
    assert all(map(torch.equal, *inputs)), "the operator has changed an argument"


@pytest.mark.parametrize(("op", "number"), CASES)
def test_schema(device, op, number: int) -> None:
    sample = [moved(op.name, argument, i, device) for i, argument in enumerate(SAMPLES[op.name]()[number])]
    torch.library.opcheck(op.custom_op, (*sample, "triton"), test_utils=("test_schema", "test_faketensor"))
