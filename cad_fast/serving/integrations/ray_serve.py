"""Ray Serve: replicas of the server of ``cad-fast serve``, the same app in each, started and scaled by Ray.

``serve run cad_fast.serving.integrations.ray_serve:app model=zoo:emoji edit_dir=edits replicas=2``
"""

# Annotations are evaluated here, not left as text: Ray reads the type of what `app` takes.

import importlib
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ...extras import require
from .arguments import ServerArguments, Words

EXTRA = "ray-serve"
NAME = "cad-fast"
# Arguments that Ray's autoscaling_config takes under the same names, where they are given.
SCALING = ("target_ongoing_requests", "upscale_delay_s", "downscale_delay_s", "look_back_period_s")
# Requests beside those for pictures, such as health and metrics, that one replica may answer at once.
SMALL_REQUESTS = 16


class RayArguments(ServerArguments):
    """The arguments of a server, and how many of it.

    ``replicas``: so many; the number at the start where ``max_replicas`` lets Ray scale, between ``min_replicas`` (each
    is by default the other) and it, so that a replica has about ``target_ongoing_requests`` (by default as many as fill
    its batch). ``upscale_delay_s``, ``downscale_delay_s``: for how many seconds requests must be too many, or too few,
    before Ray starts or ends replicas; ``look_back_period_s``: of how many their mean is taken (Ray's defaults: 30, 600
    and 30). ``num_cpus`` (threads of torch, too) and ``num_gpus`` are what a replica takes of its machine.
    """

    replicas: Annotated[int, Field(ge=1)] = 1
    min_replicas: Annotated[int, Field(ge=0)] | None = None
    max_replicas: Annotated[int, Field(ge=1)] | None = None
    target_ongoing_requests: Annotated[float, Field(gt=0)] | None = None
    upscale_delay_s: Annotated[float, Field(ge=0)] | None = None
    downscale_delay_s: Annotated[float, Field(ge=0)] | None = None
    look_back_period_s: Annotated[float, Field(gt=0)] | None = None
    num_cpus: Annotated[float, Field(ge=0)] = 1
    num_gpus: Annotated[float, Field(ge=0)] | None = None
    # Ray's proxy listens on loopback by default: it then answers to loopback's names alone.
    allowed_hosts: Annotated[tuple[str, ...] | None, Words] = ("localhost", "127.0.0.1")
    picture_urls: Literal[False] = False  # which replica would be asked for the picture is chance


class EditState(BaseModel):
    """A deployment's ``user_config``, which Ray brings to every replica, also to those that it starts later.

    ``unloaded``: edits out of use, all others are in use. ``generation``: another number than before has them all read
    from their files again.
    """

    model_config = ConfigDict(extra="forbid")

    unloaded: list[str] = Field(default_factory=list)
    generation: int = 0


class Replica:
    """What Ray asks of a replica beside answering requests; ``app`` is put to it by Ray."""

    app: Any
    _generation: int | None = None

    def check_health(self) -> None:
        """Raises RuntimeError when the replica must be replaced."""
        if not self.app.state.server.alive:
            raise RuntimeError("the batcher's thread has ended; the replica's log tells why")

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Bring the edits into the state wanted. Raises ValueError naming an edit that is not there."""
        state = EditState.model_validate(user_config)
        server = self.app.state.server
        unknown = set(state.unloaded) - set(server.library.names)
        if unknown:
            known = ", ".join(server.library.names) or "none"
            raise ValueError(f"user_config: there are no edits {', '.join(sorted(unknown))}; there are: {known}")
        again = self._generation not in (None, state.generation)
        for name in server.library.names:
            if name in state.unloaded:
                server.unload_edit(name)
            elif again or not server.library.is_loaded(name):
                server.load_edit(name)
        self._generation = state.generation


def _serve() -> Any:
    """Ray Serve. Raises ImportError naming the extra."""
    require("ray", EXTRA)
    try:
        return importlib.import_module("ray.serve")
    except ModuleNotFoundError as error:  # ray alone comes without what its serving needs
        raise ImportError(f"Ray Serve needs {error.name}: pip install 'cad-fast[{EXTRA}]'", name=error.name) from error


def deployment(arguments: RayArguments) -> Any:
    """The Ray Serve Deployment for ``arguments``; its ``options(...)`` change what they leave open, ``bind()`` ends it.

    Raises ImportError naming the extra, ValueError for replicas that do not fit each other.
    """
    serve = _serve()
    values = arguments.with_whole_paths().model_dump()

    def build() -> Any:  # in the replica
        return make_replica_app(values)

    options = deployment_options(arguments)
    return serve.deployment(name=NAME, **options)(serve.ingress(build)(Replica))


def deployment_options(arguments: RayArguments) -> dict[str, Any]:
    """The options of Ray's deployment that the arguments stand for. Raises ValueError."""
    batch = arguments.max_batch_size
    # What a replica cannot take is refused by itself, with 429, not left to wait where its deadline does not count.
    most = batch + arguments.max_queue + SMALL_REQUESTS
    gpus = arguments.num_gpus
    if gpus is None:
        gpus = 1 if arguments.device.startswith("cuda") else 0
    options: dict[str, Any] = {
        "ray_actor_options": {"num_cpus": arguments.num_cpus, "num_gpus": gpus},
        "max_ongoing_requests": most,
        "max_queued_requests": arguments.max_queue,
        "graceful_shutdown_timeout_s": arguments.drain + 5,
        "user_config": EditState().model_dump(),
    }
    if arguments.max_replicas is None:
        for name in ("min_replicas", *SCALING):
            if getattr(arguments, name) is not None:
                raise ValueError(f"{name} is given without max_replicas, which is what turns scaling on")
        return {**options, "num_replicas": arguments.replicas}
    return {**options, "autoscaling_config": _scaling(arguments, taken=most)}


def _scaling(arguments: RayArguments, taken: int) -> dict[str, Any]:
    least, first, most = arguments.min_replicas, arguments.replicas, arguments.max_replicas
    if least is None:
        least = first
    elif "replicas" not in arguments.model_fields_set:
        first = max(1, least)
    if arguments.min_replicas is not None and least > most:
        raise ValueError(f"min_replicas is {least}, expected at most max_replicas ({most})")
    if not least <= first <= most:
        raise ValueError(f"replicas is {first}, expected it from min_replicas ({least}) to max_replicas ({most})")
    given = {name: value for name in SCALING if (value := getattr(arguments, name)) is not None}
    scaling = {
        "min_replicas": least,
        "initial_replicas": first,
        "max_replicas": most,
        "target_ongoing_requests": arguments.max_batch_size,
        **given,
    }
    target = scaling["target_ongoing_requests"]
    if target > taken:
        raise ValueError(
            f"target_ongoing_requests is {target:g}, expected at most {taken}, as many as a replica takes at once"
        )
    return scaling


def make_replica_app(values: dict[str, Any]) -> Any:
    """The app of one replica, its model loaded, its metrics marked with the replica's name."""
    from ray import serve

    from ..http.app import make_app

    server = RayArguments.of(values).load()
    server.metrics.labels["replica"] = serve.get_replica_context().replica_id.unique_id
    return make_app(server)


def app(arguments: RayArguments) -> Any:
    """Make the application of ``serve run cad_fast.serving.integrations.ray_serve:app NAME=VALUE ...``.

    The arguments may also be the ``args`` of Ray's configuration file.
    """
    return deployment(arguments).bind()


def deploy(
    arguments: RayArguments, *, host: str = "127.0.0.1", port: int = 8000, name: str = NAME, blocking: bool = False
) -> Any:
    """Deploy from Python, on the cluster that ray finds or a local one; returns when the replicas take requests.

    With ``blocking`` it returns when it is interrupted. Returns Ray's handle. Raises RuntimeError when replicas do not
    start, which Ray's log of them explains.
    """
    serve = _serve()
    serve.start(http_options={"host": host, "port": port})
    return serve.run(deployment(arguments).bind(), name=name, route_prefix="/", blocking=blocking)
