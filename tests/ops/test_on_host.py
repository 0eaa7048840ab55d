"""What is prepared on the CPU for a model on a GPU does not obey a backend that was chosen for that model's layers."""

import ast
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import cad_fast
from cad_fast import Ablation, ComponentSpace
from cad_fast.attribution.regression.design import Design, SeededDesign
from cad_fast.ops import layout, masked_conv2d, on_host, pack_bits, unpack_bits, use_backend
from cad_fast.ops.registry import OPS

FOR_GPUS = ("hopper", "cuda", "triton", "vendor")
FUNCTIONS = ("bits_linear", "count_bits", "gram_bits", "pack_bits", "seeded_mask", "unpack_bits")
"""Of cad_fast.ops.on_host."""


def sets(n: int) -> list[Ablation]:
    """In every form; of odd sizes, with odd numbers of columns."""
    mask = Ablation.random(n, 0.4, seed=1).mask
    return [
        Ablation.random(n, 0.3, seed=1),
        Ablation.seeded(n, 0.5, seed=2, factor=0.5),
        Ablation.from_mask(mask),
        Ablation.from_packed(Ablation.from_mask(mask).packed, n),
        Ablation.from_gates(torch.linspace(0, 1, n).round()),
    ]


def prepared(kind: str, gradients: str | None) -> list[Tensor]:
    """The tensors of rows under sets in every form, and under few components."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Flatten(2), nn.Linear(9, 7))
    space = ComponentSpace.of(model, kind, "all")
    few = [Ablation.random(space.n, 0.01, seed=1), Ablation.from_indices(space.n, [1, 2], [0.5, 2.0])]
    tensors = []
    for ablations in (sets(space.n), few):
        with cad_fast.rows(model, [*ablations, None], space, gradients=gradients) as engine:
            for override in engine._overrides.values():
                tensors += override.form.tensors() if override.form is not None else []
                tensors += [override.record.words] if override.record is not None else []
    return tensors


def of_ablations() -> list[Tensor]:
    """What sets tell of themselves, and what is made of two."""
    listed = sets(67)
    together = [listed[0] | listed[2], listed[0] & listed[2], listed[2] - listed[0], listed[0] ^ listed[2], ~listed[0]]
    told = [[each.mask, each.packed, each.indices, each.gates, torch.tensor(each.size)] for each in listed + together]
    return [tensor for tensors in told for tensor in tensors]


def of_designs() -> list[Tensor]:
    """The products of a regression's matrix."""
    designs = Design.of([Ablation.random(70, 0.5, seed=v) for v in range(5)]), SeededDesign(70, 0.5, seed=1, m=5)
    parts = []
    for design in designs:
        parts += [design.ablated_mean, design.counts(), design.transposed(), *(block for _, block in design.columns())]
        parts += [design.times(torch.ones(70)), design.transposed_times(torch.ones(5))]
    return parts


@pytest.mark.parametrize("backend", [*FOR_GPUS, "native", "reference"])
@pytest.mark.parametrize(
    "prepare",
    [
        lambda: prepared("weight", None),
        lambda: prepared("weight", "scores"),
        lambda: prepared("filter", None),
        of_ablations,
        of_designs,
    ],
    ids=["weights", "scores", "filters", "ablations", "designs"],
)
def test_the_same_bits_under_every_choice(prepare, backend: str, native, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = prepare()
    before = {name: dict(OPS[name].runs) for name in FUNCTIONS}
    with use_backend(backend):
        inside = prepare()
    monkeypatch.setenv("CAD_FAST_BACKEND", backend)
    for actual in (inside, prepare()):
        assert len(actual) == len(expected) > 0
        for one, other in zip(actual, expected, strict=True):
            assert one.dtype == other.dtype and torch.equal(one, other)
    ran = {ran for name in FUNCTIONS for ran, count in OPS[name].runs.items() if count > before[name].get(ran, 0)}
    assert ran <= {"reference" if backend == "reference" else "native"}


def test_an_explicit_call_still_obeys() -> None:
    with use_backend("triton"), pytest.raises(RuntimeError, match="pack_bits cannot run on the triton backend"):
        pack_bits(torch.tensor([True]))


@pytest.mark.parametrize("backend", FOR_GPUS)
def test_operators_inside_of_operators_obey_no_choice(backend: str) -> None:
    """There need be none of these on the backend that was chosen for convolutions."""
    weight = torch.randn(4, 3, 3, 3, requires_grad=True)
    words = pack_bits(torch.rand(2, 4, 27) < 0.5)
    y = masked_conv2d(torch.randn(2, 1, 3, 5, 5), weight, words, backend="reference")
    with use_backend(backend):
        y.sum().backward()
        last = layout.words_channels_last(words, weight)
    by_filter = unpack_bits(words, 27).view(2, 4, 3, 3, 3)
    assert torch.equal(unpack_bits(last, 27).view(2, 4, 3, 3, 3), by_filter.permute(0, 1, 3, 4, 2))
    assert weight.grad.isfinite().all()


def test_nothing_else_calls_these_operators_itself() -> None:
    root = Path(cad_fast.__file__).parent
    for path in root.rglob("*.py"):
        if path.is_relative_to(root / "ops") or path.is_relative_to(root / "kernels"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and not (node.module or "").endswith("ops.on_host"):
                names = {alias.name for alias in node.names} & set(FUNCTIONS)
                assert not names, f"{path} imports {names}: take them from cad_fast.ops.on_host"


def test_all_operators_on_the_cpu_alone_are_there() -> None:
    assert all(callable(getattr(on_host, name)) for name in FUNCTIONS)
