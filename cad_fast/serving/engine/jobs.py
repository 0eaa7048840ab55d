"""What is asked of the batcher, and the errors with which it can end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from ...edits import Edit


class QueueFull(RuntimeError):
    """There is no place in the queue; ``retry_after`` seconds from now there may be."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Closed(RuntimeError):
    """The server is shutting down."""


class DeadlineExceeded(TimeoutError):
    """The request's time was over before its pictures were drawn."""


class NotFinite(ArithmeticError):
    """The request's numbers became NaN or infinite."""


class Cancelled(BaseException):
    """Thrown into the run of a request that nobody waits for any more; no Exception, so that no pipeline catches it."""


@dataclass(frozen=True)
class RequestedEdit:
    """An edit as one request wants it: how strongly, and at which timesteps.

    ``window``: (low, high), both inclusive; None for all.
    """

    edit: Edit
    strength: float = 1.0
    window: tuple[float, float] | None = None

    @property
    def key(self) -> tuple[str, float, tuple[float, ...]]:
        """What tells uses apart, and puts them in order."""
        return (self.edit.name, self.strength, self.window or ())


@dataclass(eq=False)
class Job:
    """One request: ``n`` pictures of one prompt, the i-th from ``seed`` + i.

    ``arguments`` go to the pipeline's call. ``client`` is who asks: clients take turns. ``deadline`` is a time of
    ``time.monotonic``, None for no limit.
    """

    id: str
    prompt: str
    seed: int = 0
    n: int = 1
    arguments: dict[str, Any] = field(default_factory=dict)
    edits: tuple[RequestedEdit, ...] = ()
    client: str = ""
    deadline: float | None = None


class Ticket:
    """A job's place with the batcher: ``future`` gives its pictures, ``cancel`` gives the place up."""

    def __init__(self, job: Job, on_cancel: Callable[[], None]) -> None:
        self.job = job
        self.future: Future[list[Image.Image]] = Future()
        self.future.set_running_or_notify_cancel()  # `cancel` below is the only way
        self.submitted = time.monotonic()
        self.started: float | None = None
        self.pictures = [Picture(self, number) for number in range(job.n)]
        self.error: BaseException | None = None
        self._on_cancel = on_cancel
        self._left = job.n
        self._lock = threading.Lock()

    def cancel(self) -> None:
        """Give up the queue's places at once, and those in the batch at the next step."""
        self.end(Cancelled(f"request {self.job.id} was given up"))
        self._on_cancel()

    @property
    def over(self) -> bool:
        """Whether what is left of the job need not be drawn any more."""
        return self.error is not None or self._left == 0

    def end(self, error: BaseException) -> None:
        """End the job with an error, unless it has ended."""
        with self._lock:
            if self.over:
                return
            self.error = error
        self.future.set_exception(error)

    def expire(self) -> None:
        """End the job because its time is over."""
        where = "in the queue" if self.started is None else "in the batch"
        self.end(DeadlineExceeded(f"the time was over while the request was {where}"))

    def drawn(self, picture: Picture, image: Image.Image) -> None:
        """Take one picture; the last one ends the job."""
        with self._lock:
            if self.over:
                return
            picture.image = image
            self._left -= 1
            if self._left:
                return
        self.future.set_result([each.image for each in self.pictures if each.image is not None])


class Picture:
    """One picture of a job."""

    def __init__(self, ticket: Ticket, number: int) -> None:
        self.ticket, self.number = ticket, number
        self.image: Image.Image | None = None
        self.edit_keys = sorted(use.key for use in ticket.job.edits)

    @property
    def job(self) -> Job:
        return self.ticket.job

    @property
    def seed(self) -> int:
        return self.job.seed + self.number

    def __str__(self) -> str:
        return self.job.id if self.job.n == 1 else f"{self.job.id}[{self.number}]"
