"""``python -m cad_fast.zoo.training --data node_modules --work DIR``: train, package and measure a demo model."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from .. import load
from ..concepts import MODELS
from .data import EmojiSet, load_pictures, to_float
from .flow import train_flow
from .package import held_out_accuracy, save_flow_package, save_package
from .train import encode, train_classifier, train_diffusion, train_vae

VIEWS = 48


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m cad_fast.zoo.training", description=__doc__)
    parser.add_argument("--model", choices=MODELS, default=MODELS[0], help=f"which of them (default: {MODELS[0]})")
    parser.add_argument("--data", type=Path, required=True, help="node_modules with the three emoji packages")
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints; a second run continues there")
    parser.add_argument("--package", type=Path, help="write the finished model here (default: WORK/package)")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)

    data = EmojiSet.build(load_pictures(args.data), views=VIEWS, seed=0)
    make = {"emoji": make_emoji, "emoji-flow": make_emoji_flow}[args.model]
    make(data, args.work, args.package or args.work / "package")


def make_emoji(data: EmojiSet, work: Path, folder: Path) -> None:
    """Train everything that the first model has: autoencoder, UNet, text encoder and the classifier of both models."""
    vae = train_vae(data, work)
    latents = encode(vae, data.images)
    scale = 1 / latents.std().item()
    vae.register_to_config(scaling_factor=scale)
    with torch.no_grad():
        reconstructed = torch.cat([vae.decode(chunk).sample for chunk in latents.split(256)])
    psnr = 20 * torch.log10(2 / (reconstructed - to_float(data.images)).square().mean().sqrt()).item()
    print(f"autoencoder: {psnr:.1f} dB over {len(latents)} pictures, scaling factor {scale:.4f}")
    model = train_diffusion(data, latents * scale, work)
    measured_on = train_classifier(data, reconstructed, work, use_held_out=False, name="classifier-held-out")
    classifier = train_classifier(data, reconstructed, work, use_held_out=True, name="classifier")
    measured = {"vae_psnr_db": round(psnr, 2), "held_out_accuracy": held_out_accuracy(measured_on, data)}
    save_package(folder, work / "tokenizer", vae, model, classifier, data, measured)


def make_emoji_flow(data: EmojiSet, work: Path, folder: Path) -> None:
    """Train transformer and text encoders on the latents of the first model's autoencoder."""
    vae = load("emoji").vae
    model = train_flow(data, encode(vae, data.images) * vae.config.scaling_factor, work)
    save_flow_package(folder, work / "tokenizer", vae, model)


if __name__ == "__main__":
    main()
