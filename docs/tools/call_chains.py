"""Print the files of cad_fast that one call goes through: ``python docs/tools/call_chains.py op``.

Or ``attribution``, ``edit``, ``request``. A file counts where one of its functions runs during the call, in the order
in which they first run. Imports do not count. The figures of docs/architecture come from here.
"""

from __future__ import annotations

import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import cad_fast

PACKAGE = Path(cad_fast.__file__).parent
RUN = {"num_inference_steps": 4, "guidance_scale": 3.0}


def files_of(call: Callable[[], Any]) -> list[str]:
    """Return the files whose functions run in ``call``, in whatever thread, in the order of their first run."""
    seen: dict[str, None] = {}

    def note(frame: FrameType, event: str, _: Any) -> None:
        file = frame.f_code.co_filename
        if event == "call" and frame.f_code.co_name != "<module>" and file.startswith(str(PACKAGE)):
            seen.setdefault(str(Path(file).relative_to(PACKAGE)))

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return list(seen)


def op() -> Callable[[], Any]:
    """Return a call of one operator."""
    from cad_fast.ops import masked_linear

    x, weight = torch.ones(2, 3, 64), torch.ones(8, 64)
    words = torch.zeros(2, 8, 2, dtype=torch.int32)
    return lambda: masked_linear(x, weight, words)


def _pipeline() -> Any:
    pipeline = cad_fast.load_pipeline("zoo:emoji")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def attribution() -> Callable[[], Any]:
    """Return a call that scores neurons by ablated gradients from a recording that is there."""
    pipeline = _pipeline()
    recording = cad_fast.record(pipeline, ["a car in noto style"], seeds=0, progress=False, **RUN)
    attributor = cad_fast.Attributor(pipeline, kind="neuron", method="ablated_gradient")
    return lambda: attributor.run(recording, progress=False)


def _edit(pipeline: Any) -> Any:
    space = cad_fast.ComponentSpace.of(pipeline, "weight", "cross-attention-kv")
    return cad_fast.Edit.from_indices("no-car", space, torch.arange(0, space.n, 100))


def edit() -> Callable[[], Any]:
    """Return a call that loads an edit from its files and draws two prompts, one of them under it."""
    pipeline = _pipeline()
    folder = tempfile.mkdtemp()
    _edit(pipeline).save_pretrained(folder)

    def call() -> None:
        manager = cad_fast.EditManager(pipeline)
        manager.load_edit(folder, edit_name="no-car")
        manager(["a car", "a car"], edit_names=["no-car", "__base__"], **RUN)

    return call


def request() -> Callable[[], Any]:
    """Return a call that asks a server for two pictures under an edit, from the HTTP body to the answer."""
    import asyncio

    import httpx

    from cad_fast.serving.http.app import make_app
    from cad_fast.serving.server import load_server
    from cad_fast.serving.settings import Settings

    folder = Path(tempfile.mkdtemp())
    _edit(_pipeline()).save_pretrained(folder / "no-car")
    server = load_server(Settings(model="zoo:emoji", steps=4, warm_up=False), folder)
    app = make_app(server)
    body = {"prompt": "a car", "n": 2, "response_format": "b64_json", "edits": [{"name": "no-car"}]}

    async def ask() -> None:
        transport = httpx.ASGITransport(app=app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client,
        ):
            answer = await client.post("/v1/images/generations", json=body, timeout=60)
            answer.raise_for_status()

    return lambda: asyncio.run(ask())


CALLS = {"op": op, "attribution": attribution, "edit": edit, "request": request}

if __name__ == "__main__":
    files = files_of(CALLS[sys.argv[1]]())
    print(f"{len(files)} files: {', '.join(files)}")
