"""Ray Serve: replicas of the server of ``cad-fast serve``, started and scaled by Ray.

``serve run cad_fast.serving.integrations.ray_serve:app model=zoo:emoji edit_dir=edits replicas=2``
"""

# Annotations are evaluated here, not left as text: Ray reads the type of what `app` takes.

import importlib
from typing import Any

from ...extras import require
from ..settings import Checked, Fault, Number, SettingsError, Whole, Words, setting
from .arguments import ServerArguments

EXTRA = "ray-serve"
NAME = "cad-fast"
# Arguments that, if given, go into Ray's autoscaling_config under the same names.
SCALING = ("target_ongoing_requests", "upscale_delay_s", "downscale_delay_s", "look_back_period_s")
# Most requests that a replica answers beside those for pictures, such as health and metrics.
SMALL_REQUESTS = 16


class RayArguments(ServerArguments):
    """The arguments of a server, and how many replicas of it Ray runs.

    Raises:
        SettingsError: an argument is unknown or out of range, or two do not fit each other.
    """

    replicas: Whole | None = setting(
        None,
        "number of replicas; under autoscaling their number at the start",
        unit="replicas",
        default_text="1, or `min_replicas` if that is more",
        ge=1,
    )
    min_replicas: Whole | None = setting(
        None, "fewest replicas under autoscaling", unit="replicas", default_text="`replicas`", ge=0
    )
    max_replicas: Whole | None = setting(
        None,
        "most replicas under autoscaling, which this turns on",
        unit="replicas",
        default_text="no autoscaling",
        ge=1,
    )
    target_ongoing_requests: Number | None = setting(
        None,
        "waiting and running requests per replica that Ray aims at",
        unit="requests",
        default_text="`max_batch_size`",
        gt=0,
    )
    upscale_delay_s: Number | None = setting(
        None,
        "how long there must be too many requests before Ray adds replicas",
        unit="seconds",
        default_text="Ray's own, 30",
        ge=0,
    )
    downscale_delay_s: Number | None = setting(
        None,
        "how long there must be too few requests before Ray ends replicas",
        unit="seconds",
        default_text="Ray's own, 600",
        ge=0,
    )
    look_back_period_s: Number | None = setting(
        None,
        "over how long Ray takes the mean number of requests",
        unit="seconds",
        default_text="Ray's own, 30",
        gt=0,
    )
    num_cpus: Number = setting(1.0, "processors that a replica takes, and threads of torch", unit="processors", ge=0)
    num_gpus: Number | None = setting(
        None, "GPUs that a replica takes", unit="GPUs", default_text="1 if `device` is a GPU, otherwise 0", ge=0
    )
    # Ray's proxy listens on loopback by default: it then answers to the names of loopback alone.
    allowed_hosts: Words | None = setting(
        ("localhost", "127.0.0.1"), "the Host headers that are answered", form="names of hosts"
    )
    picture_urls: bool = setting(False, "always false, as any replica may be asked for the picture")

    def cross_faults(self) -> list[Fault]:
        """Return what is wrong with arguments that must fit each other."""
        faults = super().cross_faults()
        if self.picture_urls:
            faults.append(Fault("picture_urls", "is True, expected false: any replica may be asked for the picture"))
        return faults + (self._fixed_faults() if self.max_replicas is None else self._scaling_faults())

    @property
    def most_ongoing(self) -> int:
        """The most requests that Ray hands to a replica at once.

        It is more than a replica can hold, so that the replica itself refuses what is too much, with 429. In Ray's
        queue the deadline of a request would not count.
        """
        return self.max_batch_size + self.max_queue + SMALL_REQUESTS

    @property
    def replica_range(self) -> tuple[int, int, int]:
        """The numbers of replicas under autoscaling (fewest, at the start, most)."""
        assert self.max_replicas is not None, "without autoscaling there is no range"
        first = self.replicas or max(1, self.min_replicas or 0)
        return first if self.min_replicas is None else self.min_replicas, first, self.max_replicas

    def _fixed_faults(self) -> list[Fault]:
        given = (name for name in ("min_replicas", *SCALING) if getattr(self, name) is not None)
        return [Fault(name, "is given without max_replicas, which turns autoscaling on") for name in given]

    def _scaling_faults(self) -> list[Fault]:
        fewest, first, most = self.replica_range
        if self.min_replicas is not None and fewest > most:
            return [Fault("min_replicas", f"is {fewest}, expected at most {most}", "max_replicas")]
        if not fewest <= first <= most:
            text = f"is {first}, expected it from min_replicas ({fewest}) to max_replicas ({most})"
            return [Fault("replicas", text)]
        target = self.target_ongoing_requests or self.max_batch_size
        if target > self.most_ongoing:
            text = f"is {target:g}, expected at most {self.most_ongoing}, which a replica takes at once"
            return [Fault("target_ongoing_requests", text)]
        return []


class EditState(Checked):
    """The ``user_config`` of a deployment, which Ray brings to every replica, also to those that it starts later.

    Attributes:
        unloaded: the edits that are out of use. All others are in use.
        generation: if it changes, all edits are read from their files again.
    """

    unloaded: Words = setting((), "the edits that are out of use", form="names of edits")
    generation: Whole = setting(0, "a number that, when it changes, has all edits read again")


class Replica:
    """What Ray asks of a replica beside answering requests. Ray sets ``app``."""

    app: Any
    _generation: int | None = None

    def check_health(self) -> None:
        """Check that the replica works.

        Raises:
            RuntimeError: it must be replaced.
        """
        if not self.app.state.server.alive:
            raise RuntimeError("the batcher's thread has ended; the replica's log tells why")

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Bring the edits into the state that ``user_config`` describes.

        Raises:
            ValueError: ``user_config`` has an unknown field, or names an edit that is not there.
        """
        try:
            state = EditState(**user_config)
        except SettingsError as error:
            raise ValueError(f"user_config: {error}") from None
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
    """Import Ray Serve. Raise ImportError naming the extra."""
    require("ray", EXTRA)
    try:
        return importlib.import_module("ray.serve")
    except ModuleNotFoundError as error:  # ray alone comes without what its serving needs
        raise ImportError(f"Ray Serve needs {error.name}: pip install 'cad-fast[{EXTRA}]'", name=error.name) from error


def deployment(arguments: RayArguments) -> Any:
    """Make the deployment of Ray Serve for ``arguments``.

    Returns:
        A ``ray.serve.Deployment``. Its ``options(...)`` set what the arguments leave open; its ``bind()`` gives the
        application.

    Raises:
        ImportError: Ray Serve is missing. The error names the extra.
    """
    serve = _serve()
    values = arguments.with_whole_paths().model_dump()

    def build() -> Any:  # in the replica
        return make_replica_app(values)

    options = deployment_options(arguments)
    return serve.deployment(name=NAME, **options)(serve.ingress(build)(Replica))


def deployment_options(arguments: RayArguments) -> dict[str, Any]:
    """Return the options of Ray's deployment that the arguments stand for."""
    gpus = arguments.num_gpus
    if gpus is None:
        gpus = 1 if arguments.device.startswith("cuda") else 0
    options: dict[str, Any] = {
        "ray_actor_options": {"num_cpus": arguments.num_cpus, "num_gpus": gpus},
        "max_ongoing_requests": arguments.most_ongoing,
        "max_queued_requests": arguments.max_queue,
        "graceful_shutdown_timeout_s": arguments.drain + 5,
        "user_config": EditState().model_dump(mode="json"),
    }
    if arguments.max_replicas is None:
        return {**options, "num_replicas": arguments.replicas or 1}
    fewest, first, most = arguments.replica_range
    scaling = {
        "min_replicas": fewest,
        "initial_replicas": first,
        "max_replicas": most,
        "target_ongoing_requests": arguments.max_batch_size,
    }
    given = {name: value for name in SCALING if (value := getattr(arguments, name)) is not None}
    return {**options, "autoscaling_config": {**scaling, **given}}


def make_replica_app(values: dict[str, Any]) -> Any:
    """Load the server of one replica, and make its app. Its metrics carry the replica's name."""
    from ray import serve

    from ..http.app import make_app

    server = RayArguments(**values).load()
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
    """Deploy from Python, on the cluster that Ray finds or on a local one.

    Args:
        arguments: the server, and how many replicas of it.
        host: address that Ray's proxy listens at.
        port: port that Ray's proxy listens at.
        name: name of the application.
        blocking: whether to return only when interrupted, instead of when the replicas take requests.

    Returns:
        Ray's handle of the application.

    Raises:
        ImportError: Ray Serve is missing. The error names the extra.
        RuntimeError: replicas do not start. Ray's log of them tells why.
    """
    serve = _serve()
    serve.start(http_options={"host": host, "port": port})
    return serve.run(deployment(arguments).bind(), name=name, route_prefix="/", blocking=blocking)
