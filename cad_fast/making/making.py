"""One edit in the making: recording, scoring, sparing, refining, and what is predicted of the result."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from .. import zoo
from ..attribution.attributor import Attributor
from ..attribution.measuring.plans import Target
from ..attribution.scores import Scores
from ..diffusion.generation import SCHEDULES, Generation
from ..diffusion.layers import PRESETS
from ..diffusion.timesteps import TimestepWindow, Window
from ..edits.damage import Expressed, Moved, objectives_under, overlap
from ..edits.edit import Edit
from ..edits.refining import refine
from ..edits.selection import Selection, Sign
from ..edits.weights import active_edits
from ..objectives import BASE_PROMPT, ConceptErasure, Objective, say_base
from ..recording.data import Recording
from ..recording.original import record_original
from ..recording.record import record, with_base
from ..recording.renoise import record_images, renoise
from .candidates import Candidate
from .concepts import prompts_of

# Objects are settled in the first steps. Over all timesteps the last ones, with the largest distances, would outweigh
# them, and edits chosen so leave the objects as they were.
EARLY = 0.15
KEPT_SAMPLES = 6
NEIGHBOUR_RATIO = 0.03
"""Of the components, the share that counts as a concept's own."""
REFINED_ROUNDS = 12
# Refining to erase aims as far beyond the base as the concept was on this side of it: edits that only cancel the
# concept leave traces, which guidance brings out again.
NEGATIVE_GUIDANCE = 1.0


@dataclass
class Making:
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
    neighbours: dict[str, dict[str, float]] = field(default_factory=dict)
    """Per kept concept, the nearest first, what it has in common with the concept."""
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
    ) -> list[Candidate]:
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
        self.neighbours = self._neighbours(scores, spared.get("keep", ()), kept, recordings)
        sensitivity = Attributor(self.pipeline, sparing, scorer.space, method="sensitivity")
        spared["sensitivity"] = [self._scores(sensitivity, recordings[each], each) for each in kept]
        aim = objective
        if isinstance(objective, ConceptErasure):
            aim = ConceptErasure(objective.base, objective.timesteps, negative_guidance=NEGATIVE_GUIDANCE)
        self.kept = {each: recordings[each].prompts for each in kept}
        self.pipeline_kwargs = dict(recordings[kept[0]].generation.arguments)
        return [self._candidate(ratio, spared, scores, recordings, objective, aim, sparing, sign) for ratio in ratios]

    def finished(
        self, chosen: Candidate, candidates: Sequence[Candidate], reason: str, sign: Sign, name: str | None
    ) -> Edit:
        """The chosen edit with how it was made and what it is predicted to do in its provenance."""
        verb = "erase" if sign == "positive" else "amplify"
        making = {
            "by": f"cad_fast.{verb}",
            "shown_by": self.shown_by,
            "keep": self.kept,
            "neighbours": self.neighbours,
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

    def _neighbours(
        self, scores: Scores, others: Sequence[Scores], kept: Sequence[str], recordings: Mapping[str, Recording]
    ) -> dict[str, dict[str, float]]:
        """What each kept concept has in common with the concept, the nearest first; the bar shows the nearest.

        "components" is the share of the top components that both have (see ``overlap``), "prompts" the cosine of their
        texts' embeddings.
        """
        found: dict[str, dict[str, float]] = {each: {} for each in kept}
        if others:
            shares = overlap([scores, *others], NEIGHBOUR_RATIO)[0, 1:].tolist()
            for each, share in zip(kept, shares, strict=True):
                found[each]["components"] = share
        texts = {each: _text_embedding(recording) for each, recording in recordings.items()}
        own = texts[self.concept]
        if own is not None and all(text is not None and text.shape == own.shape for text in texts.values()):
            centre = torch.stack([text for text in texts.values() if text is not None]).mean(0)
            for each in kept:
                text = texts[each]
                assert text is not None, "seen above"
                found[each]["prompts"] = float(torch.cosine_similarity(own - centre, text - centre, dim=0))
        ranked = sorted(kept, key=lambda each: -found[each].get("components", found[each].get("prompts", 0.0)))
        if others:
            nearest = ", ".join(f"{each} {found[each]['components']:.0%}" for each in ranked[:3])
            self._bar.set_postfix_str(f"shares most with {nearest}")
        return {each: found[each] for each in ranked}

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
    ) -> Candidate:
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
        return Candidate(ratio, edit, left, moved, left_of)


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


def _text_embedding(recording: Recording) -> Tensor | None:
    """The mean of the texts' embeddings over prompts and tokens, float32 [width]; None where there are none."""
    text = recording.calls[0].inputs.get("encoder_hidden_states")
    return text.detach().float().flatten(0, -2).mean(0) if isinstance(text, Tensor) and text.ndim >= 2 else None
