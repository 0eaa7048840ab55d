"""Erasing and amplifying the demo models' concepts: the steps that the demo and the published tables share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..attribution.attributor import Attributor
from ..attribution.scores import Scores
from ..diffusion.denoisers import denoiser_of
from ..diffusion.generation import Generation
from ..diffusion.layers import match_modules
from ..diffusion.structure import layer_roles
from ..diffusion.timesteps import TimestepWindow
from ..edits import Edit, Selection, refine
from ..evaluation import evaluate
from ..evaluation.comparison import Comparison, compare
from ..evaluation.outcomes import Evaluation
from ..objectives import ConceptErasure, DenoisingLoss
from ..recording.data import Recording
from ..recording.record import record, with_base
from ..recording.renoise import record_images
from ..zoo import load, name_of, opened, pictures, prompts, scorer
from ..zoo.concepts import OBJECTS, STYLES, caption, generation
from ..zoo.prompt_set import emoji_prompts

# Attribution draws from seeds 0, 1, ...; evaluation from another stream altogether (see evaluation.image_seed).
ATTRIBUTION_SEED = 0
EVALUATION_SEED = 1000
CROSS_ATTENTION = "cross-attention-kv"
FEED_FORWARD = "feed-forward"
ROWS_PER_PASS = 40
# Trajectories per object for first-order scores, and for the object that is erased, whose scores are then refined.
SAMPLES = 6
REFINING_SAMPLES = 12
# Random signs per row for sensitivities.
PROBES = 2
# Refining aims as far beyond the unconditional output as the concept was on this side of it: edits that only cancel the
# concept leave traces, which guidance brings out again.
NEGATIVE_GUIDANCE = 1.0
# How much the other objects' needs count when one is erased (chosen on seeds that no table uses).
KEEP_WEIGHT = 0.5
# How much what the others' outputs would lose counts in the ranking (see ``against_damage``).
EXPONENT = 0.5
STYLE_MODULES = "cross-attention"
STYLE_ROUNDS = 8


@dataclass(frozen=True)
class Windows:
    """When a model settles what it draws.

    Attributes:
        objects: The first steps. Over all timesteps the last ones, with the largest distances, would outweigh them,
            and edits chosen so leave the objects as they were.
        styles: The steps after those: a style is what its prompts add to the object's.
    """

    objects: TimestepWindow
    styles: TimestepWindow


# A straight path from noise to data has less noise at the same timestep than Stable Diffusion's schedule, so objects
# are settled later.
WINDOWS = {
    "emoji": Windows(TimestepWindow(1000, 850), TimestepWindow(849, 400)),
    "emoji-flow": Windows(TimestepWindow(1000, 700), TimestepWindow(699, 300)),
}


@dataclass
class Study:
    """An embedded pipeline, its scorer, and evaluations that are all made on the same seeds.

    ``generation``, ``windows`` and ``objective`` are the model's own; ``both`` are the modules that scores are of, the
    keys and values that read the text, and the feed-forward layers. Raises ValueError for a pipeline that is not the
    zoo's.
    """

    per_concept: int = 16
    progress: bool = True
    seed: int = EVALUATION_SEED
    pipeline: Any = field(default_factory=load)
    scorer: Any = field(default_factory=scorer)
    generation: Generation = field(init=False)
    windows: Windows = field(init=False)
    objective: ConceptErasure = field(init=False)
    both: list[str] = field(init=False)
    _recordings: dict[Any, Recording] = field(default_factory=dict)
    _sensitivities: dict[str, Scores] = field(default_factory=dict)

    def __post_init__(self) -> None:
        name = name_of(self.pipeline)
        if name is None:
            raise ValueError("the pipeline is none of the zoo's: load it with cad_fast.zoo.load")
        self.generation, self.windows = generation(name), WINDOWS[name]
        self.objective = ConceptErasure(timesteps=self.windows.objects)
        roles = layer_roles(denoiser_of(self.pipeline))
        self.both = [
            path
            for modules in (CROSS_ATTENTION, FEED_FORWARD)
            for path in match_modules(denoiser_of(self.pipeline), modules, roles)
        ]

    def evaluate(self, edit: Edit | None = None, strength: float = 1.0, **settings: Any) -> Evaluation:
        """Pictures of every object, with ``edit`` or without."""
        arguments = {
            "per_concept": self.per_concept,
            "seed": self.seed,
            "generation": self.generation,
            "progress": self.progress,
            **settings,
        }
        return evaluate(self.pipeline, emoji_prompts(), self.scorer, edit=edit, strength=strength, **arguments)

    def record(self, objects: Sequence[str], samples: int) -> Recording:
        """``samples`` trajectories of each object, one object after the other, spread over the styles."""
        texts = [prompts(obj)[i % len(prompts(obj))] for obj in objects for i in range(samples)]
        return record(
            self.pipeline,
            texts,
            seeds=ATTRIBUTION_SEED,
            batch_size=24,
            progress=self.progress,
            **self.generation.to_kwargs(),
        )

    def attribute(self, objects: Sequence[str] = OBJECTS, samples: int = SAMPLES) -> dict[str, Scores]:
        """First-order scores of the cross-attention keys and values and of the feed-forward weights, per object."""
        return self._scored(Attributor(self.pipeline, self.objective, target_modules=self.both), objects, samples)

    def sensitivities(self, objects: Sequence[str] = OBJECTS, samples: int = SAMPLES) -> dict[str, Scores]:
        """How far the removal of each of these weights moves the outputs, per object; computed once."""
        missing = [obj for obj in objects if obj not in self._sensitivities]
        if missing:
            attributor = Attributor(
                self.pipeline, self.objective, target_modules=self.both, method="sensitivity", probes=PROBES
            )
            self._sensitivities |= self._scored(attributor, objects, samples)
        return {obj: self._sensitivities[obj] for obj in objects}

    def _scored(self, attributor: Attributor, objects: Sequence[str], samples: int) -> dict[str, Scores]:
        """From one recording of all objects, kept for the next attributor."""
        key = (*objects, samples)
        if key not in self._recordings:
            self._recordings[key] = self.record(objects, samples)
        scores = {}
        for number, obj in enumerate(objects):
            of_object = self._recordings[key].select(rows=range(number * samples, (number + 1) * samples))
            rows = ROWS_PER_PASS if attributor.method == "gradient" else None
            scores[obj] = attributor.run(of_object, concept=obj, rows_per_pass=rows, progress=self.progress)
        return scores

    def attribute_drawing(self, obj: str) -> Scores:
        """Scores for drawing ``obj`` like its real pictures: J is minus the denoising loss on them."""
        files, captions = zip(*pictures(obj), strict=True)
        images = opened(files)
        recording = record_images(
            self.pipeline,
            images,
            list(captions),
            timesteps=self.generation.num_inference_steps,
            seed=ATTRIBUTION_SEED,
            **self.generation.arguments,
        )
        attributor = Attributor(self.pipeline, DenoisingLoss(), target_modules=self.both)
        return attributor.run(recording, concept=obj, rows_per_pass=ROWS_PER_PASS, progress=self.progress)

    def erased(
        self,
        scores: dict[str, Scores],
        obj: str,
        ratio: float,
        modules: str = CROSS_ATTENTION,
        keep_weight: float = KEEP_WEIGHT,
    ) -> Edit:
        """An edit that erases ``obj``, sparing what the other objects' scores and outputs say they need."""
        others = [name for name in scores if name != obj]
        sensitivities = self.sensitivities(tuple(scores))
        selection = Selection(
            ratio,
            keep=[scores[name].of_modules(modules) for name in others] if keep_weight else [],
            keep_weight=keep_weight,
            sensitivity=[sensitivities[name].of_modules(modules) for name in others],
            exponent=EXPONENT,
        )
        refined = refine(
            self.pipeline,
            self.recordings(obj),
            scores[obj].of_modules(modules),
            selection,
            objective=ConceptErasure(timesteps=self.windows.objects, negative_guidance=NEGATIVE_GUIDANCE),
            progress=self.progress,
        )
        return Edit.from_scores(refined, selection, name=f"{obj}-erase")

    def erased_style(self, style: str, ratio: float, rounds: int = STYLE_ROUNDS) -> Edit:
        """An edit that erases ``style``, what its prompts add to the objects alone, and spares the other styles."""
        window: dict[str, Any] = {"timesteps": self.windows.styles, "base": "base"}
        recordings = {name: self._record_style(name) for name in STYLES}
        of_method = {}
        for method in ("gradient", "sensitivity"):
            attributor = Attributor(
                self.pipeline, ConceptErasure(**window), target_modules=STYLE_MODULES, method=method
            )
            of_method[method] = {
                name: attributor.run(recording, concept=name, progress=self.progress)
                for name, recording in recordings.items()
            }
        others = [name for name in STYLES if name != style]
        selection = Selection(
            ratio,
            keep=[of_method["gradient"][name] for name in others],
            keep_weight=KEEP_WEIGHT,
            sensitivity=[of_method["sensitivity"][name] for name in others],
            exponent=EXPONENT,
        )
        refined = refine(
            self.pipeline,
            recordings[style],
            of_method["gradient"][style],
            selection,
            objective=ConceptErasure(**window, negative_guidance=NEGATIVE_GUIDANCE),
            rounds=rounds,
            progress=self.progress,
        )
        return Edit.from_scores(refined, selection, name=f"{style}-erase")

    def _record_style(self, style: str) -> Recording:
        """One trajectory per object in ``style``, with the outputs for the object alone as the base."""
        recording = record(
            self.pipeline,
            prompts(style),
            seeds=ATTRIBUTION_SEED,
            batch_size=24,
            progress=self.progress,
            **self.generation.to_kwargs(),
        )
        return with_base(recording, self.pipeline, [caption(obj) for obj in OBJECTS], progress=self.progress)

    def recordings(self, obj: str) -> Recording:
        """The trajectories that edits of an object are refined on; recorded once."""
        key = (obj, REFINING_SAMPLES)
        if key not in self._recordings:
            self._recordings[key] = self.record([obj], REFINING_SAMPLES)
        return self._recordings[key]

    def amplified(self, scores: Scores, ratio: float, modules: str = CROSS_ATTENTION) -> Edit:
        """An edit that removes what stands in the way of the scores' concept."""
        return Edit.from_scores(
            scores.of_modules(modules), Selection(ratio), sign="negative", name=f"{scores.concept}-amplify"
        )

    def compare(self, before: Evaluation, edit: Edit, target: str, **settings: Any) -> tuple[Comparison, Evaluation]:
        """Evaluate ``edit`` on the seeds of ``before``; ``settings`` as for ``evaluate``."""
        after = self.evaluate(edit, **settings)
        return compare(before, after, target), after
