"""The HTTP interface: OpenAI's image generation and models, the edits, health, metrics and the page."""

# Annotations are evaluated here, not left as text: the class of a request's body is made per server.

import asyncio
import base64
import contextlib
import hmac
import logging
import secrets
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, Request, Response
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from PIL import Image
from starlette.middleware.trustedhost import TrustedHostMiddleware

from ...version import __version__
from ..answering import ClientGone, draw
from ..edit_library import UnknownEdit
from ..engine.thread_pool import release_thread_pool
from ..errors import ApiError, install
from ..server import Server
from .middleware import BoundedBodies
from .picture_store import png
from .schema import (
    EditEntry,
    EditList,
    ErrorResponse,
    ImageData,
    ImageResponse,
    Model,
    ModelList,
    image_request,
)

log = logging.getLogger(__name__)
PAGE = Path(__file__).parent / "page"
FAILURES: dict[int | str, dict[str, Any]] = {
    code: {"model": ErrorResponse} for code in (400, 404, 409, 413, 429, 500, 503, 504)
}


def make_app(server: Server) -> FastAPI:
    """The app of a server; its batcher runs while the app does."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        release_thread_pool()  # of the event loop's thread, which has loaded the model; `start` runs in another
        await asyncio.to_thread(server.start)
        try:
            yield
        finally:
            await asyncio.to_thread(server.stop)

    app = FastAPI(
        title="cad_fast",
        version=__version__,
        description="Pictures with concepts erased or amplified, each request with its own edits.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.server = server
    install(app, server.metrics)
    if server.settings.allowed_hosts is not None:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(server.settings.allowed_hosts))
    app.add_middleware(BoundedBodies, limit=server.settings.body_bytes)
    _add_images(app, server)
    _add_edits(app, server)
    _add_state(app, server)
    app.mount("/", StaticFiles(directory=PAGE, html=True), name="page")
    return app


def _add_images(app: FastAPI, server: Server) -> None:
    body = image_request(server.limits)

    @app.post("/v1/images/generations", response_model_exclude_none=True, responses=FAILURES, tags=["images"])
    async def generate(request: Request, response: Response, order: body) -> ImageResponse:  # type: ignore[valid-type]
        """Draw pictures of a prompt, under this request's own edits."""
        request_id = f"req-{secrets.token_hex(8)}"
        response.headers["x-request-id"] = request_id
        client = request.client.host if request.client else ""
        try:
            job, files = await draw(server, order, client, request_id, _as_png, lambda: _gone(request))
        except ClientGone:
            return Response(status_code=499)  # nobody reads it
        as_url = order.response_format == "url"
        data = [
            ImageData(url=f"{request.base_url}v1/images/files/{server.pictures.put(file)}.png", seed=job.seed + i)
            if as_url
            else ImageData(b64_json=base64.b64encode(file).decode(), seed=job.seed + i)
            for i, file in enumerate(files)
        ]
        return ImageResponse(created=int(time.time()), data=data, size=server.size(order))

    @app.get("/v1/images/files/{name}.png", response_class=Response, tags=["images"])
    async def picture(name: str) -> Response:
        """A picture made with response_format=url, for a while."""
        data = server.pictures.get(name)
        if data is None:
            raise ApiError(404, "there is no such picture (any more)", code="not_found")
        return Response(data, media_type="image/png", headers={"cache-control": "private, max-age=600"})


def _as_png(images: list[Image.Image]) -> list[bytes]:
    return [png(image) for image in images]


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _add_edits(app: FastAPI, server: Server) -> None:
    @app.get("/v1/edits", response_model_exclude_none=True, tags=["edits"])
    async def list_edits() -> EditList:
        """The edits that requests may name."""
        return EditList(data=[EditEntry(**server.library.describe(name)) for name in server.library.names])

    @app.get("/v1/edits/{name}", response_model_exclude_none=True, responses=FAILURES, tags=["edits"])
    async def inspect_edit(name: str) -> EditEntry:
        """One edit."""
        return _described(server, name)

    if server.settings.admin_token is None:
        return
    expected = server.settings.admin_token.encode()

    def admin(authorization: Annotated[str, Header()] = "") -> None:
        scheme, _, token = authorization.partition(" ")
        if not hmac.compare_digest(token.strip().encode(), expected) or scheme.lower() != "bearer":
            raise ApiError(403, "this needs the admin token: Authorization: Bearer TOKEN", code="forbidden")

    @app.post("/v1/edits/{name}/load", dependencies=[Depends(admin)], responses=FAILURES, tags=["admin"])
    async def load(name: str) -> EditEntry:
        """Read an edit again from where it was found at the start."""
        _described(server, name)
        try:
            await asyncio.to_thread(server.load_edit, name)
        except UnknownEdit as error:
            raise ApiError(409, str(error), code="edit_without_file", param="name") from None
        except (ValueError, OSError) as error:
            log.warning("the edit %s could not be loaded: %s", name, error)
            raise ApiError(500, f"the edit {name!r} cannot be read; the log tells why", code="failed") from error
        return _described(server, name)

    @app.post("/v1/edits/{name}/unload", dependencies=[Depends(admin)], responses=FAILURES, tags=["admin"])
    async def unload(name: str) -> EditEntry:
        """Take an edit out of use; requests that have begun keep it."""
        _described(server, name)
        try:
            server.unload_edit(name)
        except UnknownEdit as error:
            raise ApiError(409, str(error), code="edit_without_file", param="name") from None
        return _described(server, name)


def _described(server: Server, name: str) -> EditEntry:
    try:
        return EditEntry(**server.library.describe(name))
    except UnknownEdit as error:
        raise ApiError(404, str(error), code="edit_not_found", param="name") from None


def _add_state(app: FastAPI, server: Server) -> None:
    @app.get("/v1/models", tags=["models"])
    async def models() -> ModelList:
        """The one model that is served."""
        return ModelList(data=[Model(id=server.settings.served_name, created=server.created)])

    @app.get("/v1/models/{name:path}", responses=FAILURES, tags=["models"])
    async def model(name: str) -> Model:
        """The model, if it is the one that is served."""
        if name != server.settings.served_name:
            raise ApiError(404, f"the model {name!r} is not served here", code="model_not_found", param="model")
        return Model(id=name, created=server.created)

    @app.get("/health", tags=["state"])
    async def health() -> Response:
        """Whether the process can work at all."""
        return JSONResponse({"status": "ok"}) if server.alive else JSONResponse({"status": "dead"}, 503)

    @app.get("/ready", tags=["state"])
    async def ready() -> Response:
        """Whether requests are taken now."""
        waiting, running = server.batcher.load
        body = {"ready": server.ready, "queued": waiting, "running": running}
        return JSONResponse(body, 200 if server.ready else 503)

    @app.get("/metrics", response_class=Response, tags=["state"])
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(server.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/limits", tags=["state"])
    async def limits() -> dict[str, Any]:
        """What a request may ask for, and the defaults."""
        return {**vars(server.limits), "model": server.settings.served_name}
