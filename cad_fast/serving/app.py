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
from starlette.middleware.trustedhost import TrustedHostMiddleware

from ..version import __version__
from .edit_library import UnknownEdit
from .errors import ApiError, from_job, install
from .jobs import Closed, DeadlineExceeded, Job, QueueFull, Ticket
from .limits import BoundedBodies
from .pictures import png
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
from .server import Server

log = logging.getLogger(__name__)
PAGE = Path(__file__).parent / "page"
FAILURES: dict[int | str, dict[str, Any]] = {
    code: {"model": ErrorResponse} for code in (400, 404, 413, 429, 500, 503, 504)
}
REASONS = {QueueFull: "queue_full", Closed: "shutting_down", DeadlineExceeded: "deadline"}


class ClientGone(Exception):
    """The client closed the connection."""


def make_app(server: Server) -> FastAPI:
    """The app of a server; its batcher runs while the app does."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        server.batcher.start()
        if server.settings.warm_up:
            arguments = {"num_inference_steps": 2} if "num_inference_steps" in server.parameters else {}
            await asyncio.wrap_future(server.batcher.submit(Job("warm-up", "warm-up", arguments=arguments)).future)
        server.warm = True
        try:
            yield
        finally:
            await asyncio.to_thread(server.batcher.close, server.settings.drain)

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
        begun = time.monotonic()
        outcome = "failed"
        try:
            client = request.client.host if request.client else ""
            job = server.job(order, client, request_id)
            for use in job.edits:
                server.metrics.edit_uses.labels(use.edit.name).inc()
            images = await _drawn(request, server.batcher.submit(job))
            files = await asyncio.to_thread(lambda: [png(image) for image in images])
            outcome = "ok"
        except ClientGone:
            outcome = "disconnected"
            return Response(status_code=499)  # nobody reads it
        except ApiError:
            outcome = "invalid"
            server.metrics.rejections.labels("invalid").inc()
            raise
        except Exception as error:
            outcome = REASONS.get(type(error), "failed")
            if outcome in ("queue_full", "shutting_down"):
                server.metrics.rejections.labels(outcome).inc()
            raise from_job(error, request_id) from error
        finally:
            server.metrics.requests.labels(outcome).inc()
            server.metrics.seconds.observe(time.monotonic() - begun)
        server.metrics.pictures.inc(len(files))
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


async def _drawn(request: Request, ticket: Ticket) -> list[Any]:
    """The ticket's pictures; its place is given up when the client goes or the task is cancelled."""
    future = asyncio.ensure_future(asyncio.wrap_future(ticket.future))
    gone = asyncio.ensure_future(_gone(request))
    try:
        # The batcher ends late jobs between passes, which can be long: here it is done on time.
        left = None if ticket.job.deadline is None else ticket.job.deadline - time.monotonic()
        await asyncio.wait({future, gone}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if gone.done() and not future.done():
            raise ClientGone
        if not future.done():
            ticket.expire()
        return await future
    finally:
        gone.cancel()
        if not future.done():
            ticket.cancel()
            future.cancel()


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
        except (ValueError, OSError) as error:
            log.warning("the edit %s could not be loaded: %s", name, error)
            raise ApiError(500, f"the edit {name!r} cannot be read; the log tells why", code="failed") from error
        return _described(server, name)

    @app.post("/v1/edits/{name}/unload", dependencies=[Depends(admin)], responses=FAILURES, tags=["admin"])
    async def unload(name: str) -> EditEntry:
        """Take an edit out of use; requests that have begun keep it."""
        _described(server, name)
        server.unload_edit(name)
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
