"""What Ray Serve is told, and what it asks of a replica; and, marked slow, two replicas that it runs."""

import sys
import types

import pytest

from cad_fast.serving import ray_serve
from cad_fast.serving.edit_library import EditLibrary
from cad_fast.serving.ray_serve import RayArguments, Replica, deployment_options
from cad_fast.serving.server import Server
from cad_fast.serving.settings import Settings
from tests.pipelines import stable_diffusion
from tests.serving.common import make_server, random_edit


def test_arguments_from_a_command_line() -> None:
    arguments = RayArguments.model_validate(
        {"model": "zoo:emoji", "edit_dir": "edits", "replicas": "2", "num_cpus": "0.5", "max_batch_size": "16"}
    )
    assert arguments.replicas == 2 and arguments.num_cpus == 0.5 and arguments.max_batch_size == 16
    settings = arguments.settings()
    assert settings.allowed_hosts == ("localhost", "127.0.0.1") and settings.picture_urls is False
    assert ray_serve.app.__annotations__["arguments"] is RayArguments, "Ray reads the type from there"
    with pytest.raises(ValueError, match=r"model\n +Field required"):
        RayArguments.model_validate({})
    for name, value, message in (
        ("replica", "2", "Extra inputs"),
        ("replicas", "0", "greater than"),
        ("picture_urls", True, "should be False"),
    ):
        with pytest.raises(ValueError, match=rf"{name}\n +.*{message}"):
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


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"min_replicas": 1}, "min_replicas is given without max_replicas"),
        ({"target_ongoing_requests": 1}, "target_ongoing_requests is given without max_replicas"),
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
    with pytest.raises(ValueError, match="Extra inputs"):
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
