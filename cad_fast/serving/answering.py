"""From a request to its pictures, whatever the protocol: counted, and ended when nobody waits any more."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from PIL import Image

from .engine.jobs import Closed, DeadlineExceeded, PictureJob, QueueFull, Ticket
from .errors import RequestError, failed_job
from .server import Server

OUTCOMES = {QueueFull: "queue_full", Closed: "shutting_down", DeadlineExceeded: "deadline"}

Gone = Callable[[], Coroutine[Any, Any, None]]
Result = TypeVar("Result")


class ClientGone(Exception):
    """The client has gone, so that nobody waits for the answer."""


async def answer_request(
    server: Server,
    request: Any,
    client: str,
    request_id: str,
    finish: Callable[[list[Image.Image]], Result],
    gone: Gone | None = None,
) -> tuple[PictureJob, Result]:
    """Draw the pictures of a request.

    Args:
        server: the server, which runs.
        request: an instance of ``server.request_class``.
        client: who asks. Clients take turns in the queue.
        request_id: name of the request in logs and errors.
        finish: turns the images into the result, in a thread of its own.
        gone: makes a coroutine that ends when the client has gone. The request is then given up.

    Returns:
        (the job of the request, what ``finish`` returned).

    Raises:
        RequestError: the request is refused, or failed.
        ClientGone: the client has gone.
    """
    begun = time.monotonic()
    outcome = "failed"
    try:
        job = server.job(request, client, request_id)
        for use in job.edits:
            server.metrics.edit_uses.labels(use.edit.name).inc()
        images = await _images(server.submit(job), gone)
        result = await asyncio.to_thread(finish, images)
        outcome = "ok"
    except ClientGone:
        outcome = "disconnected"
        raise
    except RequestError:
        outcome = "invalid"
        server.metrics.rejections.labels("invalid").inc()
        raise
    except Exception as error:
        outcome = OUTCOMES.get(type(error), "failed")
        if outcome in ("queue_full", "shutting_down"):
            server.metrics.rejections.labels(outcome).inc()
        raise failed_job(error, request_id) from error
    finally:
        server.metrics.requests.labels(outcome).inc()
        server.metrics.seconds.observe(time.monotonic() - begun)
    server.metrics.pictures.inc(len(images))
    return job, result


async def _images(ticket: Ticket, gone: Gone | None) -> list[Image.Image]:
    """Wait for the images of a ticket. Cancel it if the client goes or the task is cancelled."""
    future = asyncio.ensure_future(asyncio.wrap_future(ticket.future))
    leaving = None if gone is None else asyncio.ensure_future(gone())
    try:
        # The batcher ends late jobs only between passes, which may be long. Here they end on time.
        seconds = None if ticket.job.deadline is None else ticket.job.deadline - time.monotonic()
        waiting: set[asyncio.Future[Any]] = {future} if leaving is None else {future, leaving}
        await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if leaving is not None and leaving.done() and not future.done():
            raise ClientGone
        if not future.done():
            ticket.expire()
        return await future
    finally:
        if leaving is not None:
            leaving.cancel()
        if not future.done():
            ticket.cancel()
            future.cancel()


def png_file(image: Image.Image) -> bytes:
    """Encode an image as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
