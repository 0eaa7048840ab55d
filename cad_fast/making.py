"""The main job in one call: erase or amplify a concept of a pipeline.

``erase`` and ``amplify`` record, score, spare, refine and choose the amount. Every step is there to be called by hand
too: ``record``, ``Attributor``, ``Selection``, ``refine``, ``Edit.from_scores``.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm.auto import tqdm

from . import zoo
from .attribution.attributor import Attributor
from .attribution.measuring.plans import Target
from .attribution.scores import Scores
from .diffusion.generation import SCHEDULES, Generation
from .diffusion.layers import PRESETS
from .diffusion.timesteps import TimestepWindow, Window
from .edits.damage import Expressed, Moved, objectives_under
from .edits.edit import Edit
from .edits.refining import refine
from .edits.selection import Selection, Sign
from .edits.weights import active_edits
from .objectives import BASE_PROMPT, ConceptErasure, DenoisingLoss, Objective, say_base
from .recording.data import Recording
from .recording.original import record_original
from .recording.record import record, with_base
from .recording.renoise import record_images, renoise

# What is spared where nothing is named: things that most models draw, none of them a part of another.
EVERYDAY = ("a cat", "a dog", "a person", "a car", "a house", "a tree", "a chair", "an apple")
TEMPLATES = ("a photo of {}", "a picture of {}", "{}")
PRESET = "cross-attention-kv"
# Objects are settled in the first steps. Over all timesteps the last ones, with the largest distances, would outweigh
# them, and edits chosen so leave the objects as they were.
EARLY = 0.15
RATIOS = (0.01, 0.02, 0.03, 0.06, 0.1)
KEPT_SAMPLES = 6
REFINED_ROUNDS = 12
# Refining to erase aims as far beyond the base as the concept was on this side of it: edits that only cancel the
# concept leave traces, which guidance brings out again.
NEGATIVE_GUIDANCE = 1.0
# An edit erases enough when no more of the concept is expressed than this (1 before, 0 at the base, see ``Expressed``):
# edits that stop short of the base leave traces. It costs too much when it moves the outputs on the concepts to keep by
# so much of what their prompts do (the mean over them). Both were chosen on the embedded model.
ENOUGH_LEFT = -0.05
MOST_MOVED = 0.1


def erase(
    pipeline: Any,
    concept: str,
    *,
    prompts: str | Sequence[str] | None = None,
    keep: Sequence[str] | Mapping[str, str | Sequence[str]] | None = None,
    ratio: float | None = None,
    target_modules: str | Sequence[str] = PRESET,
    timesteps: Window | None = None,
    samples: int = 12,
    seed: int = 0,
    name: str | None = None,
    progress: bool = True,
    **pipeline_kwargs: Any,
) -> Edit:
    """Make an edit that erases a concept and spares others (CAD-Erase, arXiv 2412.02542).

    The pipeline draws the concept and what is to be kept, and is left as it was. Components are scored to first order,
    ranked by gain against damage, and refined for the edit as a whole. Without ``ratio`` the smallest of ``RATIOS`` is
    taken that leaves nothing of the concept and moves little of what is kept, as predicted from the recordings.

    Args:
        pipeline: any diffusers pipeline with one denoiser.
        concept: its name, such as "car".
        prompts: prompts that express it. None: for the embedded models those they were trained with, else a few
            sentences around the name.
        keep: concepts to spare: names, or {name: prompts}. None: a few everyday things, or for the embedded models the
            other objects.
        ratio: share of the components to remove, in place of the choice.
        target_modules: the modules whose weights are edited: a preset, a regular expression or names.
        timesteps: the window in which the concept is settled. None: the first 15% of the noise schedule.
        samples: pictures of the concept to record.
        seed: of the first picture, the others count on.
        name: of the edit.
        progress: whether to show a progress bar.
        **pipeline_kwargs: go to the pipeline, such as ``num_inference_steps`` and ``guidance_scale``. The embedded
            models have ``zoo.generation(name)`` where they are not given.

    Returns:
        The edit. ``edit.provenance["making"]`` says how it was made, and ``["predicted"]`` what it will do.

    Raises:
        ValueError: the modules do not match, a name is unknown to an embedded model, or an edit is in the weights.
        TypeError: the pipeline has no denoiser.
    """
    generation = Generation.of(**pipeline_kwargs)
    making = _Making(pipeline, concept, target_modules, timesteps, samples, seed, progress, generation)
    concepts = {concept: prompts_of(pipeline, concept, prompts), **_kept(pipeline, concept, keep)}
    ratios = RATIOS if ratio is None else (ratio,)
    with making.bar(2 * len(concepts) + (len(concepts) - 1) + len(ratios) * (REFINED_ROUNDS + 1)):
        recordings = {each: making.record(texts, of=each) for each, texts in concepts.items()}
        objective = making.erasure(recordings[concept])
        candidates = making.candidates(recordings, objective, "positive", ratios)
    chosen, reason = _choose(candidates, "positive")
    return making.finished(chosen, candidates, reason, "positive", name)


def amplify(
    pipeline: Any,
    concept: str,
    *,
    images: str | Path | Sequence[Image.Image] | None = None,
    original: Any = None,
    prompts: str | Sequence[str] | None = None,
    keep: Sequence[str] | Mapping[str, str | Sequence[str]] | None = None,
    ratio: float | None = None,
    target_modules: str | Sequence[str] = PRESET,
    timesteps: Window | None = None,
    samples: int = 12,
    seed: int = 0,
    name: str | None = None,
    progress: bool = True,
    **pipeline_kwargs: Any,
) -> Edit:
    """Make an edit that removes what suppresses a concept (CAD-Amplify, arXiv 2412.02542), and spares others.

    J is minus the denoising loss on pictures of the concept, at all timesteps; with ``original`` minus the distance
    from its outputs. It works where there is something to bring back, such as a concept that fine-tuning has hidden;
    it does not teach a model what it never learned.

    Args:
        pipeline: any diffusers pipeline with one denoiser.
        concept: its name.
        images: a folder of pictures of the concept, or PIL images. None: for the embedded models their own pictures,
            else the pipeline's own samples.
        original: the model before the concept was taken out of it, as another pipeline, in place of images. It samples
            the concept, and the edit brings the outputs back towards its own (see ``record_original``).
        prompts: captions of the pictures, one for all or one each; without pictures the prompts to sample. None: as
            for ``erase``.
        keep: as for ``erase``.
        ratio: share of the components to remove. None: of ``RATIOS`` the one that raises J most, among those that move
            little of what is kept.
        target_modules: as for ``erase``.
        timesteps: the window to look at. None: all timesteps.
        samples: pictures to sample where there are no images.
        seed: as for ``erase``.
        name: of the edit.
        progress: whether to show a progress bar.
        **pipeline_kwargs: go to the pipeline, such as ``num_inference_steps`` and ``guidance_scale``. The embedded
            models have ``zoo.generation(name)`` where they are not given.

    Returns:
        The edit, as ``erase`` does.

    Raises:
        ValueError, TypeError: as ``erase``. ValueError also for both images and an original, or one of another
            architecture. FileNotFoundError: the folder of images does not exist.
    """
    ratios = RATIOS if ratio is None else (ratio,)
    arguments = {"images": images, "original": original, "prompts": prompts, "keep": keep, "timesteps": timesteps}
    arguments |= {"target_modules": target_modules, "samples": samples, "seed": seed, "progress": progress}
    making, candidates = _amplifying(pipeline, concept, ratios, **arguments, **pipeline_kwargs)
    chosen, reason = _choose(candidates, "negative")
    return making.finished(chosen, candidates, reason, "negative", name)


def amplify_each(pipeline: Any, concept: str, ratios: Sequence[float], **arguments: Any) -> dict[float, Edit]:
    """Make the edits of several sizes that ``amplify`` chooses from, for the price of one attribution.

    Args:
        pipeline: as for ``amplify``.
        concept: as for ``amplify``.
        ratios: shares of the components to remove.
        **arguments: as for ``amplify``, without ``ratio`` and ``name``.

    Returns:
        One edit per ratio.

    Raises:
        ValueError, TypeError, FileNotFoundError: as ``amplify``. ValueError also without ratios.
    """
    if not ratios:
        raise ValueError("there are no ratios: give at least one share of the components")
    making, candidates = _amplifying(pipeline, concept, ratios, **arguments)
    reason = "every ratio was asked for"
    return {each.ratio: making.finished(each, candidates, reason, "negative", None) for each in candidates}


def _amplifying(
    pipeline: Any,
    concept: str,
    ratios: Sequence[float],
    *,
    images: str | Path | Sequence[Image.Image] | None = None,
    original: Any = None,
    prompts: str | Sequence[str] | None = None,
    keep: Sequence[str] | Mapping[str, str | Sequence[str]] | None = None,
    target_modules: str | Sequence[str] = PRESET,
    timesteps: Window | None = None,
    samples: int = 12,
    seed: int = 0,
    progress: bool = True,
    **pipeline_kwargs: Any,
) -> tuple[_Making, list[_Candidate]]:
    """Candidates of several sizes that amplify, and what they were made with."""
    if images is not None and original is not None:
        raise ValueError("images and original both say what to bring back: give one")
    generation = Generation.of(**pipeline_kwargs)
    making = _Making(pipeline, concept, target_modules, timesteps, samples, seed, progress, generation)
    kept = _kept(pipeline, concept, keep)
    with making.bar(3 * len(kept) + 2 + len(ratios) * (REFINED_ROUNDS + 1)):
        if original is not None:
            recordings = {concept: making.originals(original, prompts_of(pipeline, concept, prompts))}
        else:
            recordings = {concept: making.pictures(images, prompts)}
        recordings |= {each: making.record(texts, of=each) for each, texts in kept.items()}
        return making, making.candidates(recordings, DenoisingLoss(timesteps=timesteps), "negative", ratios)


@dataclass(frozen=True)
class _Candidate:
    """An edit of one size, and what it is predicted to do.

    ``left``: to erase, how much of the concept is expressed (see ``Expressed``); to amplify, the loss relative to
    before. ``moved``: per kept concept, how far its outputs move, relative to what its prompt does.
    """

    ratio: float
    edit: Edit
    left: float
    moved: dict[str, float]
    left_of: str = "concept"

    @property
    def damage(self) -> float:
        return sum(self.moved.values()) / len(self.moved)

    def to_dict(self) -> dict[str, Any]:
        return {"ratio": self.ratio, "left": self.left, "left_of": self.left_of, "moved": self.moved}


@dataclass
class _Making:
    """One edit in the making: what it is made of, and the one progress bar."""

    pipeline: Any
    concept: str
    target_modules: str | Sequence[str]
    timesteps: Window | None
    samples: int
    seed: int
    progress: bool
    generation: Generation
    shown_by: str | None = None
    """What shows the concept to amplify: "images", "samples" or "original"."""
    kept: dict[str, list[str]] = field(default_factory=dict)
    pipeline_kwargs: dict[str, Any] = field(default_factory=dict)
    _bar: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples is {self.samples}, expected at least 1")
        if active := active_edits(self.pipeline):
            raise ValueError(f"edit {active[-1].edit.name!r} is in the weights: undo it before another is made")
        if (embedded := zoo.name_of(self.pipeline)) is not None:
            self.generation = Generation.of(zoo.generation(embedded), **self.generation.to_kwargs())

    def bar(self, steps: int) -> Any:
        """The progress bar, as a context."""
        self._bar = tqdm(total=steps, desc=self.concept, unit="step", disable=not self.progress)
        return self._bar

    def record(self, texts: Sequence[str], *, of: str) -> Recording:
        """Samples of a concept; of a distilled model with the outputs for an empty prompt as the base."""
        self._bar.set_description(f"recording {of}")
        drawn = _taking_turns(texts, self.samples if of == self.concept else KEPT_SAMPLES)
        recording = record(self.pipeline, drawn, seeds=self.seed, progress=False, **self.generation.to_kwargs())
        if recording.calls[0].unconditional_output is None:
            recording = with_base(recording, self.pipeline, BASE_PROMPT, progress=False)
            if of == self.concept:
                say_base(self.erasure(recording), recording)
        self._bar.update()
        return recording

    def originals(self, original: Any, texts: Sequence[str]) -> Recording:
        """Samples of the concept by the model as it was, whose outputs are the targets."""
        self._bar.set_description(f"recording {self.concept}")
        self.shown_by = "original"
        drawn = _taking_turns(texts, self.samples)
        settings = self.generation.to_kwargs()
        recording = record_original(self.pipeline, original, drawn, seeds=self.seed, progress=False, **settings)
        self._bar.update()
        return recording

    def pictures(
        self, images: str | Path | Sequence[Image.Image] | None, prompts: str | Sequence[str] | None
    ) -> Recording:
        """Pictures of the concept, noised at every timestep of a run."""
        if images is None and zoo.name_of(self.pipeline) is not None and self.concept in zoo.OBJECTS:
            files, objects = zip(*zoo.pictures(self.concept), strict=True)
            images, prompts = zoo.opened(files), list(objects)
        self.shown_by = "samples" if images is None else "images"
        if images is None:
            texts = prompts_of(self.pipeline, self.concept, prompts)
            recording = self.record(texts, of=self.concept)
            return renoise(recording, self.pipeline, timesteps=recording.num_inference_steps, seed=self.seed)
        captions = prompts or prompts_of(self.pipeline, self.concept, None)[0]
        timesteps = self.generation.num_inference_steps
        self._bar.set_description(f"encoding {self.concept}")
        arguments = {name: value for name, value in self.generation.arguments.items() if name not in SCHEDULES}
        recording = record_images(self.pipeline, images, captions, seed=self.seed, timesteps=timesteps, **arguments)
        self._bar.update()
        return recording

    def erasure(self, recording: Recording) -> ConceptErasure:
        """The paper's objective in the window that settles the concept."""
        window = TimestepWindow.of(self.timesteps) or _early(recording)
        base = "unconditional" if recording.calls[0].unconditional_output is not None else "base"
        return ConceptErasure(base=base, timesteps=window)

    def candidates(
        self, recordings: Mapping[str, Recording], objective: Objective, sign: Sign, ratios: Sequence[float]
    ) -> list[_Candidate]:
        """Score, spare and refine: an edit of each size."""
        kept = [each for each in recordings if each != self.concept]
        # Of the kept ones there are outputs and no targets: what they need is measured on those.
        base = self.erasure(recordings[kept[0]]).base
        sparing = ConceptErasure(base, objective.timesteps)
        scorer = Attributor(self.pipeline, objective, target_modules=_checked(self.target_modules))
        scores = self._scores(scorer, recordings[self.concept], self.concept)
        spared: dict[str, Any] = {}
        if sign == "positive":
            spared["keep"] = [self._scores(scorer, recordings[each], each) for each in kept]
        else:
            # What suppresses the concept is not what the others are drawn by: only the damage to them counts.
            self._bar.update(len(kept))
        sensitivity = Attributor(self.pipeline, sparing, scorer.space, method="sensitivity")
        spared["sensitivity"] = [self._scores(sensitivity, recordings[each], each) for each in kept]
        aim = objective
        if isinstance(objective, ConceptErasure):
            aim = ConceptErasure(objective.base, objective.timesteps, negative_guidance=NEGATIVE_GUIDANCE)
        self.kept = {each: recordings[each].prompts for each in kept}
        self.pipeline_kwargs = dict(recordings[kept[0]].generation.arguments)
        return [self._candidate(ratio, spared, scores, recordings, objective, aim, sparing, sign) for ratio in ratios]

    def finished(
        self, chosen: _Candidate, candidates: Sequence[_Candidate], reason: str, sign: Sign, name: str | None
    ) -> Edit:
        """The chosen edit with how it was made and what it is predicted to do in its provenance."""
        verb = "erase" if sign == "positive" else "amplify"
        making = {
            "by": f"cad_fast.{verb}",
            "shown_by": self.shown_by,
            "keep": self.kept,
            "target_modules": self.target_modules
            if isinstance(self.target_modules, str)
            else list(self.target_modules),
            "pipeline_kwargs": self.pipeline_kwargs,
            "candidates": [candidate.to_dict() for candidate in candidates],
            "chosen_because": reason,
        }
        provenance = {**chosen.edit.provenance, "making": making, "predicted": chosen.to_dict()}
        return replace(chosen.edit, name=name or chosen.edit.name, provenance=provenance)

    def _scores(self, attributor: Attributor, recording: Recording, of: str) -> Scores:
        self._bar.set_description(f"scoring {of}")
        scores = attributor.run(recording, concept=of, progress=False)
        self._bar.update()
        return scores

    def _candidate(
        self,
        ratio: float,
        spared: Mapping[str, Any],
        scores: Scores,
        recordings: Mapping[str, Recording],
        objective: Objective,
        aim: Objective,
        sparing: ConceptErasure,
        sign: Sign,
    ) -> _Candidate:
        """The edit of one size, and what it is predicted to do."""
        self._bar.set_description(f"refining {ratio:.0%}")
        selection = Selection(ratio, **spared)
        refined = refine(
            self.pipeline,
            recordings[self.concept],
            scores,
            selection,
            sign=sign,
            objective=aim,
            rounds=REFINED_ROUNDS,
            progress=False,
        )
        self._bar.update(REFINED_ROUNDS)
        edit = Edit.from_scores(refined, selection, sign=sign)
        recording = recordings[self.concept]
        judged = Expressed(sparing.timesteps, sparing.base) if sign == "positive" else objective
        targets = {self.concept: Target(judged, recording)}
        for each, recording in recordings.items():
            if each != self.concept:
                targets[each] = Target(Moved(sparing.timesteps, base=sparing.base), recording)
        moved = objectives_under(self.pipeline, edit, targets)
        left = moved.pop(self.concept)
        left_of = "concept"
        if sign == "negative":
            before = objectives_under(self.pipeline, edit, {self.concept: targets[self.concept]}, strength=0.0)
            left, left_of = left / before[self.concept], "loss"
        self._bar.update()
        return _Candidate(ratio, edit, left, moved, left_of)


def _choose(candidates: Sequence[_Candidate], sign: Sign) -> tuple[_Candidate, str]:
    """The edit to take, and why.

    To erase: the smallest that leaves at most ``ENOUGH_LEFT`` of the concept; if none does, the one that leaves least.
    To amplify: the one with the least loss left. Edits that move what is kept by more than
    ``MOST_MOVED`` are left out, unless all do: then the one that moves it least is taken.
    """
    if len(candidates) == 1:
        return candidates[0], "the ratio was given"
    gentle = [each for each in candidates if each.damage <= MOST_MOVED]
    if not gentle:
        best = min(candidates, key=lambda each: each.damage)
        return best, f"every size moves what is kept by more than {MOST_MOVED:.0%} of its prompt; this one least"
    if sign == "positive":
        enough = [each for each in gentle if each.left <= ENOUGH_LEFT]
        if enough:
            return enough[0], f"the smallest size that leaves at most {ENOUGH_LEFT:g} of the concept"
        return min(
            gentle, key=lambda each: each.left
        ), "it leaves least of the concept among those that spare what is kept"
    return min(gentle, key=lambda each: each.left), "it lowers the loss most among those that spare what is kept"


def _taking_turns(texts: Sequence[str], count: int) -> list[str]:
    return list(itertools.islice(itertools.cycle(texts), count))


def _checked(target_modules: str | Sequence[str]) -> str | Sequence[str]:
    if not isinstance(target_modules, str) and not target_modules:
        raise ValueError(f"target_modules is empty, expected a preset ({', '.join(PRESETS)}), a pattern or names")
    return target_modules


def _early(recording: Recording) -> TimestepWindow:
    """The first ``EARLY`` of the schedule, at least its first step."""
    highest = max(recording.timesteps)
    return TimestepWindow(highest, min(highest * (1 - EARLY), highest))


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


def _kept(
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
