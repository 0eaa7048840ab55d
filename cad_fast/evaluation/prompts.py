"""Prompts and what they ask for: each has one label per axis, such as object "cat" and style "noto"."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import read_json

LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True)
class LabelledPrompt:
    """A prompt and what its pictures should be recognised as, per axis.

    ``seed`` is that of its first picture, which published sets have; None: it comes from the evaluation's seed.
    """

    prompt: str
    labels: dict[str, str]
    seed: int | None = None


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """The text of an error about a name that is not among ``known``, with the nearest ones."""
    known = list(known)
    near = difflib.get_close_matches(name.lower(), {k.lower(): k for k in known}, n=3, cutoff=0.5)
    nearest = [k for k in known if k.lower() in near]
    hint = f"did you mean {' or '.join(map(repr, nearest))}?" if nearest else f"known: {', '.join(known)}"
    return f"unknown {kind} {name!r}; {hint}"


class PromptSet(Sequence[LabelledPrompt]):
    """Prompts that all have labels for the same axes."""

    def __init__(self, prompts: Iterable[LabelledPrompt]) -> None:
        """Raises ValueError when there are no prompts, one is empty, or one has other axes than the first."""
        self._prompts = tuple(prompts)
        if not self._prompts:
            raise ValueError("there are no prompts")
        self.axes = tuple(self._prompts[0].labels)
        if not self.axes:
            raise ValueError(f"prompt 0 ({self._prompts[0].prompt!r}) has no labels")
        for i, entry in enumerate(self._prompts):
            if not entry.prompt.strip():
                raise ValueError(f"prompt {i} is empty")
            if set(entry.labels) != set(self.axes):
                raise ValueError(
                    f"prompt {i} ({entry.prompt!r}) has labels for {', '.join(entry.labels) or 'no axis'}, "
                    f"but the first prompt for {', '.join(self.axes)}"
                )

    def __len__(self) -> int:
        return len(self._prompts)

    def __getitem__(self, index: Any) -> Any:
        return self._prompts[index]

    def __iter__(self) -> Iterator[LabelledPrompt]:
        return iter(self._prompts)

    def concepts(self, axis: str) -> tuple[str, ...]:
        """The labels of ``axis``, in the order of their first prompts. Raises ValueError for an unknown axis."""
        if axis not in self.axes:
            raise ValueError(unknown("axis", axis, self.axes))
        return tuple(dict.fromkeys(entry.labels[axis] for entry in self._prompts))

    def of(self, axis: str, concept: str) -> tuple[LabelledPrompt, ...]:
        """The prompts for one concept. Raises ValueError naming the nearest concepts when there is none."""
        concepts = self.concepts(axis)
        if concept not in concepts:
            raise ValueError(unknown(axis, concept, concepts))
        return tuple(entry for entry in self._prompts if entry.labels[axis] == concept)

    @classmethod
    def from_json(cls, path: str | Path) -> PromptSet:
        """Read prompts from a JSON file, of one of two forms.

        {"concepts": {"cat": ["a photo of a cat", ...], ...}} labels them on one axis, named "concept";
        {"prompts": [{"prompt": "a cat in noto style", "labels": {"object": "cat", "style": "noto"}}, ...]} on any, with
        a "seed" if wanted.
        Raises FileNotFoundError, or ValueError naming the file and the entry that is wrong.
        """
        value = read_json(path)
        forms = [form for form in ("concepts", "prompts") if form in value]
        if len(forms) != 1:
            raise ValueError(f"{path} needs either 'concepts' or 'prompts', and has {' and '.join(forms) or 'neither'}")
        read = _from_concepts if forms == ["concepts"] else _from_prompts
        try:
            return cls(read(value[forms[0]]))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def _from_concepts(value: Any) -> list[LabelledPrompt]:
    if not isinstance(value, dict):
        raise ValueError(f"'concepts' is a {type(value).__name__}, expected an object of lists of prompts")
    prompts = []
    for concept, texts in value.items():
        if not isinstance(texts, list) or not texts:
            raise ValueError(f"concept {concept!r} is {texts!r}, expected a list of prompts")
        for i, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"prompt {i} of concept {concept!r} is {text!r}, expected a text")
            prompts.append(LabelledPrompt(text, {"concept": concept}))
    return prompts


def _from_prompts(value: Any) -> list[LabelledPrompt]:
    if not isinstance(value, list):
        raise ValueError(f"'prompts' is a {type(value).__name__}, expected a list")
    prompts = []
    for i, entry in enumerate(value):
        if not isinstance(entry, dict) or not isinstance(entry.get("prompt"), str):
            raise ValueError(f"prompt {i} is {entry!r}, expected an object with 'prompt' and 'labels'")
        labels = entry.get("labels")
        if not isinstance(labels, dict) or not all(isinstance(label, str) for label in labels.values()):
            raise ValueError(f"prompt {i} has labels {labels!r}, expected an object of texts, one per axis")
        seed = entry.get("seed")
        if seed is not None and (type(seed) is not int or not 0 <= seed <= LARGEST_SEED):
            raise ValueError(f"prompt {i} has seed {seed!r:.80}, expected a whole number from 0 to 2^63 - 1")
        prompts.append(LabelledPrompt(entry["prompt"], labels, seed))
    return prompts
