"""Admin calls while edits are in use: swapped on disk, unloaded, spoiled, read several times at once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path

import httpx

from .answers import Wrong, require_error
from .load import Load
from .served import TOKEN

ADMIN = {"authorization": f"Bearer {TOKEN}"}


async def _admin(load: Load, name: str, action: str) -> httpx.Response:
    return await load.client.post(f"/v1/edits/{name}/{action}", headers=ADMIN)


async def _loaded(load: Load, name: str, to: int) -> None:
    answer = await load.versions[name].change(to, lambda: _admin(load, name, "load"))
    if answer.status_code != 200 or answer.json()["digest"] != load.digests[name][to]:
        raise Wrong(f"loading version {to} of {name} gives {answer.status_code}: {answer.text[:300]}")


async def swap(load: Load, number: int, draw: random.Random) -> str:
    """Another content of an edit that is in use, from the disk."""
    name = draw.choice(list(load.swaps))
    async with load.versions[name].lock:
        to = 1 - max(load.versions[name].current, 0)
        await asyncio.to_thread(load.swaps[name], to)
        await _loaded(load, name, to)
    return "200"


async def unload(load: Load, number: int, draw: random.Random) -> str:
    """An edit that goes and comes back."""
    name = draw.choice(list(load.swaps))
    async with load.versions[name].lock:
        before = max(load.versions[name].current, 0)
        answer = await load.versions[name].change(-1, lambda: _admin(load, name, "unload"))
        if answer.status_code != 200 or answer.json() != {"id": name, "object": "edit", "loaded": False}:
            raise Wrong(f"unloading {name} gives {answer.status_code}: {answer.text[:300]}")
        await asyncio.sleep(draw.uniform(0, 0.1))
        await _loaded(load, name, before)
    return "200"


async def spoil(load: Load, number: int, draw: random.Random) -> str:
    """The files of an edit become unusable; what was read before stays in use."""
    name = draw.choice(list(load.swaps))
    async with load.versions[name].lock:
        before = max(load.versions[name].current, 0)
        way = draw.choice(list(SPOILS))
        undo = SPOILS[way](load.folder / name)
        try:
            answer = await _admin(load, name, "load")
            require_error(answer.status_code, answer.headers, answer.content, "failed")
        finally:
            undo()
        await _loaded(load, name, before)
    return way


async def reload_at_once(load: Load, number: int, draw: random.Random) -> str:
    """Several loads of one edit at the same time."""
    name = draw.choice(list(load.swaps))
    async with load.versions[name].lock:
        before = max(load.versions[name].current, 0)
        await asyncio.gather(*(_loaded(load, name, before) for _ in range(3)))
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
