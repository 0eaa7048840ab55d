"""From a request that fits the schema to its pictures: counted, ended when its time is over or nobody waits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from PIL import Image

from .engine.jobs import Closed, DeadlineExceeded, Job, QueueFull, Ticket
from .errors import ApiError, from_job
from .server import Server

REASONS = {QueueFull: "queue_full", Closed: "shutting_down", DeadlineExceeded: "deadline"}

Result = TypeVar("Result")


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


async def draw(
    server: Server,
    order: Any,
    client: str,
    request_id: str,
    finish: Callable[[list[Image.Image]], Result],
    gone: Callable[[], Coroutine[Any, Any, None]] | None = None,
) -> tuple[Job, Result]:
    """(the job of ``order``, what ``finish`` makes of its pictures in a thread of its own).

    ``order``: an instance of ``image_request(server.limits)``. ``gone`` gives a coroutine that ends when the client has
    gone, upon which the request's places are given up. Raises ApiError, or ClientGone.
    """
    begun = time.monotonic()
    outcome = "failed"
    try:
        job = server.job(order, client, request_id)
        for use in job.edits:
            server.metrics.edit_uses.labels(use.edit.name).inc()
        images = await _drawn(server.batcher.submit(job), gone)
        result = await asyncio.to_thread(finish, images)
        outcome = "ok"
    except ClientGone:
        outcome = "disconnected"
        raise
    except ApiError:
        outcome = "invalid"
        server.metrics.rejections.labels("invalid").inc()
        raise
    except Exception as error:
        outcome = REASONS.get(type(error), "failed")
        if outcome in ("queue_full", "shutting_down"):
            server.metrics.rejections.labels(outcome).inc()
        raise from_job(error, request_id) from error
    finally:
        server.metrics.requests.labels(outcome).inc()
        server.metrics.seconds.observe(time.monotonic() - begun)
    server.metrics.pictures.inc(len(images))
    return job, result


async def _drawn(ticket: Ticket, gone: Callable[[], Coroutine[Any, Any, None]] | None) -> list[Image.Image]:
    """The ticket's pictures; its place is given up when the client goes or the task is cancelled."""
    future = asyncio.ensure_future(asyncio.wrap_future(ticket.future))
    leaving = None if gone is None else asyncio.ensure_future(gone())
    try:
        # The batcher ends late jobs between passes, which can be long: here it is done on time.
        seconds = None if ticket.job.deadline is None else ticket.job.deadline - time.monotonic()
        waiting = {future} if leaving is None else {future, leaving}
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
