"""Edits: named sets of components with a factor for their weights, that can be applied, undone, saved and composed."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..attribution.scores import Scores
from ..choices import Scope
from ..components import ComponentSpace, ModuleComponents
from .apply import AppliedEdit, apply_edit
from .select import Sign, described, select
from .trust import warn_if_untrusted


@dataclass
class Edit:
    """``components`` {module: sorted int64 [k]} whose weights are multiplied by ``factor``; numbered in each module.

    ``space`` describes the modules and carries the fingerprint of the model the edit was made for. ``provenance`` is
    JSON-able: concept, objective, method, selection, evaluation.
    """

    name: str
    space: ComponentSpace
    components: dict[str, Tensor]
    factor: float = 0.0
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_edit_name(self.name)
        if not math.isfinite(self.factor):
            raise ValueError(f"edit {self.name!r}: factor is {self.factor}, expected a finite number")
        self.factor = float(self.factor)  # 0 and 0.0 are one edit, with one digest
        entries = {entry.module: entry for entry in self.space}
        for module, indices in self.components.items():
            if module not in entries:
                raise ValueError(f"edit {self.name!r}: module {module!r} is not among its modules")
            _check_indices(self.name, entries[module], indices)
        used = [module for module in entries if module in self.components]
        if not used:
            raise ValueError(f"edit {self.name!r} edits nothing")
        self.space = self.space.restrict(used)
        self.components = {module: self.components[module] for module in used}

    @classmethod
    def from_indices(
        cls,
        name: str,
        space: ComponentSpace,
        indices: Tensor,
        factor: float = 0.0,
        provenance: dict[str, Any] | None = None,
    ) -> Edit:
        """An edit of the components ``indices`` int64 [k], sorted and without repetition, numbered over ``space``."""
        return cls(name, space, space.split_indices(indices), factor, provenance or {})

    @property
    def n_components(self) -> int:
        return sum(len(indices) for indices in self.components.values())

    def weight_indices(self) -> dict[str, Tensor]:
        """Flat indices into each module's weight, {module: sorted int64 [k]}."""
        return {entry.module: entry.weight_indices(self.components[entry.module]) for entry in self.space}

    @property
    def n_weights(self) -> int:
        return sum(entry.weights_each * len(self.components[entry.module]) for entry in self.space)

    def digest(self) -> str:
        """SHA-256 over the factor and every module's name and components: the same edit has the same digest."""
        digest = hashlib.sha256(f"{self.space.kind} {self.factor!r}".encode())
        for module, indices in sorted(self.components.items()):
            digest.update(module.encode())
            digest.update(indices.to(torch.int64).numpy().tobytes())
        return digest.hexdigest()

    def __repr__(self) -> str:
        what = f"{self.n_components} of kind {self.space.kind} in {len(self.components)} modules"
        return f"Edit({self.name!r}, {what}, factor {self.factor:g})"

    def __or__(self, other: Edit) -> Edit:
        return compose([self, other])

    def to_weights(self) -> Edit:
        """The same edit as an edit of single weights."""
        if self.space.kind == "weight":
            return self
        entries, offset = [], 0
        for entry in self.space:
            entries.append(ModuleComponents(entry.module, "weight", entry.weight_shape, 1, offset))
            offset += entries[-1].count
        space = ComponentSpace(entries, self.space.fingerprint)
        return Edit(self.name, space, self.weight_indices(), self.factor, self.provenance)

    def fuse(self, pipeline: Any, strength: float = 1.0) -> AppliedEdit:
        """Edit the weights of the pipeline's denoiser in place until ``.undo()``, which restores them bit for bit.

        Each weight is multiplied by 1 - strength * (1 - factor): 0 does nothing, 1 is the edit, above 1 goes beyond.
        Raises ValueError when the edit was made for another model, or strength is not finite.
        """
        return apply_edit(self, pipeline, strength)

    @contextmanager
    def applied(self, pipeline: Any, strength: float = 1.0) -> Iterator[None]:
        """Within the context, ``pipeline`` runs with the edit; afterwards its weights are as before, bit for bit."""
        handle = self.fuse(pipeline, strength)
        try:
            yield
        finally:
            handle.undo()

    def evaluated(self, comparison: Any, evaluation: Any = None) -> Edit:
        """The same edit with ``comparison`` (see ``evaluation.compare``) in its provenance, under ``evaluation``.

        ``evaluation``: the ``Evaluation`` after the edit, whose settings are then recorded as well, so that
        ``cad-fast edit verify`` can repeat it. Raises ValueError when they are of another edit.
        """
        record = comparison.to_dict()
        if record["edit"] != self.name:
            raise ValueError(f"the comparison is of edit {record['edit']!r}, not of {self.name!r}")
        if evaluation is not None:
            settings = evaluation.settings.to_dict()
            if settings["edit"] != self.name:
                raise ValueError(f"the evaluation is of edit {settings['edit']!r}, not of {self.name!r}")
            record["settings"] = {key: value for key, value in settings.items() if key != "fingerprint"}
        return replace(self, provenance={**self.provenance, "evaluation": record})

    def save_pretrained(
        self,
        folder: Any,
        *,
        card: bool = False,
        comparison: Any = None,
        evaluation: Any = None,
        sheet: Any = None,
        base_model: str | None = None,
        license: str | None = None,
        repo_id: str | None = None,
    ) -> None:
        """Write ``edit_config.json`` and ``edit_model.safetensors`` into ``folder``.

        ``comparison`` (with ``evaluation``) goes into the provenance, see ``evaluated``. ``card``: write a model card
        ``README.md`` too, with the figures of the comparison and, as ``sheet.png``, the PIL image ``sheet`` of
        pictures before and after. ``base_model`` is the model's name on the Hub, ``license`` an identifier of the
        Hub's, ``repo_id`` where the edit will be found: the card names them.
        Raises PermissionError or NotADirectoryError naming the folder, ValueError for a comparison of another edit.
        """
        from .io import save_edit

        if evaluation is not None and comparison is None:
            raise ValueError("evaluation is kept with the comparison that it belongs to: give both")
        edit = self if comparison is None else self.evaluated(comparison, evaluation)
        if not card and not (sheet is base_model is license is repo_id is None):
            raise ValueError("sheet, base_model, license and repo_id go into the model card: give card=True")
        save_edit(edit, folder)
        if card:
            from .card import write_card

            write_card(edit, folder, sheet=sheet, base_model=base_model, license=license, repo_id=repo_id)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Upload the edit with its model card to a repository of the Hugging Face Hub; returns the commit's address.

        ``private``, ``token``, ``revision``, ``commit_message`` and ``create_pr`` go to the Hub; ``comparison``,
        ``evaluation``, ``sheet``, ``base_model`` and ``license`` are as for ``save_pretrained``. The repository is
        created if need be, and has the layout that ``from_pretrained`` reads.
        """
        from .hub import push_edit

        return push_edit(self, repo_id, **kwargs)

    @classmethod
    def from_pretrained(cls, source: Any, pipeline: Any = None, **hub_kwargs: Any) -> Edit:
        """Read an edit from a folder or a Hub repository; with ``pipeline`` also check that it fits its denoiser.

        Raises FileNotFoundError, PermissionError for a link out of the folder, or ValueError naming the file that is
        damaged or why the model does not fit.
        """
        from .io import load_edit

        return load_edit(source, pipeline, **hub_kwargs)

    @classmethod
    def from_checkpoint_difference(cls, base: Any, pruned: Any, name: str = "pruned") -> Edit:
        """The edit of the weights that ``pruned`` has set to zero and ``base`` has not.

        Both are a pipeline or its denoiser; ``pruned`` may also be a safetensors file or a folder of the denoiser's
        weights. Raises ValueError when they differ in anything but zeros in linears and convolutions.
        """
        from .checkpoints import checkpoint_difference

        return checkpoint_difference(base, pruned, name)


def check_edit_name(name: Any) -> str:
    """``name``. Raises ValueError unless it is 1-64 of A-Z a-z 0-9 . _ -, starting with a letter or digit."""
    ok = isinstance(name, str) and 0 < len(name) <= 64 and name[0].isalnum() and name.isascii()
    if not ok or not all(char.isalnum() or char in "._-" for char in name):
        raise ValueError(f"edit name {name!r}: expected 1-64 of A-Z a-z 0-9 . _ -, starting with a letter or digit")
    return name


def _check_indices(name: str, entry: ModuleComponents, indices: Tensor) -> None:
    where = f"edit {name!r}, components of {entry.module!r}"
    if indices.ndim != 1 or indices.dtype != torch.int64 or len(indices) == 0:
        raise ValueError(f"{where}: expected int64 of shape [k], k > 0; got {indices.dtype} {list(indices.shape)}")
    if len(indices) > 1 and not bool((indices[1:] > indices[:-1]).all()):
        raise ValueError(f"{where}: not sorted, or with repetitions")
    if int(indices[0]) < 0 or int(indices[-1]) >= entry.count:
        raise ValueError(f"{where}: {int(indices[0])}..{int(indices[-1])} is outside 0..{entry.count - 1}")


def compose(edits: Sequence[Edit], name: str | None = None) -> Edit:
    """One edit with the components of all; a component in several is edited once. The order does not matter.

    Edits of different kinds become edits of single weights. Raises ValueError naming the edits when their models or
    factors differ.
    """
    if not edits:
        raise ValueError("compose needs at least one edit")
    if len({edit.space.kind for edit in edits}) > 1:
        edits = [edit.to_weights() for edit in edits]
    first = edits[0]
    entries: dict[str, ModuleComponents] = {}
    merged: dict[str, list[Tensor]] = {}
    for edit in edits:
        first.space.fingerprint.require_same(
            edit.space.fingerprint, f"edit {first.name!r} (composed with {edit.name!r})"
        )
        if edit.factor != first.factor:
            raise ValueError(
                f"{first.name!r} has factor {first.factor:g}, {edit.name!r} has {edit.factor:g}: apply them one by one"
            )
        for entry in edit.space:
            entries[entry.module] = entry
            merged.setdefault(entry.module, []).append(edit.components[entry.module])
    ordered, offset = [], 0
    for module in sorted(entries):
        entry = entries[module]
        ordered.append(ModuleComponents(module, entry.kind, entry.weight_shape, entry.block, offset))
        offset += entry.count
    components = {module: torch.cat(parts).unique(sorted=True) for module, parts in merged.items()}
    parts = sorted({edit.name for edit in edits})
    provenance = {
        "composed_of": [
            {"name": e.name, "digest": e.digest(), **e.provenance} for e in sorted(edits, key=lambda e: e.name)
        ]
    }
    return Edit(
        name or ".".join(parts)[:64],
        ComponentSpace(ordered, first.space.fingerprint),
        components,
        first.factor,
        provenance,
    )


def _from_scores(
    scores: Scores, sign: Sign, name: str | None, verb: str, factor: float, settings: Mapping[str, Any]
) -> Edit:
    indices = select(scores, sign=sign, **settings)
    if len(indices) == 0:
        raise ValueError(f"no component has a {sign} score for {scores.concept!r}: nothing to {verb}")
    warn_if_untrusted(scores, len(indices) / scores.space.n, stacklevel=4)
    selection = {**described(settings), "sign": sign}
    # An empty list says that the scores were not checked on held-out ablations.
    provenance = {**scores.provenance, "trust": scores.trust, "selection": selection}
    return Edit.from_indices(name or f"{_slug(scores.concept)}-{verb}", scores.space, indices, factor, provenance)


def _slug(text: str) -> str:
    slug = "".join(char if char.isascii() and char.isalnum() else "-" for char in text.lower()).strip("-")[:50]
    return slug or "concept"


def erase(
    scores: Scores,
    ratio: float | None = None,
    *,
    count: int | None = None,
    scope: Scope = "global",
    keep: Sequence[Scores] = (),
    keep_weight: float = 1.0,
    sensitivity: Sequence[Scores] = (),
    exponent: float = 0.5,
    compat: Any = None,
    name: str | None = None,
    factor: float = 0.0,
) -> Edit:
    """CAD-Erase (arXiv 2412.02542): an edit that removes the components with the highest positive scores.

    See ``select`` for ``ratio``, ``count``, ``scope``, ``keep``, ``sensitivity`` and ``compat``.
    """
    settings = dict(
        ratio=ratio,
        count=count,
        scope=scope,
        keep=keep,
        keep_weight=keep_weight,
        sensitivity=sensitivity,
        exponent=exponent,
        compat=compat,
    )
    return _from_scores(scores, "positive", name, "erase", factor, settings)


def amplify(
    scores: Scores,
    ratio: float | None = None,
    *,
    count: int | None = None,
    scope: Scope = "global",
    keep: Sequence[Scores] = (),
    keep_weight: float = 1.0,
    sensitivity: Sequence[Scores] = (),
    exponent: float = 0.5,
    compat: Any = None,
    name: str | None = None,
    factor: float = 0.0,
) -> Edit:
    """CAD-Amplify (arXiv 2412.02542): an edit that removes the components with the lowest negative scores.

    See ``select``; ``keep`` are scores of concepts whose own negative components should stay, ``sensitivity`` of what
    should not change.
    """
    settings = dict(
        ratio=ratio,
        count=count,
        scope=scope,
        keep=keep,
        keep_weight=keep_weight,
        sensitivity=sensitivity,
        exponent=exponent,
        compat=compat,
    )
    return _from_scores(scores, "negative", name, "amplify", factor, settings)
