"""Serve through Triton Inference Server, started by pytriton: ``python pytriton_server.py --model zoo:emoji``."""

import argparse
import signal

from cad_fast.serving.integrations.arguments import ServerArguments
from cad_fast.serving.integrations.pytriton_server import running
from cad_fast.serving.integrations.tensors import TensorModel


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="zoo:emoji, a local diffusers folder, or a name of the Hub")
    parser.add_argument("--edit-dir", help="folder whose subfolders are the edits that requests may name")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--max-batch-size", type=int, default=8)
    parser.add_argument("--http-port", type=int, default=8000)
    parser.add_argument("--grpc-port", type=int, default=8001)
    parser.add_argument("--metrics-port", type=int, default=8002)
    given = vars(parser.parse_args())
    ports = {name: given.pop(name) for name in ("http_port", "grpc_port", "metrics_port")}
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that it ends as orderly as with SIGINT
    with running(TensorModel(ServerArguments(**given).load()), **ports) as triton:
        print("serving", flush=True)
        triton.serve()  # until SIGINT


if __name__ == "__main__":
    main()
