"""Mixed requests from many clients at once, each judged. The seed and its number alone say what a request is."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import random
import socket
import struct
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

from cad_fast.serving.http.listening import MAX_HEAD
from tests.serving.common import PATH

from .answers import Wrong, require_error
from .malformed import BODY, MALFORMED, NOISE, raw
from .served import LIMITS, TOKEN

ADMIN = {"authorization": f"Bearer {TOKEN}"}
PROMPTS = ("a cat", "a dog in noto style", "clock", "two red cars", "fluent style")
BODIES = 100
ANSWER_SECONDS = 120.0


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
    """

    def __init__(
        self,
        port: int,
        seed: int,
        names: list[str],
        swaps: Mapping[str, Callable[[int], None]],
        digests: Mapping[str, list[str]],
        folder: Path,
    ) -> None:
        self.port, self.seed, self.names, self.swaps, self.digests = port, seed, names, swaps, digests
        self.folder = folder
        self.bodies = bodies(seed, names)
        self.versions = {name: Versions() for name in names}
        self.drawn: list[Drawn] = []
        self.outcomes: Counter[str] = Counter()
        self.served = 0
        self.failures: list[dict[str, Any]] = []
        self._counters: dict[str, float] = {}
        self._locks = {name: asyncio.Lock() for name in names}

    async def block(self, numbers: range, clients: int) -> None:
        """Ask for all ``numbers``, from so many clients at once, and wait until the server is idle."""
        waiting = iter(numbers)
        async with self._client() as self.client:
            await asyncio.gather(*(self._ask(waiting) for _ in range(clients)))
            await self._quiet()
        await asyncio.sleep(0.3)

    def _client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{self.port}", timeout=ANSWER_SECONDS, limits=httpx.Limits(max_connections=None)
        )

    async def _ask(self, numbers: Any) -> None:
        for number in numbers:
            draw = random.Random(f"{self.seed} {number}")
            kind = draw.choices(list(KINDS), [weight for weight, _ in KINDS.values()])[0]
            try:
                outcome = await asyncio.wait_for(KINDS[kind][1](self, number, draw), 3 * ANSWER_SECONDS)
                self.outcomes[f"{kind}: {outcome}"] += 1
            except Exception as error:
                self.outcomes[f"{kind}: wrong"] += 1
                self.failures.append({"request": number, "seed": self.seed, "kind": kind, "error": repr(error)[:1000]})

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
        answer = await self._patiently(lambda: self.client.post(PATH, json=body))
        allowed = [self.versions[use["name"]].between(begun, time.monotonic()) for use in body["edits"]]
        if answer.status_code != 200:
            code = require_error(answer.status_code, answer.headers, answer.content, "edit_not_loaded")
            if not any(-1 in each for each in allowed):
                raise Wrong(f"{code} although none of {body['edits']} was out of use")
            return code
        await self._keep(number, which, allowed, answer.json())
        return "200"

    async def _patiently(self, ask: Callable[[], Awaitable[httpx.Response]]) -> httpx.Response:
        """Ask again as long as the queue is full."""
        while True:
            answer = await ask()
            if answer.status_code != 429:
                return answer
            require_error(429, answer.headers, answer.content, "queue_full")
            self.outcomes["queue full, asked again"] += 1
            await asyncio.sleep(0.2)

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
        answer = await self._patiently(lambda: self.client.post(PATH, json=body))
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
        return require_error(answer.status_code, answer.headers, answer.content, "queue_full")

    # Requests that are refused.

    async def malformed(self, number: int, draw: random.Random) -> str:
        """One of ``MALFORMED``."""
        method, path, headers, content, code = draw.choice(MALFORMED)
        sent: Any = content
        if content and draw.random() < 0.2:

            async def chunks() -> Any:
                for start in range(0, len(content), 1000):
                    yield content[start : start + 1000]

            sent = chunks()
        encoded = [(name, value.encode("latin-1")) for name, value in headers.items()]
        request = self.client.build_request(method, "/", headers=encoded, content=sent)
        request.url = request.url.copy_with(raw_path=path.encode())
        answer = await self.client.send(request)
        return require_error(answer.status_code, answer.headers, answer.content, code)

    async def noise(self, number: int, draw: random.Random) -> str:
        """One of ``NOISE``, or a body that turns out to be none when it has been answered already."""
        data, code = draw.choice(NOISE)
        if draw.random() < 0.1:
            late = raw(b"", **{"Transfer-Encoding": "chunked", "Content-Length": None}).replace(
                PATH.encode(), b"/nothing"
            )
            return require_error(*await self._raw(late, 0.2, b"zz\r\nno chunk"), "unknown_route")
        try:
            return require_error(*await self._raw(data), code)
        except ConnectionError:  # closed while much was still unread, which takes the answer with it
            if len(data) > MAX_HEAD:
                return "reset"
            raise

    async def _raw(self, *pieces: bytes | float) -> tuple[int, Mapping[str, str], bytes]:
        """(status, headers, body) of the answer to pieces on a connection of their own; numbers are pauses."""
        async with self._connection() as (reader, writer):
            await _send(writer, *pieces)
            return await _answer(reader)

    @contextlib.asynccontextmanager
    async def _connection(self) -> Any:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=2**24)
        try:
            yield reader, writer
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    # Clients that leave, or are slow.

    async def leaves(self, number: int, draw: random.Random) -> str:
        """A client that goes before its answer: in the head, in the body, or after it; with a FIN or a RST."""
        whole = raw(BODY if draw.random() < 0.5 else b'{"prompt": "a car", "n": 4, "num_inference_steps": 2}')
        head = whole.index(b"\r\n\r\n") + 4
        part = draw.choice(["head", "body", "answer"])
        end = {"head": draw.randrange(1, head), "body": draw.randrange(head, len(whole)), "answer": len(whole)}[part]
        async with self._connection() as (_, writer):
            writer.write(whole[:end])
            await asyncio.sleep(draw.choice([0, 0.01, 0.1, 0.3]))
            if draw.random() < 0.5:  # the connection is reset
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        return f"in the {part}"

    async def half(self, number: int, draw: random.Random) -> str:
        """A client that never sends the rest of its request."""
        whole = raw(BODY)
        head = whole.index(b"\r\n\r\n") + 4
        end = draw.choice([draw.randrange(1, head - 1), draw.randrange(head, len(whole))])
        return require_error(*await self._raw(whole[:end]), "too_slow")

    async def drips(self, number: int, draw: random.Random) -> str:
        """A client that sends slowly, but in time."""
        whole = raw(BODY)
        cuts = sorted(draw.sample(range(1, len(whole)), 4))
        pieces: list[bytes | float] = []
        for first, last in zip([0, *cuts], [*cuts, len(whole)], strict=True):
            pieces += [whole[first:last], 0.1]
        status, headers, body = await self._raw(*pieces)
        if status == 200:
            self.served += 1
            return "200"
        return require_error(status, headers, body, "queue_full")

    async def pipelined(self, number: int, draw: random.Random) -> str:
        """Two requests in one breath, and a third on the same connection."""
        get = b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n"
        async with self._connection() as (reader, writer):
            await _send(writer, get % b"/health" + get % b"/v1/limits")
            first, second = await _answer(reader), await _answer(reader)
            await _send(writer, get % b"/nothing")
            third = await _answer(reader)
        if (first[0], first[2], second[0]) != (200, b'{"status":"ok"}', 200) or b"max_n" not in second[2]:
            raise Wrong(f"pipelined requests got {first} and {second}")
        return require_error(*third, "unknown_route")

    async def unread(self, number: int, draw: random.Random) -> str:
        """A client that asks for much and reads nothing of it for a while."""
        async with self._connection() as (_, writer):
            await _send(writer, b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 20)
            await asyncio.sleep(draw.uniform(0, 0.5))
        return "left"

    # The state of the server.

    async def state(self, number: int, draw: random.Random) -> str:
        """One of the routes that tell something."""
        path = draw.choice(
            ["/health", "/ready", "/metrics", "/v1/edits", "/v1/edits/first", "/v1/limits", "/v1/models", "/"]
        )
        answer = await self.client.get(path)
        if answer.status_code != 200 or answer.headers["x-content-type-options"] != "nosniff":
            raise Wrong(f"{path} gives {answer.status_code}, headers {dict(answer.headers)}")
        if path == "/metrics":
            self._counted(answer.text)
        elif path == "/v1/edits":
            listed = [entry["id"] for entry in answer.json()["data"]]
            if listed != sorted(self.names):
                raise Wrong(f"{path} lists {listed}")
        return path

    def _counted(self, text: str) -> dict[str, float]:
        """The counters of the metrics, which never go down."""
        counters = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if family.type == "counter" and family.name.startswith("cad_fast"):
                    labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
                    counters[f"{sample.name}{{{labels}}}"] = sample.value
        for name, value in counters.items():
            if name.endswith("_total") and value < 0:
                raise Wrong(f"{name} is {value}")
        return counters

    # Admin calls.

    async def _admin(self, name: str, action: str) -> httpx.Response:
        return await self.client.post(f"/v1/edits/{name}/{action}", headers=ADMIN)

    async def _loaded(self, name: str, to: int) -> None:
        answer = await self.versions[name].change(to, lambda: self._admin(name, "load"))
        if answer.status_code != 200 or answer.json()["digest"] != self.digests[name][to]:
            raise Wrong(f"loading version {to} of {name} gives {answer.status_code}: {answer.text[:300]}")

    async def swap(self, number: int, draw: random.Random) -> str:
        """Another content of an edit that is in use, from the disk."""
        name = draw.choice(list(self.swaps))
        async with self._locks[name]:
            to = 1 - max(self.versions[name].current, 0)
            await asyncio.to_thread(self.swaps[name], to)
            await self._loaded(name, to)
        return "200"

    async def unload(self, number: int, draw: random.Random) -> str:
        """An edit that goes and comes back."""
        name = draw.choice(list(self.swaps))
        async with self._locks[name]:
            before = max(self.versions[name].current, 0)
            answer = await self.versions[name].change(-1, lambda: self._admin(name, "unload"))
            if answer.status_code != 200 or answer.json() != {"id": name, "object": "edit", "loaded": False}:
                raise Wrong(f"unloading {name} gives {answer.status_code}: {answer.text[:300]}")
            await asyncio.sleep(draw.uniform(0, 0.1))
            await self._loaded(name, before)
        return "200"

    async def spoil(self, number: int, draw: random.Random) -> str:
        """The files of an edit become unusable; what was read before stays in use."""
        name = draw.choice(list(self.swaps))
        async with self._locks[name]:
            before = max(self.versions[name].current, 0)
            way = draw.choice(list(SPOILS))
            undo = SPOILS[way](self.folder / name)
            try:
                answer = await self._admin(name, "load")
                require_error(answer.status_code, answer.headers, answer.content, "failed")
            finally:
                undo()
            await self._loaded(name, before)
        return way

    async def reload_at_once(self, number: int, draw: random.Random) -> str:
        """Several loads of one edit at the same time."""
        name = draw.choice(list(self.swaps))
        async with self._locks[name]:
            before = max(self.versions[name].current, 0)
            await asyncio.gather(*(self._loaded(name, before) for _ in range(3)))
        return "200"


def _spoiled_config(folder: Path) -> Callable[[], object]:
    path = folder / "edit_config.json"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return lambda: path.write_bytes(data)


def _spoiled_tensors(folder: Path) -> Callable[[], object]:
    path = folder / "edit_model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-9] + b"\xff" * 9)
    return lambda: path.write_bytes(data)


def _gone(folder: Path) -> Callable[[], object]:
    aside = folder.rename(folder.with_name(f".{folder.name}"))
    return lambda: aside.rename(folder)


def _link_out(folder: Path) -> Callable[[], object]:
    aside = folder.rename(folder.parents[1] / f"outside-{folder.name}")
    folder.symlink_to(aside)

    def undo() -> None:
        folder.unlink()
        aside.rename(folder)

    return undo


SPOILS: dict[str, Callable[[Path], Callable[[], object]]] = {
    "half of the config": _spoiled_config,
    "damaged tensors": _spoiled_tensors,
    "no folder": _gone,
    "a link that leads out": _link_out,
}

# Per kind of request how many there are among a thousand, and what makes one.
KINDS: dict[str, tuple[int, Callable[[Load, int, random.Random], Awaitable[str]]]] = {
    "picture": (550, Load.picture),
    "deadline": (20, Load.deadline),
    "crowd": (10, Load.crowd),
    "malformed": (150, Load.malformed),
    "noise": (20, Load.noise),
    "leaves": (90, Load.leaves),
    "half": (15, Load.half),
    "drips": (10, Load.drips),
    "pipelined": (10, Load.pipelined),
    "unread": (10, Load.unread),
    "state": (65, Load.state),
    "swap": (20, Load.swap),
    "unload": (15, Load.unload),
    "spoil": (10, Load.spoil),
    "reload at once": (5, Load.reload_at_once),
}


async def _send(writer: asyncio.StreamWriter, *pieces: bytes | float) -> None:
    for piece in pieces:
        if isinstance(piece, bytes):
            writer.write(piece)
            with contextlib.suppress(ConnectionError):  # answered before all was sent
                await writer.drain()
        else:
            await asyncio.sleep(piece)


async def _answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """(status, headers, body) of the next answer on a connection. Raises Wrong if there is none."""
    try:
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), ANSWER_SECONDS)
    except asyncio.IncompleteReadError as error:
        raise Wrong(f"the connection ended without an answer, after {error.partial[:200]!r}") from None
    first, *lines = head.decode("latin-1").split("\r\n")[:-2]
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await asyncio.wait_for(reader.readexactly(int(headers.get("content-length", "0"))), ANSWER_SECONDS)
    return int(first.split()[1]), headers, body
