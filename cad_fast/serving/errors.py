"""Errors of requests, whatever the protocol: a code, a message, and the field at fault."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from .engine.jobs import Closed, DeadlineExceeded, NotFinite, QueueFull

ErrorCode = Literal[
    "invalid",
    "forbidden",
    "not_found",
    "model_not_found",
    "edit_not_found",
    "edit_not_loaded",
    "edit_without_file",
    "unknown_host",
    "too_slow",
    "body_too_large",
    "queue_full",
    "shutting_down",
    "overloaded",
    "deadline_exceeded",
    "not_finite",
    "failed",
]


class RequestError(Exception):
    """A request that is refused, or that failed.

    Args:
        code: the kind of error.
        message: the error in words, for the client.
        param: the field of the request at fault.
        retry_after: seconds after which the same request may be taken.
    """

    def __init__(
        self, code: ErrorCode, message: str, *, param: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.code, self.param, self.retry_after = code, param, retry_after


def invalid_field(fault: Mapping[str, Any]) -> RequestError:
    """Make the error for what pydantic says does not fit in a request."""
    # The location of broken JSON is where it breaks, not a field.
    param = None if fault["type"] == "json_invalid" else _path(fault["loc"])
    words = {"extra_forbidden": "there is no such field", "json_invalid": "the body is not valid JSON"}
    message = words.get(fault["type"], fault["msg"])
    return RequestError("invalid", f"{param}: {message}" if param else message, param=param)


def failed_job(error: BaseException, request_id: str) -> RequestError:
    """Make the error that a client sees for the error of a job. It tells nothing of the server's insides."""
    if isinstance(error, QueueFull):
        return RequestError("queue_full", str(error), retry_after=error.retry_after)
    if isinstance(error, Closed):
        return RequestError("shutting_down", str(error), retry_after=10)
    if isinstance(error, DeadlineExceeded):
        return RequestError("deadline_exceeded", str(error))
    if isinstance(error, NotFinite):
        return RequestError("not_finite", f"the picture could not be drawn: {error}")
    return RequestError("failed", f"the request failed; the server's log tells why, under {request_id}")


def _path(location: tuple[Any, ...]) -> str | None:
    """Write ``("edits", 0, "name")`` as ``edits[0].name``."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text or None
