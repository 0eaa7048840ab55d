"""Clients that ask what must be refused, leave before the answer, or are slow."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import time
from typing import Any

from cad_fast.serving.http.listening import MAX_HEAD
from tests.serving.common import PATH

from .answers import Wrong, require_error, require_unlucky
from .load import ANSWER_SECONDS, Load, read_answer, send_pieces
from .malformed import BODY, MALFORMED, NOISE, raw


async def malformed(load: Load, number: int, draw: random.Random) -> str:
    """One of ``MALFORMED``."""
    method, path, headers, content, code = draw.choice(MALFORMED)
    sent: Any = content
    if content and draw.random() < 0.2:

        async def chunks() -> Any:
            for start in range(0, len(content), 1000):
                yield content[start : start + 1000]

        sent = chunks()
    encoded = [(name, value.encode("latin-1")) for name, value in headers.items()]
    request = load.client.build_request(method, "/", headers=encoded, content=sent)
    request.url = request.url.copy_with(raw_path=path.encode())
    answer = await load.client.send(request)
    return require_error(answer.status_code, answer.headers, answer.content, code)


async def noise(load: Load, number: int, draw: random.Random) -> str:
    """One of ``NOISE``, or a body that turns out to be none when it has been answered already."""
    data, code = draw.choice(NOISE)
    if draw.random() < 0.1:
        return await _late_noise(load)
    try:
        return require_error(*await load.raw(data), code)
    except ConnectionError:  # closed while much was still unread, which takes the answer with it
        if len(data) > MAX_HEAD:
            return "reset"
        raise


async def _late_noise(load: Load) -> str:
    head = raw(b"", **{"Transfer-Encoding": "chunked", "Content-Length": None}).replace(PATH.encode(), b"/nothing")
    async with load.connection() as (reader, writer):
        await send_pieces(writer, head)
        code = require_error(*await read_answer(reader), "unknown_route")
        await send_pieces(writer, b"zz\r\nno chunk")
        with contextlib.suppress(ConnectionError):
            if more := await asyncio.wait_for(reader.read(), ANSWER_SECONDS):
                raise Wrong(f"a second answer to one request: {more[:200]!r}")
    return code


async def leaves(load: Load, number: int, draw: random.Random) -> str:
    """A client that goes before its answer: in the head, in the body, or after it; with a FIN or a RST."""
    whole = raw(BODY if draw.random() < 0.5 else b'{"prompt": "a car", "n": 2, "num_inference_steps": 2}')
    head = whole.index(b"\r\n\r\n") + 4
    part = draw.choice(["head", "body", "answer"])
    end = {"head": draw.randrange(1, head), "body": draw.randrange(head, len(whole)), "answer": len(whole)}[part]
    async with load.connection() as (_, writer):
        writer.write(whole[:end])
        await asyncio.sleep(draw.choice([0, 0.01, 0.1, 0.3]))
        if draw.random() < 0.5:  # the connection is reset
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    return f"in the {part}"


async def half(load: Load, number: int, draw: random.Random) -> str:
    """A client that never sends the rest of its request."""
    whole = raw(BODY)
    head = whole.index(b"\r\n\r\n") + 4
    end = draw.choice([draw.randrange(1, head - 1), draw.randrange(head, len(whole))])
    return require_error(*await load.raw(whole[:end]), "too_slow")


async def drips(load: Load, number: int, draw: random.Random) -> str:
    """A client that sends slowly, but in time."""
    whole = raw(BODY)
    cuts = sorted(draw.sample(range(1, len(whole)), 4))
    pieces: list[bytes | float] = []
    for first, last in zip([0, *cuts], [*cuts, len(whole)], strict=True):
        pieces += [whole[first:last], 0.1]
    begun = time.monotonic()
    status, headers, body = await load.raw(*pieces)
    if status == 200:
        load.served += 1
        return "200"
    return require_unlucky(time.monotonic() - begun, status, headers, body, "queue_full")


async def pipelined(load: Load, number: int, draw: random.Random) -> str:
    """Two requests in one breath, and a third on the same connection."""
    get = b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with load.connection() as (reader, writer):
        await send_pieces(writer, get % b"/health" + get % b"/v1/limits")
        first, second = await read_answer(reader), await read_answer(reader)
        await send_pieces(writer, get % b"/nothing")
        third = await read_answer(reader)
    if (first[0], first[2], second[0]) != (200, b'{"status":"ok"}', 200) or b"max_n" not in second[2]:
        raise Wrong(f"pipelined requests got {first} and {second}")
    return require_error(*third, "unknown_route")


async def unread(load: Load, number: int, draw: random.Random) -> str:
    """A client that asks for much and reads nothing of it for a while."""
    async with load.connection() as (_, writer):
        await send_pieces(writer, b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 20)
        await asyncio.sleep(draw.uniform(0, 0.5))
    return "left"


async def state(load: Load, number: int, draw: random.Random) -> str:
    """One of the routes that tell something."""
    path = draw.choice(
        ["/health", "/ready", "/metrics", "/v1/edits", "/v1/edits/first", "/v1/limits", "/v1/models", "/"]
    )
    answer = await load.client.get(path)
    if answer.status_code != 200 or answer.headers["x-content-type-options"] != "nosniff":
        raise Wrong(f"{path} gives {answer.status_code}, headers {dict(answer.headers)}")
    if path == "/v1/edits":
        listed = [entry["id"] for entry in answer.json()["data"]]
        if listed != sorted(load.names):
            raise Wrong(f"{path} lists {listed}")
    return path
