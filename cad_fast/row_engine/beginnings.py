"""Compute what does not depend on the ablations of a pass once per row, not once per variant.

A pass of V variants runs its rows V times over. Until the first layer that some variant ablates, all V are the same.
So is what later layers make of the denoiser's own inputs, such as the keys and values of the text. Passes whose
ablations lie late therefore share their beginning: it runs on the rows once, and the outputs of its modules are handed
to all variants. That a module's output for rows repeated is its output repeated is seen in a trial, per module.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..diffusion.trees import leaves, map_leaves
from .digests import alike, digest
from .engine import RowEngine
from .wrapping import Around, Forward, wrapped

LEAST_SAVED = 0.1
"""Which share of a pass's work must be saved for its beginning to be shared."""
MOST_KEPT = 2**28
"""How many bytes of outputs are kept from one group of ablations for the next that begins as late."""

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
# Of one output: its tensors in their order, each as it is for all rows, or repeated for each variant.
_Kinds = tuple[str, ...]


@dataclass
class _Call:
    """One call of a module in a trial: the call's number for the module, and when it was entered and left.

    given: the lengths of the tensors it was given. of_inputs: whether all of them are inputs of the denoiser.
    in_place: whether it changed one of them. digests: of the tensors of its output, with their dtypes; None where it
    holds something else. cost: of a layer, its multiplications.
    """

    path: str
    number: int
    entered: int
    left: int = -1
    given: list[int] = field(default_factory=list)
    of_inputs: bool = False
    in_place: bool = False
    digests: list[tuple[Tensor, torch.dtype]] | None = None
    cost: int = 0
    kinds: _Kinds | None = None

    @property
    def repeated(self) -> bool:
        """Whether all of its output is repeated when the rows are."""
        return self.kinds is not None and set(self.kinds) == {"repeated"}

    def within(self, other: _Call) -> bool:
        return other.entered <= self.entered and self.left <= other.left


@dataclass(frozen=True)
class _Plan:
    """What is shared by passes whose first ablated layer is ``first``.

    before: {path: {number: kinds}}, the calls before it; once: {path: {number: kinds}}, later ones that see nothing but
    inputs of the denoiser.
    """

    first: str
    before: dict[str, dict[int, _Kinds]]
    once: dict[str, dict[int, _Kinds]]


class _Reached(Exception):
    """The first ablated layer is about to run."""


class Beginnings:
    """Runs passes of a denoiser under ablations and shares what they have in common.

    Args:
        denoiser: The module itself. One that torch.compile has compiled shares nothing.
    """

    def __init__(self, denoiser: nn.Module) -> None:
        self._denoiser = denoiser
        self._modules = {path: module for path, module in denoiser.named_modules() if path}
        self._traces: dict[Hashable, _Trace | None] = {}
        self._kept: dict[Hashable, dict[str, dict[int, Any]]] = {}
        self._kept_for: _Plan | None = None

    def run(
        self,
        engine: RowEngine,
        run: Callable[[int], Tensor],
        *,
        form: Hashable,
        key: Hashable,
    ) -> Tensor:
        """Return the output for the rows of every variant.

        Args:
            engine: Entered, with the ablations of the pass.
            run: ``run(n)`` calls the denoiser with the rows n times over, one time after the other.
            form: What the shapes of the call are.
            key: Which rows they are.
        """
        variants = engine.variants
        if variants == 1 or torch.is_grad_enabled() or _compiled(self._denoiser):
            return run(variants)
        if form not in self._traces:
            with engine.idle():
                self._traces[form] = _Trace.of(self._denoiser, self._modules, run)
        trace = self._traces[form]
        plan = None if trace is None else trace.plan(frozenset(engine.acting), variants)
        outputs = None if plan is None else self._beginning(plan, engine, run, key)
        if plan is None or outputs is None:
            return run(variants)
        with wrapped(self._replaying(plan, outputs, variants)):
            return run(variants)

    def _beginning(
        self, plan: _Plan, engine: RowEngine, run: Callable[[int], Tensor], key: Hashable
    ) -> dict[str, dict[int, Any]] | None:
        """The outputs of the modules before the first ablated layer, for the rows once; None if it was not called."""
        if self._kept_for is not plan:
            self._kept, self._kept_for = {}, plan
        if key in self._kept:
            return self._kept[key]
        outputs: dict[str, dict[int, Any]] = {path: {} for path in plan.before}

        def keeping(path: str) -> Around:
            numbers = _Numbers()

            def around(args: tuple[Any, ...], kwargs: dict[str, Any], forward: Forward) -> Any:
                number, output = numbers.next(), forward(*args, **kwargs)
                if number in plan.before[path]:
                    # A copy: what follows may write into it.
                    outputs[path][number] = map_leaves(output, lambda _, leaf: _copied(leaf))
                return output

            return around

        def reached(*_: Any) -> None:
            raise _Reached

        handle = self._modules[plan.first].register_forward_pre_hook(reached)
        try:
            with engine.idle(), wrapped({self._modules[path]: keeping(path) for path in plan.before}):
                run(1)
            return None
        except _Reached:
            pass
        finally:
            handle.remove()
        if any(outputs[path].keys() != numbers.keys() for path, numbers in plan.before.items()):
            return None
        held = sum(_nbytes(tree) for each in (*self._kept.values(), outputs) for tree in each.values())
        if held <= MOST_KEPT:
            self._kept[key] = outputs
        return outputs

    def _replaying(
        self, plan: _Plan, outputs: Mapping[str, Mapping[int, Any]], variants: int
    ) -> dict[nn.Module, Around]:
        """What stands in for the modules in a pass."""

        def handing_out(path: str) -> Around:
            numbers = _Numbers()

            def around(args: tuple[Any, ...], kwargs: dict[str, Any], forward: Forward) -> Any:
                number = numbers.next()
                if number in plan.before.get(path, {}):
                    return _expanded(outputs[path][number], plan.before[path][number], variants)
                if number in plan.once.get(path, {}):
                    part = functools.partial(_first_variant, variants=variants)
                    output = forward(*map_leaves(list(args), part), **map_leaves(kwargs, part))
                    return _expanded(output, plan.once[path][number], variants)
                return forward(*args, **kwargs)

            return around

        return {self._modules[path]: handing_out(path) for path in plan.before.keys() | plan.once.keys()}


@dataclass
class _Trace:
    """The calls of a denoiser's modules in the order in which they were entered."""

    calls: list[_Call]
    _plans: dict[tuple[frozenset[str], int], _Plan | None] = field(default_factory=dict)
    _known: dict[Any, _Plan] = field(default_factory=dict)

    @classmethod
    def of(cls, denoiser: nn.Module, modules: Mapping[str, nn.Module], run: Callable[[int], Tensor]) -> _Trace | None:
        """Try the denoiser, with its rows once and twice; None if it does not call the same modules then."""
        once, twice = (_Watch(denoiser, modules).calls_of(functools.partial(run, times)) for times in (1, 2))
        if [(call.path, call.number) for call in once] != [(call.path, call.number) for call in twice]:
            return None
        for call, other in zip(once, twice, strict=True):
            call.kinds = _kinds(call, other)
            call.in_place |= other.in_place
            call.of_inputs &= other.of_inputs and other.given == [2 * length for length in call.given]
        return cls(once)

    def plan(self, ablated: frozenset[str], variants: int) -> _Plan | None:
        """What passes with ablations in these layers share; None if it is too little."""
        key = (ablated, variants)
        if key not in self._plans:
            plan = self._planned(ablated, variants)
            # One object for all that share the same: what is kept for one serves the others.
            self._plans[key] = None if plan is None else self._known.setdefault(_key(plan), plan)
        return self._plans[key]

    def _planned(self, ablated: frozenset[str], variants: int) -> _Plan | None:
        acting = [call for call in self.calls if call.path in ablated]
        if not acting:
            return None
        first = acting[0]
        before: dict[str, dict[int, _Kinds]] = {}
        once: dict[str, dict[int, _Kinds]] = {}
        shared: _Call | None = None
        saved = 0
        for call in self.calls:
            if shared is None or not call.within(shared):
                if call.kinds is None or call.in_place:
                    continue
                if call.left < first.entered:
                    before.setdefault(call.path, {})[call.number] = call.kinds
                elif call.of_inputs and call.repeated and not any(each.within(call) for each in acting):
                    once.setdefault(call.path, {})[call.number] = call.kinds
                else:
                    continue
                shared = call
            saved += call.cost
        if saved * (variants - 1) < LEAST_SAVED * sum(call.cost for call in self.calls) * variants:
            return None
        return _Plan(first.path, before, once)


class _Watch:
    """Sees the calls of a denoiser's modules."""

    def __init__(self, denoiser: nn.Module, modules: Mapping[str, nn.Module]) -> None:
        self._denoiser, self._modules = denoiser, modules
        self._calls: list[_Call] = []
        self._clock = 0
        self._inputs: dict[int, Tensor] = {}  # by identity, which lasts as long as they are held

    def calls_of(self, run: Callable[[], Tensor]) -> list[_Call]:
        """Return the calls of one call of the denoiser, by when they were entered."""
        arounds = {module: self._around(path, module) for path, module in self._modules.items()}
        with wrapped({self._denoiser: self._whole, **arounds}):
            run()
        return self._calls

    def _whole(self, args: tuple[Any, ...], kwargs: dict[str, Any], forward: Forward) -> Any:
        given = leaves({"args": list(args), **kwargs})
        self._inputs = {id(leaf): leaf for _, leaf in given if isinstance(leaf, Tensor)}
        return forward(*args, **kwargs)

    def _around(self, path: str, module: nn.Module) -> Around:
        numbers = _Numbers()

        def around(args: tuple[Any, ...], kwargs: dict[str, Any], forward: Forward) -> Any:
            given = [leaf for _, leaf in leaves({"args": list(args), **kwargs}) if isinstance(leaf, Tensor)]
            versions = [_version(tensor) for tensor in given]
            call = _Call(path, numbers.next(), self._tick())
            self._calls.append(call)
            output = forward(*args, **kwargs)
            call.left = self._tick()
            call.given = [len(tensor) if tensor.ndim else 0 for tensor in given]
            call.of_inputs = all(call.given) and bool(given) and all(id(tensor) in self._inputs for tensor in given)
            call.in_place = versions != [_version(tensor) for tensor in given]
            tensors = _tensors(output)
            if tensors is not None:
                call.digests = [(_rows_digest(tensor), tensor.dtype) for tensor in tensors]
                if isinstance(module, _LAYERS):
                    weight = module.weight
                    call.cost = tensors[0].numel() // max(1, weight.shape[0]) * weight.numel()
            return output

        return around

    def _tick(self) -> int:
        self._clock += 1
        return self._clock


class _Numbers:
    """Counts the calls of one module."""

    def __init__(self) -> None:
        self._count = -1

    def next(self) -> int:
        self._count += 1
        return self._count


def _kinds(once: _Call, twice: _Call) -> _Kinds | None:
    """How each tensor of an output goes over to rows that are repeated; None where one does in no known way."""
    if once.digests is None or twice.digests is None or len(once.digests) != len(twice.digests) or not once.digests:
        return None
    kinds = []
    for (one, dtype), (other, _) in zip(once.digests, twice.digests, strict=True):
        if alike(one.repeat(2, 1), other, dtype):
            kinds.append("repeated")
        elif alike(one, other, dtype):
            kinds.append("same")
        else:
            return None
    return tuple(kinds)


def _key(plan: _Plan) -> Hashable:
    parts = [
        tuple(sorted((path, *sorted(numbers)) for path, numbers in each.items())) for each in (plan.before, plan.once)
    ]
    return plan.first, *parts


def _tensors(tree: Any) -> list[Tensor] | None:
    """The tensors of an output in their order; None where it holds, or is, something else."""
    if isinstance(tree, Tensor):
        return [tree] if tree.is_floating_point() and tree.ndim and tree.numel() else None
    if tree is None:
        return []
    if type(tree) not in (tuple, list):
        return None
    parts = [_tensors(part) for part in tree]
    return None if any(part is None for part in parts) else [tensor for part in parts if part for tensor in part]


def _rows_digest(x: Tensor) -> Tensor:
    return digest(x.reshape(len(x), -1))


def _version(x: Tensor) -> int | None:
    return None if x.is_inference() else x._version


def _copied(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def _expanded(tree: Any, kinds: _Kinds, variants: int) -> Any:
    remaining = iter(kinds)

    def expand(_: str, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return torch.cat([leaf] * variants) if next(remaining) == "repeated" else leaf.clone()

    return map_leaves(tree, expand)


def _first_variant(_: str, leaf: Any, variants: int) -> Any:
    return leaf[: len(leaf) // variants] if isinstance(leaf, Tensor) else leaf


def _nbytes(tree: Any) -> int:
    return sum(leaf.nbytes for _, leaf in leaves({"output": tree}) if isinstance(leaf, Tensor))


def _compiled(denoiser: nn.Module) -> bool:
    return any(module._compiled_call_impl is not None for module in denoiser.modules())
