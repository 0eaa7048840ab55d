"""Many runs of a pipeline in one thread, each in a greenlet, that share their passes of the denoiser.

A run is an ordinary call of the pipeline. It is switched out where it calls a heavy part: the denoiser, a text encoder
or the VAE's decoder. Calls that agree in everything but their rows are joined and made as one pass. Then each run goes
on with its own rows of the output. Runs may therefore differ in prompt, number of steps, guidance and edits. A new run
joins at the next step. Each run has its own scheduler and random numbers.

The denoiser is one for all runs. A pipeline that changes it while it is called, such as by attention processors of its
own, has its runs one at a time, each beginning with the denoiser as it was at first.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from greenlet import getcurrent, greenlet
from PIL import Image

from ...diffusion.denoisers import denoiser_of
from ...row_engine.row_order import RowsMixed, row_order
from .calls import Part, PartCall, finite_rows, join, split
from .changes import Change, DenoiserState, undo
from .edited_passes import EditedPasses
from .intercept import for_one_run, intercepted
from .jobs import JobPicture, NotFinite

log = logging.getLogger(__name__)

Done = Callable[[JobPicture, "Image.Image | BaseException"], None]
# (part, pictures, rows, how many different edits, seconds)
PassObserver = Callable[[str, int, int, int, float], None]


class PipelineRun(greenlet):
    """The run of the pipeline that draws one picture, and the call that it waits for."""

    def __init__(self, picture: JobPicture, draw: Callable[[JobPicture], Image.Image]) -> None:
        super().__init__(draw)
        self.picture = picture
        self.call: PartCall | None = None
        self.changes: list[Change] = []
        """What the run has changed in the denoiser, to be undone at its end."""


class _BegunAgain(BaseException):
    """Ends a run that begins again. It is no ``Exception``, so that no pipeline catches it."""


class PipelineRuns:
    """The runs of one thread. Call every method from that thread, with gradients off.

    Args:
        pipeline: the pipeline to run. It is not changed.
        passes: makes the passes of the denoiser.
        max_batch_size: most pictures of one pass.
        on_done: called with each picture, and its image or the error that ended it.
        observe: called after each pass.
    """

    def __init__(
        self, pipeline: Any, passes: EditedPasses, max_batch_size: int, on_done: Done, observe: PassObserver
    ) -> None:
        self._twin, self._denoiser, stand_in = intercepted(pipeline, self._intercept)
        self._state = DenoiserState(denoiser_of(pipeline), stand_in)
        self._one_at_a_time = False
        self._passes, self._max_batch_size = passes, max_batch_size
        self._on_done, self._observe = on_done, observe
        self._calls = 0
        self.active: list[PipelineRun] = []

    def start(self, picture: JobPicture) -> None:
        """Begin the run of a picture, up to its first call of a part; later, where runs go one at a time."""
        run = PipelineRun(picture, self._draw)
        self.active.append(run)
        if not self._one_at_a_time:
            self._go_on([(run, picture, None)])

    def stop(self, run: PipelineRun, error: BaseException) -> None:
        """End a run with an error, raised at the call it waits for."""
        self._go_on([(run, None, error)])
        if run in self.active:  # it caught the error and went on; without a reference to it, it ends
            self._finish(run, error)
            undo(run.changes)

    def step(self) -> None:
        """Make the call that has waited longest, together with all others that fit into its pass."""
        if self._one_at_a_time:
            run = self.active[0]
            if run.call is None:
                self._go_on([(run, run.picture, None)])
            else:
                self._make([(run, run.call)])
            return
        waiting = [(run, run.call) for run in self.active if run.call]
        waiting.sort(key=lambda pair: (pair[1].part.priority, pair[1].number))
        oldest, first = waiting[0]
        together = [(run, call) for run, call in waiting if run is oldest or first.fits(call)][: self._max_batch_size]
        if first.part is self._denoiser:  # equal edits side by side
            together.sort(key=lambda pair: pair[0].picture.edit_keys)
        self._make(together)

    def _draw(self, picture: JobPicture) -> Image.Image:
        generator = torch.Generator("cpu").manual_seed(picture.seed)
        return for_one_run(self._twin)(prompt=picture.job.prompt, generator=generator, **picture.job.arguments)[0][0]

    def _intercept(self, part: Part, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        run = getcurrent()
        if not isinstance(run, PipelineRun):
            raise RuntimeError(f"the {part.name} of a pipeline that is being served was called outside of a request")
        if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
            raise RuntimeError("the pipeline calls its parts under autocast, which runs cannot share: cast it instead")
        self._calls += 1
        return run.parent.switch(PartCall(part, part.bind(args, kwargs), self._calls))

    def _go_on(self, answers: Sequence[tuple[PipelineRun, Any, BaseException | None]]) -> None:
        """Let runs go on, each with a value or an error, and heed what they change in the denoiser."""
        self._state.look()
        for run, value, error in answers:
            self._advance(run, value, error)
        changes = self._state.changes()
        if self._one_at_a_time:
            ((run, _, _),) = answers
            run.changes += changes + self._state.shared(changes)
            if run not in self.active:
                undo(run.changes)
        elif changes and any(run in self.active for run, _, _ in answers):
            log.warning(
                "from now on requests are drawn one after the other: %s changes its denoiser while it is called (%s), "
                "which is one for all requests",
                type(self._twin).__name__,
                ", ".join(dict.fromkeys(change.name for change in changes[:3])),
            )
            self._one_at_a_time = True
            self._begin_again()
        else:  # nothing ran since, and the next run finds the denoiser as this one did
            undo(changes)

    def _begin_again(self) -> None:
        """End all runs, put the denoiser back as it was, and have the pictures begin anew, one after the other."""
        for run in self.active:
            run.parent = getcurrent()
            with contextlib.suppress(Exception, _BegunAgain):  # of a pipeline that cleans up
                run.throw(_BegunAgain())
        undo(self._state.changes())
        self.active = [PipelineRun(run.picture, self._draw) for run in self.active]

    def _advance(self, run: PipelineRun, value: Any = None, error: BaseException | None = None) -> None:
        """Let a run go on with the output of its call, up to its next call or its end."""
        run.call = None
        run.parent = getcurrent()
        try:
            result = run.switch(value) if error is None else run.throw(error)
        except BaseException as failure:
            self._finish(run, failure)
            if not isinstance(failure, Exception) and failure is not error:
                raise
            return
        if run.dead:
            self._finish(run, result)
        else:
            run.call = result

    def _finish(self, run: PipelineRun, result: Image.Image | BaseException) -> None:
        self.active.remove(run)
        self._on_done(run.picture, result)

    def _make(self, calls: Sequence[tuple[PipelineRun, PartCall]]) -> None:
        """Make one pass for all ``calls``. If it fails, make one for each, so that only those at fault fail."""
        part = calls[0][1].part
        begun = time.perf_counter()
        try:
            outputs, finite = self._pass(calls)
        except Exception as failure:
            if isinstance(failure, RowsMixed) and len(calls) > 1:
                log.warning("from now on the %s draws one picture at a time: %s", part.name, failure)
                part.batches = False
                self._make_each(calls)
                return
            names = ", ".join(str(run.picture) for run, _ in calls)
            log.warning("a pass of the %s failed for request %s: %s", part.name, names, failure, exc_info=failure)
            if len(calls) == 1:
                self._go_on([(calls[0][0], None, failure)])
            else:
                self._make_each(calls)
            return
        edits = {use.edit.name for run, _ in calls for use in run.picture.job.edits} if part is self._denoiser else ()
        rows = sum(call.rows for _, call in calls)
        self._observe(part.name, len(calls), rows, len(edits), time.perf_counter() - begun)
        unfit = f"the {part.name} gave NaN or infinite numbers"
        answered = zip(calls, outputs, finite, strict=True)
        self._go_on(
            [(run, output, None if fine else NotFinite(unfit)) for (run, _), output, fine in answered],
        )

    def _make_each(self, calls: Sequence[tuple[PipelineRun, PartCall]]) -> None:
        """Make a pass for each call, as far as its run still waits for it: all runs may have begun again."""
        for run, call in calls:
            if run in self.active and run.call is call:
                self._make([(run, call)])

    def _pass(self, pairs: Sequence[tuple[PipelineRun, PartCall]]) -> tuple[list[Any], list[bool]]:
        """Make one pass and return, for each call, its output and whether all numbers of it are finite."""
        calls = [call for _, call in pairs]
        part, inputs = calls[0].part, join(calls)
        if part is self._denoiser:
            if len(calls) > 1:
                denoiser: Any = getattr(part.run, "_orig_mod", part.run)
                order = row_order(denoiser, (), inputs, sum(call.rows for call in calls), {})
                order.require((), "a pass for several requests")
            per_row = [run.picture.job.edits for run, call in pairs for _ in range(call.rows)]
            output = self._passes.run(inputs, per_row)
        else:
            output = part.run(**inputs)
        try:
            outputs = split(output, calls)
        except ValueError as error:
            raise RowsMixed(str(error)) from error
        finite = finite_rows(output, sum(call.rows for call in calls))
        if finite is None:
            return outputs, [True] * len(calls)
        return outputs, [bool(rows.all()) for rows in finite.split([call.rows for call in calls])]
