"""Errors as responses in the form of OpenAI: ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ..errors import ErrorCode, RequestError, invalid_field
from ..metrics import Metrics

log = logging.getLogger(__name__)

STATUS: dict[ErrorCode, int] = {
    "invalid": 400,
    "unknown_host": 400,
    "forbidden": 403,
    "not_found": 404,
    "model_not_found": 404,
    "edit_not_found": 404,
    "edit_not_loaded": 404,
    "too_slow": 408,
    "edit_without_file": 409,
    "body_too_large": 413,
    "queue_full": 429,
    "not_finite": 500,
    "failed": 500,
    "shutting_down": 503,
    "overloaded": 503,
    "deadline_exceeded": 504,
}

# The codes of what is wrong with a body, by the status with which reading it ends.
BODY_CODES: dict[int, ErrorCode] = {400: "invalid", 408: "too_slow", 413: "body_too_large", 503: "shutting_down"}


def error_body(status: int, message: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """Make the body of an error response."""
    kind = "rate_limit_error" if status == 429 else "server_error" if status >= 500 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_response(error: RequestError) -> JSONResponse:
    """Make the response for a request that is refused, or that failed."""
    status = STATUS[error.code]
    headers = None if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    return JSONResponse(error_body(status, str(error), error.code, error.param), status, headers)


def install(app: FastAPI, metrics: Metrics) -> None:
    """Give ``app`` handlers that answer every error in the form of OpenAI."""

    @app.exception_handler(RequestError)
    async def request_error(request: Request, error: RequestError) -> JSONResponse:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        metrics.rejections.labels("invalid").inc()
        return error_response(_misfit(request.headers, error.errors()[0]))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 400:
            metrics.rejections.labels("invalid").inc()
        body = error_body(error.status_code, *_words(request, error))
        return JSONResponse(body, error.status_code, dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        log.error("%s %s failed: %s", request.method, request.url.path, error, exc_info=error)
        return JSONResponse(error_body(500, "the request failed; the server's log tells why", "failed"), 500)


def _misfit(headers: Mapping[str, str], fault: Mapping[str, Any]) -> RequestError:
    """Make the error for what pydantic says of a request, of which ``fault`` is the first complaint."""
    location = fault["loc"][1:]  # without "body"
    if not location and "json" not in headers.get("content-type", ""):
        return RequestError("invalid", "the body needs the header Content-Type: application/json")
    return invalid_field({**fault, "loc": location})


def _words(request: Request, error: HTTPException) -> tuple[str, str | None]:
    """Return the message and the code for an error of the framework."""
    if error.status_code == 404:
        return f"there is no route {request.url.path}; GET /openapi.json lists the routes", "unknown_route"
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        return f"{request.url.path} does not take {request.method}: use {allowed}", "method_not_allowed"
    if error.status_code == 400:  # it could not be read at all: no UTF-8, or nested too deeply
        return "the body is not valid JSON", BODY_CODES[400]
    return str(error.detail), BODY_CODES.get(error.status_code)
