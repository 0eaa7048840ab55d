"""Edits, as they are used: made from scores, put into a pipeline and taken out, saved, shared and composed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..attribution.scores import Scores
from .composing import compose
from .data import EditData
from .selection import Selection, Sign, select
from .untrusted import warn_if_untrusted
from .weights import AppliedEdit, applied_edit, apply_edit

if TYPE_CHECKING:
    from .files.card import CardInfo

VERBS = {"positive": "erase", "negative": "amplify"}


class Edit(EditData):
    """A named edit of a model's weights, which can be applied, undone, saved, loaded and composed.

    ``components`` {module: sorted int64 [k]} are those whose weights are multiplied by ``factor``, numbered in each
    module. ``space`` describes the modules and carries the fingerprint of the model the edit was made for.
    ``provenance`` is JSON-able: concept, objective, method, selection, evaluation.
    """

    @classmethod
    def from_scores(
        cls,
        scores: Scores,
        selection: Selection,
        *,
        sign: Sign = "positive",
        name: str | None = None,
        factor: float = 0.0,
    ) -> Edit:
        """Make an edit of the components that ``selection`` takes by ``scores``.

        Args:
            scores: of the concept.
            selection: how many components, and which concepts to spare.
            sign: "positive" is CAD-Erase, which takes what expresses the concept; "negative" is CAD-Amplify, which
                takes what suppresses it (arXiv 2412.02542).
            name: of the edit; by default the concept's, and erase or amplify.
            factor: what the weights are multiplied by; 0 removes them.

        Raises:
            ValueError: no component has a score of this sign, or the selection does not fit the scores.
        """
        indices = select(scores, selection, sign=sign)
        verb = VERBS[sign]
        if len(indices) == 0:
            raise ValueError(f"no component has a {sign} score for {scores.concept!r}: nothing to {verb}")
        warn_if_untrusted(scores, len(indices) / scores.space.n)
        # An empty `trust` says that the scores were not checked on held-out ablations.
        provenance = {
            **scores.provenance,
            "trust": scores.trust,
            "selection": {**selection.to_dict(), "sign": sign},
        }
        return cls.from_indices(name or f"{_slug(scores.concept)}-{verb}", scores.space, indices, factor, provenance)

    def __or__(self, other: Edit) -> Edit:
        return compose([self, other])

    def fuse(self, pipeline: Any, strength: float = 1.0) -> AppliedEdit:
        """Edit the weights of the pipeline's denoiser in place until ``.undo()``, which restores them bit for bit.

        Args:
            pipeline: a pipeline or its denoiser.
            strength: each weight is multiplied by 1 - strength * (1 - factor): 0 does nothing, 1 is the edit, above 1
                goes beyond.

        Raises:
            ValueError: the edit was made for another model, or strength is not finite.
            RuntimeError: another thread has an edit in the weights of this denoiser for the length of a ``with`` block.
        """
        return apply_edit(self, pipeline, strength)

    @contextmanager
    def applied(self, pipeline: Any, strength: float = 1.0) -> Iterator[None]:
        """Run ``pipeline`` with the edit inside the context; afterwards its weights are as before, bit for bit.

        Raises:
            RuntimeError: another thread is inside such a context with the same denoiser; or, at the end, weights of
                the edit were changed by something else inside: these are left, see ``AppliedEdit.undo``.
            ValueError: as for ``fuse``.
        """
        with applied_edit(self, pipeline, strength):
            yield

    def prediction(self) -> str:
        """Say in words what the edit is predicted to do, as ``cad_fast.erase`` and ``cad_fast.amplify`` note it."""
        from .files.describe import prediction_text

        return prediction_text(self.provenance.get("predicted"))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``edit_config.json`` and ``edit_model.safetensors`` into ``folder``.

        Raises:
            PermissionError, NotADirectoryError: the folder cannot be written; the message names it.
        """
        from .files.store import save_edit

        save_edit(self, folder)

    def save_card(self, folder: str | Path, info: CardInfo | None = None) -> Path:
        """Write a model card ``README.md`` beside the files of ``save_pretrained``; return its path.

        Args:
            folder: that of the edit.
            info: pictures and names for the card (see ``CardInfo``). The figures come from the provenance: see
                ``evaluated``.
        """
        from .files.card import CardInfo, write_card

        return write_card(self, folder, info or CardInfo())

    def push_to_hub(self, repo_id: str, info: CardInfo | None = None, **hub_kwargs: Any) -> str:
        """Upload the edit with its model card to a repository of the Hugging Face Hub; return the commit's address.

        The repository is created if need be, and has the layout that ``from_pretrained`` reads.

        Args:
            repo_id: the repository's name, such as "me/no-car".
            info: as for ``save_card``; its ``repo_id`` is this one.
            hub_kwargs: ``private``, ``token``, ``revision``, ``commit_message`` and ``create_pr``.
        """
        from .files.card import CardInfo
        from .files.push import push_edit

        return push_edit(self, repo_id, info or CardInfo(), **hub_kwargs)

    @classmethod
    def from_pretrained(cls, source: str | Path, pipeline: Any = None, **hub_kwargs: Any) -> Edit:
        """Read an edit from a folder or a Hub repository.

        Args:
            source: the folder, or the repository: ``hub:OWNER/NAME``, or ``OWNER/NAME`` where no OWNER is on the disk.
            pipeline: if given, the edit must fit its denoiser.
            hub_kwargs: ``revision``, ``token`` and others go to the download from the Hub.

        Raises:
            FileNotFoundError: there is no such edit.
            PermissionError: a file is a link out of the folder.
            ValueError: a file is damaged, or the model does not fit; the message names the file or says why.
        """
        from .files.store import read_edit

        return read_edit(source, pipeline, kind=cls, **hub_kwargs)

    @classmethod
    def from_checkpoint_difference(cls, base: Any, pruned: Any, name: str = "pruned") -> Edit:
        """Make the edit of the weights that ``pruned`` has set to zero and ``base`` has not.

        Args:
            base: a pipeline or its denoiser.
            pruned: the same, or a safetensors file or a folder of the denoiser's weights.
            name: of the edit.

        Raises:
            ValueError: they differ in anything but zeros in linears and convolutions.
        """
        from .files.checkpoints import checkpoint_difference

        return checkpoint_difference(base, pruned, name, kind=cls)

    @classmethod
    def from_peft(cls, pipeline: Any, folder: str | Path, name: str = "adapter") -> Edit:
        """Make the edit that an adapter of PEFT is (SHiRA or Super-Tuning); the other way is ``export_peft``.

        Args:
            pipeline: the model of the adapter, or its denoiser, as the adapter found it.
            folder: that of the adapter, with ``adapter_config.json`` and ``adapter_model.safetensors``.
            name: of the edit.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: the adapter is damaged, of another format, or does not fit the model; or it is no edit, since
                it multiplies weights by different factors, or gives values to weights that are zero.
            ImportError: peft is not installed.
        """
        from .files.peft import import_peft

        return import_peft(pipeline, folder, name, kind=cls)


def load_edit(source: str | Path, pipeline: Any = None, **hub_kwargs: Any) -> Edit:
    """Read an edit from a folder or a Hub repository: see ``Edit.from_pretrained``."""
    return Edit.from_pretrained(source, pipeline, **hub_kwargs)


def _slug(text: str) -> str:
    slug = "".join(char if char.isascii() and char.isalnum() else "-" for char in text.lower()).strip("-")[:50]
    return slug or "concept"
