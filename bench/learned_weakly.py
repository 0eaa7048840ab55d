"""``python -m bench.learned_weakly --data DIR --output DIR``: can an object that was barely learned be amplified?

The keys and values of the embedded model are trained a little on the rare object, until it comes out in about a third
of its pictures. Then two dials are tried on it: negative components removed (``amplify``), and positive ones made
larger (an edit that would erase, at strengths below 0). Beside ``bench.recall``, where something suppresses the object.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

import cad_fast
from cad_fast import ConceptErasure, DenoisingLoss, Edit, Selection, zoo
from cad_fast.attribution import Attributor
from cad_fast.evaluation import evaluate
from cad_fast.files import require_writable_folder, write_json, write_tensors, write_text
from cad_fast.making import amplify_each
from cad_fast.zoo.prompt_set import emoji_prompts
from cad_fast.zoo.training.data import EmojiSet, load_pictures
from cad_fast.zoo.training.models import make_scheduler
from cad_fast.zoo.training.stage import Recipe
from cad_fast.zoo.training.train import Drawing, TextToLatent, captions, denoising, encode

RARE = zoo.RARE_OBJECT
KEYS_AND_VALUES = "cross-attention-kv"
STEPS, LEARNING_RATE = 90, 2e-3
SEED = 7000
RATIOS = (0.02, 0.05, 0.1)
WINDOWS = (None, (1000, 600), (1000, 850))
GROWN = ((0.02, -1.0), (0.02, -3.0), (0.05, -0.5), (0.05, -1.5), (0.1, -1.0), (0.1, -2.0))


def weakly_trained(data: Path, folder: Path) -> Path:
    """Train keys and values on all objects, the rare one three times as often; returns the file of their weights."""
    path = folder / "weights.safetensors"
    if path.exists():
        return path
    pipeline = zoo.load()
    views = EmojiSet.build(load_pictures(data), views=4, seed=5)
    latents = encode(pipeline.vae, views.images) * pipeline.vae.config.scaling_factor
    model = TextToLatent(pipeline.text_encoder, pipeline.unet).requires_grad_(False)
    trained = {
        name: parameter.requires_grad_(True)
        for name, parameter in pipeline.unet.named_parameters()
        if "attn2.to_k" in name or "attn2.to_v" in name
    }
    drawing = Drawing(shown_less={RARE: 3}, recipe=Recipe(steps=STEPS, batch=24, lr=LEARNING_RATE))
    loss = denoising(model, views, latents, captions(pipeline.tokenizer), make_scheduler(), drawing)
    optimizer = torch.optim.Adam(trained.values(), lr=LEARNING_RATE)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss(torch.Generator().manual_seed(step), step).backward()
        optimizer.step()
    return write_tensors(path, {name: value.detach() for name, value in trained.items()}, {"steps": STEPS})


class Weak:
    """The model, and what is measured of it under edits."""

    def __init__(self, weights: Path) -> None:
        self.pipeline, self.scorer = cad_fast.load_pipeline("zoo:emoji", denoiser_weights=weights), zoo.scorer()
        self.rows: list[dict[str, Any]] = []

    def measure(self, way: str, edit: Edit | None = None, strength: float = 1.0) -> None:
        """Pictures of the rare object and of the others."""
        settings: dict[str, Any] = {"generation": zoo.generation(), "seed": SEED, "progress": False, "batch_size": 24}
        settings |= {"edit": edit, "strength": strength}
        others = [each for each in zoo.OBJECTS if each != RARE]
        own = evaluate(self.pipeline, emoji_prompts(), self.scorer, concepts=[RARE], per_concept=48, **settings)
        rest = evaluate(self.pipeline, emoji_prompts(), self.scorer, concepts=others, per_concept=3, **settings)
        found = {"way": way, RARE: own.tally().hits, "of": own.tally().n, "became": own.became(RARE)}
        found |= {"others": rest.tally().accuracy, "style": rest.tally(axis="style").accuracy}
        self.rows.append(found)
        print(line(found), flush=True)

    def grown(self) -> None:
        """Make larger what draws the object, and spare the others."""
        files, texts = zip(*zoo.pictures(RARE), strict=True)
        recording = cad_fast.record_images(self.pipeline, zoo.opened(files), list(texts), timesteps=20, seed=0)
        attributor = Attributor(self.pipeline, DenoisingLoss(), target_modules=KEYS_AND_VALUES)
        scores = attributor.run(recording, concept=RARE, progress=False)
        spare = Attributor(self.pipeline, ConceptErasure(), attributor.space, method="sensitivity")
        kept = [
            cad_fast.record(
                self.pipeline, zoo.prompts(each) * 2, seeds=0, progress=False, **zoo.generation().to_kwargs()
            )
            for each in zoo.OBJECTS
            if each != RARE
        ]
        sensitivity = [spare.run(each, progress=False) for each in kept]
        for ratio, strength in GROWN:
            edit = Edit.from_scores(scores, Selection(ratio, sensitivity=sensitivity))
            self.measure(f"{ratio:.0%} of the weights times {1 - strength:g}", edit, strength)


def line(found: dict[str, Any]) -> str:
    """A row of the table."""
    return f"| {found['way']} | {found[RARE]} of {found['of']} | {found['others']:.2f} | {found['style']:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.learned_weakly", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="node_modules with the three emoji packages")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    folder = require_writable_folder(arguments.output)
    study = Weak(weakly_trained(arguments.data, folder))
    study.measure("as it is")
    for window in WINDOWS:
        settings: dict[str, Any] = {"timesteps": window, "num_inference_steps": 10, "samples": 9, "progress": False}
        for ratio, edit in amplify_each(study.pipeline, RARE, RATIOS, **settings).items():
            at = "" if window is None else f", timesteps {window[0]} to {window[1]}"
            study.measure(f"{ratio:.0%} removed{at}", edit)
    study.grown()
    write_json(folder / "rows.json", study.rows)
    table = f"| way | {RARE} | others | style |\n|---|---|---|---|\n" + "".join(f"{line(row)}\n" for row in study.rows)
    write_text(folder / "learned_weakly.md", table)
    print(table)


if __name__ == "__main__":
    main()
