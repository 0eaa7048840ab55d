"""Run the rows of a denoiser's calls under edits, each row under its own."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...components.fingerprint import Fingerprint
from ...diffusion.denoisers import ForwardSignature, denoiser_of, require_one_of_its_kind, timestep_value
from ...row_engine.around import Around
from ...row_engine.engine import runs_under_ablations
from ...row_engine.row_order import row_order
from ...row_engine.slots import Plan, Slot, open_slots
from ..data import EditData, check_edit_name
from ..files.sources import EditSource, open_source
from ..weights import intact_fingerprint, require_model
from .prepared import ByteCache, Composition, PreparedEdit, composed
from .turns import claimed, require_turn
from .uses import Assignment, CallFacts, EditUse, GivenRows, GivenUse, RowUses, checked_strength, checked_window


class RowEdits:
    """Edits by name, beside one denoiser, that rows of its calls run under; its weights stay as they are.

    ::

        edits = RowEdits(pipeline.unet)
        edits.add(Edit.from_pretrained("no-car"))             # named "no-car", as in its file
        edits.add("edits/no-clock", "no-clock", lazy=True)    # its tensors are read when first used
        rows = [(("no-car", 1.0, None),), (), (("no-car", 0.5, (500, 1000)), ("no-clock", 1.0, None))]
        with edits.rows(rows):                                # one entry per row of the call
            output = pipeline.unet(sample, timestep, encoder_hidden_states)

    Row i runs as if the weights of its edits were multiplied by 1 - strength * (1 - factor): 0 is off, 1 the edit,
    above 1 beyond it, below 0 the other way. Where several edits of a row name the same weight their factors multiply,
    so a weight that one of them removes is removed; the order in which a row names its edits does not matter. An edit
    with a window acts while the timestep that the denoiser is given for this row is in it. ``()`` is the plain model. A
    row's result does not depend on the other rows beyond rounding: the plain layers pick their kernels by the size of
    the batch, convolutions by that of the group of equal neighbours. With no edit in any row the call is the plain one,
    bit for bit.

    What an assignment needs is prepared when a call first has it and kept: the same assignment at the next step costs a
    look-up, one that differs by a row the concatenation of the entries (12 bytes per edited weight and group of equal
    neighbouring rows). Equal neighbours share a group, so sort rows by edits where their order is free.

    The linears and convolutions that some edit names get a slot in place of their forward (see
    ``cad_fast.row_engine.slots``) when the edit is added, on this denoiser's modules alone. Add edits before
    torch.compile runs the denoiser: from then on assignments change without compiling anew. One call at a time. What
    ``set_rows`` says holds for all threads; while a context of ``rows`` is open, the denoiser is its thread's alone.

    An edit acts in the calls of its modules. Where something reads a module's weight instead, as some adapters of PEFT
    do, the call of the denoiser raises ValueError or RuntimeError naming the module.

    Args:
        denoiser: a module, or a pipeline with a ``unet`` or a ``transformer``. Weights of float32, bfloat16 or float16.
        cache_bytes: what may be kept, each, of lazily added edits, of compositions and of prepared assignments.

    Raises:
        TypeError: there is no denoiser.
        ValueError: its forward has no sample and timestep.
    """

    def __init__(self, denoiser: Any, *, cache_bytes: int = 256 << 20) -> None:
        require_one_of_its_kind(denoiser)
        self.denoiser: nn.Module = denoiser_of(denoiser)
        self.inner: nn.Module = getattr(self.denoiser, "_orig_mod", self.denoiser)
        """The denoiser itself, which torch.compile wraps."""
        self._signature = ForwardSignature.of(self.denoiser)
        self._fingerprint: Fingerprint | None = None
        self._sources: dict[str, EditSource] = {}
        self._slots: dict[str, Slot] = {}
        self._assignment: Sequence[RowUses] | Callable[[CallFacts], Sequence[RowUses]] | None = None
        self._contexts: list[Sequence[RowUses] | Callable[[CallFacts], Sequence[RowUses]]] = []
        """The assignments of the contexts that are open, the innermost last."""
        self._around: Around | None = None
        self._acting: dict[int, list[Slot]] = {}
        """The slots that have a plan, by the thread of the call that it is for."""
        self._weights: dict[str, tuple[int, int]] = {}
        """By module, what told its weight when the denoiser was last seen to be the edits' model."""
        self._numbers = itertools.count()
        self._prepared = ByteCache(cache_bytes)
        self._compositions = ByteCache(cache_bytes)
        self._plans = ByteCache(cache_bytes)

    @property
    def names(self) -> tuple[str, ...]:
        """The edits that rows can name, in the order they were added."""
        return tuple(self._sources)

    @property
    def fingerprint(self) -> Fingerprint:
        """The denoiser's, disregarding edits fused into it."""
        if self._fingerprint is None:
            self._fingerprint = intact_fingerprint(self.inner)
        return self._fingerprint

    def add(
        self, edit: EditData | str | Path, name: str | None = None, *, lazy: bool = False, **hub_kwargs: Any
    ) -> str:
        """Make an edit, or the one in a folder or Hub repository, known under ``name`` (its own by default).

        ``lazy`` keeps the path and the names of its modules only; its tensors are read and checked when a row first
        uses it. Returns the name. Raises ValueError for a name that is taken or not one (see ``check_edit_name``) or an
        edit of another model, FileNotFoundError, and TypeError for a module that is no plain linear or convolution.
        Nothing is added then.
        """
        source, space = open_source(edit, next(self._numbers), lazy, hub_kwargs)
        name = check_edit_name(source.name if name is None else name)
        if name in self._sources:
            raise ValueError(f"there is an edit {name!r} already: delete it first, or choose another name")
        require_model(space.fingerprint, self.inner, self.fingerprint, name)
        modules = space.modules(self.inner)
        new = {module: modules[module] for module in modules if module not in self._slots}
        self._slots |= open_slots(self.inner, new, self) if new else {}
        self._sources[name] = source
        return name

    def remove(self, name: str) -> None:
        """Forget an edit. Raises ValueError if it is unknown, naming those there are, or in rows that are set."""
        self.require(name)
        for rows in (self._assignment, *self._contexts):
            if rows is not None and not callable(rows) and any(use.name == name for row in rows for use in row):
                raise ValueError(f"edit {name!r} is in use: set other rows first")
        number = self._sources.pop(name).number
        self._prepared.drop(lambda key: key == number)
        self._compositions.clear()
        self._plans.clear()
        used = {module for source in self._sources.values() for module in source.modules}
        for module in self._slots.keys() - used:
            self._slots.pop(module).close(self)

    def edit(self, name: str) -> EditData:
        """The edit of this name, read anew if it was added lazily. Raises as ``require``, and as reading does."""
        self.require(name)
        return self._sources[name].read()

    def require(self, name: Any) -> str:
        """``name``. Raises ValueError, naming the edits there are, unless it is one of them."""
        if name not in self._sources:
            known = ", ".join(self._sources) or "none"
            raise ValueError(f"there is no edit {name!r}; loaded are: {known}")
        return name

    def checked(self, rows: GivenRows) -> list[RowUses]:
        """Return ``rows`` with every use as an EditUse and its window as a TimestepWindow.

        Raises ValueError for unknown names, a row that names an edit twice, strengths that are not finite and what is
        no window.
        """
        return [self._checked_row(number, row) for number, row in enumerate(rows)]

    def _checked_row(self, number: int, row: Sequence[GivenUse]) -> RowUses:
        uses = tuple(EditUse(*use) for use in row)
        names = [self.require(use.name) for use in uses]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"row {number} names edit {twice!r} twice")
        return tuple(EditUse(n, checked_strength(s, n), checked_window(w, n)) for n, s, w in uses)

    def set_rows(self, rows: Assignment | None) -> None:
        """Run the denoiser's calls from now on with these edits; None: as it is.

        ``rows`` is what ``rows()`` takes, or a function that is given the CallFacts of each call and gives for it what
        ``checked`` returns. Raises RuntimeError inside a context of ``rows``, whose rows would go on.
        """
        if self._contexts:
            raise RuntimeError("the rows cannot be set while a context of rows is open: leave it first")
        self._assignment = rows if rows is None or callable(rows) else self.checked(rows)
        self._observe()

    @contextlib.contextmanager
    def rows(self, rows: Assignment) -> Iterator[None]:
        """A context in which row i of each call of the denoiser runs under the edits ``rows[i]``.

        Each is a sequence of (name, strength, window). Strength defaults to 1; window, a TimestepWindow or two
        timesteps in either order, to None. Raises as ``checked``, and RuntimeError while another thread has such a
        context open for the denoiser. Inside, the denoiser raises ValueError when called with another number of rows,
        RuntimeError when called by another thread, and RowsMixed (a ValueError) when rows with different edits do not
        stay rows in it (see ``cad_fast.row_engine.row_order``). A context within replaces the rows until it is left.
        """
        assignment = rows if callable(rows) else self.checked(rows)
        with claimed(self.inner):
            self._contexts.append(assignment)
            self._observe()
            try:
                yield
            finally:
                self._contexts.remove(assignment)
                self._observe()

    @torch.compiler.disable(recursive=False)
    def run(self, rows: Assignment, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return ``forward(*args, **kwargs)``, which is inside a call of the denoiser, with its rows under ``rows``.

        This is for what stands inside the call, such as a hook of diffusers, where a context of ``rows`` comes too
        late. ``rows`` and errors are as there.
        """
        self._begin(rows if callable(rows) else self.checked(rows), args, kwargs)
        try:
            output = forward(*args, **kwargs)
            self._check()
            return output
        finally:
            self._after()

    def close(self) -> None:
        """Forget all edits and leave the denoiser as it was. Raises as ``set_rows``."""
        self.set_rows(None)
        for slot in self._slots.values():
            slot.close(self)
        self._slots, self._sources = {}, {}
        for cache in (self._prepared, self._compositions, self._plans):
            cache.clear()

    def _observe(self) -> None:
        """Be told of the denoiser's calls while rows are set, and only then."""
        wanted = self._assignment is not None or bool(self._contexts)
        if wanted and self._around is None:
            self._around = Around(self.denoiser, self._before, self._check, self._after)
        elif not wanted and self._around is not None:
            self._around.remove()
            self._around = None
            self._after()

    def _before(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._after()  # torch runs no hook after a call that ended by what is no Exception, such as Ctrl-C
        assignment = self._contexts[-1] if self._contexts else self._assignment
        if assignment is not None:
            self._begin(assignment, args, kwargs)

    @torch.compiler.disable
    def _begin(
        self,
        assignment: Sequence[RowUses] | Callable[[CallFacts], Sequence[RowUses]],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        require_turn(self.inner, "a call of")
        inputs = self._signature.bind(args, kwargs)
        facts = CallFacts(
            len(inputs[self._signature.sample_key]),
            inputs[self._signature.sample_key],
            inputs[self._signature.timestep_key],
            inputs,
        )
        rows = assignment(facts) if callable(assignment) else assignment
        if len(rows) != facts.rows:
            raise ValueError(f"the denoiser was called with {facts.rows} rows, but edits were given for {len(rows)}")
        plans = self._plans_of(self._keys(rows, facts.timestep))
        if not plans:
            return
        if runs_under_ablations(self.inner):
            raise RuntimeError("edits cannot act while the denoiser runs under ablations (cad_fast.rows)")
        for slot, _ in plans:
            slot.check()
        self._check_weights([slot for slot, _ in plans])
        if not plans[0][1].uniform:
            layers = {slot.name: slot.module for slot in self._slots.values()}
            order = row_order(self.inner, args, kwargs, facts.rows, layers)
            order.require([slot.name for slot, _ in plans], "an edit of its own for each row")
        acting = self._acting.setdefault(threading.get_ident(), [])
        try:
            for slot, plan in plans:
                slot.begin(plan)
                acting.append(slot)
        except BaseException:
            self._after()
            raise

    def _check_weights(self, slots: Sequence[Slot]) -> None:
        """Raise ValueError if weights that edits act on have been replaced by another model's."""
        weights = {slot.name: slot.module.weight for slot in slots}
        seen = {name: (w.data_ptr(), 0 if w.is_inference() else w._version) for name, w in weights.items()}
        if all(self._weights.get(name) == told for name, told in seen.items()):
            return
        if not any(weight.device.type == "meta" for weight in self.inner.parameters()):  # offloaded: read when called
            reason = self.fingerprint.difference(intact_fingerprint(self.inner))
            if reason is not None:
                raise ValueError(
                    f"the denoiser is no longer the model that its edits are of: {reason}. Put the weights back that "
                    "it had, or delete the edits and load those that were made for these weights"
                )
        self._weights |= seen

    @torch.compiler.disable
    def _check(self) -> None:
        """Raise RuntimeError if a slot with a plan was passed over in the call that has just been made."""
        for slot in self._acting.get(threading.get_ident(), ()):
            caller = slot.left_out
            if caller is not None:
                raise RuntimeError(
                    f"the edits of {slot.name} did not act: {caller} ran without calling it. Something reads its "
                    "weight instead, such as an adapter or a fused projection, or has no use for it in this call. Put "
                    "the edit into the weights (fuse_edits, Edit.fuse), or leave the module out of it"
                )

    @torch.compiler.disable
    def _after(self) -> None:
        for slot in self._acting.pop(threading.get_ident(), ()):
            slot.end()

    def _keys(self, rows: Sequence[RowUses], timestep: Any) -> tuple[tuple[tuple[int, float], ...], ...]:
        """Per row the edits that act now, as (number of the edit, strength) in the order of their names."""
        times: list[float] | None = None
        if any(use.window is not None for row in rows for use in row):
            value = timestep_value(timestep)
            times = value.tolist() if isinstance(value, Tensor) else [value] * len(rows)
        known: dict[tuple[RowUses, float], tuple[tuple[int, float], ...]] = {}
        keys = []
        for number, row in enumerate(rows):
            time = 0.0 if times is None else times[number]
            if (row, time) not in known:
                acting = sorted(use for use in row if use.acts_at(time))
                known[row, time] = tuple((self._sources[use.name].number, use.strength) for use in acting)
            keys.append(known[row, time])
        return tuple(keys)

    def _plans_of(self, keys: tuple[tuple[tuple[int, float], ...], ...]) -> list[tuple[Slot, Plan]]:
        if not any(keys):
            return []
        return self._plans.get(keys, lambda: self._assembled(keys), _size_of_plans)

    @torch.inference_mode(False)  # what inference tensors need on a GPU cannot be kept from call to call
    def _assembled(self, keys: tuple[tuple[tuple[int, float], ...], ...]) -> list[tuple[Slot, Plan]]:
        """The plan of every module that some row edits; equal neighbours are one group."""
        groups = [(key, len(list(same))) for key, same in itertools.groupby(keys)]
        bounds = [0, *itertools.accumulate(count for _, count in groups)]
        made = {key: self._composition(key).entries if key else {} for key in dict(groups)}
        plans = []
        for module in dict.fromkeys(module for entries in made.values() for module in entries):
            parts = [made[key].get(module) for key, _ in groups]
            counts = [0 if part is None else len(part[0]) for part in parts]
            used = [part for part in parts if part is not None]
            indices = used[0][0] if len(used) == 1 else torch.cat([part[0] for part in used])
            factors = used[0][1] if len(used) == 1 else torch.cat([part[1] for part in used])
            offsets = torch.tensor([0, *itertools.accumulate(counts)])
            slot = self._slots[module]
            device = slot.module.weight.device
            if device.type not in ("cpu", "meta"):
                indices, factors = indices.to(device), factors.to(device)
            plans.append((slot, Plan(bounds, offsets, indices, factors)))
        return plans

    def _composition(self, key: tuple[tuple[int, float], ...]) -> Composition:
        return self._compositions.get(
            key, lambda: composed([(self._prepared_edit(number), s) for number, s in key]), lambda made: made.nbytes
        )

    def _prepared_edit(self, number: int) -> PreparedEdit:
        source = next(source for source in self._sources.values() if source.number == number)
        return self._prepared.get(number, lambda: PreparedEdit.of(source.read()), lambda made: made.nbytes)


def _size_of_plans(plans: list[tuple[Slot, Plan]]) -> int:
    return sum(plan.indices.nbytes + plan.factors.nbytes for _, plan in plans)
