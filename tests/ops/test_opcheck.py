"""torch's own checks on every operator that is registered, and that all backends agree."""

import copy

import pytest
import torch
from torch.utils._pytree import tree_leaves

from cad_fast.ops import can_run
from cad_fast.ops.dispatch import BACKENDS
from cad_fast.ops.registry import OPS
from tests.ops.samples import SAMPLES

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
