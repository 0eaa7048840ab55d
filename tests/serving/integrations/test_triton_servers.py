"""Triton Inference Server itself, from the wheel of pytriton: started by it, and with our model for its Python backend.

Needs ``cad-fast[pytriton]``, which pins numpy below 2 and so may want an environment of its own.
"""

import importlib.util
import io
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cad_fast import zoo
from cad_fast.serving.engine.jobs import PictureJob, RequestedEdit
from cad_fast.serving.integrations.arguments import ServerArguments
from cad_fast.serving.integrations.triton_backend import write_repository
from tests.serving.common import ROUNDING, Alone, distance, random_edit

ROOT = Path(__file__).resolve().parents[3]
REQUESTS, EDITS, STEPS, GUIDANCE = 16, 4, 4, 3.0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("pytriton") is None, reason="pytriton is not installed"),
]


def free_ports(count: int) -> list[str]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [str(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


def by_pytriton(folder: Path, ports: list[str]) -> tuple[list[str], dict[str, str]]:
    """(command, environment) of the example."""
    http, grpc, metrics = ports
    options = ["--http-port", http, "--grpc-port", grpc, "--metrics-port", metrics, "--edit-dir", str(folder / "edits")]
    return [sys.executable, str(ROOT / "examples/triton/pytriton_server.py"), "--model", "zoo:emoji", *options], {}


def by_the_backend(folder: Path, ports: list[str]) -> tuple[list[str], dict[str, str]]:
    """(command, environment) of Triton's binary with a model repository."""
    wheel = Path(importlib.util.find_spec("pytriton").origin).parent / "tritonserver"
    arguments = ServerArguments(model="zoo:emoji", edit_dir=str(folder / "edits"), steps=STEPS, guidance_scale=GUIDANCE)
    model = write_repository(folder / "models", arguments)
    # The stub takes no PYTHONPATH and knows no virtual environment: what it imports is installed beside it, or told so.
    paths = [str(ROOT), *(path for path in sys.path if path)]
    script = model / "1" / "model.py"
    script.write_text(f"import sys\n\nsys.path[:0] = {paths!r}\n{script.read_text()}")
    # The backend beside its stub for this Python; Triton's own images bring one for theirs.
    shutil.copytree(wheel / "backends", folder / "backends")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copy(wheel / "python_backend_stubs" / version / "triton_python_backend_stub", folder / "backends" / "python")
    http, grpc, metrics = ports
    command = [str(wheel / "bin" / "tritonserver"), f"--model-repository={folder / 'models'}"]
    command += [f"--backend-directory={folder / 'backends'}", f"--http-port={http}", f"--grpc-port={grpc}"]
    command += [f"--metrics-port={metrics}", "--http-address=127.0.0.1", "--grpc-address=127.0.0.1"]
    libraries = [sysconfig.get_config_var("LIBDIR"), str(wheel.parents[1] / "nvidia_pytriton.libs")]
    return command, {"LD_LIBRARY_PATH": ":".join(libraries)}


@pytest.fixture(scope="module")
def edits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    pipeline = zoo.load()
    pipeline.set_progress_bar_config(disable=True)
    made = [random_edit(pipeline, f"edit{i}", i, 0.01) for i in range(EDITS)]
    for edit in made:
        edit.save_pretrained(folder / "edits" / edit.name)
    return folder, pipeline, made


@pytest.fixture(params=[by_pytriton, by_the_backend])
def client(request, edits):
    """A client of a server that runs, and its process."""
    import tritonclient.http as triton

    folder, ports = edits[0], free_ports(3)
    command, environment = request.param(folder, ports)
    environment = {"PYTHONPATH": str(ROOT), **os.environ, "OMP_NUM_THREADS": "1", **environment}
    log = (folder / f"{request.param.__name__}.log").open("wb+")
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    made = triton.InferenceServerClient(f"127.0.0.1:{ports[0]}", concurrency=REQUESTS, network_timeout=300)
    try:
        for _ in range(240):
            assert process.poll() is None, (folder / f"{request.param.__name__}.log").read_text()[-4000:]
            try:
                if made.is_model_ready("cad_fast"):
                    break
            except OSError:
                pass
            time.sleep(0.5)
        yield made, process
    finally:
        made.close()
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


def asked(client, **values):
    """A request that has been sent; text, whole numbers and fractions as their types say."""
    import tritonclient.http as triton

    inputs = []
    for name, value in values.items():
        listed = value if isinstance(value, list) else [value]
        kind, dtype = {str: ("BYTES", np.object_), int: ("INT64", np.int64), float: ("FP64", np.float64)}[
            type(listed[0])
        ]
        plain = [each.encode() if isinstance(each, str) else each for each in listed]
        made = triton.InferInput(name, [len(plain)], kind)
        made.set_data_from_numpy(np.array(plain, dtype=dtype))
        inputs.append(made)
    return client.async_infer("cad_fast", inputs)


def test_mixed_requests_at_once(client, edits) -> None:
    import tritonclient.utils

    client, _ = client
    _, pipeline, made = edits
    alone, waiting = Alone(pipeline), []
    for number in range(REQUESTS):
        draw = random.Random(number)
        uses = [(edit, draw.choice([1.0, 0.5, -1.0])) for edit in draw.sample(made, k=draw.choice([0, 1, 2]))]
        steps, output_format = draw.randint(1, STEPS), draw.choice(["png", "pixels"])
        prompt = draw.choice(["a car in noto style", "a cat"])
        values = {"prompt": prompt, "seed": number, "n": 1 + number % 2, "num_inference_steps": steps}
        values |= {"guidance_scale": GUIDANCE, "output_format": output_format}
        if uses:
            names, strengths = [edit.name for edit, _ in uses], [strength for _, strength in uses]
            values |= {"edit_names": names, "edit_strengths": strengths}
        edits_of_job = tuple(RequestedEdit(edit, strength) for edit, strength in uses)
        arguments = {"num_inference_steps": steps, "guidance_scale": GUIDANCE}
        job = PictureJob("", prompt, seed=number, n=values["n"], arguments=arguments, edits=edits_of_job)
        waiting.append((asked(client, **values), job, output_format))
    for request, job, output_format in waiting:
        answer = request.get_result()
        assert answer.as_numpy("seeds").tolist() == [job.seed + i for i in range(job.n)]
        if output_format == "png":
            pictures = [Image.open(io.BytesIO(file)) for file in answer.as_numpy("images")]
        else:
            pictures = answer.as_numpy("pixels")
        assert len(pictures) == job.n
        for i, picture in enumerate(pictures):
            assert distance(picture, alone.draw(job, i)) <= 2 * ROUNDING
    for values, message in (
        ({"prompt": "a cat", "edit_names": ["nobody"]}, "there is no edit 'nobody'; there are: edit0, edit1"),
        ({"prompt": "a cat", "n": 99}, "n: Input should be less than or equal to 8"),
        ({"prompt": "a cat", "edits": "[{"}, "edits: edits is not valid JSON"),
        ({"prompt": "a cat", "num_inference_steps": 100, "deadline": 0.01}, "the deadline passed"),
    ):
        with pytest.raises(tritonclient.utils.InferenceServerException, match=message) as error:
            asked(client, **values).get_result()
        assert str(ROOT / "cad_fast") not in str(error.value), "of our insides clients see nothing"
