"""One edit in the making: recordings, scores, and what the model sees in the pictures that an edit draws."""

from __future__ import annotations

import contextlib
import itertools
import logging
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
from ..attribution.scores import Scores
from ..diffusion.generation import SCHEDULES, Generation
from ..diffusion.layers import PRESETS
from ..diffusion.timesteps import TimestepWindow, Window
from ..edits.damage import overlap
from ..edits.edit import Edit
from ..edits.selection import Sign
from ..edits.weights import active_edits
from ..objectives import BASE_PROMPT, ConceptErasure, Objective, say_base
from ..recording.data import Recording
from ..recording.original import record_original
from ..recording.record import record, with_base
from ..recording.renoise import record_images, renoise
from .candidates import Candidate
from .concepts import prompts_of
from .ranking import REFINED_ROUNDS, Ranking
from .recognising import recognised

# Where a concept is settled, as shares of the first timestep: the window to begin with, and one to try where no edit of
# that does enough. Over all timesteps the last ones, with the largest distances, would outweigh the first, and edits
# chosen so leave objects as they were.
EARLY = ((1.0, 0.85), (1.0, 0.65))
# What prompts add to their base prompts, such as a style, is settled after that.
LATER = ((0.85, 0.4),)
KEPT_SAMPLES = 6
NEIGHBOUR_RATIO = 0.03
"""Of the components, the share that counts as a concept's own."""
# Pictures that edits are judged by have other noise than those that they are made from.
SEEN_SEED = 100_000
KEPT_LOOKS = 3
NOTHING = ""
"""Names what is seen in a picture of none of the concepts."""

log = logging.getLogger(__name__)


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
    bases: dict[str, list[str]] = field(default_factory=dict)
    """Per concept that has some, its base prompts: what is left of each prompt without the concept."""
    _kept_before: list[str] | None = field(default=None, repr=False)
    unseen: str | None = None
    """Why the model cannot judge pictures; None where it can, or was not asked."""
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

    def say(self, doing: str) -> None:
        """Show on the bar what is being done."""
        self._bar.set_description(doing)

    def step(self, count: int = 1) -> None:
        """Move the bar on."""
        self._bar.update(count)

    def more(self, steps: int) -> None:
        """Give the bar more steps: one window was not enough."""
        self._bar.total += steps

    def record(self, texts: Sequence[str], *, of: str) -> Recording:
        """Samples of a concept, with the outputs for its base prompts; of a distilled model for an empty prompt."""
        self.say(f"recording {of}")
        drawn = _taking_turns(texts, self.samples if of == self.concept else KEPT_SAMPLES)
        recording = record(self.pipeline, drawn, seeds=self.seed, progress=False, **self.generation.to_kwargs())
        if of in self.bases:
            bases = _taking_turns(self.bases[of], recording.n_rows)
            recording = with_base(recording, self.pipeline, bases, progress=False)
        elif recording.calls[0].unconditional_output is None:
            recording = with_base(recording, self.pipeline, BASE_PROMPT, progress=False)
            if of == self.concept:
                say_base(self.erasure(recording), recording)
        self.step()
        return recording

    def originals(self, original: Any, texts: Sequence[str]) -> Recording:
        """Samples of the concept by the model as it was, whose outputs are the targets."""
        self.say(f"recording {self.concept}")
        self.shown_by = "original"
        drawn = _taking_turns(texts, self.samples)
        settings = self.generation.to_kwargs()
        recording = record_original(self.pipeline, original, drawn, seeds=self.seed, progress=False, **settings)
        self.step()
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
        self.say(f"encoding {self.concept}")
        arguments = {name: value for name, value in self.generation.arguments.items() if name not in SCHEDULES}
        recording = record_images(self.pipeline, images, captions, seed=self.seed, timesteps=timesteps, **arguments)
        self.step()
        return recording

    def erasure(self, recording: Recording, window: TimestepWindow | None = None) -> ConceptErasure:
        """The paper's objective: against the base prompt's outputs where there are some, in the window.

        Without a window it is the one asked for, else the first of ``windows``.
        """
        base = "unconditional" if recording.calls[0].base_output is None else "base"
        return ConceptErasure(base=base, timesteps=window or self.windows(recording)[0])

    def windows(self, recording: Recording) -> list[TimestepWindow]:
        """Return where to look for the concept, the most likely window first; one asked for is the only one."""
        asked = TimestepWindow.of(self.timesteps)
        if asked is not None:
            return [asked]
        highest = max(recording.timesteps)
        shares = EARLY if self.concept not in self.bases else LATER
        return [TimestepWindow(highest * top, min(highest * bottom, highest * top)) for top, bottom in shares]

    def ranking(self, recordings: Mapping[str, Recording], objective: Objective, sign: Sign) -> Ranking:
        """Score the concept and those to keep, for edits of any size."""
        kept = [each for each in recordings if each != self.concept]
        window = objective.timesteps
        scorer = Attributor(self.pipeline, objective, target_modules=_checked(self.target_modules))
        scores = self._scores(scorer, recordings[self.concept], self.concept)
        # Of the kept ones there are outputs and no targets: what they need is measured on those.
        sparing = {each: self._sparing(recordings[each], window) for each in kept}
        spared: dict[str, Any] = {}
        if sign == "positive":
            spared["keep"] = [
                self._scores(Attributor(self.pipeline, sparing[each], scorer.space), recordings[each], each)
                for each in kept
            ]
        else:
            # What suppresses the concept is not what the others are drawn by: only the damage to them counts.
            self.step(len(kept))
        self.neighbours = self._neighbours(scores, spared.get("keep", ()), kept, recordings)
        spared["sensitivity"] = [
            self._scores(
                Attributor(self.pipeline, sparing[each], scorer.space, method="sensitivity"), recordings[each], each
            )
            for each in kept
        ]
        self.kept = {each: recordings[each].prompts for each in kept}
        self.pipeline_kwargs = dict(recordings[kept[0]].generation.arguments)
        return Ranking(self.pipeline, self.concept, recordings, scores, spared, objective, sparing, sign)

    def _sparing(self, recording: Recording, window: TimestepWindow | None) -> ConceptErasure:
        base = "unconditional" if recording.calls[0].base_output is None else "base"
        return ConceptErasure(base=base, timesteps=window)

    def candidate(self, ranking: Ranking, ratio: float) -> Candidate:
        """Refine an edit of one size, and predict what it does."""
        self.say(f"refining {ratio:.0%}")
        found = ranking.candidate(ratio)
        self.step(REFINED_ROUNDS + 1)
        return found

    def seen(self, edit: Edit, prompts: Mapping[str, Sequence[str]]) -> float | None:
        """The share of pictures drawn under the edit in which the intact model sees the concept (see ``recognised``).

        Where it is seen in none of ``samples`` pictures, as many more are drawn: few pictures do not tell none from a
        few. None where the model cannot judge: ``unseen`` then says why, and a line in the log once.
        """
        names: list[str] = []
        for first in (0, self.samples):
            if self.unseen is None and self.concept not in names:
                self.say(f"looking at pictures of {edit.n_weights:,} weights less")
                names += self._seen_in(edit, prompts, self.seed + SEEN_SEED + first)
        return names.count(self.concept) / len(names) if names else None

    def kept_in(self, edit: Edit, prompts: Mapping[str, Sequence[str]]) -> float | None:
        """Of the kept concept that fares worst, the share of its pictures in which the model still sees it.

        ``KEPT_LOOKS`` pictures of each kept concept, with the same noise before and after; only those in which it was
        seen before count. None where the model cannot judge, or saw nothing of what is kept before.
        """
        self.say(f"looking at what {edit.n_weights:,} weights less leave")
        wanted = [each for each in self.kept for _ in range(KEPT_LOOKS)]
        texts = [prompts[each][row % len(prompts[each])] for row, each in enumerate(wanted)]
        seed = self.seed + SEEN_SEED
        if self._kept_before is None:
            self._kept_before = self._names(texts, prompts, seed, None)
        after = self._names(texts, prompts, seed, edit)
        if not after:
            return None
        still: dict[str, list[bool]] = {}
        for each, was, now in zip(wanted, self._kept_before, after, strict=True):
            if was == each:
                still.setdefault(each, []).append(now == each)
        return min((sum(seen) / len(seen) for seen in still.values()), default=None)

    def _seen_in(self, edit: Edit, prompts: Mapping[str, Sequence[str]], seed: int) -> list[str]:
        """Which concept the intact model sees in each of ``samples`` pictures; empty where it cannot judge."""
        return self._names(_taking_turns(prompts[self.concept], self.samples), prompts, seed, edit)

    def _names(
        self, texts: Sequence[str], prompts: Mapping[str, Sequence[str]], seed: int, edit: Edit | None
    ) -> list[str]:
        """Which concept the intact model sees in pictures of these texts; empty where it cannot judge."""
        if self.unseen is not None:
            return []
        with contextlib.nullcontext() if edit is None else edit.applied(self.pipeline):
            drawn = record(self.pipeline, texts, seeds=seed, progress=False, **self.generation.to_kwargs())
        nothing = self.bases.get(self.concept, [BASE_PROMPT])
        try:
            return recognised(self.pipeline, drawn, {**prompts, NOTHING: nothing}, seed=seed)
        except ValueError as error:
            self.unseen = str(error)
            log.warning("the edit's pictures are not looked at, only its outputs are predicted: %s", error)
            return []

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
            "base_prompts": self.bases,
            "pipeline_kwargs": self.pipeline_kwargs,
            "candidates": [candidate.to_dict() for candidate in candidates],
            "chosen_because": reason,
            "not_looked_at": self.unseen,
        }
        provenance = {**chosen.edit.provenance, "making": making, "predicted": chosen.to_dict()}
        return replace(chosen.edit, name=name or chosen.edit.name, provenance=provenance)

    def _scores(self, attributor: Attributor, recording: Recording, of: str) -> Scores:
        self.say(f"scoring {of}")
        scores = attributor.run(recording, concept=of, progress=False)
        self.step()
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


def _taking_turns(texts: Sequence[str], count: int) -> list[str]:
    return list(itertools.islice(itertools.cycle(texts), count))


def _checked(target_modules: str | Sequence[str]) -> str | Sequence[str]:
    if not isinstance(target_modules, str) and not target_modules:
        raise ValueError(f"target_modules is empty, expected a preset ({', '.join(PRESETS)}), a pattern or names")
    return target_modules


def _text_embedding(recording: Recording) -> Tensor | None:
    """The mean of the texts' embeddings over prompts and tokens, float32 [width]; None where there are none."""
    text = recording.calls[0].inputs.get("encoder_hidden_states")
    return text.detach().float().flatten(0, -2).mean(0) if isinstance(text, Tensor) and text.ndim >= 2 else None
