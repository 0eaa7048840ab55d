"""ASGI middleware: which hosts are answered, a bound on bodies and on the time that they take, headers of responses."""

from __future__ import annotations

import asyncio
import ipaddress
import re
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from starlette.exceptions import HTTPException

from ..errors import RequestError
from .error_responses import STATUS, error_response

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

SHUTTING_DOWN = "the server is shutting down"
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "content-security-policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'",
}
_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]{2,45}\]|[^\s:/@\[\]]{1,253})(:[0-9]{0,5})?")


class KnownHosts:
    """Middleware that answers requests with one of these Host headers alone.

    Args:
        app: what answers them.
        names: of hosts, or their addresses. ``*.example.com`` stands for all below it, ``*`` for all.
    """

    def __init__(self, app: Any, names: Sequence[str]) -> None:
        self.app = app
        self._names = {_host_key(name) for name in names}
        self._endings = tuple(name[1:].lower() for name in names if name.startswith("*."))

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or "*" in self._names or self._knows(dict(scope["headers"]).get(b"host", b"")):
            await self.app(scope, receive, send)
            return
        message = "this server does not answer to the name in the Host header (--allowed-hosts)"
        await error_response(RequestError("unknown_host", message))(scope, receive, send)

    def _knows(self, header: bytes) -> bool:
        match = _HOST.fullmatch(header)
        if match is None:
            return False
        host = match[1].decode("latin-1")
        return _host_key(host) in self._names or host.lower().endswith(self._endings or ("\0",))


def _host_key(name: str) -> str:
    """The same for every way to write an address."""
    bare = name.removeprefix("[").removesuffix("]")
    try:
        return str(ipaddress.ip_address(bare))
    except ValueError:
        return name.lower()


class BoundedBodies:
    """Middleware that refuses bodies that are too large, or too slow, or not yet whole when the server shuts down.

    Args:
        app: what answers the requests.
        limit: most bytes of a body. It answers 413 to more, and reads no further.
        seconds: longest time for a body. It answers 408 to one that takes longer.
        closing: set when the server shuts down. It then answers 503 to a body that is not whole.
    """

    def __init__(self, app: Any, limit: int, seconds: float, closing: asyncio.Event) -> None:
        self.app, self.limit, self.seconds, self.closing = app, limit, seconds, closing

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                present = {name.lower() for name, _ in message["headers"]}
                extra = [(k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in present]
                message["headers"] = [*message["headers"], *extra]
            await send(message)

        async def refuse(error: RequestError) -> None:
            response = error_response(error)
            response.headers["connection"] = "close"
            await response(scope, receive, with_headers)

        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 18 or int(length) > self.limit:
            await refuse(RequestError("body_too_large", self._too_large))
            return
        try:
            await self.app(scope, self._bounded(receive), with_headers)
        except asyncio.CancelledError:
            if not self.closing.is_set():
                raise
            if not started:  # cut off at the end of the time to drain
                await refuse(RequestError("shutting_down", SHUTTING_DOWN, retry_after=10))

    @property
    def _too_large(self) -> str:
        return f"the body is larger than {self.limit} bytes"

    def _bounded(self, receive: Receive) -> Receive:
        until = asyncio.get_running_loop().time() + self.seconds
        read, whole = 0, False

        async def bounded() -> Message:
            nonlocal read, whole
            if whole:
                return await receive()
            message = await self._in_time(receive, until)
            read += len(message.get("body", b""))
            if read > self.limit:
                raise _http_error("body_too_large", self._too_large)
            whole = not message.get("more_body", False)
            return message

        return bounded

    async def _in_time(self, receive: Receive, until: float) -> Message:
        part = asyncio.ensure_future(receive())
        closing = asyncio.ensure_future(self.closing.wait())
        try:
            left = until - asyncio.get_running_loop().time()
            await asyncio.wait({part, closing}, timeout=max(0.0, left), return_when=asyncio.FIRST_COMPLETED)
            if part.done():
                return part.result()
            if closing.done():
                raise _http_error("shutting_down", SHUTTING_DOWN)
            raise _http_error("too_slow", f"the body did not come within {self.seconds:g} seconds")
        finally:
            closing.cancel()
            if not part.done():
                part.cancel()


def _http_error(code: Any, message: str) -> HTTPException:
    """Make the error of the framework, which alone comes through what reads a body."""
    headers = {"connection": "close", **({"retry-after": "10"} if code == "shutting_down" else {})}
    return HTTPException(STATUS[code], message, headers)
