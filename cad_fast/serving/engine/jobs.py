"""What the batcher is asked for, and the errors with which a job can end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from ...edits import Edit


class QueueFull(RuntimeError):
    """The queue has no place for a job; there may be one in ``retry_after`` seconds."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Closed(RuntimeError):
    """The batcher is shutting down."""


class DeadlineExceeded(TimeoutError):
    """The deadline of a job passed before its pictures were drawn."""


class NotFinite(ArithmeticError):
    """The numbers of a picture became NaN or infinite."""


class Cancelled(BaseException):
    """A job was given up. It is no ``Exception``, so that no pipeline catches it when it is thrown into a run."""


def timestep_window(bounds: Sequence[float]) -> tuple[float, float]:
    """Put the two bounds of a timestep window in order.

    Args:
        bounds: two timesteps, the highest and the lowest, in either order.

    Returns:
        (lowest, highest); the window includes both.

    Raises:
        ValueError: ``bounds`` has not exactly two entries.
    """
    if len(bounds) != 2:
        raise ValueError(f"the timestep window {list(bounds)} has {len(bounds)} bounds, expected 2")
    return min(bounds), max(bounds)


@dataclass(frozen=True)
class RequestedEdit:
    """An edit as one request uses it.

    Attributes:
        edit: the edit.
        strength: 0 is off, 1 is the edit as made, negative is the opposite.
        window: the timesteps at which the edit acts, given as two bounds in either order and kept as
            (lowest, highest), both included. None stands for all timesteps.
    """

    edit: Edit
    strength: float = 1.0
    window: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.window is not None:
            object.__setattr__(self, "window", timestep_window(self.window))

    @property
    def key(self) -> tuple[str, float, tuple[float, ...]]:
        """A sort key that tells different uses apart."""
        return (self.edit.name, self.strength, self.window or ())


@dataclass(eq=False)
class PictureJob:
    """What one request asks of the batcher: ``n`` pictures of one prompt.

    Attributes:
        id: name of the request in logs and errors.
        prompt: the prompt of all its pictures.
        seed: seed of the first picture. The i-th picture has ``seed + i``.
        n: number of pictures.
        arguments: further arguments of the pipeline's call.
        edits: the edits of all its pictures.
        client: who asks. Clients take turns in the queue.
        deadline: a time of ``time.monotonic``, in seconds. None stands for no deadline.
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
    """A job that the batcher has accepted: ``future`` gives its pictures, ``cancel`` gives the job up."""

    def __init__(self, job: PictureJob, on_cancel: Callable[[], None]) -> None:
        self.job = job
        self.future: Future[list[Image.Image]] = Future()
        self.future.set_running_or_notify_cancel()  # so that only `cancel` below can cancel the job
        self.submitted = time.monotonic()
        self.started: float | None = None
        self.pictures = [JobPicture(self, number) for number in range(job.n)]
        self.error: BaseException | None = None
        self._on_cancel = on_cancel
        self._left = job.n
        self._lock = threading.Lock()

    def cancel(self) -> None:
        """Give the job up. Its pictures leave the queue at once and the batch at the next step."""
        self.end(Cancelled(f"request {self.job.id} was given up"))
        self._on_cancel()

    @property
    def over(self) -> bool:
        """Whether the job has ended, so that nothing of it need be drawn any more."""
        return self.error is not None or self._left == 0

    def end(self, error: BaseException) -> None:
        """End the job with an error, unless it has already ended."""
        with self._lock:
            if self.over:
                return
            self.error = error
        self.future.set_exception(error)

    def expire(self) -> None:
        """End the job because its deadline has passed."""
        where = "in the queue" if self.started is None else "in the batch"
        self.end(DeadlineExceeded(f"the deadline passed while the request was {where}"))

    def drawn(self, picture: JobPicture, image: Image.Image) -> None:
        """Take the image of one picture. The last one ends the job."""
        with self._lock:
            if self.over:
                return
            picture.image = image
            self._left -= 1
            if self._left:
                return
        self.future.set_result([each.image for each in self.pictures if each.image is not None])


class JobPicture:
    """One picture of a job, waiting, being drawn, or drawn."""

    def __init__(self, ticket: Ticket, number: int) -> None:
        self.ticket, self.number = ticket, number
        self.image: Image.Image | None = None
        self.edit_keys = sorted(use.key for use in ticket.job.edits)

    @property
    def job(self) -> PictureJob:
        """The job that the picture belongs to."""
        return self.ticket.job

    @property
    def seed(self) -> int:
        """The seed of the picture."""
        return self.job.seed + self.number

    def __str__(self) -> str:
        return self.job.id if self.job.n == 1 else f"{self.job.id}[{self.number}]"
