"""``python -m bench.variants``: make the embedded variants: the car erased by ESD-x, half way and to the end.

Files of the cross-attention's weights in float16, for ``cad_fast.zoo.VARIANTS``. They show what amplifying is for: to
bring back what fine-tuning suppressed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from bench.baselines import EsdX
from cad_fast import zoo
from cad_fast.files import write_tensors

# "emoji-weak" was chosen by its car: recognised in 31 of 48 pictures after 20 iterations, in 20 after 26, in 15 after
# 30, in 10 after 40. "emoji-erased" has the settings of the study.
METHODS = {"emoji-weak": EsdX(iterations=26), "emoji-erased": EsdX()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.variants", description=__doc__)
    parser.add_argument("--output", type=Path, default=zoo.folder().parent / "variants", help="default: the package")
    folder = parser.parse_args().output
    for name, method in METHODS.items():
        weights = method.weights(zoo.load(zoo.VARIANTS[name]), zoo.SUPPRESSED_OBJECT)
        half = {key: value.to(torch.float16) for key, value in weights.items()}
        metadata = {"method": method.name, "concept": zoo.SUPPRESSED_OBJECT, "iterations": method.iterations}
        print(write_tensors(folder / f"{name}.safetensors", half, metadata))


if __name__ == "__main__":
    main()
