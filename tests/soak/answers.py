"""What an answer must be: the pictures, or a documented error in OpenAI's form."""

from __future__ import annotations

import json
from typing import Any

from cad_fast.serving.http.error_responses import STATUS

from .served import LIMITS

# Beside the codes of the table: of the framework's errors.
CODES = {**STATUS, "unknown_route": 404, "method_not_allowed": 405}


class Wrong(Exception):
    """An answer, or a server, that is not as promised."""


def error_of(status: int, headers: Any, body: bytes) -> str:
    """The code of a documented error in OpenAI's form. Raises Wrong for anything else."""
    text = body.decode("utf-8", "replace")
    shown = f"{status} {text[:300]!r}"
    if headers.get("content-type") != "application/json":
        raise Wrong(f"an error that is no JSON, but {headers.get('content-type')}: {shown}")
    try:
        value = json.loads(body)
        error = value["error"]
        fields = {"message", "type", "param", "code"}
        if set(value) != {"error"} or set(error) != fields or not isinstance(error["message"], str):
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise Wrong(f"an error that has not OpenAI's form: {shown}") from None
    code = error["code"]
    if CODES.get(code) != status:
        raise Wrong(f"a status and a code that do not go together: {shown}")
    kind = "rate_limit_error" if status == 429 else "server_error" if status >= 500 else "invalid_request_error"
    if error["type"] != kind:
        raise Wrong(f"an error of another type than {kind}: {shown}")
    if any(word in text for word in ("Traceback", ".py", "site-packages", "0x")):
        raise Wrong(f"an error that tells of the server's insides: {shown}")
    if status in (429, 503) and code != "overloaded" and not headers.get("retry-after", "").isdigit():
        raise Wrong(f"no Retry-After: {shown}")
    return str(code)


def require_error(status: int, headers: Any, body: bytes, *codes: str) -> str:
    """As ``error_of``. Raises Wrong for another code than one of these."""
    if status < 400:
        raise Wrong(f"an answer {status}, expected {' or '.join(codes)}")
    code = error_of(status, headers, body)
    if code not in codes:
        raise Wrong(f"the error {code}, expected {' or '.join(codes)}: {body[:300]!r}")
    return code


def require_unlucky(seconds: float, status: int, headers: Any, body: bytes, *codes: str) -> str:
    """As ``require_error``, of a request for pictures that took ``seconds``: its deadline may have passed, too."""
    code = require_error(status, headers, body, "deadline_exceeded", *codes)
    if code == "deadline_exceeded" and seconds < LIMITS["deadline"] - 1:
        raise Wrong(f"the deadline of {LIMITS['deadline']} s passed after {seconds:.1f} s")
    return code
