"""What Ray Serve is told, and what it asks of a replica; and, marked slow, two replicas that it runs."""

import asyncio
import re
import socket
import sys
import time
import types

import httpx
import pytest

from cad_fast import zoo
from cad_fast.serving.edit_library import EditLibrary
from cad_fast.serving.engine.jobs import PictureJob, RequestedEdit
from cad_fast.serving.integrations import ray_serve
from cad_fast.serving.integrations.ray_serve import RayArguments, Replica, deployment_options
from cad_fast.serving.server import Server
from cad_fast.serving.settings import Settings
from tests.pipelines import stable_diffusion
from tests.serving.common import ROUNDING, Alone, decoded, distance, make_server, random_edit, run


def test_arguments_from_a_command_line() -> None:
    arguments = RayArguments.model_validate(
        {"model": "zoo:emoji", "edit_dir": "edits", "replicas": "2", "num_cpus": "0.5", "max_batch_size": "16"}
    )
    assert arguments.replicas == 2 and arguments.num_cpus == 0.5 and arguments.max_batch_size == 16
    assert arguments.allowed_hosts == ("localhost", "127.0.0.1") and arguments.picture_urls is False
    assert ray_serve.app.__annotations__["arguments"] is RayArguments, "Ray reads the type from there"
    with pytest.raises(ValueError, match=r"^model is missing"):
        RayArguments.model_validate({})
    for name, value, message in (
        ("replica", "2", "is no setting"),
        ("replicas", "0", "is '0', expected a whole number of replicas, at least 1"),
        ("picture_urls", True, "is True, expected false: any replica may be asked"),
    ):
        with pytest.raises(ValueError, match=f"^{name} {message}"):
            RayArguments.model_validate({"model": "a", name: value})


def test_options() -> None:
    fixed = deployment_options(RayArguments(model="a", replicas=3, max_batch_size=4, max_queue=10, drain=7))
    assert fixed["num_replicas"] == 3 and "autoscaling_config" not in fixed
    assert fixed["max_ongoing_requests"] > 4 + 10, "a full queue is the replica's to refuse"
    assert fixed["ray_actor_options"] == {"num_cpus": 1, "num_gpus": 0}
    assert fixed["graceful_shutdown_timeout_s"] > 7
    scaled = deployment_options(RayArguments(model="a", device="cuda:0", min_replicas=0, max_replicas=4))
    assert "num_replicas" not in scaled and scaled["ray_actor_options"]["num_gpus"] == 1
    assert scaled["autoscaling_config"] == {
        "min_replicas": 0,
        "initial_replicas": 1,
        "max_replicas": 4,
        "target_ongoing_requests": 8,
    }
    given = {
        "target_ongoing_requests": 1.5,
        "upscale_delay_s": 0.0,
        "downscale_delay_s": 60.0,
        "look_back_period_s": 5.0,
    }
    text = {name: str(value) for name, value in given.items()}
    words = RayArguments(model="a", min_replicas="2", max_replicas="4", **text)
    # As in a replica, which gets the arguments as a mapping, and as in its server, which completes them.
    in_replica = RayArguments(**words.with_whole_paths().model_dump())
    for arguments in (words, words.with_whole_paths(), in_replica, in_replica.completed(steps=7)):
        scaling = deployment_options(arguments)["autoscaling_config"]
        assert scaling == {"min_replicas": 2, "initial_replicas": 2, "max_replicas": 4, **given}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"min_replicas": 1}, "min_replicas is given without max_replicas"),
        ({"target_ongoing_requests": 1}, "target_ongoing_requests is given without max_replicas"),
        ({"upscale_delay_s": 0}, "upscale_delay_s is given without max_replicas"),
        ({"min_replicas": 5, "max_replicas": 4}, r"min_replicas is 5, expected at most 4 \(max_replicas\)"),
        (
            {"max_replicas": 4, "max_batch_size": 4, "max_queue": 10, "target_ongoing_requests": 31},
            "target_ongoing_requests is 31, expected at most 30, which a replica takes at once",
        ),
        (
            {"replicas": 5, "max_replicas": 4},
            r"replicas is 5, expected it from min_replicas \(5\) to max_replicas \(4\)",
        ),
        ({"replicas": 2, "min_replicas": 3, "max_replicas": 4}, "replicas is 2, expected"),
    ],
)
def test_replicas_that_do_not_fit(values, message) -> None:
    with pytest.raises(ValueError, match=message):
        deployment_options(RayArguments(model="a", **values))


def test_without_ray_the_extra_is_named(monkeypatch) -> None:
    for module in ("ray", "ray.serve"):  # ray alone comes without what its serving needs
        monkeypatch.setitem(sys.modules, module, None)
        monkeypatch.setitem(sys.modules, "ray", None if module == "ray" else types.ModuleType("ray"))
        for call in (ray_serve.deploy, ray_serve.app):
            with pytest.raises(ImportError, match=rf"needs {module}: pip install 'cad-fast\[ray-serve\]'"):
                call(RayArguments(model="zoo:emoji"))


@pytest.fixture
def replica(tmp_path):
    pipeline = stable_diffusion()
    for i in range(3):
        random_edit(pipeline, f"edit{i}", i).save_pretrained(tmp_path / f"edit{i}")
    server = Server(pipeline, EditLibrary(tmp_path, pipeline), Settings(warm_up=False))
    made = Replica()
    made.app = types.SimpleNamespace(state=types.SimpleNamespace(server=server))
    server.start()
    yield made
    server.stop()


def loaded(replica) -> list[str]:
    library = replica.app.state.server.library
    return [name for name in library.names if library.is_loaded(name)]


def test_edits_follow_the_user_config(replica, tmp_path) -> None:
    library = replica.app.state.server.library
    replica.reconfigure({})
    replica.reconfigure({"unloaded": ["edit1"]})
    assert loaded(replica) == ["edit0", "edit2"]
    replica.reconfigure({"unloaded": ["edit2"]})
    assert loaded(replica) == ["edit0", "edit1"]
    before = library.get("edit0")
    replica.reconfigure({"unloaded": ["edit2"]})
    assert library.get("edit0") is before
    random_edit(stable_diffusion(), "edit0", 7).save_pretrained(tmp_path / "edit0")
    replica.reconfigure({"generation": 1})
    assert loaded(replica) == ["edit0", "edit1", "edit2"]
    assert library.get("edit0").digest() != before.digest()
    with pytest.raises(ValueError, match="there are no edits nobody; there are: edit0, edit1, edit2"):
        replica.reconfigure({"unloaded": ["nobody"]})
    with pytest.raises(ValueError, match="user_config: unload is no setting: the settings are unloaded, generation"):
        replica.reconfigure({"unload": ["edit0"]})


def test_health(replica) -> None:
    replica.check_health()
    replica.app.state.server.stop()
    with pytest.raises(RuntimeError, match="the batcher's thread has ended"):
        replica.check_health()


def test_metrics_carry_the_replica() -> None:
    server = make_server(stable_diffusion())
    plain = server.metrics.text().decode()
    assert "\ncad_fast_pictures_total 0.0\n" in plain and "replica" not in plain
    server.metrics.labels["replica"] = "abc"
    server.metrics.requests.labels("ok").inc()
    marked = server.metrics.text().decode()
    assert '\ncad_fast_pictures_total{replica="abc"} 0.0\n' in marked
    assert '\ncad_fast_requests_total{outcome="ok",replica="abc"} 1.0\n' in marked


@pytest.fixture
def ray_port():
    """A free port for Ray's proxy; the cluster that the test starts ends with it, also when it fails."""
    try:
        import ray
        from ray import serve
    except ImportError as error:
        pytest.skip(f"Ray Serve is not installed: {error}")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    yield port
    try:
        serve.shutdown()
    finally:
        ray.shutdown()


def start_ray(num_cpus: int) -> None:
    import ray

    ray.init(num_cpus=num_cpus, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20)


@pytest.mark.slow
def test_two_replicas_and_one_that_dies(tmp_path, ray_port) -> None:
    """Mixed edits through OpenAI's client; pictures are as drawn alone, also those asked for as a replica is killed."""
    import openai
    import ray

    pipeline = zoo.load()
    pipeline.set_progress_bar_config(disable=True)
    edits = [random_edit(pipeline, f"edit{i}", i, 0.01) for i in range(3)]
    for edit in edits:
        edit.save_pretrained(tmp_path / edit.name)
    url = f"http://127.0.0.1:{ray_port}"
    start_ray(num_cpus=3)
    steps, guidance = 6, 3.0
    arguments = {"model": "zoo:emoji", "edit_dir": str(tmp_path), "steps": steps, "guidance_scale": guidance}
    alone = Alone(pipeline)
    replicas: set[str] = set()

    async def ask(client: openai.AsyncOpenAI, number: int) -> None:
        use = {"name": edits[number % 3].name, "strength": (1.0, -1.0)[number % 2]}
        uses = [use] if number % 4 else []
        answer = await client.images.generate(prompt="a car in noto style", extra_body={"edits": uses, "seed": number})
        expected = tuple(RequestedEdit(edits[number % 3], each["strength"]) for each in uses)
        sampling = {"num_inference_steps": steps, "guidance_scale": guidance}
        job = PictureJob("", "a car in noto style", seed=number, arguments=sampling, edits=expected)
        drawn.append((decoded(answer.data[0].b64_json), job))

    async def go() -> None:
        client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=8, timeout=120)
        await asyncio.gather(*(ask(client, number) for number in range(24)))
        assert len(drawn) == 24
        with pytest.raises(openai.BadRequestError, match="response_format"):
            await client.images.generate(prompt="a cat", response_format="url")
        with pytest.raises(openai.NotFoundError, match="there is no edit 'nobody'"):
            await client.images.generate(prompt="a cat", extra_body={"edits": [{"name": "nobody"}]})
        async with httpx.AsyncClient() as http:
            assert (await http.get(f"{url}/health", headers={"host": "example.org"})).status_code == 400
            for _ in range(40):
                replicas.update(
                    re.findall(r'pictures_total\{replica="(\w+)"\}', (await http.get(f"{url}/metrics")).text)
                )
        assert len(replicas) == 2, "both replicas answer"
        waiting = [asyncio.ensure_future(ask(client, number)) for number in range(24, 48)]
        await asyncio.sleep(0.3)
        assert not all(each.done() for each in waiting)
        actors = [a for a in ray.util.list_named_actors(all_namespaces=True) if a["name"].startswith("SERVE_REPLICA::")]
        assert len(actors) == 2
        ray.kill(ray.get_actor(actors[0]["name"], actors[0]["namespace"]), no_restart=True)
        await asyncio.gather(*waiting)

    drawn: list = []
    ray_serve.deploy(RayArguments(**arguments, replicas=2, max_batch_size=4), port=ray_port)
    run(go(), 300)
    for picture, job in drawn:
        assert distance(picture, alone.draw(job)) <= 2 * ROUNDING
    assert len(drawn) == 48


class Load:
    """Requests for the same few pictures, again and again; every answer must be 200, none is asked for twice."""

    def __init__(self, url: str, bodies: list[dict]) -> None:
        self.url, self.bodies = url, bodies
        self.drawn: list[tuple[int, str]] = []  # (number of the body, PNG in base64)
        self.pictures: dict[str, float] = {}  # drawn by each replica, as last seen
        self.most_running = 0
        self.begun = time.monotonic()
        self.seconds: dict[str, float] = {}

    async def ask_until(self, over: asyncio.Event, first: int, pause: float = 0.0) -> None:
        async with httpx.AsyncClient(timeout=120) as http:
            number = first
            while not over.is_set():
                which = number % len(self.bodies)
                answer = await http.post(f"{self.url}/v1/images/generations", json=self.bodies[which])
                assert answer.status_code == 200, answer.text
                self.drawn.append((which, answer.json()["data"][0]["b64_json"]))
                number += 1
                await asyncio.sleep(pause)

    async def watch(self) -> int:
        """Look at the pictures of the replica that happens to be asked, and return how many replicas run."""
        async with httpx.AsyncClient(timeout=30) as http:
            text = (await http.get(f"{self.url}/metrics")).text
        for replica, count in re.findall(r'pictures_total\{replica="(\w+)"\} ([\d.e+]+)', text):
            self.pictures[replica] = float(count)
        if len(self.pictures) == 2:
            self.seconds.setdefault("the second replica answers", time.monotonic() - self.begun)
        running = await asyncio.to_thread(replicas_running)
        self.most_running = max(self.most_running, running)
        return running

    async def while_asked(self, clients: int, until, what: str, seconds: float, pause: float = 0.0) -> None:
        """Ask from so many clients until ``until(replicas that run)`` holds, or fail."""
        over, self.begun = asyncio.Event(), time.monotonic()
        asking = [asyncio.ensure_future(self.ask_until(over, i, pause)) for i in range(clients)]
        try:
            while not until(await self.watch()):
                assert time.monotonic() - self.begun < seconds, f"{what}: not in {seconds} s; pictures {self.pictures}"
                for each in asking:
                    if each.done():
                        each.result()
                await asyncio.sleep(0.2)
            self.seconds[what] = time.monotonic() - self.begun
        finally:
            over.set()
            await asyncio.gather(*asking)


def replicas_running() -> int:
    """Replicas that Ray has, those that it is still starting or ending left out."""
    from ray import serve

    (state,) = serve.status().applications[ray_serve.NAME].deployments.values()
    return int(state.replica_states.get("RUNNING", 0))


@pytest.mark.slow
def test_replicas_come_and_go_with_the_load(tmp_path, ray_port, monkeypatch) -> None:
    """No request fails while Ray adds a replica and takes it away; pictures are as drawn alone, whoever draws them."""
    # How often Ray's proxy tells how many requests it has; the default of 10 s would have the test wait.
    monkeypatch.setenv("RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S", "0.5")
    pipeline = zoo.load()
    pipeline.set_progress_bar_config(disable=True)
    edits = [random_edit(pipeline, f"edit{i}", i, 0.01) for i in range(3)]
    for edit in edits:
        edit.save_pretrained(tmp_path / edit.name)
    sampling = {"num_inference_steps": 6, "guidance_scale": 3.0}
    jobs = []
    for number in range(7):
        uses = (RequestedEdit(edits[number % 3], (1.0, -1.0)[number % 2]),) if number % 4 else ()
        jobs.append(PictureJob("", "a car in noto style", seed=number, arguments=sampling, edits=uses))
    bodies = [
        {
            "prompt": job.prompt,
            "seed": job.seed,
            "edits": [{"name": use.edit.name, "strength": use.strength} for use in job.edits],
            **sampling,
        }
        for job in jobs
    ]
    scaling = {"min_replicas": 1, "max_replicas": 2, "target_ongoing_requests": 2}
    delays = {"upscale_delay_s": 1, "downscale_delay_s": 3, "look_back_period_s": 10.5}
    start_ray(num_cpus=2)
    arguments = RayArguments(
        model="zoo:emoji", edit_dir=str(tmp_path), max_batch_size=4, num_cpus=0.5, **scaling, **delays
    )
    ray_serve.deploy(arguments, port=ray_port)
    load = Load(f"http://127.0.0.1:{ray_port}", bodies)

    def both_draw(running: int) -> bool:
        return len(load.pictures) == 2 and min(load.pictures.values()) > 2 * len(bodies)

    async def go() -> None:
        assert await load.watch() == 1, "it starts with one"
        before = sum(load.pictures.values())
        await load.while_asked(8, both_draw, "both replicas draw", 150)
        assert load.most_running == 2
        assert sum(load.pictures.values()) - before <= len(load.drawn) + 1, "the second one's warm-up is no request"
        await load.while_asked(1, lambda running: running == 1, "one replica is left", 90, pause=0.3)
        load.pictures.clear()
        enough = len(load.drawn) + len(bodies)
        await load.while_asked(1, lambda running: len(load.drawn) >= enough, "one replica draws on", 60)
        assert len(load.pictures) == 1 and load.most_running == 2

    run(go(), 320)
    alone = Alone(pipeline)
    expected = [alone.draw(job) for job in jobs]
    drawn = {(which, text): decoded(text) for which, text in load.drawn}
    assert {which for which, _ in drawn} == set(range(len(jobs)))
    for (which, _), picture in drawn.items():
        assert distance(picture, expected[which]) <= 2 * ROUNDING
    for number, one in enumerate(expected):
        assert all(distance(one, another) > 4 * ROUNDING for another in expected[:number]), "which tells them apart"
    print({"answers": len(load.drawn), "pictures that differ": len(drawn), "seconds": load.seconds})
