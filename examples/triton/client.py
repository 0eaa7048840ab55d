"""Ask Triton Inference Server for the same prompt under different edits at once, and save the pictures.

It needs tritonclient: ``pip install 'tritonclient[http]' gevent``.
"""

import argparse
from pathlib import Path

import numpy as np
import tritonclient.http as triton

TYPES = {"BYTES": np.object_, "INT64": np.int64, "FP64": np.float64}


def tensor(name: str, kind: str, *values: object) -> triton.InferInput:
    """One input; text goes as UTF-8."""
    plain = [value.encode() if isinstance(value, str) else value for value in values]
    made = triton.InferInput(name, [len(plain)], kind)
    made.set_data_from_numpy(np.array(plain, dtype=TYPES[kind]))
    return made


def main() -> None:
    """One picture without edits and one with each edit that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", default="127.0.0.1:8000")
    parser.add_argument("--model", default="cad_fast")
    parser.add_argument("--prompt", default="a car in noto style")
    parser.add_argument("--edit", nargs="*", default=[], help="names of edits")
    parser.add_argument("--strength", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--output", type=Path, default=Path("pictures"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    client = triton.InferenceServerClient(arguments.address, concurrency=1 + len(arguments.edit), network_timeout=600)
    waiting = {}
    for name in [None, *arguments.edit]:
        inputs = [tensor("prompt", "BYTES", arguments.prompt), tensor("seed", "INT64", arguments.seed)]
        if name:
            inputs += [tensor("edit_names", "BYTES", name), tensor("edit_strengths", "FP64", arguments.strength)]
        waiting[name or "plain"] = client.async_infer(arguments.model, inputs)
    for name, request in waiting.items():
        path = arguments.output / f"{name}.png"
        path.write_bytes(request.get_result().as_numpy("images")[0])
        print(path)


if __name__ == "__main__":
    main()
