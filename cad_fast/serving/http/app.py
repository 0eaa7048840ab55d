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
from fastapi.responses import FileResponse, JSONResponse
from PIL import Image

from ...version import __version__
from ..answering import ClientGone, answer_request, png_file
from ..edit_library import UnknownEdit
from ..engine.thread_pool import release_thread_pool
from ..errors import RequestError
from ..requests import MAX_SEED, MAX_TIMESTEP
from ..server import Server
from .error_responses import STATUS, install
from .middleware import BoundedBodies, KnownHosts
from .picture_store import PictureStore
from .schema import EditEntry, EditList, ErrorResponse, ImageData, ImageResponse, Model, ModelList

log = logging.getLogger(__name__)
PAGE = Path(__file__).parent / "page"
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse} for status in sorted(set(STATUS.values()) - {403})
}


def make_app(server: Server) -> FastAPI:
    """Make the app of a server. The server's batcher runs while the app does."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # This is the event loop's thread, which has loaded the model; `start` runs in another one.
        release_thread_pool()
        await asyncio.to_thread(server.start)
        try:
            yield
        finally:
            closing.set()
            await asyncio.to_thread(server.stop)

    closing = asyncio.Event()
    app = FastAPI(
        title="cad_fast",
        version=__version__,
        description="Pictures with concepts erased or amplified, each request with its own edits.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.server, app.state.closing = server, closing
    app.state.pictures = PictureStore(server.settings.keep_bytes, server.settings.keep_pictures)
    install(app, server.metrics)
    if server.settings.allowed_hosts is not None:
        app.add_middleware(KnownHosts, names=server.settings.allowed_hosts)
    limit, seconds = server.settings.body_bytes, server.settings.receive_timeout
    app.add_middleware(BoundedBodies, limit=limit, seconds=seconds, closing=closing)
    _add_images(app, server, app.state.pictures)
    _add_edits(app, server)
    if server.admin_token is not None:
        _add_admin(app, server, server.admin_token)
    _add_models(app, server)
    _add_state(app, server)
    _add_page(app)
    return app


def _add_images(app: FastAPI, server: Server, pictures: PictureStore) -> None:
    @app.post("/v1/images/generations", response_model_exclude_none=True, responses=ERRORS, tags=["images"])
    async def generate(
        request: Request,
        response: Response,
        body: server.request_class,  # type: ignore[name-defined]
    ) -> ImageResponse:
        """Draw pictures of a prompt, under the edits of this request."""
        request_id = f"req-{secrets.token_hex(8)}"
        response.headers["x-request-id"] = request_id
        client = request.client.host if request.client else ""
        try:
            job, files = await answer_request(server, body, client, request_id, _as_png, lambda: _gone(request))
        except ClientGone:
            return Response(status_code=499)  # type: ignore[return-value]  # FastAPI sends it as it is, and nobody reads it
        as_url = body.response_format == "url"
        data = [
            ImageData(url=f"{request.base_url}v1/images/files/{pictures.put(file)}.png", seed=job.seed + i)
            if as_url
            else ImageData(b64_json=base64.b64encode(file).decode(), seed=job.seed + i)
            for i, file in enumerate(files)
        ]
        return ImageResponse(created=int(time.time()), data=data, size=server.size(body))

    @app.get("/v1/images/files/{name}.png", response_class=Response, tags=["images"])
    async def picture(name: str) -> Response:
        """Return a picture that was made with response_format=url, while it is kept."""
        data = pictures.get(name)
        if data is None:
            raise RequestError("not_found", "there is no such picture, or it is no longer kept")
        return Response(data, media_type="image/png", headers={"cache-control": "private, max-age=600"})


def _as_png(images: list[Image.Image]) -> list[bytes]:
    return [png_file(image) for image in images]


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _add_edits(app: FastAPI, server: Server) -> None:
    @app.get("/v1/edits", response_model_exclude_none=True, tags=["edits"])
    async def list_edits() -> EditList:
        """List the edits that requests may name."""
        return EditList(data=[EditEntry(**server.library.describe(name)) for name in server.library.names])

    @app.get("/v1/edits/{name}", response_model_exclude_none=True, responses=ERRORS, tags=["edits"])
    async def inspect_edit(name: str) -> EditEntry:
        """Describe one edit."""
        return _described(server, name)


def _add_admin(app: FastAPI, server: Server, token: str) -> None:
    expected = token.encode()

    def admin(authorization: Annotated[str, Header()] = "") -> None:
        scheme, _, given = authorization.partition(" ")
        if not hmac.compare_digest(given.strip().encode(), expected) or scheme.lower() != "bearer":
            raise RequestError("forbidden", "this needs the admin token: Authorization: Bearer TOKEN")

    protected: dict[str, Any] = {"dependencies": [Depends(admin)], "responses": ERRORS, "tags": ["admin"]}

    @app.post("/v1/edits/{name}/load", response_model_exclude_none=True, **protected)
    async def load(name: str) -> EditEntry:
        """Read an edit again from the folder where it was at the start."""
        _described(server, name)
        try:
            await asyncio.to_thread(server.load_edit, name)
        except UnknownEdit as error:
            raise RequestError("edit_without_file", str(error), param="name") from None
        except (ValueError, OSError) as error:
            log.warning("the edit %s could not be loaded: %s", name, error)
            raise RequestError("failed", f"the edit {name!r} cannot be read; the log tells why") from error
        return _described(server, name)

    @app.post("/v1/edits/{name}/unload", response_model_exclude_none=True, **protected)
    async def unload(name: str) -> EditEntry:
        """Take an edit out of use. Requests that have begun keep it."""
        _described(server, name)
        try:
            server.unload_edit(name)
        except UnknownEdit as error:
            raise RequestError("edit_without_file", str(error), param="name") from None
        return _described(server, name)


def _described(server: Server, name: str) -> EditEntry:
    try:
        return EditEntry(**server.library.describe(name))
    except UnknownEdit as error:
        raise RequestError("edit_not_found", str(error), param="name") from None


def _add_models(app: FastAPI, server: Server) -> None:
    @app.get("/v1/models", tags=["models"])
    async def models() -> ModelList:
        """List the one model that is served."""
        return ModelList(data=[Model(id=server.served_name, created=server.created)])

    @app.get("/v1/models/{name:path}", responses=ERRORS, tags=["models"])
    async def model(name: str) -> Model:
        """Describe the model, if it is the one that is served."""
        if name != server.served_name:
            raise RequestError("model_not_found", f"the model {name!r} is not served here", param="model")
        return Model(id=name, created=server.created)


def _add_state(app: FastAPI, server: Server) -> None:
    @app.get("/health", tags=["state"])
    async def health() -> Response:
        """Tell whether the process can work at all."""
        return JSONResponse({"status": "ok"}) if server.alive else JSONResponse({"status": "dead"}, 503)

    @app.get("/ready", tags=["state"])
    async def ready() -> Response:
        """Tell whether requests are taken now."""
        waiting, running = server.batcher.load
        body = {"ready": server.ready, "queued": waiting, "running": running}
        return JSONResponse(body, 200 if server.ready else 503)

    @app.get("/metrics", response_class=Response, tags=["state"])
    async def metrics() -> Response:
        """Return the metrics in Prometheus' text format."""
        return Response(server.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/limits", tags=["state"])
    async def limits() -> dict[str, Any]:
        """Return what a request may ask for, and the defaults."""
        fixed = {"max_seed": MAX_SEED, "max_timestep": MAX_TIMESTEP, "model": server.served_name}
        return {**server.settings.limits(), **fixed}


def _add_page(app: FastAPI) -> None:
    """Serve the page file by file, so that any other path is an unknown route."""

    def add(path: str, file: Path) -> None:
        async def page() -> FileResponse:
            return FileResponse(file)

        app.add_api_route(path, page, methods=["GET", "HEAD"], include_in_schema=False, response_class=FileResponse)

    add("/", PAGE / "index.html")
    for file in sorted(PAGE.iterdir()):
        add(f"/{file.name}", file)
