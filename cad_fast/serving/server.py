"""The state behind the routes: pipeline, edits, batcher, metrics and the pictures kept."""

from __future__ import annotations

import inspect
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .batcher import Batcher
from .edit_library import EditLibrary, NotLoaded, UnknownEdit
from .edited_passes import EditedPasses, RowWise
from .errors import ApiError
from .jobs import Job, RequestedEdit
from .metrics import Metrics
from .pictures import PictureStore
from .schema import Limits
from .settings import Settings

# Arguments of a pipeline's call that a request may set, where the pipeline has them.
OPTIONS = ("num_inference_steps", "guidance_scale", "negative_prompt")


class Server:
    """One pipeline, served. ``passes`` decides how rows come under their edits; the row-wise way by default."""

    def __init__(
        self,
        pipeline: Any,
        library: EditLibrary,
        settings: Settings | None = None,
        passes: EditedPasses | None = None,
    ) -> None:
        self.settings = settings or Settings()
        self.library, self.metrics = library, Metrics()
        self.pictures = PictureStore(self.settings.keep_bytes, self.settings.keep_pictures)
        self.created = int(time.time())
        self.parameters = inspect.signature(pipeline.__call__).parameters
        self.limits = self._limits(pipeline)
        self.batcher = Batcher(
            pipeline,
            passes or RowWise(pipeline),
            max_batch_size=self.settings.max_batch_size,
            batch_timeout=self.settings.batch_timeout,
            max_queue=self.settings.max_queue,
            observer=self.metrics,
        )
        self.warm = False

    def start(self) -> None:
        """Start the batcher and, where the settings say so, draw a picture; returns when requests can be taken.

        Raises what drawing it raises, with the batcher ended.
        """
        self.batcher.start()
        if self.settings.warm_up:
            arguments = {"num_inference_steps": 2} if "num_inference_steps" in self.parameters else {}
            if {"width", "height"} <= self.parameters.keys():
                # The model's own size may be one that is not served, and take far longer.
                arguments["width"], arguments["height"] = map(int, self.limits.sizes[0].split("x"))
            try:
                self.batcher.submit(Job("warm-up", "warm-up", arguments=arguments)).future.result()
            except BaseException:
                self.stop()
                raise
        self.warm = True

    def stop(self) -> None:
        """Take no more requests; finish what was accepted, in the time the settings allow."""
        self.batcher.close(self.settings.drain)

    @property
    def ready(self) -> bool:
        return self.warm and self.batcher.accepting

    @property
    def alive(self) -> bool:
        return self.batcher.alive

    def unload_edit(self, name: str) -> None:
        """Take an edit out of use, and out of memory when the last request that uses it is done."""
        edit = self.library.unload(name)
        if edit is not None:
            self.batcher.forget(edit)

    def load_edit(self, name: str) -> None:
        """Read an edit again. Raises as ``EditLibrary.load``."""
        before = self.library.load(name)
        if before is not None:
            self.batcher.forget(before)

    def job(self, request: Any, client: str, request_id: str) -> Job:
        """The job that a request's body asks for. Raises ApiError naming the field that does not fit."""
        if request.model not in (None, self.settings.served_name):
            message = f"the model {request.model!r} is not served here, {self.settings.served_name!r} is"
            raise ApiError(404, message, code="model_not_found", param="model")
        seed = secrets.randbelow(2**31) if request.seed is None else request.seed
        deadline = request.deadline or self.settings.deadline
        return Job(
            id=request_id,
            prompt=request.prompt,
            seed=seed,
            n=request.n or 1,
            arguments=self._arguments(request),
            edits=tuple(self._edits(request)),
            client=f"{client}/{request.user or ''}",
            deadline=time.monotonic() + deadline,
        )

    def _arguments(self, request: Any) -> dict[str, Any]:
        defaults = {"num_inference_steps": self.limits.steps, "guidance_scale": self.limits.guidance_scale}
        arguments = {}
        for name in OPTIONS:
            value = getattr(request, name)
            if name in self.parameters:
                value = defaults.get(name) if value is None else value
                if value is not None:
                    arguments[name] = value
            elif value is not None:
                raise ApiError(400, f"{name}: the model does not take it", code="invalid", param=name)
        if {"width", "height"} <= self.parameters.keys():
            arguments["width"], arguments["height"] = map(int, self.size(request).split("x"))
        return arguments

    def size(self, request: Any) -> str:
        """The size of a request's pictures, WIDTHxHEIGHT."""
        return self.limits.sizes[0] if request.size in (None, "auto") else request.size

    def _edits(self, request: Any) -> list[RequestedEdit]:
        wanted, seen = [], set()
        for number, use in enumerate(request.edits):
            param = f"edits[{number}]"
            if use.name in seen:
                message = f"{param}.name: {use.name!r} is named twice"
                raise ApiError(400, message, code="invalid", param=f"{param}.name")
            seen.add(use.name)
            if use.window is not None and use.window[0] < use.window[1]:
                message = f"{param}.window: {list(use.window)} is not [highest, lowest]"
                raise ApiError(400, message, code="invalid", param=f"{param}.window")
            try:
                edit = self.library.get(use.name)
            except (UnknownEdit, NotLoaded) as error:
                code = "edit_not_loaded" if isinstance(error, NotLoaded) else "edit_not_found"
                raise ApiError(404, str(error), code=code, param=f"{param}.name") from None
            window = None if use.window is None else (use.window[1], use.window[0])
            wanted.append(RequestedEdit(edit, use.strength, window))
        return wanted

    def _limits(self, pipeline: Any) -> Limits:
        own = self.settings
        steps = _default(self.parameters, "num_inference_steps", 50) if own.steps is None else own.steps
        guidance = (
            _default(self.parameters, "guidance_scale", 0.0) if own.guidance_scale is None else own.guidance_scale
        )
        if steps > own.max_steps:
            raise ValueError(f"the default of {steps} steps is above the maximum of {own.max_steps}")
        if own.max_n > own.max_queue:
            raise ValueError(f"requests for {own.max_n} pictures would never fit in a queue of {own.max_queue}")
        return Limits(
            sizes=_checked_sizes(own.sizes) if own.sizes else (native_size(pipeline),),
            steps=steps,
            guidance_scale=guidance,
            max_steps=own.max_steps,
            max_n=own.max_n,
            max_prompt=own.max_prompt,
            max_edits=own.max_edits,
            max_strength=own.max_strength,
            deadline=own.deadline,
            body_bytes=own.body_bytes,
            picture_urls=own.picture_urls,
        )


def _default(parameters: Any, name: str, otherwise: Any) -> Any:
    default = parameters[name].default if name in parameters else inspect.Parameter.empty
    return otherwise if default in (inspect.Parameter.empty, None) else default


def _checked_sizes(sizes: tuple[str, ...]) -> tuple[str, ...]:
    for size in sizes:
        parts = size.split("x")
        if len(parts) != 2 or not all(part.isdigit() and 0 < int(part) <= 8192 for part in parts):
            raise ValueError(f"the size {size!r} is not WIDTHxHEIGHT in pixels")
    return sizes


def native_size(pipeline: Any) -> str:
    """The size that the pipeline draws by default, WIDTHxHEIGHT."""
    denoiser = getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
    sample = getattr(pipeline, "default_sample_size", None) or getattr(denoiser.config, "sample_size", None) or 128
    height, width = sample if isinstance(sample, (list, tuple)) else (sample, sample)
    scale = getattr(pipeline, "vae_scale_factor", 8)
    return f"{width * scale}x{height * scale}"


def load_server(
    settings: Settings, edit_dir: str | Path | None, device: str = "cpu", load: Callable[[], Any] | None = None
) -> Server:
    """Load the pipeline, by ``load`` where it is given, and its edits.

    Raises what ``load_pipeline`` and ``EditLibrary`` raise.
    """
    from ..loading import load_pipeline

    pipeline = load_pipeline(settings.model, device=device) if load is None else load()
    return Server(pipeline, EditLibrary(edit_dir, pipeline), settings)
