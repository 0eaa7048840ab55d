"""The batcher: a queue of pictures, and the one thread that draws them."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import Any, Protocol

import torch
from PIL import Image

from ...edits import Edit
from .edited_passes import EditedPasses
from .fair_queue import FairQueue
from .jobs import Cancelled, Closed, JobPicture, PictureJob, QueueFull, Ticket
from .runs import PipelineRuns
from .thread_pool import release_thread_pool

log = logging.getLogger(__name__)

# Number of recent pictures from which the pace is estimated.
PACE_PICTURES = 64


class Observer(Protocol):
    """What the batcher reports to. Every method must be quick; the batcher's thread may call it."""

    def on_pass(self, part: str, pictures: int, rows: int, edits: int, seconds: float) -> None:
        """Take note of a pass of ``part`` that took ``seconds``."""

    def on_load(self, queued: int, running: int) -> None:
        """Take note of how many pictures wait, and how many are in the batch."""

    def on_start(self, waited: float) -> None:
        """Take note of a picture that left the queue after ``waited`` seconds."""


class Silent:
    """An observer that does nothing."""

    def on_pass(self, part: str, pictures: int, rows: int, edits: int, seconds: float) -> None:
        """Do nothing."""

    def on_load(self, queued: int, running: int) -> None:
        """Do nothing."""

    def on_start(self, waited: float) -> None:
        """Do nothing."""


class Batcher:
    """Draws the pictures of many requests together, each under its own edits.

    While a batch runs, new pictures join at its next step.

    Args:
        pipeline: the pipeline to draw with. It is not changed.
        passes: makes the passes of the denoiser.
        max_batch_size: most pictures in the batch. A guided picture takes two rows of a pass.
        batch_timeout: seconds that the first picture of an idle batcher waits for more pictures to batch.
        max_queue: most pictures that may wait.
        observer: gets what the metrics need.

    Raises:
        ValueError: a number is out of range, or the pipeline offloads its parts or has a cache.
        TypeError: the pipeline has no denoiser.
    """

    def __init__(
        self,
        pipeline: Any,
        passes: EditedPasses,
        *,
        max_batch_size: int = 8,
        batch_timeout: float = 0.005,
        max_queue: int = 64,
        observer: Observer | None = None,
    ) -> None:
        if max_batch_size < 1:
            raise ValueError(f"max_batch_size is {max_batch_size}, expected at least 1")
        if batch_timeout < 0:
            raise ValueError(f"batch_timeout is {batch_timeout}, expected seconds, at least 0")
        self.max_batch_size, self.batch_timeout = max_batch_size, batch_timeout
        self._observer: Observer = observer or Silent()
        self._passes = passes
        self._runs = PipelineRuns(pipeline, passes, max_batch_size, self._done, self._observer.on_pass)
        self._queue = FairQueue(max_queue)
        self._wake = threading.Condition()
        self._closing = False
        self._retired: list[Edit] = []
        # Seconds of work until now, and until each recent picture: an idle batcher is no slow one.
        self._worked = 0.0
        self._finished: deque[float] = deque([0.0], maxlen=PACE_PICTURES + 1)
        self._thread = threading.Thread(target=self._serve, name="cad-fast-batcher", daemon=True)

    def start(self) -> Batcher:
        """Start the batcher's thread. Release the helpers of the calling thread, which usually loaded the model."""
        release_thread_pool()
        self._thread.start()
        return self

    @property
    def alive(self) -> bool:
        """Whether the batcher's thread runs."""
        return self._thread.is_alive()

    @property
    def accepting(self) -> bool:
        """Whether the batcher takes jobs now."""
        return self._thread.is_alive() and not self._closing

    @property
    def load(self) -> tuple[int, int]:
        """The numbers of pictures (in the queue, in the batch)."""
        return len(self._queue), len(self._runs.active)

    def submit(self, job: PictureJob) -> Ticket:
        """Queue a job.

        Raises:
            QueueFull: there is no place for all its pictures.
            Closed: the batcher is closing.
        """
        ticket = Ticket(job, self._given_up)
        with self._wake:
            if not self.accepting:
                raise Closed("the server is shutting down")
            self._queue.drop_over()
            if not self._queue.offer(job.client, ticket.pictures):
                raise QueueFull(
                    f"{len(self._queue)} pictures wait already and {job.n} more would exceed {self._queue.limit}",
                    self._seconds_to_a_place(),
                )
            self._report()
            self._wake.notify()
        return ticket

    def forget(self, edit: Edit) -> None:
        """Release what was prepared for an edit as soon as no picture needs it any more."""
        with self._wake:
            self._retired.append(edit)
            self._wake.notify()

    def close(self, timeout: float = 30.0) -> None:
        """Take no more jobs, finish the accepted ones for at most ``timeout`` seconds, and end the thread."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(timeout)
        if self._thread.is_alive():
            with self._wake:
                tickets = {picture.ticket for picture in self._queue} | {
                    run.picture.ticket for run in self._runs.active
                }
                for ticket in tickets:
                    ticket.end(Closed("the server shut down before the request was done"))
                self._wake.notify()
            self._thread.join()

    def _seconds_to_a_place(self) -> int:
        """Estimate from recent work, idle time left out, how many seconds the accepted pictures take, at least 1."""
        waiting, running = self.load
        if len(self._finished) < 2:
            return 1
        pace = (len(self._finished) - 1) / max(1e-3, self._worked - self._finished[0])
        return int(min(600, max(1, -(-(waiting + running) // max(pace, 1e-3)))))

    def _given_up(self) -> None:
        with self._wake:
            if self._queue.drop_over():
                self._report()
            self._wake.notify()

    def _report(self) -> None:
        self._observer.on_load(*self.load)

    def _done(self, picture: JobPicture, result: Image.Image | BaseException) -> None:
        if isinstance(result, BaseException):
            if isinstance(result, Exception) and not picture.ticket.over:
                log.warning("request %s failed: %s", picture, result, exc_info=result)
            picture.ticket.end(result)
        else:
            self._finished.append(self._worked)
            picture.ticket.drawn(picture, result)

    # Gradients are off for the whole thread. Runs are switched inside the pipelines' own `no_grad`, which restores at
    # its end what held at its beginning.
    @torch.no_grad()
    def _serve(self) -> None:
        try:
            while self._ready():
                self._expire()
                self._forget_retired()
                if self._runs.active:
                    begun = time.monotonic()
                    self._runs.step()
                    self._worked += time.monotonic() - begun
        except BaseException as error:
            log.critical("the batcher's thread ended: %s", error, exc_info=error)
            self._fail_all(error)
            raise
        finally:
            self._passes.close()

    def _ready(self) -> bool:
        """Wait for something to do, and start what the batch has room for. Return False at the end."""
        with self._wake:
            while not self._runs.active and not self._retired and (delay := self._idle_seconds()) != 0:
                if self._closing and not len(self._queue):
                    return False
                self._wake.wait(delay)
                self._expire()
        started = False
        while (picture := self._next()) is not None:
            started = True
            if picture.ticket.over:
                continue
            now = time.monotonic()
            picture.ticket.started = picture.ticket.started or now
            self._observer.on_start(now - picture.ticket.submitted)
            self._runs.start(picture)
        if started:
            self._report()
        return True

    def _next(self) -> JobPicture | None:
        """Take the next picture out of the queue if the batch has room for it."""
        with self._wake:
            return self._queue.pop() if len(self._queue) and len(self._runs.active) < self.max_batch_size else None

    def _idle_seconds(self) -> float | None:
        """Return the seconds that the thread may sleep while nothing runs; None to sleep until it is woken."""
        waiting = len(self._queue)
        if not waiting:
            return None
        if self._closing or waiting >= self.max_batch_size:
            return 0
        first = min(picture.ticket.submitted for picture in self._queue)
        return max(0.0, first + self.batch_timeout - time.monotonic())

    def _expire(self) -> None:
        """End the jobs whose deadline has passed, and the runs of jobs that have ended."""
        now = time.monotonic()
        with self._wake:
            pictures = [*self._queue, *(run.picture for run in self._runs.active)]
            for picture in pictures:
                deadline = picture.job.deadline
                if deadline is not None and now > deadline:
                    picture.ticket.expire()
            self._queue.drop_over()
        for run in list(self._runs.active):
            if run.picture.ticket.over:
                self._runs.stop(run, Cancelled(f"request {run.picture} was given up"))
        self._report()

    def _forget_retired(self) -> None:
        if not self._retired:
            return
        with self._wake:
            pictures = [*self._queue, *(run.picture for run in self._runs.active)]
            used = {id(use.edit) for picture in pictures for use in picture.job.edits}
            free = [edit for edit in self._retired if id(edit) not in used]
            self._retired = [edit for edit in self._retired if id(edit) in used]
        for edit in free:
            self._passes.forget(edit)

    def _fail_all(self, error: BaseException) -> None:
        with self._wake:
            self._closing = True
            tickets = {picture.ticket for picture in self._queue} | {run.picture.ticket for run in self._runs.active}
            for ticket in tickets:
                ticket.end(RuntimeError(f"the batcher's thread ended: {error}"))
