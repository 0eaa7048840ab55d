"""torch.compile(fullgraph=True) of the UNet: the same pictures, and no recompilation when edits or masks change."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

import cad_fast
from cad_fast import Ablation, ComponentSpace, Edit, EditManager

from ..edits import random_edits
from ..shapes import MASK_FRACTION, VARIANTS
from . import clock, unet
from .model import EDITED, MASKED, PLAIN
from .worker import Worker

ROUNDS = 8
# How far a compiled pass may be from the eager one: it rounds in other places.
SAME = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


def cases(worker: Worker) -> Iterator[tuple[str, Callable[[], None]]]:
    study = Study(worker)
    yield f"{EDITED}, compiled", study.edited
    if not worker.warming:
        yield f"{MASKED}, compiled", study.masked


class Study:
    """The UNet; compiled by Inductor, in a dry run by a backend that compiles no kernels."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.model = unet.build(worker)
        self.backend = "aot_eager" if worker.dry else "inductor"

    @torch.no_grad()
    def edited(self) -> None:
        """The eager pictures come first: an edit manager belongs to the compiled denoiser or to the plain one."""
        model = self.model
        edits = random_edits(model.unet, VARIANTS, model.edited_weights)
        names = [edit.name for edit in edits]
        assignments = {"first": names, "reversed": names[::-1], "one edit": names[:1] * VARIANTS}
        assignments |= {"every second": [*names[::2], *["__base__"] * (VARIANTS // 2)]}
        eager: dict[str, Tensor] = {}
        if not self.worker.warming:
            with self._edits(model.unet, edits) as manager:
                for key, assigned in assignments.items():
                    with manager.per_prompt(assigned):
                        eager[key] = model.output()
        compiled = torch.compile(model.unet, backend=self.backend, fullgraph=True)
        torch._dynamo.utils.counters.clear()
        with self._edits(compiled, edits) as manager:

            def under(assigned: list[str]) -> Tensor:
                with manager.per_prompt(assigned):
                    return compiled(**model.batch).sample

            seconds = self._timed(lambda: under(names))
            first = _graphs()
            if self.worker.warming:
                return
            off = {key: unet.distance(under(assignments[key]), picture) for key, picture in eager.items()}
            with manager.per_prompt(names):
                us = {f"{EDITED}, compiled": self._pass(compiled)}
            us[f"{PLAIN}, compiled"] = self._pass(compiled)
            self._put(f"{EDITED}, compiled", us, off, seconds, first)
        torch._dynamo.reset()

    @contextlib.contextmanager
    def _edits(self, denoiser: nn.Module, edits: Sequence[Edit]) -> Iterator[EditManager]:
        manager = EditManager(denoiser)
        try:
            for edit in edits:
                manager.load_edit(edit)
            yield manager
        finally:
            manager.close()

    @torch.no_grad()
    def masked(self) -> None:
        model = self.model
        compiled = torch.compile(model.unet, backend=self.backend, fullgraph=True)
        space = ComponentSpace.of(model.unet, "weight", "feed-forward")
        sets = [
            [Ablation.seeded(space.n, MASK_FRACTION, seed=seed, variant=v) for v in range(VARIANTS)] for seed in (1, 2)
        ]
        torch._dynamo.utils.counters.clear()
        off = {}
        with cad_fast.rows(compiled, sets[0], space) as engine:
            seconds = self._timed(lambda: compiled(**model.batch))
            first = _graphs()
            for key, ablations in (("first", sets[0]), ("others", sets[1])):
                engine.set(ablations)
                off[key] = unet.distance(compiled(**model.batch).sample, model.unet(**model.batch).sample)
            us = {f"{MASKED}, compiled": self._pass(compiled)}
        self._put(f"{MASKED}, compiled", us, off, seconds, first)
        torch._dynamo.reset()

    def _timed(self, run: Callable[[], object]) -> float:
        begin = time.perf_counter()
        run()
        self.worker.synchronize()
        return round(time.perf_counter() - begin, 1)

    def _pass(self, compiled: Callable[..., object]) -> float:
        return clock.wall_time(self.worker, lambda: compiled(**self.model.batch), ROUNDS)

    def _put(self, case: str, us: dict[str, float], off: dict[str, float], seconds: float, first: int) -> None:
        again = _graphs() - first
        same = all(value <= SAME[self.worker.dtype()] for value in off.values())
        said = ", ".join(f"{key} {value:.1e}" for key, value in off.items())
        notes = {
            "pictures": f"off by {said} from the eager ones" + ("" if same else ": WRONG, not the same"),
            "recompilations": f"{first} graphs at first, {again} more when edits or masks changed",
            "first call": f"{seconds} s",
        }
        facts = {} if same and again == 0 else {"error": "; ".join(notes.values())}
        self.worker.put(case=case, us=us, notes=notes, bars=[], **facts)


def _graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])
