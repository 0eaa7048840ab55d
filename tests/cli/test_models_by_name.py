"""Every documented way to name a model, through the command line in a process of its own."""

import copy
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
import torch
from safetensors.torch import save_file

from cad_fast.zoo.concepts import MODELS
from tests.pipelines import stable_diffusion

GENERATE = ["--prompt", "a cat", "--images-per-prompt", "1", "--steps", "1", "--json"]
# Where nothing listens: what is on the Hub cannot be reached.
OFFLINE = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}


def command(*arguments):
    return [sys.executable, "-m", "cad_fast.cli", *map(str, arguments)]


def run(*arguments, **environment):
    """(exit code, standard output, standard error) of ``cad-fast``."""
    done = subprocess.run(command(*arguments), capture_output=True, text=True, env={**os.environ, **environment})
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


# One process for several commands, whose imports take most of the time.
SEVERAL = """
import contextlib, io, json, sys
from cad_fast.cli import main
for arguments in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""


def run_all(*commands):
    """As ``run``, of each command."""
    arguments = json.dumps([[str(argument) for argument in each] for each in commands])
    done = subprocess.run([sys.executable, "-c", SEVERAL, arguments], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def answers(*commands):
    """The JSON that each command prints."""
    results = run_all(*commands)
    assert all(code == 0 for code, _, _ in results), results
    return [json.loads(out) for _, out, _ in results]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The same tiny model, stored in the ways that people have models."""
    folder = tmp_path_factory.mktemp("models")
    pipeline = copy.deepcopy(stable_diffusion())
    pipeline.save_pretrained(folder / "float32")
    pipeline.save_pretrained(folder / "bin", safe_serialization=False)
    pipeline.to(torch.float16)
    pipeline.save_pretrained(folder / "float16")
    pipeline.save_pretrained(folder / "variant", variant="fp16")
    pipeline.save_pretrained(folder / "sharded", max_shard_size="50KB")
    weights = {"conv_out.weight": torch.zeros_like(pipeline.unet.conv_out.weight)}
    save_file(weights, folder / "conv_out.safetensors")
    return folder


@pytest.mark.parametrize(("model", "more"), [("float32", []), ("variant", ["--variant", "fp16"]), ("sharded", [])])
def test_folders(models, tmp_path, model, more) -> None:
    (result,) = answers(["generate", models / model, *more, *GENERATE, "-o", tmp_path])
    assert len(result["pictures"]) == 1
    if model == "float32":
        assert (result["model"]["stored"], result["model"]["dtype"]) == ("float32", "float32")
    else:
        assert result["model"]["stored"] == "float16" and result["model"]["dtype"] in ("bfloat16", "float32")


def test_scores_of_a_model_in_half_precision_and_what_is_said(models, tmp_path) -> None:
    """The way that ended in a complaint about unequal dtypes."""
    common = ["--prompt", "a cat", "--samples", "1", "--steps", "2", "--target-modules", "cross-attention-kv"]
    code, _, err = run("attribute", models / "float16", *common, "--dtype", "bfloat16", "-o", tmp_path)
    assert code == 0, err
    assert err.count("bfloat16 on cpu (as asked for)") == 1


@pytest.mark.parametrize("name", MODELS)
def test_the_zoo_and_quietly(tmp_path, name) -> None:
    arguments = ["--prompt", "a cat in noto style", "--images-per-prompt", "1", "--steps", "1", "--quiet"]
    code, out, err = run("generate", f"zoo:{name}", *arguments, "-o", tmp_path)
    assert code == 0 and "1 pictures" in out and "float32" not in err, err


def test_dtypes_and_weights_of_the_denoiser(models, tmp_path) -> None:
    weights = models / "conv_out.safetensors"
    options = [["--dtype", "float32"], ["--dtype", "bfloat16"], ["--dtype", "float16", "--offload", "none"]]
    options += [["--dtype", "auto", "--device", "cpu", "--denoiser-weights", weights]]
    commands = [
        ["generate", models / "float16", *more, *GENERATE, "-o", tmp_path / str(number)]
        for number, more in enumerate(options)
    ]
    results = answers(*commands)
    assert [result["model"]["dtype"] for result in results[:3]] == ["float32", "bfloat16", "float16"]
    assert results[3]["model"]["denoiser_weights"] == str(weights)
    pictures = [open(result["pictures"][0], "rb").read() for result in results]
    assert pictures[3] not in pictures[:3]


def test_models_that_cannot_be_loaded(models, tmp_path) -> None:
    errors = {
        "variant": ([], "--variant fp16"),
        "bin": ([], "no safetensors. Weights are read from safetensors only"),
        "float32": (["--revision", "main"], "is a local folder and has no revisions"),
        "conv_out.safetensors": ([], "is one file: expected a folder"),
        "nowhere": (
            [],
            "does not exist: expected zoo:emoji, zoo:emoji-flow, zoo:emoji-weak, zoo:emoji-erased, a folder",
        ),
    }
    commands = [["generate", models / model, *more, *GENERATE, "-o", tmp_path] for model, (more, _) in errors.items()]
    if not torch.cuda.is_available():
        errors |= {"cuda": ([], "finds no CUDA device here"), "offload": ([], "torch finds none on this machine")}
        commands += [
            ["generate", models / "float32", *more, *GENERATE, "-o", tmp_path]
            for more in (["--device", "cuda"], ["--offload", "model"])
        ]
    for (code, out, err), (_, message) in zip(run_all(*commands), errors.values(), strict=True):
        assert code == 2 and message in err and not out, err


@pytest.mark.slow
def test_a_hub_repository_that_cannot_be_reached(tmp_path) -> None:
    cache = {"HF_HOME": str(tmp_path / "cache"), **OFFLINE}
    arguments = ["some-owner/no-such-model", "--revision", "v1", *GENERATE, "-o", tmp_path]
    code, _, err = run("generate", *arguments, **cache)
    assert code == 2 and "'some-owner/no-such-model' is neither a local folder nor a Hub repository" in err, err
    assert "at revision 'v1'" in err and "refused" in err


@pytest.mark.slow
def test_exit_codes_of_the_server(models, tmp_path) -> None:
    """1 when it cannot start, 2 for wrong input, 0 when it is asked to end."""
    pytest.importorskip("fastapi")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        busy = ["--port", taken.getsockname()[1]]
        code, _, err = run("serve", models / "float16", *busy)
        assert code == 1 and "the server could not start: nothing can listen at 127.0.0.1:" in err, err
        assert "model " not in err, "it is noticed before the model loads"
    code, _, err = run("serve", models / "nowhere")
    assert code == 2 and "does not exist" in err
    log = tmp_path / "log"
    options = ("--host", "::1" if _has_ipv6() else "127.0.0.1", "--port", "0", "--json")
    with log.open("w") as err, (tmp_path / "out").open("w") as out:
        process = subprocess.Popen(command("serve", models / "float16", *options), stderr=err, stdout=out)
        try:
            _wait_until_ready(process, log)
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=60) == 0, log.read_text()
        finally:
            process.kill()
    assert json.loads((tmp_path / "out").read_text())["address"] == _address_in(log)


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as one:
            one.bind(("::1", 0))
    except OSError:
        return False
    return True


def _address_in(log) -> str | None:
    found = re.search(r" at http://(\S+) with edits", log.read_text())
    return found and found[1]


def _wait_until_ready(process, log) -> None:
    for _ in range(3000):
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"http://{_address_in(log)}/ready", timeout=5) as reply:
                assert json.load(reply)["ready"]
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(log.read_text())
