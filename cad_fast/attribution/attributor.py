"""One interface for all ways to estimate scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor

from ..components.ablation import Ablation
from ..components.space import ComponentSpace, Kind
from ..diffusion.denoisers import denoiser_of
from ..diffusion.generation import NAMED, Generation
from ..objectives import ConceptErasure, Objective, fitted
from ..recording.data import Recording
from ..recording.record import record
from .held_out import held_out
from .measuring.measure import objective_under_ablations
from .measuring.plans import ROWS_PER_PASS, Target
from .methods.base import Method
from .methods.registry import default_method, make_estimator
from .run import run_many, run_one
from .scores import Scores
from .settings import RunOptions
from .trust import Trust

# Of the fields of RunOptions, those that a check of scores has too.
CHECK_SETTINGS = ("rows_per_pass", "holdout_fractions", "progress", "executor", "workers")


class Attributor:
    """Estimate scores of components of a pipeline's denoiser for an objective.

    ::

        attributor = cad_fast.Attributor(pipeline, kind="neuron")
        scores = attributor.run(recording, holdout=120, output_dir="runs/cat")

    The methods:

    - "gradient": first order at the intact network (CAD). One forward and backward pass of the recording.
    - "ablated_gradient": gradients at randomly ablated networks. 1 / ``fraction`` times that cost, several ablations
      per pass, and far closer to what ablations do.
    - "second_order": as many rows, shared out by how much J there is. Their gradients also tell how J bends. Single
      weights only; the predictions that come closest.
    - "regression": a linear fit of J on ``ablations`` random ablations (COAR). Forward passes only.
    - "exact": each component ablated alone, for small component spaces.
    - "sensitivity": not an effect on J but how far a component's removal moves the output, for ``sensitivity`` of
      ``erase``: what concepts to keep would lose. Of the objective it uses the timesteps only.

    Args:
        pipeline: A diffusers pipeline, or a denoiser.
        objective: What J is. None for ``ConceptErasure()``. With guidance off, that compares with the outputs for a
            base prompt, which the pipeline adds where a recording has none (see ``objectives.fitted``).
        components: The components. None makes a space from ``kind`` and ``target_modules``.
        kind: "weight", "neuron", "filter" or "head".
        target_modules: A preset, a pattern or a list of modules. None for the kind's default.
        method: One of the above. None for "gradient" for single weights and "ablated_gradient" for other kinds (see
            ``default_method``).
        **options: The options of the method, see ``attribution.methods``.

    Raises:
        TypeError: The method has no such option.
        ValueError: The method, kind or module pattern is unknown.
    """

    def __init__(
        self,
        pipeline: Any,
        objective: Objective | None = None,
        components: ComponentSpace | None = None,
        *,
        kind: Kind = "weight",
        target_modules: str | Sequence[str] | None = None,
        method: Method | None = None,
        **options: Any,
    ) -> None:
        self.pipeline = pipeline
        self.denoiser = denoiser_of(pipeline)
        self.objective = objective or ConceptErasure()
        self.space = components or ComponentSpace.of(self.denoiser, kind, target_modules)
        self.estimator = make_estimator(method or default_method(self.space.kind, self.space.n), options)
        self._based: WeakKeyDictionary[Recording, Recording] = WeakKeyDictionary()

    @property
    def method(self) -> Method:
        return self.estimator.name

    def run(
        self,
        recording: Recording,
        *,
        concept: str | None = None,
        options: RunOptions | None = None,
        **settings: Any,
    ) -> Scores:
        """Score every component from a recording.

        Args:
            recording: Denoiser calls of this model.
            concept: The name that the scores carry. None for the first prompt.
            options: How to run it. None for the defaults.
            **settings: Fields of ``RunOptions``. They replace those of ``options``.

        Raises:
            FileExistsError: An unfinished run lies in ``output_dir`` and ``resume`` is False.
            TypeError: A setting is unknown.
            ValueError: A setting is out of range or does not go with the method. Or the recording is of another model,
                of this one before it was edited, or lacks what the objective needs.
        """
        return run_one(
            self.denoiser,
            self.space,
            self.estimator,
            self._target(self.objective, recording),
            RunOptions.of(options, **settings),
            concept=concept or recording.prompts[0],
        )

    def run_many(
        self,
        concepts: Mapping[str, Recording | tuple[Objective, Recording]],
        *,
        options: RunOptions | None = None,
        **settings: Any,
    ) -> dict[str, Scores]:
        """Score every component for many concepts.

        Methods of ablations ("regression", "exact") measure all concepts under the same ones: concepts with one
        recording share its passes, and different recordings go through the denoiser beside each other. One
        factorisation serves all. ``stop_when`` ends the run when every concept has reached r. Methods of gradients take
        the concepts one after another.

        Args:
            concepts: Per concept its recording, or its objective (in place of the attributor's) and recording.
            options: As for ``run``. With ``output_dir`` the scores are saved there, numbered, with ``concepts.json``
                to say which is whose.
            **settings: As for ``run``.

        Raises:
            FileExistsError, ValueError: As ``run``, or there are no concepts.
            TypeError: As ``run``, or a concept is neither of the two.
        """
        pairs = {concept: _pair(value, self.objective) for concept, value in concepts.items()}
        targets = {concept: self._target(*pair) for concept, pair in pairs.items()}
        return run_many(self.denoiser, self.space, self.estimator, targets, RunOptions.of(options, **settings))

    def check(
        self,
        scores: Scores,
        recording: Recording,
        ablations: int = 200,
        *,
        seed: int = 0,
        options: RunOptions | None = None,
        **settings: Any,
    ) -> list[Trust]:
        """Measure how well scores predict J under fresh random ablations.

        Args:
            scores: Scores over this attributor's components, of any method.
            recording: What to measure J on.
            ablations: How many ablations of each of ``holdout_fractions``.
            seed: Draws other ablations.
            options: As for ``run``. Of them rows_per_pass, holdout_fractions, progress, executor and workers count.
            **settings: These fields, as for ``run``.

        Returns:
            One ``Trust`` per fraction.

        Raises:
            TypeError: A setting is unknown, or is not for a check.
            ValueError: The scores are over other components.
        """
        for name in settings:
            if name not in CHECK_SETTINGS:
                raise TypeError(f"a check has no setting {name!r}; it has: {', '.join(CHECK_SETTINGS)}")
        run = RunOptions.of(options, **settings)
        if scores.space != self.space:
            raise ValueError(f"the scores are over {scores.space}, expected {self.space}")
        return held_out(
            self.denoiser,
            {scores.concept: self._target(self.objective, recording)},
            self.space,
            [scores],
            ablations,
            run.holdout_fractions,
            seed=seed,
            rows_per_pass=run.rows_per_pass or ROWS_PER_PASS,
            progress=run.progress,
            executor=run.executor,
            workers=run.workers,
        )[0]

    def measured(
        self,
        recording: Recording,
        ablations: Sequence[Ablation],
        *,
        rows_per_pass: int = ROWS_PER_PASS,
        progress: bool = True,
    ) -> Tensor:
        """Measure J under each ablation; float64 [len(ablations)]."""
        target = self._target(self.objective, recording)
        return objective_under_ablations(
            self.denoiser,
            target.recording,
            target.objective,
            self.space,
            ablations,
            rows_per_pass=rows_per_pass,
            progress=progress,
        )

    def _target(self, objective: Objective, recording: Recording) -> Target:
        """What is measured. Outputs for the empty prompt are added to a recording once."""
        objective, measured = fitted(objective, self._based.get(recording, recording), self.pipeline)
        if measured is not recording:
            self._based[recording] = measured
        return Target(objective, measured)


def _pair(value: Recording | tuple[Objective, Recording], objective: Objective) -> tuple[Objective, Recording]:
    if isinstance(value, Recording):
        return objective, value
    if not (isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], Recording)):
        raise TypeError(f"a concept needs a Recording or (Objective, Recording), got {type(value).__name__}")
    return value


def attribute(
    pipeline: Any,
    prompts: str | Sequence[str] | Recording,
    *,
    seeds: int | Sequence[int] | None = None,
    generation: Generation | None = None,
    objective: Objective | None = None,
    kind: Kind = "weight",
    target_modules: str | Sequence[str] | None = None,
    concept: str | None = None,
    method: Method | None = None,
    method_options: Mapping[str, Any] | None = None,
    options: RunOptions | None = None,
    **settings: Any,
) -> Scores:
    """Record prompts on a pipeline and score its components.

    Args:
        pipeline: A diffusers pipeline.
        prompts: What to record, or a Recording.
        seeds: One per prompt, or the first of consecutive ones.
        generation: Steps, guidance and further arguments of the pipeline. None for its own defaults.
        objective: As for ``Attributor``.
        kind: As for ``Attributor``.
        target_modules: As for ``Attributor``.
        concept: As for ``Attributor.run``.
        method: As for ``Attributor``.
        method_options: The options of the method, see ``attribution.methods``.
        options: As for ``Attributor.run``.
        **settings: As for ``Attributor.run``.

    Raises:
        FileExistsError, TypeError, ValueError: As ``Attributor`` and ``Attributor.run``.
    """
    for name in NAMED:
        if name in settings:
            raise TypeError(f"attribute takes no {name!r}, expected generation=Generation({name}={settings[name]!r})")
    run = RunOptions.of(options, **settings)
    attributor = Attributor(
        pipeline, objective, kind=kind, target_modules=target_modules, method=method, **(method_options or {})
    )
    if isinstance(prompts, Recording):
        for name, value in (("seeds", seeds), ("generation", generation)):
            if value is not None:
                raise ValueError(f"{name} is given with a Recording, which is made already: expected prompts, or None")
        recording = prompts
    else:
        recording = record(
            pipeline,
            [prompts] if isinstance(prompts, str) else list(prompts),
            seeds=seeds,
            progress=run.progress,
            **Generation.of(generation).to_kwargs(),
        )
    return attributor.run(recording, concept=concept, options=run)
