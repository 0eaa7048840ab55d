"""The server, whatever the protocol: a pipeline, its edits, a batcher and metrics."""

from __future__ import annotations

import inspect
import secrets
import time
from pathlib import Path
from typing import Any

from ..diffusion.generation import Generation
from .edit_library import EditLibrary, NotLoaded, UnknownEdit
from .engine.batcher import Batcher
from .engine.edited_passes import EditedPasses, RowWise
from .engine.jobs import PictureJob, RequestedEdit, Ticket
from .errors import RequestError
from .metrics import Metrics
from .requests import request_class
from .settings import Settings

# Arguments of a pipeline's call that a request may set, if the pipeline has them.
OPTIONS = ("num_inference_steps", "guidance_scale", "true_cfg_scale", "negative_prompt")


class Server:
    """One pipeline, served.

    Args:
        pipeline: the pipeline to draw with.
        library: the edits that requests may name.
        settings: how the server behaves.
        passes: makes the passes of the denoiser; by default one pass for all rows, whatever their edits.
        admin_token: the token of the admin routes. None leaves these routes out.

    Raises:
        SettingsError: the settings do not fit the pipeline.
    """

    def __init__(
        self,
        pipeline: Any,
        library: EditLibrary,
        settings: Settings | None = None,
        passes: EditedPasses | None = None,
        admin_token: str | None = None,
    ) -> None:
        self.parameters = inspect.signature(pipeline.__call__).parameters
        defaults = Generation().resolved(pipeline)
        self.settings = (settings or Settings()).completed(
            sizes=(native_size(pipeline),),
            steps=defaults.num_inference_steps or 50,
            guidance_scale=defaults.guidance_scale,
        )
        assert self.settings.sizes is not None, "completed gives them"
        self.sizes = self.settings.sizes
        self.served_name = self.settings.served_name  # which looks at the disk
        self.request_class = request_class(self.settings)
        self.library, self.metrics, self.admin_token = library, Metrics(), admin_token
        self.created = int(time.time())
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
        """Start the batcher and, if the settings say so, draw a picture. Return when requests can be taken.

        Raises:
            Exception: whatever drawing that picture raises. The batcher has then ended.
        """
        self.batcher.start()
        if self.settings.warm_up:
            arguments = {"num_inference_steps": 2} if "num_inference_steps" in self.parameters else {}
            if {"width", "height"} <= self.parameters.keys():
                # The model's own size may be one that is not served, and take far longer.
                arguments["width"], arguments["height"] = map(int, self.sizes[0].split("x"))
            try:
                self.batcher.submit(PictureJob("warm-up", "warm-up", arguments=arguments)).future.result()
            except BaseException:
                self.stop()
                raise
        self.warm = True

    def stop(self) -> None:
        """Take no more requests, and finish the accepted ones in the time that the settings allow."""
        self.batcher.close(self.settings.drain)

    @property
    def ready(self) -> bool:
        """Whether requests are taken now."""
        return self.warm and self.batcher.accepting

    @property
    def alive(self) -> bool:
        """Whether the batcher's thread runs."""
        return self.batcher.alive

    def unload_edit(self, name: str) -> None:
        """Take an edit out of use. It leaves memory when the last request that uses it has ended.

        Raises:
            UnknownEdit: there is no such edit, or it came without a file.
        """
        edit = self.library.unload(name)
        if edit is not None:
            self.batcher.forget(edit)

    def load_edit(self, name: str) -> None:
        """Read an edit again. Raise the errors of ``EditLibrary.load``."""
        before = self.library.load(name)
        if before is not None:
            self.batcher.forget(before)

    def submit(self, job: PictureJob) -> Ticket:
        """Queue a job. Raise the errors of ``Batcher.submit``."""
        ticket = self.batcher.submit(job)
        for use in job.edits:
            # Read again or unloaded since the job was made: what is prepared for it now goes with the job.
            if not self.library.holds(use.edit):
                self.batcher.forget(use.edit)
        return ticket

    def job(self, request: Any, client: str, request_id: str) -> PictureJob:
        """Make the job that a request asks for.

        Args:
            request: an instance of ``request_class``.
            client: who asks. Clients take turns in the queue.
            request_id: name of the request in logs and errors.

        Raises:
            RequestError: a field does not fit; its ``param`` names it.
        """
        if request.model not in (None, self.served_name):
            message = f"the model {request.model!r} is not served here, {self.served_name!r} is"
            raise RequestError("model_not_found", message, param="model")
        seed = secrets.randbelow(2**31) if request.seed is None else request.seed
        deadline = request.deadline or self.settings.deadline
        return PictureJob(
            id=request_id,
            prompt=request.prompt,
            seed=seed,
            n=request.n or 1,
            arguments=self._arguments(request),
            edits=tuple(self._edits(request)),
            client=f"{client}/{request.user or ''}",
            deadline=time.monotonic() + deadline,
        )

    def size(self, request: Any) -> str:
        """Return the size of a request's pictures, WIDTHxHEIGHT in pixels."""
        return self.sizes[0] if request.size in (None, "auto") else request.size

    def _arguments(self, request: Any) -> dict[str, Any]:
        defaults = {"num_inference_steps": self.settings.steps, "guidance_scale": self.settings.guidance_scale}
        arguments = {}
        for name in OPTIONS:
            value = getattr(request, name)
            if name in self.parameters:
                value = defaults.get(name) if value is None else value
                if value is not None:
                    arguments[name] = value
            elif value is not None:
                raise RequestError("invalid", f"{name}: the model does not take it", param=name)
        if {"width", "height"} <= self.parameters.keys():
            arguments["width"], arguments["height"] = map(int, self.size(request).split("x"))
        return arguments

    def _edits(self, request: Any) -> list[RequestedEdit]:
        edits, seen = [], set()
        for number, use in enumerate(request.edits or ()):
            param = f"edits[{number}].name"
            if use.name in seen:
                raise RequestError("invalid", f"{param}: {use.name!r} is named twice", param=param)
            seen.add(use.name)
            try:
                edit = self.library.get(use.name)
            except NotLoaded as error:
                raise RequestError("edit_not_loaded", str(error), param=param) from None
            except UnknownEdit as error:
                raise RequestError("edit_not_found", str(error), param=param) from None
            edits.append(RequestedEdit(edit, use.strength, use.window))
        return edits


def native_size(pipeline: Any) -> str:
    """Return the size that the pipeline draws by default, WIDTHxHEIGHT in pixels."""
    denoiser: Any = getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
    sample = getattr(pipeline, "default_sample_size", None) or getattr(denoiser.config, "sample_size", None) or 128
    height, width = sample if isinstance(sample, (list, tuple)) else (sample, sample)
    scale = getattr(pipeline, "vae_scale_factor", 8)
    return f"{width * scale}x{height * scale}"


def load_server(
    settings: Settings,
    edit_dir: str | Path | None,
    device: str = "cpu",
    admin_token: str | None = None,
    *,
    edit_links: bool = False,
) -> Server:
    """Load the pipeline that the settings name, and its edits. Raise the errors of ``load_pipeline``, ``EditLibrary``.

    Args:
        settings: how the server behaves.
        edit_dir: folder whose subfolders are edits; None for no edits.
        device: where the pipeline runs.
        admin_token: the token of the admin routes. None leaves these routes out.
        edit_links: whether the edits may be links that lead out of the folder.
    """
    from ..loading import load_pipeline

    pipeline = load_pipeline(settings.model, device=device)
    return Server(pipeline, EditLibrary(edit_dir, pipeline, links=edit_links), settings, admin_token=admin_token)
