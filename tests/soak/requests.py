"""The whole course of requests: a server, blocks of mixed requests, the comparison with the truth, and the end."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from cad_fast import Edit, zoo
from tests.serving.common import ROUNDING, random_edit

from .ending import end_under_load
from .kinds import KINDS
from .load import Load
from .served import ServedProcess
from .truth import Truth

# Edits whose files change while they are in use have two versions each, the others one.
FIXED, SWAPPED = ("first", "second", "third"), ("swapped-1", "swapped-2")
SHARE = 0.05
CLIENTS = 32
# From so many blocks on, what the process holds is compared: the first ones fill caches and the allocator's pools.
FEWEST_BLOCKS = 8
GROWTH = 1.03


def ask_all(total: int, blocks: int, seed: int, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Ask ``total`` requests in so many blocks, end the server under load, and compare; the report."""
    pipeline = zoo.load()
    pipeline.set_progress_bar_config(disable=True)
    contents = edits_of(pipeline)
    server = ServedProcess(folder, [versions[0] for versions in contents.values()])
    with server:
        say(f"the server takes requests at port {server.port}")
        load = Load(
            server.port,
            seed,
            list(contents),
            {name: partial(_write, contents[name], server.edits / name) for name in SWAPPED},
            {name: [edit.digest() for edit in contents[name]] for name in SWAPPED},
            server.edits,
            KINDS,
            say,
        )
        held, ending = asyncio.run(_course(server, load, total, blocks, seed, say))
    for kind, faults in (("the server", server.faults()), ("what it holds", growth(held, len(contents)))):
        for fault in faults:
            load.fail(kind, fault)
    say(f"comparing {len(load.drawn)} pictures")
    return {
        "requests": total,
        "outcomes": dict(sorted(load.outcomes.items())),
        "pictures": _compared(load, Truth(pipeline, contents), say),
        "held": held,
        "ending": ending,
        "log": str(server.log),
        "failures": load.failures,
    }


def edits_of(pipeline: Any) -> dict[str, list[Edit]]:
    """Per edit its versions."""
    names = [(name, number) for name in FIXED for number in (0,)]
    names += [(name, number) for name in SWAPPED for number in (0, 1)]
    contents: dict[str, list[Edit]] = {}
    for place, (name, _) in enumerate(names):
        contents.setdefault(name, []).append(random_edit(pipeline, name, place, SHARE))
    return contents


def _write(versions: list[Edit], folder: Path, to: int) -> None:
    versions[to].save_pretrained(folder)


async def _course(
    server: ServedProcess, load: Load, total: int, blocks: int, seed: int, say: Callable[[str], None]
) -> tuple[list[dict[str, int]], dict[str, Any]]:
    held = [server.held()]
    bounds = [total * number // blocks for number in range(blocks + 1)]
    for first, last in itertools.pairwise(bounds):
        await load.block(range(first, last), CLIENTS)
        held.append(await asyncio.to_thread(server.held))
        say(f"{last} requests, {len(load.failures)} wrong, {held[-1]}")
    async with load.new_client() as load.client:
        counters = await load.counted()
    _require_counted(load, counters)
    ending = await end_under_load(server, load, seed)
    return held, {**ending, "counters": counters}


def _require_counted(load: Load, counters: dict[str, float]) -> None:
    """The metrics count every request that got pictures, and none that failed."""
    ok, failed = (counters.get(f"cad_fast_requests_total{{outcome={outcome}}}", 0) for outcome in ("ok", "failed"))
    if failed or ok < load.served:
        error = f"the metrics count {ok:g} requests with pictures and {failed:g} that failed; clients got {load.served}"
        load.fail("metrics", error)


def growth(held: list[dict[str, int]], edits: int) -> list[str]:
    """What the process held too much of when it was idle, before the first block and after each."""
    faults = []
    for place, each in enumerate(held):
        if each["Edit"] != edits:
            faults.append(f"{each['Edit']} edits after block {place}, {edits} are in use")
        faults += [
            f"{each[name]} of {name} after block {place}, although nothing is asked"
            for name in ("PictureJob", "Ticket", "PipelineRun")
            if each[name]
        ]
    if len(held) <= FEWEST_BLOCKS:
        return faults
    for name, most in (("memory_kib", GROWTH), ("threads", 1.0), ("files", 1.0)):
        early, late = (max(each[name] for each in part) for part in (held[3:6], held[-3:]))
        if late > most * early:
            faults.append(f"{name} grew from {early} to {late}")
    return faults


def _compared(load: Load, truth: Truth, say: Callable[[str], None]) -> dict[str, Any]:
    """Hold every picture against what it is alone."""
    far: dict[int, int] = {}
    for place, drawn in enumerate(load.drawn):
        body = load.bodies[drawn.body]
        distance = truth.nearest(body, drawn.number, drawn.allowed, drawn.picture)
        far[distance] = far.get(distance, 0) + 1
        if distance > ROUNDING:
            error = (
                f"picture {drawn.number} is {distance} of 255 from what it is alone, versions {drawn.allowed}: {body}"
            )
            load.fail("picture", error, drawn.request)
        if place % 500 == 499:
            say(f"{place + 1} compared")
    apart, pairs = truth.told_apart()
    if apart < 0.5 * pairs:
        error = f"only {apart} of {pairs} pictures differ between two versions of their edits: a mistake would not show"
        load.fail("picture", error)
    return {
        "compared": len(load.drawn),
        "distances": {str(key): far[key] for key in sorted(far)},
        "allowed_distance": ROUNDING,
        "versions_told_apart": f"{apart} of {pairs}",
    }
