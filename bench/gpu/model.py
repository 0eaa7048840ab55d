"""Whole denoisers: 16 masked variants and 16 mixed edits in one pass of a UNet of Stable Diffusion 1.5's size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import cad_fast
from cad_fast import Ablation, ComponentSpace, EditManager

from ..edits import random_edits
from ..shapes import MASK_FRACTION, VARIANTS
from . import clock, unet
from .figures import Bar
from .worker import CaseError, Worker

PLAIN, MASKED, EDITED = "plain batch", "16 masked variants", "16 mixed edits"
ONE_BY_ONE = "one after the other"
ROUNDS = 8
# How far a row may be from the same row made alone with changed weights, by the norm of what the change does to it.
MOST_OFF = 0.1
LOOKED_AT = 3


def cases(worker: Worker) -> Iterator[tuple[str, Callable[[], None]]]:
    study = Study(worker)
    yield PLAIN, study.plain
    yield f"{MASKED} of feed-forward weights", study.masked
    yield EDITED, study.edited


class Study:
    """The UNet and its plain time, which the others are compared with."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.model = unet.build(worker)
        self.us: dict[str, float] = {}
        with torch.no_grad():
            self.base = self.model.output()
        if worker.skip > 0 and not worker.warming:  # the case that measured it is behind us
            self.us = self.timed(PLAIN)[0]

    @torch.no_grad()
    def timed(self, name: str) -> tuple[dict[str, float], dict[str, str]]:
        """Microseconds of a pass, launched one by one and replayed as a graph; and what was noted of the graph."""
        us, notes = {name: clock.wall_time(self.worker, self.model.output, ROUNDS)}, {}
        if self.worker.dry:
            return us, {"graph": "a CPU has no graphs"}
        outputs: list[Tensor] = []
        expected = self.model.output()

        def run() -> None:
            outputs[:] = [self.model.output()]

        graph, why = clock.capture(run)
        if graph is None:
            return us, {"graph": why}
        graph.replay()
        torch.cuda.synchronize()
        off = unet.distance(outputs[0], expected)
        notes["graph"] = f"the replayed pictures are off by {off:.1e}" + ", not the same" * (not off <= 1e-2)
        us[f"{name}, graph"] = clock.wall_time(self.worker, graph.replay, ROUNDS)
        return us, notes

    def plain(self) -> None:
        if self.worker.warming:
            return
        self.us, notes = self.timed(PLAIN)
        self.worker.put(case=PLAIN, us=self.us, notes=notes, bars=[])

    @torch.no_grad()
    def masked(self) -> None:
        """The masks are drawn from seeds; one row is compared with the same made alone."""
        model = self.model
        space = ComponentSpace.of(model.unet, "weight", "feed-forward")
        ablations = [Ablation.seeded(space.n, MASK_FRACTION, seed=1, variant=v) for v in range(VARIANTS)]
        with cad_fast.rows(model.unet, ablations, space):
            output = model.output()
            if self.worker.warming:
                return
            us, notes = self.timed(MASKED)
        modules = space.modules(model.unet)
        saved = {name: module.weight.detach().clone() for name, module in modules.items()}
        parts = space.split(ablations[LOOKED_AT].mask)
        keep = {name: ~parts[name].view_as(module.weight).to(self.worker.device) for name, module in modules.items()}

        def alone(row: int = LOOKED_AT) -> Tensor:
            for name, module in modules.items():
                module.weight.copy_(torch.where(keep[name], saved[name], 0))
            picture = model.unet(**model.row(row)).sample
            for name, module in modules.items():
                module.weight.copy_(saved[name])
            return picture

        # Every time with the same masks, which are on the device already: changing weights at its best.
        swapping = clock.wall_time(self.worker, lambda: [alone(row) for row in range(VARIANTS)], 2)
        self._compare(MASKED, output, alone()[0], us, notes, swapping, 1.25, masked_weights=space.n)

    @torch.no_grad()
    def edited(self) -> None:
        """Edits of keys and values, a different one in each row."""
        model = self.model
        edits = random_edits(model.unet, VARIANTS, model.edited_weights)
        manager = EditManager(model.unet)
        try:
            names = [manager.load_edit(edit) for edit in edits]
            with manager.per_prompt(names):
                output = model.output()
                if self.worker.warming:
                    return
                us, notes = self.timed(EDITED)

            def alone(row: int = LOOKED_AT) -> Tensor:
                with edits[row].applied(model.unet):
                    return model.unet(**model.row(row)).sample

            swapping = clock.wall_time(self.worker, lambda: [alone(row) for row in range(VARIANTS)], 2)
            self._compare(EDITED, output, alone()[0], us, notes, swapping, 1.05, weights_of_an_edit=edits[0].n_weights)
        finally:
            manager.close()

    def _compare(
        self,
        name: str,
        output: Tensor,
        alone: Tensor,
        us: dict[str, float],
        notes: dict[str, str],
        swapping: float,
        limit: float,
        **facts: Any,
    ) -> None:
        us = self.us | us | {ONE_BY_ONE: swapping}
        effect = (alone - self.base[LOOKED_AT]).float().norm().clamp(min=1e-9)
        off = float((output[LOOKED_AT] - alone).float().norm() / effect)
        notes["right"] = f"row {LOOKED_AT} is off by {off:.1e} of what the change does to it"
        bars = [
            Bar(f"<= {limit} x plain", name, PLAIN, limit),
            Bar(f"<= {limit} x plain, graphs", f"{name}, graph", f"{PLAIN}, graph", limit),
            Bar(">= 3 x faster than one after the other", ONE_BY_ONE, name, 3.0, least=True),
        ]
        judged = [{"bar": bar.text, "value": bar.value(us), "met": bar.met(us)} for bar in bars]
        self.worker.put(case=name, us=us, notes=notes, bars=judged, off=off, **facts)
        if not off <= MOST_OFF:
            raise CaseError(AssertionError(f"WRONG: row {LOOKED_AT} is off by {off:.2g} of what the change does to it"))
