"""Errors as OpenAI's clients read them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from .engine.jobs import Closed, DeadlineExceeded, NotFinite, QueueFull
from .metrics import Metrics

log = logging.getLogger(__name__)


class ApiError(Exception):
    """An error with its HTTP status; ``param`` names the field of the request at fault."""

    def __init__(
        self, status: int, message: str, *, code: str, param: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.headers = status, code, param, headers

    def response(self) -> JSONResponse:
        kind = "rate_limit_error" if self.status == 429 else "server_error" if self.status >= 500 else None
        return error_response(self.status, str(self), kind, self.code, self.param, self.headers)


def error_response(
    status: int,
    message: str,
    kind: str | None = None,
    code: str | None = None,
    param: str | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    body = {"message": message, "type": kind or "invalid_request_error", "param": param, "code": code}
    return JSONResponse({"error": body}, status, headers)


def misfit(fault: Mapping[str, Any]) -> ApiError:
    """The error for what pydantic says does not fit in a request's body."""
    # The "field" of broken JSON is where it breaks.
    param = None if fault["type"] == "json_invalid" else _path(fault["loc"])
    what = {"extra_forbidden": "there is no such field", "json_invalid": "the body is not valid JSON"}
    message = what.get(fault["type"], fault["msg"])
    return ApiError(400, f"{param}: {message}" if param else message, code="invalid", param=param)


def from_job(error: BaseException, request_id: str) -> ApiError:
    """The error of a job as a client may see it: nothing of the server's insides."""
    if isinstance(error, QueueFull):
        return ApiError(429, str(error), code="queue_full", headers={"Retry-After": str(error.retry_after)})
    if isinstance(error, Closed):
        return ApiError(503, str(error), code="shutting_down", headers={"Retry-After": "10"})
    if isinstance(error, DeadlineExceeded):
        return ApiError(504, str(error), code="deadline_exceeded")
    if isinstance(error, NotFinite):
        return ApiError(500, f"the picture could not be drawn: {error}", code="not_finite")
    return ApiError(500, f"the request failed; the server's log tells why, under {request_id}", code="failed")


def install(app: FastAPI, metrics: Metrics) -> None:
    """Give ``app`` handlers that answer every error in OpenAI's format."""

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        metrics.rejections.labels("invalid").inc()
        first = error.errors()[0]
        return misfit({**first, "loc": first["loc"][1:]}).response()  # without "body"

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        return error_response(error.status_code, str(error.detail), headers=dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        log.error("%s %s failed: %s", request.method, request.url.path, error, exc_info=error)
        return error_response(500, "the request failed; the server's log tells why", "server_error", "failed")


def _path(location: tuple[Any, ...]) -> str | None:
    """``("edits", 0, "name")`` as ``edits[0].name``."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text or None
