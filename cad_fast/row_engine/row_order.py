"""See whether the rows of a denoiser's calls stay rows: apart from each other, and in order in every layer.

Rows under edits of their own need both. A mixture of experts hands its layers the tokens of all rows, sorted by
expert; some attention processors take the batch apart by thirds; a cache decides for all rows at once. So a denoiser
is tried once for every form of its inputs: it runs twice without edits, the second time with its rows moved up by one
place and a new one at the end. Outputs, and inputs of layers, must have moved alike.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..diffusion.caches import cache_of
from ..diffusion.layer_calls import input_of
from ..diffusion.trees import SHARED_NAMES, leaves, map_leaves
from .construction import Construction
from .digests import alike, digest

FEW_ROWS = 6
"""How many rows are tried of calls with more: processors that take a batch apart do so by halves or thirds."""


class RowsMixed(ValueError):
    """A denoiser's rows cannot run under edits or ablations of their own."""


@dataclass
class RowOrder:
    """What is known of the rows of one form of a denoiser's calls.

    Attributes:
        mixed: why rows depend on each other; None if they do not.
        layers: why a layer's input is not the rows in order, for the layers of which that is so.
        construction: what the denoiser ran when it was tried; None if the trial showed nothing, or was none.
    """

    mixed: str | None = None
    layers: dict[str, str] = field(default_factory=dict)
    construction: Construction | None = None

    def holds(self, denoiser: nn.Module) -> bool:
        """Whether the denoiser still runs what it was tried with."""
        return self.construction is not None and self.construction.of(denoiser)

    def require(self, layers: Any, doing: str) -> None:
        """Raise RowsMixed, with the reason, unless the rows of all these layers are known to be rows."""
        reason = self.mixed or next((self.layers[name] for name in layers if name in self.layers), None)
        if reason is not None:
            raise RowsMixed(
                f"{doing} is not possible: {reason}. The same for all rows is: give every row the same, or run the "
                "rows one call at a time"
            )


_known: WeakKeyDictionary[nn.Module, dict[Any, RowOrder]] = WeakKeyDictionary()
_trying: ContextVar[bool] = ContextVar("trying", default=False)


def trying() -> bool:
    """Whether a denoiser is being tried in this thread: what stands around its modules lets such calls pass."""
    return _trying.get()


def row_order(
    denoiser: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], rows: int, layers: Mapping[str, nn.Module]
) -> RowOrder:
    """What is known of the rows of calls like this one; the denoiser is tried if nothing is.

    Neither random numbers nor hooks of the denoiser as a whole notice. Layers must run as they are, without edits.

    Args:
        denoiser: the module itself, not what torch.compile makes of it.
        args: the call's arguments by place.
        kwargs: the call's arguments by name.
        rows: how many rows the call has, at least 2.
        layers: the layers of which the rows are to be known, by their paths.
    """
    if getattr(denoiser, "_cache_config", None) is not None:
        return _of_cache(denoiser)
    inputs = {"args": list(args), **kwargs}
    if rows > FEW_ROWS:
        inputs, rows = _first_rows(inputs, rows), FEW_ROWS
    form = tuple((path, leaf.shape, leaf.dtype) for path, leaf in leaves(inputs) if isinstance(leaf, Tensor))
    key = (rows, form, frozenset(layers))
    orders = _known.setdefault(denoiser, {})
    known = orders.get(key)
    if known is None or not known.holds(denoiser):
        if cache_of(denoiser) is not None:
            return _of_cache(denoiser)
        orders.pop(key, None)
        known = _tried(denoiser, inputs, rows, layers)
        if known.construction is not None:
            orders[key] = known
    return known


def _of_cache(denoiser: nn.Module) -> RowOrder:
    cache = cache_of(denoiser)
    assert cache is not None, "the caller has seen it"
    return RowOrder(f"the denoiser's cache ({cache[0]}) decides for all rows at once ({cache[1]})")


def _tried(denoiser: nn.Module, inputs: dict[str, Any], rows: int, layers: Mapping[str, nn.Module]) -> RowOrder:
    order = RowOrder()
    with torch.no_grad(), _undisturbed(inputs):
        for noise in (True, False):
            before, after = _moved(inputs, rows, noise)
            first, seen_first = _run(denoiser, before, layers)
            if bool(first.isfinite().all()):  # what overflows shows nothing; the inputs as they were given may not
                break
        second, seen_second = _run(denoiser, after, layers)
    if bool(first.isfinite().any()):  # else nothing is known, and nothing is there to be mixed up
        order.construction = Construction(denoiser)
    if len(first) != rows or not alike(first[1:], second[:-1], first.dtype):
        kind = type(denoiser).__name__
        order.mixed = f"a row of {kind} depends on the others or on its place among them (an attention processor?)"
    for name in layers:
        reason = _out_of_order(seen_first[name], seen_second[name], rows, first.dtype)
        if reason is not None:
            order.layers[name] = f"{name} {reason}"
    return order


def _per_row(path: str, leaf: Any, rows: int) -> bool:
    """Whether an input has an entry, or as many entries each, for the rows."""
    if SHARED_NAMES & set(path.split(".")):
        return False
    if isinstance(leaf, list):
        return len(leaf) == rows
    if not isinstance(leaf, Tensor) or not leaf.ndim or not len(leaf) or len(leaf) % rows:
        return False
    return len(leaf) == rows or (leaf.ndim > 2 and leaf.is_floating_point())  # such as a text for each frame


def _first_rows(inputs: dict[str, Any], rows: int) -> dict[str, Any]:
    """The inputs of the first ``FEW_ROWS`` rows of ``rows``."""

    def cut(path: str, leaf: Any) -> Any:
        return leaf[: len(leaf) // rows * FEW_ROWS] if _per_row(path, leaf, rows) else leaf

    return map_leaves(inputs, cut)


def _moved(inputs: dict[str, Any], rows: int, noise: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """The inputs with rows that differ, and those with every row one place further up and a new one at the end.

    With ``noise`` rows differ even where all have one seed. Masks that are infinite somewhere get none, which would
    make all of them NaN.
    """
    generator = torch.Generator().manual_seed(0)

    noisy: dict[str, Any] = {}
    last: dict[str, Any] = {}

    def told_apart(path: str, leaf: Any) -> Any:
        noisy[path] = leaf
        if _per_row(path, leaf, rows):
            last[path] = leaf[: len(leaf) // rows]
            if not _takes_noise(leaf):
                return leaf
            if not noise:
                last[path] = last[path].flip(-1)  # else it would be the row that goes, and a mean would not show
            else:
                added = torch.randn((len(leaf) + len(last[path]), *leaf.shape[1:]), generator=generator)
                added = added.to(leaf.device, leaf.dtype) * leaf.float().std().to(leaf.dtype)
                noisy[path] = leaf + added[: len(leaf)]
                last[path] = last[path] + added[len(leaf) :]
        return noisy[path]

    def moved(path: str, leaf: Any) -> Any:
        if path not in last:
            return leaf
        rest = noisy[path][len(last[path]) :]
        return rest + last[path] if isinstance(rest, list) else torch.cat([rest, last[path]])

    with torch.no_grad():
        return map_leaves(inputs, told_apart), map_leaves(inputs, moved)


def _takes_noise(leaf: Any) -> bool:
    return (
        isinstance(leaf, Tensor)
        and leaf.is_floating_point()
        and leaf.ndim > 2
        and bool(leaf.isfinite().all() and leaf.float().std().isfinite())
    )


@contextlib.contextmanager
def _undisturbed(inputs: dict[str, Any]) -> Iterator[None]:
    """A context that leaves random numbers as they were, and in which nothing is compiled."""
    token = _trying.set(True)
    devices = {leaf.device for _, leaf in leaves(inputs) if isinstance(leaf, Tensor) and leaf.device.type == "cuda"}
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=list(devices)))
        if hasattr(torch.compiler, "set_stance"):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.callback(_trying.reset, token)
        yield


def _run(
    denoiser: nn.Module, inputs: dict[str, Any], layers: Mapping[str, nn.Module]
) -> tuple[Tensor, dict[str, list[Tensor]]]:
    """The first tensor of the output, and of every input of a layer two numbers for each of its rows."""
    seen: dict[str, list[Tensor]] = {name: [] for name in layers}

    def taking_note(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen[name].append(digest(input_of(args, kwargs)))

        return hook

    handles = [m.register_forward_pre_hook(taking_note(name), with_kwargs=True) for name, m in layers.items()]
    try:
        kwargs = {name: value for name, value in inputs.items() if name != "args"}
        # Not as a call, so that the denoiser's own hooks are left out.
        output = denoiser.forward(*inputs["args"], **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    tree = dict(output) if isinstance(output, dict) else output
    return next(leaf for _, leaf in leaves({"output": tree}) if isinstance(leaf, Tensor)), seen


def _out_of_order(first: list[Tensor], second: list[Tensor], rows: int, dtype: torch.dtype) -> str | None:
    """Why a layer's inputs are not the rows in order; None if they are."""
    for one, other in zip(first, second, strict=False):
        if not len(one) or len(one) % rows or len(one) != len(other):
            return f"was called with {len(one)} rows, which is no multiple of the denoiser's {rows}"
        each = len(one) // rows
        if not alike(one[each:], other[:-each], dtype):
            return "was called with the denoiser's rows in another order, such as frame by frame"
    return None if len(first) == len(second) else "was not called as often for some rows as for others"
