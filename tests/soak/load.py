"""Mixed requests from many clients at once, each judged. The seed and its number alone say what a request is."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from tests.serving.common import PATH

from .answers import Wrong, require_error, require_unlucky
from .served import LIMITS

PROMPTS = ("a cat", "a dog in noto style", "clock", "two red cars", "fluent style")
BODIES = 100
ANSWER_SECONDS = 120.0

# By name: how many of a thousand requests are of a kind, and what makes one, judges it and says how it ended.
Kinds = dict[str, tuple[int, Callable[["Load", int, random.Random], Awaitable[str]]]]


@dataclass(frozen=True)
class Drawn:
    """A picture that was served, and what it may be."""

    request: int
    body: int
    number: int
    allowed: tuple[tuple[int, ...], ...]
    picture: np.ndarray = field(repr=False)


class Versions:
    """Which versions of an edit may have been in use when. Version -1 stands for an edit that is out of use."""

    def __init__(self, first: int = 0) -> None:
        self.lock = asyncio.Lock()  # one change at a time
        self.current = first
        self._changes: list[tuple[float, float, int]] = [(0.0, 0.0, first)]

    async def change(self, to: int, do: Callable[[], Awaitable[Any]]) -> Any:
        """Have ``do`` make it version ``to``."""
        place, begun = len(self._changes), time.monotonic()
        self._changes.append((begun, float("inf"), to))
        result = await do()
        self._changes[place] = (begun, time.monotonic(), to)
        self.current = to
        return result

    def between(self, first: float, last: float) -> tuple[int, ...]:
        """The versions that may have been in use at a time between ``first`` and ``last``."""
        ends = [done for _, done, _ in self._changes[1:]] + [float("inf")]
        held = {to for (begun, _, to), end in zip(self._changes, ends, strict=True) if begun <= last and end >= first}
        return tuple(sorted(held))


def bodies(seed: int, names: list[str]) -> list[dict[str, Any]]:
    """The requests for pictures. They are few, so that the truth of each is drawn once."""
    draw = random.Random(f"bodies {seed}")
    every = []
    for _ in range(BODIES):
        body: dict[str, Any] = {
            "prompt": draw.choice(PROMPTS),
            "seed": draw.randrange(4),
            "n": draw.choice([1, 1, 1, 2]),
        }
        body["num_inference_steps"] = draw.choice([1, 1, 2])
        body["guidance_scale"] = draw.choice([1.0, 3.0, 3.0])
        if draw.random() < 0.1:
            body["negative_prompt"] = draw.choice(PROMPTS)
        body["edits"] = [
            {"name": name, "strength": draw.choice([1.0, 1.0, 0.5, 2.0, -1.0])}
            for name in draw.sample(names, draw.choice([0, 1, 1, 1, 2, 3]))
        ]
        for edit in body["edits"]:
            if draw.random() < 0.2:
                edit["window"] = draw.choice([[1000, 500], [0, 999]])
        every.append(body)
    return every


class Load:
    """The clients of one server.

    Args:
        port: where it listens.
        seed: of what is asked.
        names: its edits.
        swaps: makes, for each edit that is swapped while it is in use, the files of version 0 or 1 on the disk.
        digests: per such edit the digests of the versions.
        folder: of the edits.
        kinds: what is asked.
        say: is told what was wrong.
    """

    def __init__(
        self,
        port: int,
        seed: int,
        names: list[str],
        swaps: Mapping[str, Callable[[int], None]],
        digests: Mapping[str, list[str]],
        folder: Path,
        kinds: Kinds,
        say: Callable[[str], None],
    ) -> None:
        self.kinds, self.say = kinds, say
        self.port, self.seed, self.names, self.swaps, self.digests = port, seed, names, swaps, digests
        self.folder = folder
        self.bodies = bodies(seed, names)
        self.versions = {name: Versions() for name in names}
        self.drawn: list[Drawn] = []
        self.outcomes: Counter[str] = Counter()
        self.served = 0
        self.failures: list[dict[str, Any]] = []
        self._counters: dict[str, float] = {}

    async def block(self, numbers: range, clients: int) -> None:
        """Ask for all ``numbers``, from so many clients at once, and wait until the server is idle."""
        waiting = iter(numbers)
        async with self.new_client() as self.client:
            await asyncio.gather(*(self._ask(waiting) for _ in range(clients)))
            await self._quiet()
            await self.counted()
        await asyncio.sleep(0.3)

    def new_client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{self.port}",
            timeout=ANSWER_SECONDS,
            limits=httpx.Limits(max_connections=None),
            verify=False,  # else each client reads all certificates
        )

    async def _ask(self, numbers: Any) -> None:
        for number in numbers:
            draw = random.Random(f"{self.seed} {number}")
            kind = draw.choices(list(self.kinds), [weight for weight, _ in self.kinds.values()])[0]
            try:
                outcome = await asyncio.wait_for(self.kinds[kind][1](self, number, draw), 3 * ANSWER_SECONDS)
                self.outcomes[f"{kind}: {outcome}"] += 1
            except Exception as error:
                self.outcomes[f"{kind}: wrong"] += 1
                self.fail(kind, repr(error)[:1000], number)

    def fail(self, kind: str, error: str, request: int | None = None) -> None:
        """Note what was wrong, and say it at once."""
        self.failures.append({"request": request, "seed": self.seed, "kind": kind, "error": error})
        self.say(f"WRONG, {kind}, request {request}: {error}")

    async def _quiet(self) -> None:
        """Wait until nothing is drawn any more."""
        until = time.monotonic() + ANSWER_SECONDS
        while (await self.client.get("/ready")).json() != {"ready": True, "queued": 0, "running": 0}:
            if time.monotonic() > until:
                raise Wrong("pictures wait or are drawn although all clients have gone")
            await asyncio.sleep(0.05)

    # Requests for pictures.

    async def picture(self, number: int, draw: random.Random) -> str:
        """A request whose pictures are kept and compared later."""
        which = draw.randrange(len(self.bodies))
        as_url = draw.random() < 0.3
        body = {**self.bodies[which], "user": draw.choice("abcd"), **({"response_format": "url"} if as_url else {})}
        begun = time.monotonic()
        answer = await self.patiently(lambda: self.client.post(PATH, json=body))
        allowed = [self.versions[use["name"]].between(begun, time.monotonic()) for use in body["edits"]]
        if answer.status_code != 200:
            code = unlucky(answer, "edit_not_loaded")
            if code == "edit_not_loaded" and not any(-1 in each for each in allowed):
                raise Wrong(f"{code} although none of {body['edits']} was out of use")
            return code
        await self._keep(number, which, allowed, answer.json())
        return "200"

    async def patiently(self, ask: Callable[[], Awaitable[httpx.Response]]) -> httpx.Response:
        """Ask again as long as the queue is full."""
        while True:
            answer = await ask()
            if answer.status_code != 429:
                return answer
            require_error(429, answer.headers, answer.content, "queue_full")
            self.outcomes["queue full, asked again"] += 1
            await asyncio.sleep(int(answer.headers["retry-after"]))

    async def _keep(self, number: int, which: int, allowed: list[tuple[int, ...]], answer: Any) -> None:
        self.served += 1
        body = self.bodies[which]
        if any(each == (-1,) for each in allowed):
            raise Wrong("a picture under an edit that was out of use")
        if len(answer["data"]) != body["n"]:
            raise Wrong(f"{len(answer['data'])} pictures, asked for {body['n']}")
        versions = tuple(tuple(version for version in each if version >= 0) for each in allowed)
        for place, entry in enumerate(answer["data"]):
            if entry["seed"] != body["seed"] + place:
                raise Wrong(f"picture {place} has the seed {entry['seed']}, asked for {body['seed']} and on")
            if "url" in entry:
                file = await self.client.get(entry["url"])
                if file.status_code != 200 or file.headers["content-type"] != "image/png":
                    raise Wrong(f"its picture's URL gives {file.status_code}")
                data = file.content
            else:
                data = base64.b64decode(entry["b64_json"], validate=True)
            self.drawn.append(Drawn(number, which, place, versions, np.asarray(Image.open(io.BytesIO(data)))))

    async def deadline(self, number: int, draw: random.Random) -> str:
        """A request that has little time."""
        body = {**draw.choice(self.bodies), "edits": [], "deadline": draw.choice([0.001, 0.02, 0.2])}
        answer = await self.patiently(lambda: self.client.post(PATH, json=body))
        if answer.status_code == 200:
            self.served += 1
            return "200"
        return require_error(answer.status_code, answer.headers, answer.content, "deadline_exceeded")

    async def crowd(self, number: int, draw: random.Random) -> str:
        """As many pictures as a request may ask for."""
        body = {"prompt": "a cat", "n": LIMITS["max_n"], "num_inference_steps": 1, "seed": 1}
        answer = await self.client.post(PATH, json=body)
        if answer.status_code == 200:
            self.served += 1
            return "200"
        return unlucky(answer, "queue_full")

    async def counted(self) -> dict[str, float]:
        """The counters of the metrics. Raises Wrong if one went down since they were last looked at."""
        counters = {}
        for family in text_string_to_metric_families((await self.client.get("/metrics")).text):
            for sample in family.samples:
                if sample.name.startswith("cad_fast") and sample.name.endswith("_total"):
                    labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
                    counters[f"{sample.name}{{{labels}}}"] = sample.value
        lower = [name for name, value in self._counters.items() if counters.get(name, 0) < value]
        if lower:
            raise Wrong(f"counters went down: {', '.join(lower)}")
        self._counters = counters
        return counters

    async def raw(self, *pieces: bytes | float) -> tuple[int, Mapping[str, str], bytes]:
        """(status, headers, body) of the answer to pieces on a connection of their own; numbers are pauses."""
        async with self.connection() as (reader, writer):
            await send_pieces(writer, *pieces)
            return await read_answer(reader)

    @contextlib.asynccontextmanager
    async def connection(self) -> Any:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=2**24)
        try:
            yield reader, writer
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


def unlucky(answer: httpx.Response, *codes: str) -> str:
    """The code of an answer without pictures to a request for some, as ``require_unlucky``."""
    seconds = answer.elapsed.total_seconds()
    return require_unlucky(seconds, answer.status_code, answer.headers, answer.content, *codes)


async def send_pieces(writer: asyncio.StreamWriter, *pieces: bytes | float) -> None:
    for piece in pieces:
        if isinstance(piece, bytes):
            writer.write(piece)
            with contextlib.suppress(ConnectionError):  # answered before all was sent
                await writer.drain()
        else:
            await asyncio.sleep(piece)


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """(status, headers, body) of the next answer on a connection. Raises Wrong if there is none."""
    try:
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), ANSWER_SECONDS)
    except asyncio.IncompleteReadError as error:
        raise Wrong(f"the connection ended without an answer, after {error.partial[:200]!r}") from None
    first, *lines = head.decode("latin-1").split("\r\n")[:-2]
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await asyncio.wait_for(reader.readexactly(int(headers.get("content-length", "0"))), ANSWER_SECONDS)
    return int(first.split()[1]), headers, body
