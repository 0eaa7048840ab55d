"""The settings of an attribution run, whatever its method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..choices import EXECUTORS, Executor
from .score_files import check_options
from .stop import StopWhen
from .trust import FEWEST

HOLDOUT_FRACTIONS = (0.01, 0.05, 0.2)


@dataclass(frozen=True, repr=False)
class RunOptions:
    """How to run an attribution: in what steps, checked by what, where saved.

    Args:
        rows_per_pass: How many rows go through the denoiser at once, at most. None for the method's own number, and 64
            for what is held out.
        holdout: How many random ablations of each of ``holdout_fractions`` to measure besides, at least 8. The scores
            then say how well they predict them (``scores.trust``). 0 for none.
        holdout_fractions: The shares of the components that these ablations remove.
        stop_when: When to end an ablated gradient or a regression before its last partition or ablation. The reason is
            kept with the scores.
        output_dir: A folder for the scores, and for the state of the run until they are there.
        resume: Whether to go on with an unfinished run in ``output_dir``.
        progress: Whether to show progress bars.
        executor: "local", or "ray" to measure the ablations of a regression or of exact scores on a Ray cluster
            (extra ``ray``).
        save_dtype: "float32" or "float16": how the scores in ``output_dir`` are stored (see ``Scores.save``).
        save_top: Of how many components the scores are stored, those of largest absolute value. None for all. What a
            run returns is whole.
        workers: How many Ray workers measure. None for as many as the cluster has CPUs, or GPUs.

    Raises:
        TypeError: ``stop_when`` is no ``StopWhen``.
        ValueError: A value is out of range, or goes with another that is not given. The message names the field.
    """

    rows_per_pass: int | None = None
    holdout: int = 0
    holdout_fractions: Sequence[float] = HOLDOUT_FRACTIONS
    stop_when: StopWhen | None = None
    output_dir: str | Path | None = None
    resume: bool = False
    progress: bool = True
    executor: Executor = "local"
    workers: int | None = None
    save_dtype: str = "float32"
    save_top: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.holdout_fractions, Sequence):
            raise TypeError(f"holdout_fractions is {self.holdout_fractions!r}, expected a sequence of numbers")
        object.__setattr__(self, "holdout_fractions", tuple(float(fraction) for fraction in self.holdout_fractions))
        object.__setattr__(self, "output_dir", None if self.output_dir is None else Path(self.output_dir))
        for name in ("rows_per_pass", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1, or None")
        if self.holdout != 0 and self.holdout < FEWEST:
            raise ValueError(f"holdout is {self.holdout}, expected at least {FEWEST} ablations, or 0 for none")
        for fraction in self.holdout_fractions:
            if not 0 < fraction < 1:
                raise ValueError(f"holdout_fractions has {fraction}, expected numbers between 0 and 1")
        if not self.holdout_fractions:
            raise ValueError("holdout_fractions is empty, expected at least one number between 0 and 1")
        if self.stop_when is not None and not isinstance(self.stop_when, StopWhen):
            raise TypeError(f"stop_when is a {type(self.stop_when).__name__}, expected a StopWhen or None")
        if self.resume and self.output_dir is None:
            raise ValueError("resume is True without output_dir, expected the folder of the run to go on with")
        if self.executor not in EXECUTORS:
            raise ValueError(f"executor is {self.executor!r}, expected {' or '.join(map(repr, EXECUTORS))}")
        check_options(self.save_dtype, self.save_top)
        if self.workers is not None and self.executor != "ray":
            raise ValueError(f"workers is {self.workers}, which goes with executor='ray', not {self.executor!r}")

    @classmethod
    def of(cls, options: RunOptions | None = None, **settings: Any) -> RunOptions:
        """Return ``options``, or the defaults, with the given fields replaced.

        Raises:
            TypeError: ``options`` is something else, or a keyword is no field. The message names it.
        """
        if options is not None and not isinstance(options, cls):
            raise TypeError(f"options is a {type(options).__name__}, expected a RunOptions or None")
        names = [field.name for field in fields(cls)]
        for name in settings:
            if name not in names:
                raise TypeError(f"a run has no setting {name!r}; it has: {', '.join(names)}")
        return replace(options or cls(), **settings)

    @property
    def saving(self) -> dict[str, Any]:
        """The arguments of ``Scores.save``."""
        return {"dtype": self.save_dtype, "top": self.save_top}

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as JSON."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            **values,
            "holdout_fractions": list(self.holdout_fractions),
            "stop_when": None if self.stop_when is None else self.stop_when.to_dict(),
            "output_dir": None if self.output_dir is None else str(self.output_dir),
        }

    def __repr__(self) -> str:
        changed = [
            f"{field.name}={getattr(self, field.name)!r}"
            for field in fields(self)
            if getattr(self, field.name) != field.default
        ]
        return f"RunOptions({', '.join(changed)})"
