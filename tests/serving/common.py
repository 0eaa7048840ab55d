"""What the tests of serving share: random edits, servers in this process, and what each picture is when drawn alone."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import copy
import io
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any

import httpx
import numpy as np
import torch
from PIL import Image

from cad_fast import ComponentSpace, Edit
from cad_fast.diffusion.denoisers import ForwardSignature, denoiser_of
from cad_fast.serving.edit_library import EditLibrary
from cad_fast.serving.engine.jobs import PictureJob, RequestedEdit
from cad_fast.serving.http.app import make_app
from cad_fast.serving.server import Server
from cad_fast.serving.settings import Settings
from tests.pipelines import stable_diffusion

# Of 255: a batch of another size picks other kernels for the plain layers, whose sums round otherwise.
ROUNDING = 2

PATH = "/v1/images/generations"
TOKEN = "a-token-of-some-length"


def random_edit(pipeline: Any, name: str, seed: int, share: float = 0.1, factor: float = 0.0) -> Edit:
    """An edit of a random share of the denoiser's weights, large enough to show in every picture."""
    space = ComponentSpace.of(pipeline, "weight", "all")
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(space.n, generator=generator)[: max(1, int(share * space.n))].sort().values
    return Edit.from_indices(name, space, chosen, factor)


def make_server(pipeline: Any, edits: Sequence[Edit] = (), **settings: Any) -> Server:
    library = EditLibrary(None, pipeline)
    for edit in edits:
        library.add(edit)
    passes, token = settings.pop("passes", None), settings.pop("admin_token", None)
    chosen = Settings(**{"warm_up": False, "steps": 2, "deadline": 60.0, **settings})
    return Server(pipeline, library, chosen, passes, token)


def run(coroutine: Coroutine[Any, Any, Any], seconds: float = 120.0) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, seconds))


@contextlib.asynccontextmanager
async def client_of(server: Server, library: Any = httpx) -> AsyncIterator[Any]:
    """An HTTP client of the server's app in this process; ``library`` is httpx or what has its interface."""
    app = make_app(server)
    transport = library.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        library.AsyncClient(transport=transport, base_url="http://testserver", timeout=60) as client,
    ):
        yield client


def decoded(data: str) -> np.ndarray:
    """[H, W, 3], uint8."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def distance(first: Any, second: Any) -> int:
    """The largest difference of two pictures, of 255."""
    return int(np.abs(np.asarray(first).astype(int) - np.asarray(second).astype(int)).max())


class Alone:
    """The slow truth: each picture by a call of a copy of the pipeline, its weights edited for every denoiser call."""

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = copy.deepcopy(pipeline)
        self.denoiser = denoiser_of(self.pipeline)
        self._plain = self.denoiser.forward
        self._signature = ForwardSignature.of(self.denoiser)
        self._uses: Sequence[RequestedEdit] = ()
        self.denoiser.forward = self._forward

    def draw(self, job: PictureJob, number: int = 0) -> Image.Image:
        self._uses = job.edits
        generator = torch.Generator().manual_seed(job.seed + number)
        return self.pipeline(prompt=job.prompt, generator=generator, **job.arguments)[0][0]

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        timestep = self._signature.bind(args, kwargs)[self._signature.timestep_key]
        time = float(torch.as_tensor(timestep).reshape(-1)[0])
        active = [use for use in self._uses if use.window is None or use.window[0] <= time <= use.window[1]]
        handles = [use.edit.fuse(self.denoiser, use.strength) for use in active]
        try:
            return self._plain(*args, **kwargs)
        finally:
            for handle in reversed(handles):
                handle.undo()


def served(**settings: Any) -> Server:
    """A server of a small pipeline with two edits."""
    pipeline = stable_diffusion()
    return make_server(pipeline, [random_edit(pipeline, "first", 1), random_edit(pipeline, "second", 2)], **settings)


def ask(
    body: Any, path: str = PATH, method: str = "POST", server: Server | None = None, **more: Any
) -> tuple[int, Any, Any]:
    """(status, JSON, headers) of one request."""

    async def go():
        async with client_of(server or served()) as client:
            answer = await client.request(method, path, **({"json": body} if body is not None else {}), **more)
            return answer.status_code, answer.json(), answer.headers

    return run(go())
