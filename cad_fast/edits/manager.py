"""Edits on a pipeline, handled like adapters: loaded by name, switched, weighted, given per prompt, fused."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..diffusion.denoisers import denoiser_name, denoiser_of
from ..diffusion.dtypes import one_dtype
from .data import EditData
from .replaced import guard_denoiser
from .rows.guidance import Guidance
from .rows.row_edits import RowEdits
from .rows.spread import Branches, Names, PromptUses, Weights, Windows, active_uses, per_prompt_uses
from .rows.uses import CallFacts, RowUses, checked_strength
from .weights import AppliedEdit, apply_edit


class EditManager:
    """Edits of one pipeline (or bare denoiser), named and switched as diffusers names and switches LoRA adapters.

    ::

        manager = cad_fast.EditManager(pipeline)
        manager.load_edit("edits/no-car", edit_name="car-erase")
        manager.load_edit("edits/moon", edit_name="moon-amplify")
        manager.set_edits(["car-erase", "moon-amplify"], edit_weights=[1.0, 0.5])
        pipeline("a car under the moon")                           # both act
        manager.disable_edits()
        prompts = ["a car", "a car", "a car under the moon"]
        manager(prompts, edit_names=["car-erase", "__base__", ["car-erase", "moon-amplify"]])

    Active edits act in every call of the pipeline or its denoiser while the weights stay as they are: rows run under
    their edits (see ``RowEdits``, which says what a strength and several edits at once mean, and what holds for
    torch.compile). ``fuse_edits`` puts them into the weights instead, ``unfuse_edits`` takes them out bit for bit.
    Only this pipeline's denoiser is touched. Make the manager before enabling sequential offloading, which leaves no
    weights to know the model by. Every method raises before it changes anything.

    While edits act, the denoiser that the pipeline had when the manager was made cannot be replaced; assigning another
    raises RuntimeError. Inside ``per_prompt`` its edits act, the methods that switch edits raise ValueError, and other
    threads that run the denoiser get a RuntimeError.

    Where an argument is said to be per edit it is one value for all, or a list with one per edit. ``edit_weights`` are
    strengths (0 off, 1 the edit, in between, beyond and below 0). ``windows`` are TimestepWindows, or two timesteps in
    either order, in the units that the denoiser is given; None for all. ``branch`` is "both" or "conditional", which
    leaves the unconditional rows of classifier-free guidance plain.

    Args:
        pipeline: a diffusers pipeline with a ``unet`` or a ``transformer``, or such a module.
        cache_bytes: as for ``RowEdits``.

    Raises:
        TypeError, ValueError: as ``RowEdits``.
    """

    def __init__(self, pipeline: Any, *, cache_bytes: int = 256 << 20) -> None:
        self.pipeline = pipeline
        self.row_edits = RowEdits(pipeline, cache_bytes=cache_bytes)
        self._guidance = Guidance(pipeline)
        self._active: PromptUses = ()
        self._enabled = True
        self._fused: list[tuple[str, AppliedEdit]] = []
        self._per_prompt: list[list[PromptUses]] = []  # of the contexts that are open
        self._end_guard: Callable[[], None] | None = None

    def load_edit(
        self, source: EditData | str | Path, edit_name: str | None = None, *, lazy: bool = False, **hub_kwargs: Any
    ) -> str:
        """Load an edit from a folder, a Hub repository or memory as ``edit_name`` (its own name by default).

        With ``lazy`` its tensors are read when it first acts, and may be dropped again. Loading does not activate.
        Returns the name. Raises ValueError for a name that is taken or an edit of another model, FileNotFoundError.
        """
        self._check_denoiser()
        return self.row_edits.add(source, edit_name, lazy=lazy, **hub_kwargs)

    def set_edits(
        self,
        edit_names: str | Sequence[str],
        edit_weights: Weights = None,
        *,
        windows: Windows = None,
        branch: Branches = "both",
    ) -> None:
        """Make these the active edits, in place of those that were; ``[]`` for none. Arguments per edit.

        Raises ValueError for unknown names, naming the known ones, a name given twice, weights that are not finite or
        not as many as names, and branch="conditional" without a pipeline to tell the branches by.
        """
        uses = active_uses(self.row_edits, edit_names, edit_weights, windows, branch)
        self._check_branches(uses)
        self._check_switching("set_edits")
        self._active, self._enabled = uses, True
        self._act()

    def get_active_edits(self) -> list[str]:
        """The names of the edits that act now, fused or not; none while disabled. Inside ``per_prompt``, its edits."""
        self._check_denoiser()
        if self._per_prompt:
            return list(dict.fromkeys(use.name for own in self._per_prompt[-1] for use in own))
        if self._fused:
            return [name for name, _ in self._fused]
        return [use.name for use in self._active] if self._enabled else []

    def get_list_edits(self) -> dict[str, list[str]]:
        """All loaded edits, by the pipeline's part that they edit, such as {"unet": [...]}."""
        return {self._part: list(self.row_edits.names)}

    def delete_edits(self, edit_names: str | Sequence[str]) -> None:
        """Forget these edits. Raises ValueError, and forgets none, for unknown names and for edits in use."""
        names = [edit_names] if isinstance(edit_names, str) else list(dict.fromkeys(edit_names))
        for name in names:
            self.row_edits.require(name)
            if any(name == use.name for prompts in self._per_prompt for own in prompts for use in own):
                raise ValueError(f"edit {name!r} is in use by per_prompt: leave its context first")
            if name in {use.name for use in self._active} | {name for name, _ in self._fused}:
                raise ValueError(f"edit {name!r} is active: choose others with set_edits first")
        for name in names:
            self.row_edits.remove(name)

    def disable_edits(self) -> None:
        """Run the plain model until ``enable_edits``. Raises ValueError while edits are fused."""
        self._check_switching("disable_edits")
        self._enabled = False
        self._act()

    def enable_edits(self) -> None:
        """Let the active edits act again."""
        self._check_switching("enable_edits")
        self._enabled = True
        self._act()

    def fuse_edits(self, edit_names: str | Sequence[str] | None = None, edit_scale: float = 1.0) -> None:
        """Put the active edits, or those of ``edit_names`` at strength 1, into the weights until ``unfuse_edits``.

        ``edit_scale`` multiplies all strengths. The plain network then runs, at its speed, for every row. Raises
        ValueError when edits are fused already, none is active, or one has a window or a branch of its own, which
        weights cannot express.
        """
        self._check_switching("fuse_edits")
        uses = self._active
        if edit_names is not None:
            uses = active_uses(self.row_edits, edit_names, None, None, "both")
        if not uses:
            raise ValueError("there is no edit to fuse: choose some with set_edits, or name them")
        scale = checked_strength(edit_scale, "all")
        for use in uses:
            if use.window is not None or use.branch != "both":
                raise ValueError(f"edit {use.name!r} has a window or a branch, which the weights cannot express")
        edits = {use: self.row_edits.edit(use.name) for use in sorted(uses)}  # sorted: rounding depends on the order
        with contextlib.ExitStack() as undo:
            fused = []
            for use, edit in edits.items():
                fused.append((use.name, apply_edit(edit, self.row_edits.inner, scale * use.strength)))
                undo.callback(fused[-1][1].undo)
            self._fused = fused
            undo.pop_all()
        self._act()

    def unfuse_edits(self) -> None:
        """Take the fused edits out of the weights, bit for bit; the active edits act on rows again.

        Raises RuntimeError when a later edit of the same weights is in place (``Edit.fuse``): undo that one first. And
        when weights have changed since, which are left: see ``AppliedEdit.undo``. Call it again for the other edits.
        """
        while self._fused:
            handle = self._fused[-1][1]
            try:
                handle.undo()
            finally:
                if not handle.active:
                    self._fused.pop()
        self._act()

    @contextlib.contextmanager
    def per_prompt(
        self,
        edit_names: Names,
        edit_weights: Weights = None,
        *,
        windows: Windows = None,
        branch: Branches = "both",
        num_images_per_prompt: int = 1,
    ) -> Iterator[None]:
        """A context in which the images of prompt i are made under ``edit_names[i]``, whatever edits are active.

        Each entry is a name, a list of names, or "__base__" (or None) for no edit. The other arguments are one value
        for all, or a list with one entry per prompt, each a value or a list with one per edit of that prompt. A
        prompt's rows are where the pipelines put them: all images of a prompt side by side, and for guidance in one
        batch all of them twice. Give ``num_images_per_prompt`` as to the pipeline. Of a bare denoiser the entries are
        the rows.

        Raises ValueError as ``set_edits``, and while edits are fused; inside, when the calls have other rows.
        """
        uses = per_prompt_uses(self.row_edits, edit_names, edit_weights, windows, branch)
        for own in uses:
            self._check_branches(own)
        self._check_fused("per_prompt")
        self._check_denoiser()
        if num_images_per_prompt < 1:
            raise ValueError(f"num_images_per_prompt is {num_images_per_prompt}, expected at least 1")
        with self.row_edits.rows(lambda facts: self._rows(facts, uses, num_images_per_prompt)):
            self._per_prompt.append(uses)
            try:
                self._guard()
                yield
            finally:
                self._per_prompt.remove(uses)
                self._guard()

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        edit_names: str | Names,
        edit_weights: Weights = None,
        windows: Windows = None,
        branch: Branches = "both",
        **pipeline_kwargs: Any,
    ) -> Any:
        """What the pipeline returns for these prompts, each under its entry of ``edit_names``; see ``per_prompt``.

        For one prompt given as a string ``edit_names`` may be one name. Raises ValueError when there are not as many
        entries as prompts.
        """
        if isinstance(edit_names, str):
            edit_names = [edit_names]
        given = prompt if prompt is not None else pipeline_kwargs.get("prompt_embeds")
        if given is not None and len(edit_names) != (1 if isinstance(given, str) else len(given)):
            raise ValueError(
                f"there are {len(edit_names)} edit_names for {1 if isinstance(given, str) else len(given)} prompts, "
                "expected one per prompt"
            )
        if prompt is not None:
            pipeline_kwargs["prompt"] = prompt if isinstance(prompt, str) else list(prompt)
        images = pipeline_kwargs.get("num_images_per_prompt", 1)
        context = self.per_prompt(
            edit_names, edit_weights, windows=windows, branch=branch, num_images_per_prompt=images
        )
        with context, one_dtype(self.pipeline):
            return self.pipeline(**pipeline_kwargs)

    def close(self) -> None:
        """Unfuse, forget all edits, and leave the denoiser as it was. Raises ValueError inside ``per_prompt``."""
        if self._per_prompt:
            raise ValueError("close is not possible inside per_prompt: leave its context first")
        self.unfuse_edits()
        self._active = ()
        self.row_edits.close()
        self._guard()

    def _act(self) -> None:
        """Have the active edits act on rows from now on, or the plain network run."""
        acting = self._enabled and not self._fused and self._active
        self.row_edits.set_rows(self._active_rows if acting else None)
        self._guard()

    def _guard(self) -> None:
        """Have the pipeline keep its denoiser while edits act in it, and only then."""
        acting = bool(self._fused or self._per_prompt or (self._enabled and self._active))
        if acting and self._end_guard is None:
            self._end_guard = guard_denoiser(self.pipeline, self.row_edits.denoiser)
        elif not acting and self._end_guard is not None:
            self._end_guard()
            self._end_guard = None

    def _active_rows(self, facts: CallFacts) -> Sequence[RowUses]:
        return self._rows(facts, [self._active], None)

    def _rows(self, facts: CallFacts, uses: Sequence[PromptUses], images: int | None) -> Sequence[RowUses]:
        """The edits of every row of a call."""
        needs_branch = any(use.branch != "both" for own in uses for use in own)
        layout = self._guidance.layout(facts, len(uses), images, needs_branch)
        rows: list[RowUses] = []
        for copy in range(layout.copies):
            plain = layout.conditional is not None and not layout.conditional[copy]
            for own in uses:
                row = tuple(use.in_row for use in own if not (plain and use.branch == "conditional"))
                rows += [row] * layout.images
        return rows

    @property
    def _part(self) -> str:
        return denoiser_name(self.pipeline)

    def _check_branches(self, uses: PromptUses) -> None:
        for use in uses:
            if use.branch != "both" and not self._guidance.is_pipeline:
                raise ValueError(f"edit {use.name!r}: a bare denoiser has no {use.branch} branch, make its rows plain")

    def _check_denoiser(self) -> None:
        """Raise RuntimeError if the pipeline has another denoiser than this manager."""
        present = denoiser_of(self.pipeline)
        if getattr(present, "_orig_mod", present) is not self.row_edits.inner:
            raise RuntimeError(
                f"the pipeline's denoiser ({type(present).__name__}) was replaced after this EditManager was made, and "
                "its edits do not act there: make a new manager"
            )

    def _check_switching(self, what: str) -> None:
        self._check_fused(what)
        self._check_denoiser()
        if self._per_prompt:
            raise ValueError(f"{what} is not possible inside per_prompt: leave its context first")

    def _check_fused(self, what: str) -> None:
        if self._fused:
            names = ", ".join(name for name, _ in self._fused)
            raise ValueError(f"{what} is not possible while edits are fused ({names}): call unfuse_edits first")
