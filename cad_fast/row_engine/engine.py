"""The context in which a denoiser runs each group of rows under its own ablation."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Literal
from weakref import WeakSet

import torch
from torch import Tensor, nn

from ..components.ablation import Ablation
from ..components.space import ComponentSpace
from ..diffusion.denoisers import denoiser_of
from ..diffusion.quantised import require_plain
from ..diffusion.structure import Layer
from ..diffusion.trees import leaves
from .around import Around
from .forms import AnyForm, Form, Gated, Masked, run_form
from .prepare import prepare_gates, prepare_weights
from .row_order import row_order
from .score_tap import Record, run_scored
from .slots import WEIGHT_DTYPES, slot_of
from .surroundings import Callers, check_adapters, check_projections, modules_by_path

Gradients = Literal["gates", "scores"]
# The denoisers, and their modules, that run under ablations now, in whatever thread.
_claimed: WeakSet[nn.Module] = WeakSet()
_claims = threading.Lock()


def runs_under_ablations(denoiser: nn.Module) -> bool:
    """Whether the denoiser is in a context of ``rows`` now, in this thread or another."""
    return getattr(denoiser, "_orig_mod", denoiser) in _claimed


def rows(
    denoiser: Any, ablations: Iterable[Ablation | None], space: ComponentSpace, *, gradients: Gradients | None = None
) -> RowEngine:
    """A context in which the denoiser runs each group of rows under its own ablation.

    With V ablations, a call of the denoiser takes V * B rows, variant-major: rows v * B to (v + 1) * B - 1 run with
    the components of ``ablations[v]`` multiplied by its factor. Every argument with an entry per row needs V * B of
    them. Weights are neither changed nor copied: while the context is open, the linears and convolutions in which some
    variant has something run another forward; the others are untouched, and so are LoRA branches beside them. This
    holds for every call of the denoiser until the context is left, from whatever thread.

    A row's result does not depend on the other variants. Rows under None give what the denoiser gives without the
    context, up to rounding: not bit for bit, because the modules that other variants ablate run another kernel.
    Removed weights count as exactly zero, even infinite ones; those of neurons and heads must be finite, because it is
    the activations they are multiplied by that are set to zero. autocast does not reach the ablated modules.

    Inside, gradients flow to the denoiser's inputs as ever (of the weights themselves there are none), and

    - ``gradients="gates"`` (neurons, filters, heads) gives every component of every variant a gate, a leaf tensor with
      the ablation's value, in ``engine.gates``, for ``torch.autograd.grad``;
    - ``gradients="scores"`` (single weights) adds up, on every backward pass, weight * dJ / d(effective weight) over
      the variants, in ``engine.kept`` where the variant keeps the weight and ``engine.ablated`` where it does not.

    Args:
        denoiser: a module, or a pipeline with a ``unet`` or a ``transformer``.
        ablations: one per variant, over ``space``; None for a variant that ablates nothing.
        space: which components the ablations number; its modules must be in the denoiser.
        gradients: None, "gates" or "scores".

    Raises:
        TypeError: something else than ablations, or a module whose weights or forward are not those of a plain
            float32, bfloat16 or float16 layer.
        ValueError: the ablations number another count of components than the space, or its modules are not in the
            denoiser, are offloaded, or are replaced already, or have an adapter that reads their weights; or
            ``gradients`` do not suit the kind of the components. Inside, when a module is called with rows that the
            variants do not divide; RowsMixed (a ValueError) when its rows do not stay rows, see
            ``cad_fast.row_engine.row_order``.
        RuntimeError: inside, when an ablated module was not called although its parent ran, as something reads its
            weight instead. On entering, when the denoiser is in such a context already, in this thread or another.
    """
    return RowEngine(denoiser, ablations, space, gradients)


class RowEngine:
    """The context that ``rows`` makes; may be entered again after it was left."""

    def __init__(
        self,
        denoiser: Any,
        ablations: Iterable[Ablation | None],
        space: ComponentSpace,
        gradients: Gradients | None = None,
    ) -> None:
        self._called = denoiser_of(denoiser)
        self.denoiser: nn.Module = getattr(self._called, "_orig_mod", self._called)  # what torch.compile wraps
        self.space, self.gradients = space, gradients
        _check_gradients(gradients, space)
        self._modules = space.modules(self.denoiser)
        self._ablations = _checked_ablations(ablations, space)
        self._overrides = {name: _Override(name, module, self.variants) for name, module in self._modules.items()}
        self._entered = self._idle = False
        self._around: Around | None = None
        self._callers: Callers | None = None
        self.gates: dict[str, Tensor] = {}
        """{module: [V, count]}, requiring gradients, the weights' dtype; with ``gradients="gates"``. New ones come
        with every ``set``."""
        self.kept: dict[str, Tensor] = {}
        """{module: float32 [N, K]}, sums over variants and backward passes; with ``gradients="scores"``."""
        self.ablated: dict[str, Tensor] = {}
        """As ``kept``."""

    @property
    def variants(self) -> int:
        """V, how many ablations run side by side."""
        return len(self._ablations)

    @property
    def nbytes(self) -> int:
        """How many bytes the prepared ablations take, without the sums of ``kept`` and ``ablated``."""
        sizes = {}  # by identity: a masked module's words serve its scores too
        for override in self._overrides.values():
            tensors = override.form.tensors() if override.form is not None else []
            tensors += [override.record.words] if override.record is not None else []
            sizes.update({id(tensor): tensor.nbytes for tensor in tensors})
        return sum(sizes.values())

    def set(self, ablations: Iterable[Ablation | None]) -> None:
        """Put other ablations, as many, in the place of these; scores go on adding up. Errors as for ``rows``."""
        checked = _checked_ablations(ablations, self.space)
        if len(checked) != self.variants:
            raise ValueError(f"{len(checked)} ablations were given, expected {self.variants} as before")
        before, self._ablations = self._ablations, checked
        if self._entered:
            try:
                self._prepare()
            except BaseException:
                self._ablations = before
                raise

    @property
    def acting(self) -> list[str]:
        """The paths of the layers in which some variant ablates something, as the denoiser names them."""
        names = {module: name for name, module in self.denoiser.named_modules()}
        return [names[override.module] for override in self._overrides.values() if override.form is not None]

    @contextlib.contextmanager
    def idle(self) -> Iterator[None]:
        """A context in which the denoiser runs as ever, with any number of rows."""
        before = self._idle
        self._set_idle(True)
        try:
            yield
        finally:
            self._set_idle(before)

    def _set_idle(self, idle: bool) -> None:
        self._idle = idle
        for override in self._overrides.values():
            override.idle = idle

    def reset_scores(self) -> None:
        """Set the sums of ``kept`` and ``ablated`` to zero."""
        for sums in (*self.kept.values(), *self.ablated.values()):
            sums.zero_()

    def __enter__(self) -> RowEngine:
        claim = {self.denoiser, *self._modules.values()}
        with _claims:
            if not claim.isdisjoint(_claimed):
                raise RuntimeError(
                    f"{type(self.denoiser).__name__} already runs under ablations (cad_fast.rows), in this thread or "
                    "another: leave that context first, or run another copy of the denoiser"
                )
            _claimed.update(claim)
        try:
            for name, module in self._modules.items():
                _check_module(name, module, self.space.kind)
            check_projections(self.denoiser, self._modules)
            by_path = modules_by_path(self.denoiser)
            for name, module in self._modules.items():
                check_adapters(name, module, by_path)
            if self.gradients == "scores":
                self.kept, self.ablated = self._zeros(), self._zeros()
            self._prepare()
            self._callers = Callers(self._modules, by_path)
            self._around = Around(self._called, self._before, self._check)
        except BaseException:
            self._leave()
            raise
        self._entered = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def _before(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._idle:
            return
        if self.variants > 1:
            self._check_rows(args, kwargs)
        for override in self._overrides.values():
            override.ran = False
        if self._callers is not None:
            self._callers.begin()

    def _check(self) -> None:
        """Raise RuntimeError if an ablated module was passed over in the call that has just been made."""
        if (
            self._idle or self.gradients is not None
        ):  # then all modules have forms; who asks for gradients sees which have none
            return
        for name, override in self._overrides.items():
            if override.form is None or override.ran or self._callers is None:
                continue
            caller = self._callers.leaving_out(name)
            if caller is not None:
                raise RuntimeError(
                    f"the ablations of {name} did not act: {caller} ran without calling it. Something reads its weight "
                    "instead, or has no use for it in this call: leave the module out of the component space "
                    "(ComponentSpace.of with other target_modules)"
                )

    def _check_rows(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise RowsMixed unless the rows of such calls are known to stay rows."""
        tensors = (leaf for _, leaf in leaves({"args": list(args), **kwargs}) if isinstance(leaf, Tensor) and leaf.ndim)
        rows = len(next(tensors, ()))
        if not rows or rows % self.variants:
            return  # the modules say what is wrong
        with self.idle():
            order = row_order(self.denoiser, args, kwargs, rows, dict(self._modules))
        ablated = [name for name, override in self._overrides.items() if override.form is not None]
        order.require(ablated, "an ablation of its own for each variant")

    def _leave(self) -> None:
        if self._around is not None:
            self._around.remove()
            self._around = None
        if self._callers is not None:
            self._callers.close()
            self._callers = None
        for override in self._overrides.values():
            override.remove()
        self._entered = False
        with _claims:
            _claimed.difference_update({self.denoiser, *self._modules.values()})

    def _zeros(self) -> dict[str, Tensor]:
        return {
            entry.module: torch.zeros(entry.rows, entry.columns, device=self._modules[entry.module].weight.device)
            for entry in self.space
        }

    @torch.inference_mode(False)  # what inference tensors need on a GPU cannot be kept from call to call
    @torch.no_grad()
    def _prepare(self) -> None:
        """Forms and records for the ablations of now; overrides come and go with the modules that have any."""
        forms: Mapping[str, AnyForm]
        words: Mapping[str, Tensor] = {}
        if self.space.kind == "weight":
            forms, words = prepare_weights(self._ablations, self.space, with_words=self.gradients == "scores")
            forms = {name: form.to(self._modules[name].weight.device) for name, form in forms.items()}
        else:
            forms = prepare_gates(self._ablations, self.space, self._modules, self.gradients == "gates")
            self.gates = {name: form.gates for name, form in forms.items()} if self.gradients else {}
        for name, override in self._overrides.items():
            form = forms.get(name)
            if form is None:
                override.remove()
            else:
                override.install(form, self._record(name, form, words[name]) if name in words else None)

    def _record(self, name: str, form: Form, words: Tensor) -> Record:
        own = form.words if isinstance(form, Masked) else words.to(form.device)
        anchor = torch.zeros((), device=form.device, requires_grad=True)
        return Record(own, self.kept[name], self.ablated[name], anchor)


class _Override:
    """What runs in place of one module's forward while its context is open."""

    def __init__(self, name: str, module: Layer, variants: int) -> None:
        self.name, self.module, self.variants = name, module, variants
        self.form: AnyForm | None = None
        self._device: torch.device | None = None
        """The form's."""
        self.record: Record | None = None
        self.idle = False
        """Whether the module runs as it is for now."""
        self.ran = False
        """Whether the module ran in the present call of the denoiser."""
        self._before: Any = None

    def install(self, form: AnyForm, record: Record | None) -> None:
        if self.form is None:
            self._before = self.module.__dict__.get("forward")  # of an idle slot
        self.form, self.record, self._device = form, record, form.device
        # On this instance alone: the class, and with it every other model, stays as it is.
        self.module.__dict__["forward"] = self.forward

    def remove(self) -> None:
        if self.form is not None:
            self.module.__dict__.pop("forward", None)
            if self._before is not None:
                self.module.__dict__["forward"] = self._before
        self.form = self.record = self._before = self._device = None

    def forward(self, input: Tensor) -> Tensor:
        x = input  # callers may give it by this name, as to torch's layers
        if self.idle:
            return type(self.module).forward(self.module, x)  # type: ignore[arg-type]  # each type with its own module
        self.ran = True
        dimensions = 2 if isinstance(self.module, nn.Linear) else 4
        if x.dim() < dimensions:
            raise ValueError(
                f"{self.name} was called with an input of shape {list(x.shape)}, expected at least {dimensions} "
                "dimensions, the first of them the rows"
            )
        if len(x) % self.variants:
            raise ValueError(
                f"{self.name} was called with {len(x)} rows, which is no multiple of the {self.variants} variants: "
                "call the denoiser with the rows of every variant"
            )
        form = self._form_on(x.device)
        if self.record is not None:
            assert not isinstance(form, Gated), "scores are recorded for single weights"
            return run_scored(form, self.module, x, self.variants, self.record)
        return run_form(form, self.module, x, self.variants)

    def _form_on(self, device: torch.device) -> AnyForm:
        """The form on the device; a denoiser that was offloaded to the CPU on entry is on another when it runs."""
        assert self.form is not None, "this runs from install to remove only"
        if self._device == device:
            return self.form
        # Gradients go to the tensors that were made on entry.
        if torch.compiler.is_compiling() or self.form.requires_grad:
            return self.form.to(device)
        with torch.inference_mode(False):
            self.form, self._device = self.form.to(device), device  # and stays there
        return self.form


def _check_gradients(gradients: Any, space: ComponentSpace) -> None:
    suited = "scores" if space.kind == "weight" else "gates"
    if gradients not in (None, "gates", "scores"):
        raise ValueError(f"gradients is {gradients!r}, expected None, 'gates' or 'scores'")
    if gradients not in (None, suited):
        raise ValueError(f"components of kind {space.kind!r} have no {gradients}: use gradients={suited!r}")


def _checked_ablations(ablations: Iterable[Ablation | None], space: ComponentSpace) -> list[Ablation | None]:
    listed = list(ablations)
    if not listed:
        raise ValueError("no ablations were given: expected one per variant")
    for number, ablation in enumerate(listed):
        if ablation is None:
            continue
        if not isinstance(ablation, Ablation):
            raise TypeError(f"ablations[{number}] is a {type(ablation).__name__}, expected an Ablation or None")
        if ablation.n != space.n:
            raise ValueError(f"ablations[{number}] is of {ablation.n} components, the space has {space.n}")
    return listed


def _check_module(name: str, module: Layer, kind: str) -> None:
    own_forward = type(module).forward not in (nn.Linear.forward, nn.Conv2d.forward)
    # nn.MultiheadAttention reads the weights of its output linear and never calls it.
    if own_forward or isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        raise TypeError(f"{name} is a {type(module).__name__}, which does not run as a plain linear or convolution")
    require_plain(name, module.weight, "ablated")
    if kind == "weight" and module.weight.dtype not in WEIGHT_DTYPES:
        raise TypeError(f"{name}.weight is {module.weight.dtype}, expected one of {', '.join(map(str, WEIGHT_DTYPES))}")
    if module.weight.device.type == "meta":
        raise ValueError(f"{name}.weight is offloaded (meta device): load it before running rows")
    if "forward" in module.__dict__ and slot_of(module) is None:
        raise ValueError(f"{name} has a forward of its own already, put there by a hook (offloading?): remove it first")
