"""``python -m bench.baselines --output DIR``: checkpoints of the embedded model with a concept erased by each method.

Each is written to DIR/METHOD/CONCEPT.safetensors, for ``load_pipeline("zoo:emoji", denoiser_weights=...)``. Those that
are there are kept.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from cad_fast import zoo

from . import BASELINES, write_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.baselines", description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", choices=BASELINES, default=list(BASELINES))
    parser.add_argument("--concepts", nargs="+", choices=zoo.OBJECTS, default=list(zoo.OBJECTS))
    arguments = parser.parse_args()
    pipeline = zoo.load()
    for method in arguments.methods:
        for concept in arguments.concepts:
            if not (arguments.output / method / f"{concept}.safetensors").exists():
                path = write_checkpoint(BASELINES[method], pipeline, concept, arguments.output / method)
                print(path, flush=True)


if __name__ == "__main__":
    main()
