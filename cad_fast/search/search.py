"""Search over rules, ratios and strengths for the least damaging edit within a budget."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..attribution.attributor import Attributor
from ..attribution.measuring.plans import Target
from ..attribution.scores import Scores
from ..components.space import ComponentSpace
from ..diffusion.arguments import scheduler_config_of
from ..diffusion.denoisers import denoiser_of
from ..diffusion.generation import Generation
from ..diffusion.timesteps import Window
from ..edits.damage import Moved, objectives_under
from ..edits.edit import Edit
from ..edits.refining import refine
from ..edits.selection import Selection
from ..edits.weights import intact_fingerprint
from ..evaluation import evaluate
from ..evaluation.comparison import Comparison, compare
from ..evaluation.outcomes import Evaluation
from ..evaluation.prompts import PromptSet
from ..evaluation.scorers import Scorer
from ..files import read_json, require_writable_folder, write_json
from ..objectives import BASE_PROMPT, ConceptErasure, say_base
from ..recording.data import Recording
from ..recording.record import record, with_base
from .budget import RULES, Budget, Rule, order_to_try, shortfall_text

# Pictures for choosing and for confirming come from streams of their own (see ``image_seed``).
CHOOSING, CONFIRMING = 0, 1


@dataclass(frozen=True)
class Candidate:
    """An edit that might be within the budget, and what is known of it before it is applied.

    ``left``: J of the target under the edit, relative to before. ``moved``: per kept concept, see ``replayed_damage``.
    """

    rule: Rule
    ratio: float
    strength: float
    edit: Edit
    left: float
    moved: dict[str, float]

    @property
    def damage(self) -> float:
        """The mean over the kept concepts of what the edit moves."""
        return sum(self.moved.values()) / len(self.moved)

    def settings(self) -> dict[str, Any]:
        return {"rule": self.rule.name, "ratio": self.ratio, "strength": self.strength}


@dataclass(frozen=True)
class Tried:
    """A candidate, what its pictures showed on the seeds for choosing, and by how much it missed the budget."""

    candidate: Candidate
    comparison: Comparison
    missed: dict[str, float]


@dataclass
class SearchResult:
    """The outcome of a search: the edit, whether it is within the budget on seeds that did not choose it, and how not.

    ``comparison`` and ``missed`` are of the confirming pictures, ``tried`` of the choosing ones.
    """

    candidate: Candidate
    edit: Edit
    comparison: Comparison
    before: Evaluation
    after: Evaluation
    missed: dict[str, float]
    tried: list[Tried]

    @property
    def met(self) -> bool:
        return not self.missed

    def to_dict(self) -> dict[str, Any]:
        return {
            "met": self.met,
            "missed": self.missed,
            "chosen": self.candidate.settings(),
            "comparison": self.comparison.to_dict(),
            "tried": [
                {
                    **tried.candidate.settings(),
                    "left": tried.candidate.left,
                    "moved": tried.candidate.moved,
                    "target_after": tried.comparison.target.after,
                    "missed": tried.missed,
                }
                for tried in self.tried
            ],
        }


@dataclass
class EditSearch:
    """Looks for the edit that erases a concept within ``budget`` and moves the others least.

    ``scores``, ``sensitivity`` and ``recordings`` per concept, as ``prepare`` makes them; ``recordings`` holds the
    target's and those of the concepts to keep. There is a candidate for every rule, ratio and strength. ``candidates``
    says what each is predicted to do, without a picture; ``run`` draws pictures, bisecting each rule's candidates from
    the least to the most damaging, and confirms the least damaging one within the budget (or the one that misses it
    least) on other seeds. ``generation`` is of all these pictures. With ``output_dir`` every evaluation for choosing is
    saved there, and a search that was stopped goes on.
    """

    pipeline: Any
    budget: Budget
    prompts: PromptSet
    scorer: Scorer
    scores: Mapping[str, Scores]
    sensitivity: Mapping[str, Scores]
    recordings: Mapping[str, Recording]
    objective: ConceptErasure
    rules: Sequence[Rule] = RULES
    ratios: Sequence[float] = (0.01, 0.02, 0.03, 0.06)
    strengths: Sequence[float] = (1.0,)
    per_concept: int = 8
    confirming: int = 16
    seed: int = 0
    output_dir: Path | None = None
    generation: Generation = field(default_factory=Generation)
    progress: bool = True
    _before: dict[int, Evaluation] = field(default_factory=dict)
    _refined: dict[tuple[Rule, float], Scores] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.concepts = self.budget.concepts(self.prompts)
        self.budget.require_judged(self.prompts, self.scorer.axes)
        for name, listed in (("rules", self.rules), ("ratios", self.ratios), ("strengths", self.strengths)):
            if not listed:
                raise ValueError(f"no {name} were given for the search")
        for name in self.concepts:
            if name not in self.recordings:
                raise ValueError(f"the search has no recording of {name!r}")
        if self.output_dir is not None:
            self.output_dir = require_writable_folder(self.output_dir)
            self._require_same_search(self.output_dir / "settings.json")

    def _require_same_search(self, path: Path) -> None:
        """Raises ValueError naming what differs when the folder holds pictures judged under other settings."""
        settings = {
            "concepts": list(self.concepts),
            "prompts": [entry.prompt for entry in self.prompts],
            "per_concept": self.per_concept,
            "seed": self.seed,
            "scorer": getattr(self.scorer, "name", type(self.scorer).__name__),
            "model": intact_fingerprint(denoiser_of(self.pipeline)).to_dict(),
            "scheduler": scheduler_config_of(self.pipeline),
            **self.generation.to_dict(),
        }
        mine = json.loads(json.dumps(settings))  # as it is read back
        if not path.exists():
            write_json(path, mine)
            return
        theirs = {"pipeline_kwargs": {}, **read_json(path)}  # older folders do not name that there are none
        different = [key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key)]
        if different:
            key = different[0]
            hidden = key in ("model", "scheduler")
            was, now = ("another" if hidden else repr(value.get(key)) for value in (theirs, mine))
            raise ValueError(f"{path.parent} holds a search whose {key} is {was}, not {now}: choose another folder")

    @classmethod
    def prepare(
        cls,
        pipeline: Any,
        budget: Budget,
        prompts: PromptSet,
        scorer: Scorer,
        *,
        target_modules: str | Sequence[str] | None = None,
        timesteps: Window | None = None,
        samples: int = 6,
        generation: Generation | None = None,
        progress: bool = True,
        **arguments: Any,
    ) -> EditSearch:
        """Record ``samples`` trajectories of the target and of every kept concept, and score them.

        ``generation`` is of these trajectories, and of the pictures that are drawn later. With guidance off the outputs
        for the empty prompt stand for the unconditional ones, and a warning is logged. Cost: the recordings, and two
        forward and backward passes of their rows in the window ``timesteps``, a TimestepWindow or two timesteps in
        either order.
        """
        concepts = budget.concepts(prompts)
        budget.require_judged(prompts, scorer.axes)
        objective = ConceptErasure(timesteps=timesteps)
        generation = Generation.of(generation)
        space = ComponentSpace.of(pipeline, "weight", target_modules)
        scores, sensitivity, recordings = {}, {}, {}
        axis = prompts.axes[0]
        for concept in tqdm(concepts, desc="scoring", unit="concept", disable=not progress):
            texts = [entry.prompt for entry in prompts.of(axis, concept)]
            recording = record(
                pipeline,
                list(itertools.islice(itertools.cycle(texts), samples)),
                seeds=0,
                progress=False,
                **generation.to_kwargs(),
            )
            if recording.calls[0].unconditional_output is None:
                recording = with_base(recording, pipeline, BASE_PROMPT, progress=False)
                if objective.chooses_base:  # the first of them
                    say_base(objective, recording)
                objective = ConceptErasure("base", timesteps)
            recordings[concept] = recording
            first = Attributor(pipeline, objective, space)
            scores[concept] = first.run(recording, concept=concept, progress=False)
            if concept != budget.erase:
                second = Attributor(pipeline, objective, space, method="sensitivity")
                sensitivity[concept] = second.run(recording, concept=concept, progress=False)
        return cls(
            pipeline,
            budget,
            prompts,
            scorer,
            scores,
            sensitivity,
            recordings,
            objective,
            generation=generation,
            progress=progress,
            **arguments,
        )

    def candidates(self) -> list[Candidate]:
        """Every candidate, by rule, then by predicted damage. Nothing is applied."""
        grid = list(itertools.product(self.rules, self.ratios, self.strengths))
        candidates: list[Candidate] = []
        for rule, ratio, strength in tqdm(grid, desc="predicting", unit="edit", disable=not self.progress):
            candidates.append(self._candidate(rule, ratio, strength))
        order = list(self.rules)
        return sorted(candidates, key=lambda candidate: (order.index(candidate.rule), candidate.damage))

    def _candidate(self, rule: Rule, ratio: float, strength: float) -> Candidate:
        target = self.budget.erase
        kept = [name for name in self.concepts if name != target]
        selection = Selection(
            ratio,
            keep=[self.scores[name] for name in kept] if rule.keep_weight else (),
            keep_weight=rule.keep_weight,
            sensitivity=() if rule.exponent is None else [self.sensitivity[name] for name in kept],
            exponent=rule.exponent or 0.0,
        )
        scores = self._refined_scores(rule, ratio, selection) if rule.refined else self.scores[target]
        edit = Edit.from_scores(scores, selection, factor=1 - strength)
        targets = {
            name: Target(Moved(self.objective.timesteps, self.objective.base), self.recordings[name]) for name in kept
        }
        values = objectives_under(
            self.pipeline, edit, {target: Target(self.objective, self.recordings[target]), **targets}
        )
        intact = float(self.scores[target].provenance["intact_j"])
        return Candidate(rule, ratio, strength, edit, values.pop(target) / intact, values)

    def _refined_scores(self, rule: Rule, ratio: float, selection: Selection) -> Scores:
        """The target's scores refined for an edit of this size: the same ones at every strength."""
        if (rule, ratio) not in self._refined:
            target = self.budget.erase
            away = ConceptErasure(self.objective.base, self.objective.timesteps, negative_guidance=1.0)
            self._refined[rule, ratio] = refine(
                self.pipeline,
                self.recordings[target],
                self.scores[target],
                selection,
                objective=away,
                progress=False,
            )
        return self._refined[rule, ratio]

    def run(self, candidates: Sequence[Candidate] | None = None) -> SearchResult:
        """Draw, compare with the budget, and confirm. The pipeline is unedited afterwards.

        ``candidates``: those of ``candidates``, or some of them. Raises ValueError when there are none.
        """
        candidates = self.candidates() if candidates is None else candidates
        tried: list[Tried] = []
        for rule in self.rules:
            of_rule = sorted((each for each in candidates if each.rule == rule), key=lambda each: each.damage)
            missed: list[dict[str, float] | None] = [None] * len(of_rule)
            while (number := order_to_try(missed, self.budget.erase)) is not None:
                tried.append(self._try(of_rule[number]))
                missed[number] = tried[-1].missed
        if not tried:
            raise ValueError(f"none of the {len(candidates)} candidates is of the search's rules")
        best = min(tried, key=_merit)
        comparison, before, after = self._drawn(best.candidate.edit, CONFIRMING)
        edit = replace(
            best.candidate.edit, provenance={**best.candidate.edit.provenance, "budget": self.budget.to_dict()}
        )
        shortfalls = self.budget.shortfalls(comparison)
        return SearchResult(best.candidate, edit, comparison, before, after, shortfalls, tried)

    def _try(self, candidate: Candidate) -> Tried:
        comparison, _, _ = self._drawn(candidate.edit, CHOOSING)
        return Tried(candidate, comparison, self.budget.shortfalls(comparison))

    def _drawn(self, edit: Edit, stream: int) -> tuple[Comparison, Evaluation, Evaluation]:
        """(the comparison, before, after) on the pictures of one stream of seeds."""
        if stream not in self._before:
            self._before[stream] = self._evaluation(None, stream)
        after = self._evaluation(edit, stream)
        return compare(self._before[stream], after, self.budget.erase), self._before[stream], after

    def _evaluation(self, edit: Edit | None, stream: int) -> Evaluation:
        def draw() -> Evaluation:
            return evaluate(
                self.pipeline,
                self.prompts,
                self.scorer,
                concepts=self.concepts,
                edit=edit,
                per_concept=self.per_concept if stream == CHOOSING else self.confirming,
                seed=2 * self.seed + stream,
                keep_images=stream == CONFIRMING,  # for the sheet
                progress=self.progress,
                generation=self.generation,
            )

        if self.output_dir is None or stream == CONFIRMING:
            return draw()
        path = self.output_dir / f"choosing-{'before' if edit is None else edit.digest()[:16]}.json"
        if path.exists():
            return Evaluation.load(path)
        drawn = draw()
        drawn.save(path)
        return drawn


def _merit(tried: Tried) -> tuple[float, float]:
    """The lower the better: what is missed of the budget, then what is predicted to be moved."""
    return sum(tried.missed.values()), tried.candidate.damage


def predicted_table(candidates: Sequence[Candidate]) -> str:
    """What each candidate is predicted to do, one line each, before any is applied."""
    lines = ["rule                            ratio  strength  target's J  others moved  most moved"]
    for candidate in candidates:
        most = max(candidate.moved, key=lambda name: candidate.moved[name])
        lines.append(
            f"{candidate.rule.name:<30} {100 * candidate.ratio:>5.1f}% {candidate.strength:>9g} "
            f"{candidate.left:>11.2f} {candidate.damage:>13.3f}  {most} {candidate.moved[most]:.3f}"
        )
    return "\n".join(lines)


def tried_table(result: SearchResult, budget: Budget) -> str:
    """What was drawn on the seeds for choosing, one line each."""
    lines = []
    for tried in result.tried:
        candidate = tried.candidate
        lines.append(
            f"{candidate.rule.name:<30} {100 * candidate.ratio:>5.1f}% {candidate.strength:>9g}  "
            f"{shortfall_text(tried.missed, budget.erase)}"
        )
    return "\n".join(lines)
