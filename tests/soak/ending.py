"""SIGTERM under load: the accepted requests are finished, and the others, half sent ones too, get 503."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import Counter
from typing import Any

import httpx

from tests.serving.common import PATH

from .answers import Wrong, require_error
from .load import Load, read_answer, send_pieces, unlucky
from .malformed import BODY, raw
from .served import LIMITS, ServedProcess

CLIENTS, HALVES = 24, 4
# Seconds of load before the signal, and before it the time from which on a request has surely been accepted.
BEFORE, ACCEPTED = 2.0, 0.5


async def end_under_load(server: ServedProcess, load: Load, seed: int) -> dict[str, Any]:
    """End the server while clients ask: what they got, its exit code, its seconds. Faults go to ``load``."""
    ending = _Ending(load, seed)
    clients = [asyncio.create_task(ending.asks(number)) for number in range(CLIENTS)]
    await asyncio.sleep(BEFORE - 1)
    halves = [asyncio.create_task(ending.half_sent(number)) for number in range(2 * HALVES)]
    await asyncio.sleep(1)
    assert server.process is not None
    ending.signalled = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    code = await asyncio.to_thread(server.end)
    seconds = time.monotonic() - ending.signalled
    await asyncio.gather(*clients, *halves)
    if code != 0:
        ending.fail("the server", f"it ended with {code} on SIGTERM, expected 0")
    if seconds > LIMITS["drain"] + 5:
        ending.fail("the server", f"it took {seconds:.1f} s to end")
    return {"answers": dict(ending.outcomes), "exit_code": code, "seconds": round(seconds, 2)}


class _Sent:
    """When the last byte of a request was sent."""

    at = float("inf")

    async def heed(self, event: str, about: dict[str, Any]) -> None:
        """Take note of an event of the client's transport."""
        if event == "http11.send_request_body.complete":
            self.at = time.monotonic()


class _Ending:
    """Clients that go on asking until nobody listens."""

    def __init__(self, load: Load, seed: int) -> None:
        self.load, self.seed = load, seed
        self.outcomes: Counter[str] = Counter()
        self.signalled = float("inf")

    def fail(self, kind: str, error: str) -> None:
        self.load.fail(f"SIGTERM, {kind}", error)

    async def asks(self, number: int) -> None:
        """Ask for one picture after the other, on one connection or on a new one each time."""
        draw = random.Random(f"ending {self.seed} {number}")
        kept = number % 2 == 0
        while True:
            sent = _Sent()
            try:
                async with self.load.new_client() as client:
                    while True:
                        sent = _Sent()
                        body = {"prompt": "a cat", "n": draw.choice([1, 2]), "num_inference_steps": draw.choice([1, 4])}
                        answer = await client.post(PATH, json=body, extensions={"trace": sent.heed})
                        await self._judge(answer)
                        if not kept:
                            break
            except (httpx.ConnectError, httpx.ConnectTimeout):
                self.outcomes["connection refused"] += 1
                if time.monotonic() < self.signalled:
                    self.fail("asks", "the connection was refused before the signal")
                return
            except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError) as error:
                self.outcomes["closed without an answer"] += 1
                before = self.signalled - sent.at
                if before > ACCEPTED:
                    self.fail("asks", f"a request sent {before:.2f} s before the signal got no answer: {error!r}")
            except Wrong as error:
                self.fail("asks", str(error))
                return

    async def _judge(self, answer: httpx.Response) -> None:
        if answer.status_code == 200:
            self.outcomes["200"] += 1
            return
        code = unlucky(answer, "queue_full", "shutting_down")
        self.outcomes[f"{answer.status_code} {code}"] += 1
        if code == "shutting_down" and time.monotonic() < self.signalled:
            raise Wrong("the server said that it was shutting down before it was told to")
        await asyncio.sleep(0.05)

    async def half_sent(self, number: int) -> None:
        """A request that is half sent when the signal comes: in its head, or in its body."""
        whole = raw(BODY)
        head = whole.index(b"\r\n\r\n") + 4
        part, end = ("head", head // 2) if number % 2 else ("body", head + len(BODY) // 2)
        async with self.load.connection() as (reader, writer):
            await send_pieces(writer, whole[:end])
            try:
                code = require_error(*await read_answer(reader), "shutting_down")
                self.outcomes[f"half sent, in the {part}: 503 {code}"] += 1
            except (Wrong, ConnectionError) as error:
                self.fail(f"half sent, in the {part}", str(error))
