"""Which prompts stand for a concept, and which other concepts an edit is to spare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .. import zoo

# What is spared where nothing is named: things that most models draw, none of them a part of another.
EVERYDAY = ("a cat", "a dog", "a person", "a car", "a house", "a tree", "a chair", "an apple")
TEMPLATES = ("a photo of {}", "a picture of {}", "{}")


def prompts_of(pipeline: Any, concept: str, prompts: str | Sequence[str] | None) -> list[str]:
    """The prompts given for a concept; else those that an embedded model knows; else sentences around the name."""
    if isinstance(prompts, str):
        return [prompts]
    if prompts is not None:
        if not prompts:
            raise ValueError(f"the prompts of {concept!r} are empty, expected at least one text")
        return list(prompts)
    if zoo.name_of(pipeline) is not None:
        return zoo.prompts(concept)
    if not concept.strip():
        raise ValueError("the concept has no name: give one, or prompts that express it")
    return [template.format(concept) for template in TEMPLATES]


def concepts_to_keep(
    pipeline: Any, concept: str, keep: Sequence[str] | Mapping[str, str | Sequence[str]] | None
) -> dict[str, list[str]]:
    """The concepts to spare with their prompts; without any the other objects of an embedded model, or EVERYDAY."""
    if isinstance(keep, str):
        raise TypeError(f"keep is the text {keep!r}, expected a list of names or texts")
    if keep is None:
        if zoo.name_of(pipeline) is not None:
            axis = zoo.STYLES if concept in zoo.STYLES else zoo.OBJECTS
            keep = [each for each in axis if each not in (concept, zoo.RARE_OBJECT)]
        else:
            keep = [each for each in EVERYDAY if concept.lower() not in each.lower().split()]
    if not keep:
        raise ValueError("keep is empty: name at least one concept to spare, or leave it out for everyday things")
    given: Mapping[str, str | Sequence[str] | None] = keep if isinstance(keep, Mapping) else dict.fromkeys(keep)
    if concept in given:
        raise ValueError(f"{concept!r} is to be changed and to be kept")
    return {each: prompts_of(pipeline, each, texts) for each, texts in given.items()}


def bases_of(
    pipeline: Any, concept: str, concepts: Mapping[str, Sequence[str]], base_prompts: str | Sequence[str] | None
) -> dict[str, list[str]]:
    """Per concept that has some, its base prompts, one per prompt; an embedded model's style has the object alone.

    Raises ValueError where their number is not that of the prompts.
    """
    if base_prompts is not None:
        own, count = [base_prompts] if isinstance(base_prompts, str) else list(base_prompts), len(concepts[concept])
        if len(own) not in (1, count):
            raise ValueError(
                f"there are {len(own)} base prompts for the {count} prompts of {concept!r}, expected one each or one"
            )
        return {concept: own * (count if len(own) == 1 else 1)}
    if zoo.name_of(pipeline) is None or concept not in zoo.STYLES:
        return {}
    objects = [zoo.caption(obj) for obj in zoo.OBJECTS]
    return {each: objects for each, own in concepts.items() if each in zoo.STYLES and own == zoo.prompts(each)}
