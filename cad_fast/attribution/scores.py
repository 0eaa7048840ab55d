"""Scores: one number per component, with what is needed to trust and reuse them."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..components.module_components import ModuleComponents
from ..components.space import ComponentSpace
from ..diffusion.layers import match_names
from ..files import Write, json_text, read_json, read_tensors, tensors_writer, text_writer, write_together, write_whole
from ..texts import printable, require_printable
from .curvature import Curvature
from .score_files import check_options, checked_provenance, largest, packed, unpacked

FORMAT_VERSION = 1
SCORES_NAME = "scores.safetensors"
# Says which file of a folder holds the scores of which concept: {"cat": "00000.safetensors", ...}.
CONCEPTS_NAME = "concepts.json"
MAX_NAMES = 16 * 2**20  # bytes of that file


@dataclass
class Scores:
    """Scores of the components for a concept.

    A positive component expresses the concept, a negative one suppresses it (arXiv 2412.02542).

    Args:
        values: float32 [n], the predicted change of J when a component is kept rather than removed.
        space: The components.
        provenance: Where they come from, as JSON: concept, method, objective, prompts, seeds, cost, versions.
        standard_error: float32 [n], where the method knows.
        curvature: How J bends beside what the values add up to, where the method knows. Predictions of J count it in;
            edits are chosen by the values alone.

    Raises:
        ValueError: A shape does not fit the space, or a score is not finite. The message names its component.
    """

    values: Tensor
    space: ComponentSpace
    provenance: dict[str, Any] = field(default_factory=dict)
    standard_error: Tensor | None = None
    curvature: Curvature | None = None

    def __post_init__(self) -> None:
        if tuple(self.values.shape) != (self.space.n,):
            raise ValueError(
                f"values has shape {list(self.values.shape)}, expected [{self.space.n}], one per component"
            )
        self.values = self.values.detach().to("cpu", torch.float32)
        if self.standard_error is not None:
            if self.standard_error.shape != self.values.shape:
                raise ValueError(
                    f"standard_error has shape {list(self.standard_error.shape)}, expected [{self.space.n}]"
                )
            self.standard_error = self.standard_error.detach().to("cpu", torch.float32)
        if self.curvature is not None and self.curvature.n != self.space.n:
            raise ValueError(f"curvature is over {self.curvature.n} components, expected {self.space.n}")
        self.require_finite()

    def require_finite(self) -> None:
        """Raise ValueError naming the component when a score is NaN or infinite."""
        low, high = torch.aminmax(self.values)  # of which NaN makes NaN, without a copy
        if not bool(torch.isfinite(low) and torch.isfinite(high)):
            bad = int((~torch.isfinite(self.values)).nonzero()[0])
            raise ValueError(f"the score of {self.space.label(bad)} is {self.values[bad].item()}")

    @property
    def concept(self) -> str:
        return printable(str(self.provenance.get("concept", "concept")), lines=False)

    @property
    def trust(self) -> list[dict[str, Any]]:
        """How well the scores predict held-out ablations (see ``Trust``), per fraction. Empty if there were none."""
        return list(self.provenance.get("trust", ()))

    def __len__(self) -> int:
        return self.space.n

    def __repr__(self) -> str:
        method = self.provenance.get("method", "unknown method")
        return f"Scores({self.concept!r}, {method}, {self.space.n} of kind {self.space.kind})"

    def by_module(self) -> dict[str, Tensor]:
        """Return views of ``values`` per module, {module: float32 [count]}."""
        return self.space.split(self.values)

    def of_modules(self, target_modules: str | Sequence[str]) -> Scores:
        """Return the scores of the components in some of the modules, renumbered.

        Args:
            target_modules: A preset, a pattern or a list.

        Raises:
            ValueError: No module matches.
        """
        names = match_names({entry.module: entry.presets for entry in self.space}, target_modules)

        def of_names(values: Tensor) -> Tensor:
            return torch.cat([values[part] for part in self.space.ranges(names)])

        error = None if self.standard_error is None else of_names(self.standard_error)
        curvature = self.curvature
        if curvature is not None:
            curvature = curvature.of_components(of_names(torch.arange(self.space.n)))
        return Scores(of_names(self.values), self.space.restrict(names), self._of_some(), error, curvature)

    def _of_some(self) -> dict[str, Any]:
        """The provenance of the scores of some modules."""
        # What was held out were ablations of all components: it says nothing about some of them alone.
        whole = ("trust", "estimate", "stop_when", "halves")
        return {key: value for key, value in self.provenance.items() if key not in whole}

    def top(self, k: int = 10, *, negative: bool = False) -> list[tuple[str, float]]:
        """The ``k`` highest (or, with ``negative``, lowest) scores as (component name, score)."""
        chosen = largest(-self.values if negative else self.values, min(k, len(self)))
        order = torch.sort(self.values[chosen], descending=not negative, stable=True)
        pairs = zip(chosen[order.indices].tolist(), order.values.tolist(), strict=True)
        return [(self.space.label(index), value) for index, value in pairs]

    def require_same_space(self, others: Sequence[Scores]) -> None:
        """Raise ValueError, naming the concept, for scores over other components."""
        for other in others:
            if other.space != self.space:
                mine, theirs = f"{self.concept!r} are over {self.space}", f"{other.concept!r} over {other.space}"
                raise ValueError(f"the scores of {mine}, those of {theirs}")

    def save(self, path: str | Path, *, dtype: str = "float32", top: int | None = None) -> Path:
        """Write one safetensors file (a folder gets ``scores.safetensors``).

        Args:
            path: a folder, or a file that ends in .safetensors.
            dtype: "float32", or "float16", which halves the file: scaled per module by a power of two, so that nothing
                over- or underflows, and rounded by at most 2^-11 of all but scores 2^-28 of their module's largest.
            top: keep the scores of so many components only, those of largest absolute value, without standard errors
                and curvature. ``load`` then returns ``TopScores``, which refuse what needs the others.

        Returns:
            The file's path.
        """
        path = Path(path)
        if path.suffix != ".safetensors":
            path = path / SCORES_NAME
        check_options(dtype, top)
        return write_whole(path, partial(self._write, dtype, top, {}))

    def _write(self, dtype: str, top: int | None, more: dict[str, Any], path: Path) -> None:
        self.require_finite()
        metadata = {
            **more,
            "format": "scores",
            "version": FORMAT_VERSION,
            "space": self.space.to_dict(),
            "provenance": self.provenance,
        }
        tensors, stored = packed(self.space, self.values, self.standard_error, self.curvature, dtype, top)
        if stored != {"dtype": "float32", "top": None, "dropped": []}:
            metadata["provenance"] = {**self.provenance, "stored": stored}
        tensors_writer(tensors, metadata)(path)

    @classmethod
    def load(cls, path: str | Path) -> Scores:
        """Read what ``save`` wrote. FOLDER/cat also names concept cat in a folder of many (``save_many``).

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is damaged. The message names it.
        """
        path, concept = Path(path), None
        if not path.exists() and (path.parent / CONCEPTS_NAME).is_file():
            concept, path = path.name, path.parent / numbered_files(path.parent).get(path.name, path.name)
        if path.is_dir():
            path = path / SCORES_NAME
        return cls._read(path, concept)[0]

    @classmethod
    def _read(cls, path: Path, concept: str | None = None) -> tuple[Scores, str | None]:
        """Read a file, which ``concepts.json`` calls ``concept`` if it is given; and which save of many it is of."""
        tensors, metadata = read_tensors(path)
        if metadata.get("format") != "scores" or metadata.get("version") != FORMAT_VERSION or "values" not in tensors:
            raise ValueError(f"{path} does not hold scores of format version {FORMAT_VERSION}")
        if concept is not None and metadata.get("saved_as", concept) != concept:
            raise ValueError(f"{path} belongs to another save than {CONCEPTS_NAME} beside it: save the scores again")
        try:
            require_printable(metadata["space"], "its space")
            space = ComponentSpace.from_dict(metadata["space"])
            arguments = unpacked(tensors, space)
            kind = TopScores if "indices" in arguments else cls
            scores = kind(space=space, provenance=checked_provenance(metadata["provenance"]), **arguments)
            return scores, metadata.get("save_id")
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError, IndexError) as error:
            raise ValueError(f"{path} is damaged: {str(error)[:500]}") from error


class TopScores(Scores):
    """The scores of largest absolute value, as ``Scores.save(top=K)`` keeps them.

    ``indices`` int64 [K], sorted, and ``kept`` float32 [K]. Every other score is at most as large as the smallest that
    was kept. So the highest or lowest can be chosen among them as long as there are enough; ``values``, and whatever
    needs the scores of all components, raises ValueError.
    """

    def __init__(self, indices: Tensor, kept: Tensor, space: ComponentSpace, provenance: dict[str, Any]) -> None:
        indices = indices.detach().to("cpu", torch.int64)
        if indices.ndim != 1 or kept.shape != indices.shape or not len(indices):
            raise ValueError(f"{list(kept.shape)} scores and {list(indices.shape)} indices, expected as many")
        if int(indices[0]) < 0 or int(indices[-1]) >= space.n or not bool((indices[1:] > indices[:-1]).all()):
            raise ValueError(f"the indices of the scores are not sorted within 0..{space.n - 1}")
        self.indices, self.kept = indices, kept.detach().to("cpu", torch.float32)
        self.space, self.provenance = space, provenance
        self.standard_error, self.curvature = None, None
        self.require_finite()

    def require_finite(self) -> None:
        bad = (~torch.isfinite(self.kept)).nonzero()
        if len(bad):
            component = self.space.label(int(self.indices[bad[0]]))
            raise ValueError(f"the score of {component} is {self.kept[bad[0]].item()}")

    @property
    def values(self) -> Tensor:  # type: ignore[override]
        """Raises ValueError: they are not all known."""
        raise ValueError(
            f"the scores of {self.concept!r} hold the {len(self.indices)} largest of {self.space.n}, and this needs "
            "all of them: save them without top (--save-top)"
        )

    def __repr__(self) -> str:
        return f"Scores({self.concept!r}, the {len(self.indices)} largest of {self.space.n} of kind {self.space.kind})"

    def of_modules(self, target_modules: str | Sequence[str]) -> Scores:
        """As of all scores. Raises ValueError also when none of the modules' scores was kept."""
        names = match_names({entry.module: entry.presets for entry in self.space}, target_modules)
        space = self.space.restrict(names)
        parts, kept = [], []
        for entry, part in zip(space.leading, self.space.ranges(names), strict=True):
            low, high = torch.searchsorted(self.indices, torch.tensor([part.start, part.stop])).tolist()
            parts.append(self.indices[low:high] - part.start + entry.offset)
            kept.append(self.kept[low:high])
        return TopScores(torch.cat(parts), torch.cat(kept), space, self._of_some())

    def top(self, k: int = 10, *, negative: bool = False) -> list[tuple[str, float]]:
        chosen = self.choose(min(k, len(self)), negative=negative)
        known = dict(zip(self.indices.tolist(), self.kept.tolist(), strict=True))
        ordered = sorted(chosen.tolist(), key=lambda index: (known[index] if negative else -known[index], index))
        return [(self.space.label(index), known[index]) for index in ordered]

    def choose(self, k: int, *, negative: bool = False, entry: ModuleComponents | None = None) -> Tensor:
        """The ``k`` highest (or lowest) scores above (below) zero, of all or of one module; sorted int64 [k].

        Raises ValueError when fewer were kept.
        """
        low, high = (0, len(self.indices)) if entry is None else self._span(entry)
        values = -self.kept[low:high] if negative else self.kept[low:high]
        above = int((values > 0).sum())
        if k > above:
            sign = "negative" if negative else "positive"
            where = "" if entry is None else f" in {entry.module}"
            raise ValueError(
                f"the scores of {self.concept!r} hold the {len(self.indices)} largest of {self.space.n}, {above} of "
                f"them {sign}{where}: {k} cannot be chosen; take fewer, or save more of them (--save-top)"
            )
        order = torch.sort(values, descending=True, stable=True).indices[:k]
        return self.indices[low:high][order].sort().values

    def _span(self, entry: ModuleComponents) -> tuple[int, int]:
        bounds = torch.tensor([entry.offset, entry.offset + entry.count])
        low, high = torch.searchsorted(self.indices, bounds).tolist()
        return low, high


def numbered_files(folder: Path) -> dict[str, str]:
    """Return {concept: name of its file} of a folder of many. Raises as ``load_many``."""
    path = folder / CONCEPTS_NAME
    names = read_json(path, MAX_NAMES)
    if list(names.values()) != [f"{number:05d}.safetensors" for number in range(len(names))]:
        raise ValueError(f"{path} is damaged: its files are not numbered from 00000.safetensors on")
    return names


def save_many(
    scores: Mapping[str, Scores], folder: str | Path, *, dtype: str = "float32", top: int | None = None
) -> Path:
    """Write ``00000.safetensors`` and on, then ``concepts.json``, which names them. Returns the folder."""
    folder, save_id = Path(folder), secrets.token_hex(8)
    names = {concept: f"{number:05d}.safetensors" for number, concept in enumerate(scores)}
    writes: dict[Path, Write] = {
        # The name and the id tell a mixture of two saves.
        folder / name: partial(scores[concept]._write, dtype, top, {"saved_as": concept, "save_id": save_id})
        for concept, name in names.items()
    }
    writes[folder / CONCEPTS_NAME] = text_writer(json_text(names))
    write_together(writes)
    return folder


def load_many(folder: str | Path) -> dict[str, Scores]:
    """Read what ``save_many`` wrote.

    Raises:
        FileNotFoundError: The folder or one of its files is not there.
        ValueError: A file is damaged, or of another save than the others. The message names it.
    """
    folder = Path(folder)
    read = {concept: Scores._read(folder / name, concept) for concept, name in numbered_files(folder).items()}
    if len({save_id for _, save_id in read.values()}) > 1:
        raise ValueError(f"the scores in {folder} are of different saves: save them again")
    return {concept: scores for concept, (scores, _) in read.items()}
