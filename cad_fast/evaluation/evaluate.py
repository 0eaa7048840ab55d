"""Generate pictures of every concept, with or without an edit, and let a scorer say what they show."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol

from PIL import Image
from torch import Tensor
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
from .scorers import Measure, Scorer, checked_measures, checked_probabilities


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
            entry = entries[i % len(entries)]
            own = entry.seed if i < len(entries) else None
            jobs.append(_Job(concept, i, entry, image_seed(seed, concept, i) if own is None else own))
    return jobs


def _require_known_labels(scorer: Scorer, jobs: Sequence[_Job], axes: Sequence[str]) -> None:
    """Raises ValueError for a label that the scorer cannot tell, before anything is generated."""
    for axis in axes:
        for label in dict.fromkeys(job.prompt.labels[axis] for job in jobs):
            if label not in scorer.axes[axis]:
                raise ValueError(f"the scorer cannot judge this: {unknown(axis, label, scorer.axes[axis])}")


def _judge(
    scorer: Scorer | None,
    jobs: Sequence[_Job],
    images: Sequence[Image.Image],
    axes: Sequence[str],
    measured: dict[str, list[float]],
) -> list[Outcome]:
    probabilities: dict[str, Tensor] = {}
    labelled = scorer.axes if scorer is not None else {}
    if scorer is not None:
        with _naming(jobs):
            probabilities = checked_probabilities(scorer, images)
    judged = axes if scorer is not None else ()
    predicted = {axis: probabilities[axis].argmax(dim=1).tolist() for axis in judged}
    outcomes = []
    for row, job in enumerate(jobs):
        labels = {axis: job.prompt.labels[axis] for axis in axes}
        outcomes.append(
            Outcome(
                concept=job.concept,
                index=job.index,
                prompt=job.prompt.prompt,
                labels=labels,
                predicted={axis: labelled[axis][predicted[axis][row]] for axis in judged},
                probability={
                    axis: float(probabilities[axis][row, labelled[axis].index(labels[axis])]) for axis in judged
                },
                measured={quantity: values[row] for quantity, values in measured.items()},
                seed=job.seed,
            )
        )
    return outcomes


@contextlib.contextmanager
def _naming(jobs: Sequence[_Job]) -> Iterator[None]:
    """Make an error about one of the images name them all."""
    try:
        yield
    except ValueError as error:
        shown = ", ".join(f"{job.concept} {job.index}" for job in jobs)
        raise ValueError(f"{error} (the images were {shown})") from error


class _Measured:
    """What each measure says of a batch, and which quantities are whose."""

    def __init__(self, measures: Sequence[Measure]) -> None:
        self.measures = measures
        self.names: dict[str, str] = {}

    def of(self, jobs: Sequence[_Job], images: Sequence[Image.Image]) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {}
        texts = [job.prompt.prompt for job in jobs]
        with _naming(jobs):
            for measure in self.measures:
                for quantity, values in checked_measures(measure, images, texts).items():
                    if quantity in found:
                        other = self.names[quantity]
                        raise ValueError(f"{other} and {measure.name} both give {quantity!r}: ask for one of them")
                    found[quantity], self.names[quantity] = values, measure.name
        return found


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
    scorer: Scorer | None,
    *,
    measures: Sequence[Measure] = (),
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
    still depend on the batch size). The first picture of a prompt that has a seed of its own has that. With ``edit``
    the pipeline is edited during the call only, also when it is interrupted. ``measures`` give numbers for each picture
    besides; with them ``scorer`` may be None. ``generation`` has steps, guidance and further arguments of the pipeline,
    which JSON can hold; None for the pipeline's own. Raises ValueError for names that the prompts or the scorer do not
    know, and for scores that are no probabilities; TypeError when the pipeline has no denoiser.
    """
    return evaluate_each(
        pipeline,
        prompts,
        [scorer],
        measures=measures,
        per_concept=per_concept,
        axis=axis,
        concepts=concepts,
        edit=edit,
        strength=strength,
        seed=seed,
        generation=generation,
        batch_size=batch_size,
        keep_images=keep_images,
        progress=progress,
    )[0]


def evaluate_each(
    pipeline: Any,
    prompts: PromptSet,
    scorers: Sequence[Scorer | None],
    *,
    measures: Sequence[Measure] = (),
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
) -> list[Evaluation]:
    """As ``evaluate``, with several scorers that judge the same pictures: one evaluation for each, in their order."""
    if not scorers:
        raise ValueError("there are no scorers, expected at least one, or None where measures are enough")
    if None in scorers and not measures:
        raise ValueError("there is no scorer and no measure: nothing would be known of the pictures")
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
    axes = [_judged_axes(scorer, prompts, axis, jobs) for scorer in scorers]
    generation = Generation.of(generation)
    settings = Settings(
        axis=axis,
        per_concept=per_concept,
        seed=seed,
        generation=Generation.from_dict(generation.to_dict()),
        scheduler=scheduler_config_of(pipeline),
        scorer=None,
        labels={},
        fingerprint=intact_fingerprint(denoiser_of(pipeline)),
        edit=None if edit is None else edit.name,
        strength=None if edit is None else float(strength),
        model=model_facts(pipeline),
    )
    generation = generation.resolved(pipeline)
    measuring = _Measured(measures)
    outcomes: list[list[Outcome]] = [[] for _ in scorers]
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
            measured = measuring.of(batch, pictures)
            for scorer, its_axes, found in zip(scorers, axes, outcomes, strict=True):
                found += _judge(scorer, batch, pictures, its_axes, measured)
            if keep_images:
                for job, picture in zip(batch, pictures, strict=True):
                    images[job.concept].append(picture)
    return [
        Evaluation(
            replace(settings, **_of_scorer(scorer, its_axes), measures=measuring.names),
            tuple(found),
            images if keep_images else None,
        )
        for scorer, its_axes, found in zip(scorers, axes, outcomes, strict=True)
    ]


def _judged_axes(scorer: Scorer | None, prompts: PromptSet, axis: str, jobs: Sequence[_Job]) -> list[str]:
    """The axis of the evaluation and the others that the scorer judges. Raises ValueError for what it does not know."""
    if scorer is None:
        return [axis]
    if axis not in scorer.axes:
        raise ValueError(f"the scorer cannot judge this: {unknown('axis', axis, scorer.axes)}")
    axes = [axis] + [name for name in prompts.axes if name != axis and name in scorer.axes]
    _require_known_labels(scorer, jobs, axes)
    return axes


def _of_scorer(scorer: Scorer | None, axes: Sequence[str]) -> dict[str, Any]:
    if scorer is None:
        return {}
    name = getattr(scorer, "name", type(scorer).__name__)
    return {"scorer": name, "labels": {axis: list(scorer.axes[axis]) for axis in axes}}
