"""How the server listens: what it reads and for how long, whom it believes, and how it ends."""

import asyncio
import contextlib
import http.client
import json
import socket
import threading
import time

import httpx
import pytest

from cad_fast.serving.engine.edited_passes import RowWise
from cad_fast.serving.http import listening
from cad_fast.serving.http.app import make_app
from cad_fast.serving.http.listening import KEEP_SECONDS, LAST_SECONDS, MAX_HEAD, address, bind, make_uvicorn
from tests.pipelines import stable_diffusion
from tests.serving.common import PATH, client_of, make_server, run

BODY = b'{"prompt": "a cat", "num_inference_steps": 1}'
HEAD = b"POST " + PATH.encode() + b" HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


class Slow(RowWise):
    """Passes that wait until they may go on."""

    def __init__(self, pipeline) -> None:
        super().__init__(pipeline)
        self.entered, self.may_go = threading.Event(), threading.Event()

    def run(self, inputs, per_row):
        self.entered.set()
        assert self.may_go.wait(60)
        return super().run(inputs, per_row)


@contextlib.contextmanager
def listening_at(server, receive_seconds=30.0, proxies=(), host="127.0.0.1"):
    """(port, the uvicorn server) of a server that listens in a thread of this process."""
    sockets = bind(host, 0)
    port = sockets[0].getsockname()[1]
    uvicorn = make_uvicorn(
        make_app(server), drain=server.settings.drain, receive_seconds=receive_seconds, proxies=proxies
    )
    thread = threading.Thread(target=uvicorn.run, kwargs={"sockets": sockets})
    thread.start()
    try:
        while not uvicorn.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield port, uvicorn
    finally:
        uvicorn.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


def served(**settings):
    return make_server(stable_diffusion(), steps=1, batch_timeout=0.0, **settings)


def answer(connection) -> tuple[int, dict]:
    """(status, body) of what comes on a socket until it is closed."""
    reply = http.client.HTTPResponse(connection)
    reply.begin()
    return reply.status, json.loads(reply.read())


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=30)


def test_heads_are_bounded_and_come_in_time() -> None:
    with listening_at(served(), receive_seconds=0.5) as (port, _):
        with connected(port) as flood:
            sent = 0
            with contextlib.suppress(OSError):
                flood.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
                while sent < 100 * MAX_HEAD:
                    sent += flood.send(b"x-filler: " + b"y" * 8000 + b"\r\n")
            # What the operating system takes into its buffers is not read.
            assert sent < 100 * MAX_HEAD
        with connected(port) as mute, connected(port) as half, connected(port) as noise:
            half.sendall(b"GET /health HTTP/1.1\r\nHost: local")
            noise.sendall(b"\x00\x01\x02 what\r\n\r\n")
            status, body = answer(half)
            assert status == 408 and body["error"]["code"] == "too_slow"
            status, body = answer(noise)
            assert status == 400 and "is no HTTP request" in body["error"]["message"]
            assert mute.recv(100) == b""
        with connected(port) as kept:  # the second request of a connection has its own time
            kept.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert answer(kept)[0] == 200
            kept.sendall(b"GET /hea")
            assert answer(kept)[0] == 408


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_large_head_that_comes_at_once_is_refused_as_well(method, caplog) -> None:
    line = b"x-filler: " + b"y" * 1000 + b"\r\n"
    head = f"{method} / HTTP/1.1\r\nHost: localhost\r\n".encode()
    with listening_at(served()) as (port, _):
        for lines, expected in ((60, 200), (65, 400)):
            with connected(port) as asking:
                asking.sendall(head + lines * line + b"\r\n")
                reply = http.client.HTTPResponse(asking, method=method)
                reply.begin()
                assert reply.status == expected
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(
    ("first", "later", "status"),
    [
        (b"POST " + PATH.encode(), b"", 400),  # nobody has answered yet
        (b"HEAD " + PATH.encode(), b"", 400),
        (b"POST /nothing", b"", 400),
        (b"POST /nothing", b"later", 404),  # what the app answered stays the only answer
    ],
)
def test_a_body_whose_pieces_are_none(first, later, status, caplog) -> None:
    head = (
        first + b" HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    with caplog.at_level("INFO"), listening_at(served()) as (port, _), connected(port) as asking:
        if later:
            asking.sendall(head)
            reply = answer(asking)
            asking.sendall(b"zz\r\nno piece")
        else:
            asking.sendall(head + b"zz\r\nno piece")
            told = http.client.HTTPResponse(asking, method=first.split()[0].decode())
            told.begin()
            reply = (told.status, json.loads(told.read() or b"null"))
        assert reply[0] == status
        assert asking.recv(1000) == b""
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")], caplog.text


def test_bodies_come_in_time() -> None:
    with listening_at(served(receive_timeout=0.5)) as (port, _), connected(port) as half:
        half.sendall(HEAD + b"Content-Length: 100\r\n\r\n" + BODY)
        status, body = answer(half)
        assert status == 408 and body["error"] == {
            "message": "the body did not come within 0.5 seconds", "type": "invalid_request_error", "param": None,
            "code": "too_slow",
        }  # fmt: skip


def test_idle_connections_are_kept_longer_than_clients_do() -> None:
    """Else the server closes one just when a client sends on it."""
    for client, seconds in (("httpx", httpx.Limits().keepalive_expiry), ("nginx and AWS' balancers", 60)):
        assert seconds < KEEP_SECONDS, client
    with listening_at(served()) as (_, uvicorn):
        assert uvicorn.config.timeout_keep_alive == KEEP_SECONDS


def test_a_body_that_nobody_reads_comes_in_time_too() -> None:
    with listening_at(served(), receive_seconds=0.5) as (port, _), connected(port) as dripping:
        dripping.sendall(b"POST /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 60000\r\n\r\n")
        assert answer(dripping)[0] == 404
        with pytest.raises(OSError):
            for _ in range(600):
                dripping.send(b"x")
                time.sleep(0.05)


@pytest.mark.parametrize(
    ("proxies", "client"), [((), "127.0.0.1"), (("127.0.0.1",), "9.9.9.9"), (("10.0.0.0/8",), "127.0.0.1")]
)
def test_only_a_proxy_that_is_named_says_who_asks(proxies, client, caplog) -> None:
    server, clients = served(), []
    submit = server.batcher.submit
    server.batcher.submit = lambda job: clients.append(job.client) or submit(job)
    with caplog.at_level("INFO"), listening_at(server, proxies=proxies) as (port, _), connected(port) as asking:
        asking.sendall(HEAD + b"X-Forwarded-For: 9.9.9.9\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY)
        assert answer(asking)[0] == 200
    assert clients == [f"{client}/"]
    (line,) = [record.getMessage() for record in caplog.records if record.name == "uvicorn.access"]
    assert line.startswith(client)


def test_at_the_end_requests_get_503_in_openais_form(caplog) -> None:
    """What is running and not done in time, what waits, and what is half sent."""
    passes = Slow(stable_diffusion())
    server = served(drain=0.5, max_batch_size=1, passes=passes)
    whole = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
    with listening_at(server) as (port, uvicorn), contextlib.ExitStack() as stack:
        running, waiting, head, body = (stack.enter_context(connected(port)) for _ in range(4))
        running.sendall(whole)
        assert passes.entered.wait(30)
        waiting.sendall(whole)
        head.sendall(HEAD)
        body.sendall(HEAD + b"Content-Length: 100\r\n\r\n" + BODY)
        while server.batcher.load != (1, 1) or len(uvicorn.server_state.tasks) < 3:
            time.sleep(0.01)
        uvicorn.should_exit = True
        for connection in (head, body, running, waiting):
            status, told = answer(connection)
            assert status == 503 and told["error"]["code"] == "shutting_down", told
            assert told["error"]["type"] == "server_error"
        passes.may_go.set()
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")], caplog.text


def test_requests_on_their_way_when_the_end_comes_get_503() -> None:
    """On connections that are idle when the server is told to end, kept or new; one request stays half sent."""
    server = served(drain=1.0)
    whole = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
    with listening_at(server) as (port, uvicorn), contextlib.ExitStack() as stack:
        kept, fresh, late, idle = (stack.enter_context(connected(port)) for _ in range(4))
        kept.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert answer(kept)[0] == 200
        while len(uvicorn.server_state.connections) < 4:
            time.sleep(0.01)
        uvicorn.should_exit = True
        while server.batcher.accepting:
            time.sleep(0.005)
        kept.sendall(whole)
        fresh.sendall(whole)
        late.sendall(HEAD)
        for connection in (kept, fresh, late):
            status, told = answer(connection)
            assert status == 503 and told["error"]["code"] == "shutting_down", told
            assert connection.recv(100) == b""
        assert idle.recv(100) == b""


def test_a_connection_that_is_accepted_as_the_end_begins_does_not_hold_it_up() -> None:
    with listening_at(served()) as (port, uvicorn):
        uvicorn.config.app.state.closing.set()
        begun = time.monotonic()
        with connected(port) as late:
            assert late.recv(100) == b""
        assert LAST_SECONDS <= time.monotonic() - begun < 20.0  # of 30 to send a head


def test_a_request_that_the_end_of_the_drain_cancels_gets_503() -> None:
    """If the batcher itself cannot end the request, uvicorn cancels it."""
    server = served()

    async def go():
        app = make_app(server)
        sent = []

        async def never():
            await asyncio.Event().wait()

        async def send(message):
            sent.append(message)

        @app.get("/never")
        async def route():
            await never()

        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "path": "/never",
            "raw_path": b"/never", "query_string": b"", "scheme": "http", "server": ("localhost", 80),
            "headers": [(b"host", b"localhost")], "root_path": "", "client": ("somewhere", 1),
        }  # fmt: skip
        for closing in (True, False):
            task = asyncio.create_task(app(scope, never, send))
            await asyncio.sleep(0.05)
            if closing:
                app.state.closing.set()
            task.cancel()
            if closing:
                await task
            else:
                app.state.closing.clear()
                with pytest.raises(asyncio.CancelledError):
                    await task
        return sent

    start, body = run(go())
    assert start["status"] == 503 and json.loads(body["body"])["error"]["code"] == "shutting_down"


def test_too_many_connections(monkeypatch) -> None:
    monkeypatch.setattr(listening, "CONNECTIONS", 1)
    with listening_at(served()) as (port, uvicorn), connected(port):
        while not uvicorn.server_state.connections:
            time.sleep(0.01)
        with connected(port) as second:
            second.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            status, body = answer(second)
            assert status == 503 and body["error"]["code"] == "overloaded"


@pytest.mark.parametrize(
    ("hosts", "header", "known"),
    [
        (("localhost", "::1"), "[::1]:8000", True),
        (("localhost", "::1"), "[0:0::1]", True),
        (("localhost", "::1"), "LOCALHOST:80", True),
        (("localhost",), "localhost.evil.example", False),
        (("localhost",), "evil@localhost", False),
        (("localhost",), "", False),
        (("*.example.com",), "a.example.com:80", True),
        (("*.example.com",), "aexample.com", False),
        (("*",), "anything", True),
    ],
)
def test_host_headers(hosts, header, known) -> None:
    async def go():
        async with client_of(served(allowed_hosts=hosts)) as client:
            reply = await client.get("/health", headers={"host": header})
            if not known:
                assert reply.json()["error"]["code"] == "unknown_host"
                assert reply.json()["error"]["type"] == "invalid_request_error"
            return reply.status_code

    assert run(go()) == (200 if known else 400)


def test_addresses(tmp_path) -> None:
    assert address("::1", 80) == "[::1]:80" and address("127.0.0.1", 80) == "127.0.0.1:80"
    with contextlib.ExitStack() as stack:
        (taken,) = (stack.enter_context(each) for each in bind("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RuntimeError, match=rf"nothing can listen at 127\.0\.0\.1:{port}: Address already in use"):
            bind("127.0.0.1", port)
    for host, port in (("no.such.host.invalid", 80), ("127.0.0.1", 99999999)):
        with pytest.raises(ValueError, match="is no address to listen at"):
            bind(host, port)
