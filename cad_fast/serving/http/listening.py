"""How ``cad-fast serve`` listens: uvicorn with bounds on what it reads, an orderly end, and errors in OpenAI's form."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import threading
from asyncio import TimerHandle, create_task, sleep, to_thread
from collections.abc import Iterator, Sequence
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..errors import RequestError
from .error_responses import error_body, error_response
from .middleware import SHUTTING_DOWN

# Most bytes of a request's line and headers. It is h11's limit: other parsers that uvicorn knows have none.
MAX_HEAD = 64 * 1024
# Most connections at once. More are answered with 503.
CONNECTIONS = 1000
# How long an idle connection is kept for the next request, in seconds: longer than clients (httpx: 5) and proxies (60)
# usually do. Whoever keeps it less long ends it, and no request of theirs meets a connection that is being closed.
KEEP_SECONDS = 65
# How long an idle connection is still listened to when the server ends: a request may be on its way. In seconds.
LAST_SECONDS = 0.5
_END_OF_HEAD = re.compile(rb"\n\r?\n")


class BoundedProtocol(H11Protocol):
    """A connection whose requests have a bounded head that comes in a bounded time.

    ``seconds`` count from the connection, or from a later request's first byte, to the end of the head. What then is
    not whole gets 408, and the connection ends. (``BoundedBodies`` does the same for bodies.) As much time is left to a
    body whose request was answered before it was whole.

    When the server ends, a head that is half sent gets 503, as does a request that was on its way just then.
    """

    seconds: float

    def connection_made(self, transport: Any) -> None:
        """Start the time for the first request."""
        super().connection_made(transport)
        self._timer: TimerHandle | None = None
        self._heard = self._ending = False
        if len(self.connections) > CONNECTIONS:
            self.app = _overloaded
        if self.config.app.state.closing.is_set():  # type: ignore[union-attr]  # the app that `serve` made
            self.shutdown()  # it was accepted as the server began to end, which has ended the others
        else:
            self._watch()

    def data_received(self, data: bytes) -> None:
        """Read on."""
        self._heard = True
        super().data_received(data)
        self._watch()

    def handle_events(self) -> None:
        """Answer what has come, unless its head is too large: h11 lets one pass that is whole when it looks."""
        if self.conn.their_state is h11.IDLE and len(data := self.conn.trailing_data[0]) > MAX_HEAD:
            if not _END_OF_HEAD.search(data, 0, MAX_HEAD):
                self.send_400_response("")
                return
        super().handle_events()
        if self._ending and self.cycle is not None:
            self.cycle.keep_alive = False

    def shutdown(self) -> None:
        """End the connection: after the answer to its request, or when no request comes any more."""
        self._ending = True
        if self.conn.our_state is not h11.IDLE or self.transport.is_closing():
            super().shutdown()
            return
        self._unwatch()
        self._timer = self.loop.call_later(0.0 if self._half_sent else LAST_SECONDS, self._close_in_order)

    def _close_in_order(self) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        if self._half_sent:
            self._answer(503, "shutting_down", SHUTTING_DOWN, [("retry-after", "10")])
        else:
            super().shutdown()

    @property
    def _half_sent(self) -> bool:
        """Whether a part of a request's head has come."""
        return self.conn.their_state is h11.IDLE and bool(self.conn.trailing_data[0])

    def connection_lost(self, exc: Exception | None) -> None:
        """Let the time go."""
        self._unwatch()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, or has too large a head, in OpenAI's form."""
        self._answer(400, "invalid", f"this is no HTTP request, or its head is larger than {MAX_HEAD} bytes")

    def _watch(self) -> None:
        """Have the time run while a head is being waited for, or a body that nobody reads, and only then."""
        unread = self.conn.their_state is h11.SEND_BODY and self.cycle.response_complete
        if self.transport.is_closing() or not (self.conn.their_state is h11.IDLE or unread):
            self._unwatch()
        elif self._timer is None:
            self._timer = self.loop.call_later(self.seconds, self._too_slow)

    def _unwatch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        if self._heard and self.conn.our_state is h11.IDLE:
            self._answer(408, "too_slow", f"the request did not come within {self.seconds:g} seconds")
        self.transport.close()

    def _answer(self, status: int, code: str, message: str, more: Sequence[tuple[str, str]] = ()) -> None:
        """Answer what the app does not, as far as no answer has begun, and end the connection."""
        state = self.conn.our_state
        if state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(error_body(status, message, code)).encode()
            headers = [
                ("content-type", "application/json"),
                ("content-length", str(len(body))),
                ("connection", "close"),
            ]
            headers += more
            bodiless = state is h11.SEND_RESPONSE and self.scope["method"] == "HEAD"
            response = h11.Response(status_code=status, headers=headers)
            for event in (response, h11.Data(data=b"" if bodiless else body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        if self.cycle is not None and not self.cycle.response_complete:  # the app has nobody to answer any more
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()


async def _overloaded(scope: Any, receive: Any, send: Any) -> None:
    """Answer a request on one connection too many."""
    response = error_response(RequestError("overloaded", f"there are more than {CONNECTIONS} connections"))
    response.headers["connection"] = "close"
    await response(scope, receive, send)


class DrainingServer(uvicorn.Server):
    """A uvicorn server that takes no more pictures from the moment it is told to end, and finishes the accepted ones.

    Those that are not done in the time to drain get 503, as do requests that are half sent.
    """

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the connections, and the server's batcher at the same time."""
        state = self.config.app.state  # type: ignore[union-attr]  # the app that `serve` made
        state.closing.set()
        stopped = create_task(to_thread(state.server.stop))
        for _ in range(3):  # turns of the event loop, in which connections that wait are accepted and begun
            await sleep(0)
        await super().shutdown(sockets)
        await stopped

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """End in order on SIGTERM and Ctrl-C, and leave it at that: uvicorn would raise the signal again."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def bind(host: str, port: int) -> list[socket.socket]:
    """Take the addresses that ``host`` stands for, without listening there yet.

    Raises:
        ValueError: there is no such host.
        RuntimeError: an address is not there, in use, or not allowed.
    """
    try:
        if not 0 <= port < 2**16:
            raise OverflowError("ports are 0 to 65535")
        places = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError, OverflowError) as error:
        raise ValueError(f"--host {host} --port {port} is no address to listen at: {error}") from error
    sockets: list[socket.socket] = []
    try:
        for family, kind, protocol, _, place in dict.fromkeys(places):
            taken = socket.socket(family, kind, protocol)
            sockets.append(taken)
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                taken.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            # A free port that was chosen for one address is taken for all.
            number = port or (sockets[0].getsockname()[1] if len(sockets) > 1 else 0)
            taken.bind((place[0], number, *place[2:]))
    except OSError as error:
        for taken in sockets:
            taken.close()
        raise RuntimeError(
            f"the server could not start: nothing can listen at {address(host, port)}: {error.strerror}"
        ) from error
    return sockets


def address(host: str, port: int) -> str:
    """Write an address as in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def make_uvicorn(
    app: Any,
    *,
    drain: float,
    receive_seconds: float,
    proxies: Sequence[str] = (),
    access_log: bool = True,
) -> DrainingServer:
    """Make the uvicorn server of an app.

    Args:
        app: what ``make_app`` made.
        drain: longest time to finish requests, in seconds.
        receive_seconds: longest time for the head of a request to come, in seconds.
        proxies: addresses or networks whose X-Forwarded-For and X-Forwarded-Proto are believed.
        access_log: whether to log every request.
    """
    config = uvicorn.Config(
        app,
        http=type("Protocol", (BoundedProtocol,), {"seconds": receive_seconds}),
        ws="none",
        h11_max_incomplete_event_size=MAX_HEAD,
        proxy_headers=bool(proxies),
        forwarded_allow_ips=list(proxies),
        server_header=False,
        timeout_keep_alive=KEEP_SECONDS,
        timeout_graceful_shutdown=int(drain) + 5,
        log_config=None,
        access_log=access_log,
    )
    return DrainingServer(config)


def serve(server: DrainingServer, sockets: Sequence[socket.socket]) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish the accepted requests.

    Raises:
        RuntimeError: the server could not start.
    """
    try:
        server.run(sockets=list(sockets))
    except SystemExit as stop:  # by uvicorn, when it cannot start; it has said why
        if stop.code not in (0, None):
            raise RuntimeError("the server could not start; its log says why") from stop
        raise
