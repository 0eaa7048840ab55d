"""Generate pictures of every concept, with or without an edit, and let a scorer say what they show."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image
from tqdm.auto import tqdm

from ..diffusion.arguments import scheduler_config_of
from ..diffusion.context import plain_tensors, silent
from ..diffusion.denoisers import denoiser_of
from ..diffusion.generation import Generation
from ..diffusion.loaded import model_facts
from ..edits.weights import intact_fingerprint
from .drawing import draw, image_seed
from .outcomes import Evaluation, Outcome, Settings
from .prompts import LabelledPrompt, PromptSet, unknown
from .scorers import Scorer, checked_probabilities


class AppliesToPipeline(Protocol):
    """What evaluation needs of an edit: a name, and a context in which a pipeline is edited."""

    name: str

    def applied(self, pipeline: Any, strength: float = 1.0) -> AbstractContextManager[Any]: ...


@dataclass(frozen=True)
class _Job:
    """One picture to make."""

    concept: str
    index: int
    prompt: LabelledPrompt
    seed: int


def _jobs(prompts: PromptSet, axis: str, concepts: Sequence[str], per_concept: int, seed: int) -> list[_Job]:
    """``per_concept`` pictures of each concept; its prompts take turns."""
    jobs = []
    for concept in concepts:
        entries = prompts.of(axis, concept)
        for i in range(per_concept):
            jobs.append(_Job(concept, i, entries[i % len(entries)], image_seed(seed, concept, i)))
    return jobs


def _require_known_labels(scorer: Scorer, jobs: Sequence[_Job], axes: Sequence[str]) -> None:
    """Raises ValueError for a label that the scorer cannot tell, before anything is generated."""
    for axis in axes:
        for label in dict.fromkeys(job.prompt.labels[axis] for job in jobs):
            if label not in scorer.axes[axis]:
                raise ValueError(f"the scorer cannot judge this: {unknown(axis, label, scorer.axes[axis])}")


def _judge(scorer: Scorer, jobs: Sequence[_Job], images: Sequence[Image.Image], axes: Sequence[str]) -> list[Outcome]:
    try:
        probabilities = checked_probabilities(scorer, images)
    except ValueError as error:
        shown = ", ".join(f"{job.concept} {job.index}" for job in jobs)
        raise ValueError(f"{error} (the images were {shown})") from error
    predicted = {axis: probabilities[axis].argmax(dim=1).tolist() for axis in axes}
    outcomes = []
    for row, job in enumerate(jobs):
        labels = {axis: job.prompt.labels[axis] for axis in axes}
        outcomes.append(
            Outcome(
                concept=job.concept,
                index=job.index,
                prompt=job.prompt.prompt,
                labels=labels,
                predicted={axis: scorer.axes[axis][predicted[axis][row]] for axis in axes},
                probability={
                    axis: float(probabilities[axis][row, scorer.axes[axis].index(labels[axis])]) for axis in axes
                },
            )
        )
    return outcomes


def _batches(
    pipeline: Any, jobs: Sequence[_Job], batch_size: int, generation: Generation, bar: tqdm
) -> Iterator[tuple[Sequence[_Job], list[Image.Image]]]:
    for start in range(0, len(jobs), batch_size):
        batch = jobs[start : start + batch_size]
        texts, seeds = [job.prompt.prompt for job in batch], [job.seed for job in batch]
        yield batch, draw(pipeline, texts, seeds, generation)
        bar.update(len(batch))


def evaluate(
    pipeline: Any,
    prompts: PromptSet,
    scorer: Scorer,
    *,
    per_concept: int = 16,
    axis: str | None = None,
    concepts: Sequence[str] | None = None,
    edit: AppliesToPipeline | None = None,
    strength: float = 1.0,
    seed: int = 0,
    generation: Generation | None = None,
    batch_size: int = 24,
    keep_images: bool = False,
    progress: bool = True,
) -> Evaluation:
    """Make ``per_concept`` pictures of each concept of ``axis`` and judge them on every axis that the scorer knows.

    ``axis`` defaults to the first of the prompts (for the emoji: "object"), ``concepts`` to all of that axis. The
    prompts of a concept take turns. Each picture has its own CPU generator, seeded by ``image_seed(seed, concept,
    index)``: the same before and after an edit, whatever the batch and the other concepts (a denoiser's rounding may
    still depend on the batch size). With ``edit`` the pipeline is edited during the call only, also when it is
    interrupted. ``generation`` has steps, guidance and further arguments of the pipeline, which JSON can hold; None for
    the pipeline's own. Raises ValueError for names that the prompts or the scorer do not know, and for scores that are
    no probabilities; TypeError when the pipeline has no denoiser.
    """
    axis = axis or prompts.axes[0]
    names = tuple(dict.fromkeys(concepts)) if concepts is not None else prompts.concepts(axis)
    for argument, value in (
        ("per_concept", per_concept),
        ("batch_size", batch_size),
        ("number of concepts", len(names)),
    ):
        if value < 1:
            raise ValueError(f"{argument} is {value}, expected at least 1")
    jobs = _jobs(prompts, axis, names, per_concept, seed)
    if axis not in scorer.axes:
        raise ValueError(f"the scorer cannot judge this: {unknown('axis', axis, scorer.axes)}")
    axes = [axis] + [name for name in prompts.axes if name != axis and name in scorer.axes]
    _require_known_labels(scorer, jobs, axes)
    generation = Generation.of(generation)
    settings = Settings(
        axis=axis,
        per_concept=per_concept,
        seed=seed,
        generation=Generation.from_dict(generation.to_dict()),
        scheduler=scheduler_config_of(pipeline),
        scorer=getattr(scorer, "name", type(scorer).__name__),
        labels={name: list(scorer.axes[name]) for name in axes},
        fingerprint=intact_fingerprint(denoiser_of(pipeline)),
        edit=None if edit is None else edit.name,
        strength=None if edit is None else float(strength),
        model=model_facts(pipeline),
    )
    generation = generation.resolved(pipeline)
    outcomes: list[Outcome] = []
    images: dict[str, list[Image.Image]] = {name: [] for name in names}
    edited = contextlib.nullcontext() if edit is None else edit.applied(pipeline, strength=strength)
    description = "evaluating" if edit is None else f"evaluating {edit.name}"
    with (
        tqdm(total=len(jobs), desc=description, unit="image", disable=not progress) as bar,
        silent(pipeline),
        plain_tensors(),
        edited,
    ):
        for batch, pictures in _batches(pipeline, jobs, batch_size, generation, bar):
            outcomes += _judge(scorer, batch, pictures, axes)
            if keep_images:
                for job, picture in zip(batch, pictures, strict=True):
                    images[job.concept].append(picture)
    return Evaluation(settings, tuple(outcomes), images if keep_images else None)
