"""``python -m bench.full_size FOLDER``: the command line on a model of Stable Diffusion 1.5's size, as people run it.

The model, with random weights, is built in FOLDER in float16 unless it is there. For every dtype the commands
``attribute``, ``edit make``, ``generate`` and ``serve`` run as processes of their own. Per command: seconds, the
process's peak memory, and the size of what it wrote, in full_size.json and full_size.md.

This process imports no torch: Linux counts the memory of the process that starts another towards the peak of the other.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

DTYPES = ("bfloat16", "float16", "float32")
PROMPT = "a car in noto style"
READY_SECONDS = 1800


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; 0 where there is none."""
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return sum(each.stat().st_size for each in files)


def run(
    name: str, command: list[str], log: Path, while_running: Callable[[subprocess.Popen[bytes]], Any] | None = None
) -> dict[str, Any]:
    """Run a command to its end; its seconds, peak memory in bytes and exit code. What it says goes into ``log``."""
    say(f"{name} ...")
    started = time.monotonic()
    facts: dict[str, Any] = {"name": name, "command": command[1:]}
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        try:
            if while_running is not None:
                facts |= while_running(process)
        except Exception as error:  # whatever it was, the other commands are still to be run
            facts["error"] = f"{type(error).__name__}: {error}"
            process.kill()
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    facts |= {
        "seconds": round(time.monotonic() - started, 2),
        "peak_bytes": usage.ru_maxrss * 1024,
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "exit_code": process.returncode,
    }
    say(f"{name}: {facts['seconds']} s, {facts['peak_bytes'] / 1e9:.2f} GB, exit code {facts['exit_code']}")
    return facts


def served(port: int, body: dict[str, Any], log: Path) -> Callable[[subprocess.Popen[bytes]], dict[str, Any]]:
    """Wait until the server is ready, ask for one picture, and end the server."""
    address = f"http://127.0.0.1:{port}"

    def ask(process: subprocess.Popen[bytes]) -> dict[str, Any]:
        started = time.monotonic()
        while True:
            if process.poll() is not None:
                raise RuntimeError(f"the server ended with {process.returncode}: {log.read_text()[-500:]}")
            try:
                with urllib.request.urlopen(f"{address}/ready", timeout=10):
                    break
            except OSError:
                if time.monotonic() - started > READY_SECONDS:
                    raise
                time.sleep(0.2)
        ready = time.monotonic()
        request = urllib.request.Request(
            f"{address}/v1/images/generations", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=READY_SECONDS) as reply:
            pictures = json.load(reply)["data"]
        answered = time.monotonic()
        process.send_signal(signal.SIGTERM)
        return {
            "seconds_until_ready": round(ready - started, 2),
            "seconds_of_request": round(answered - ready, 2),
            "written_bytes": len(pictures[0]["b64_json"]) * 3 // 4,
        }

    return ask


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def of_dtype(dtype: str, arguments: argparse.Namespace, output: Path, done: Callable[[dict[str, Any]], None]) -> None:
    """All commands in one dtype; ``done`` is given the facts of each."""
    folder = output / dtype
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    program = [sys.executable, "-m", "cad_fast.cli"]
    model = [str(arguments.folder), "--dtype", dtype, "--device", arguments.device]
    steps, size = ["--steps", str(arguments.steps)], f"{arguments.size}x{arguments.size}"
    scores, edits = folder / "scores", folder / "edits"

    def one(name: str, command: list[str], written: Path | None = None, **more: Any) -> None:
        facts = run(f"{dtype} {name}", [*program, *command], folder / f"{name}.log", **more)
        if written is not None:
            facts["written_bytes"] = size_of(written)
        done({"dtype": dtype, **facts})

    score = ["attribute", *model, "--prompt", PROMPT, "--samples", str(arguments.samples), *steps, "--size", size]
    one("attribute", [*score, *arguments.attribute, "-o", str(scores)], scores)
    make = ["edit", "make", str(scores), "--erase", "--ratio", str(arguments.ratio), "--name", "no-car"]
    one("edit", [*make, "-o", str(edits / "no-car")], edits)
    draw = ["generate", *model, "--prompt", PROMPT, "--images-per-prompt", "1", *steps, "--size", size]
    one("generate", [*draw, "--edit", str(edits / "no-car"), "-o", str(folder / "pictures")], folder / "pictures")
    port = free_port()
    body = {"prompt": PROMPT, "size": size, "seed": 0, "edits": [{"name": "no-car", "strength": 1.0}]}
    serve = ["serve", *model, "--edit-dir", str(edits), "--port", str(port), *steps, "--sizes", size]
    deadline = ["--deadline", str(READY_SECONDS), "--max-batch-size", "1"]
    ask = served(port, body, folder / "serve.log")
    one("serve", [*serve, *deadline], while_running=ask)


def table(result: dict[str, Any]) -> str:
    """The commands as a table of Markdown."""
    lines = [
        f"{result['machine']}, {result['cpus']} CPUs; model of {result['model_bytes'] / 1e9:.2f} GB, pictures of "
        f"{result['size']}x{result['size']}, {result['steps']} steps, {result['samples']} samples",
        "",
        "| dtype | command | seconds | peak memory, GB | written, MB |",
        "|---|---|---:|---:|---:|",
    ]
    for each in result["commands"]:
        name = each["name"].split()[-1]
        seconds = f"{each['seconds']:.1f}"
        if "seconds_of_request" in each:
            seconds += f" ({each['seconds_of_request']:.1f} of the request)"
        if each["failed"]:
            seconds += f", failed with {each['exit_code']}"
        written = each.get("written_bytes", 0) / 1e6
        lines.append(f"| {each['dtype']} | {name} | {seconds} | {each['peak_bytes'] / 1e9:.2f} | {written:.1f} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Returns 1 when a command failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the model, built there unless it exists")
    parser.add_argument("--output", type=Path, default=Path("full-size-output"), help="default full-size-output")
    parser.add_argument("--size", type=int, default=512, help="of the pictures, in pixels (default 512)")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps (default 20)")
    parser.add_argument("--samples", type=int, default=1, help="of attribute (default 1)")
    parser.add_argument("--ratio", type=float, default=0.001, help="of edit make (default 0.001)")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--device", default="cpu", help="default cpu")
    parser.add_argument(
        "--attribute", nargs=argparse.REMAINDER, default=[], help="further options of cad-fast attribute, at the end"
    )
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {
        "machine": platform.processor() or platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "size": arguments.size,
        "steps": arguments.steps,
        "samples": arguments.samples,
        "device": arguments.device,
        "commands": [],
    }
    if not (arguments.folder / "model_index.json").is_file():
        build = [sys.executable, "-m", "bench.full_size_model", str(arguments.folder)]
        result["build"] = run("build", build, arguments.output / "build.log")
        if result["build"]["exit_code"]:
            say(f"the model could not be built, see {arguments.output / 'build.log'}")
            return 1
    result["model_bytes"] = size_of(arguments.folder)

    def done(facts: dict[str, Any]) -> None:
        ended = facts["exit_code"] in ((0, -signal.SIGTERM) if facts["name"].endswith("serve") else (0,))
        result["commands"].append({**facts, "failed": not ended or "error" in facts})
        (arguments.output / "full_size.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        (arguments.output / "full_size.md").write_text(table(result), encoding="utf-8")

    for dtype in arguments.dtypes:
        of_dtype(dtype, arguments, arguments.output, done)
    say(f"written to {arguments.output}\n{table(result)}")
    return int(any(each["failed"] for each in result["commands"]))


if __name__ == "__main__":
    sys.exit(main())
