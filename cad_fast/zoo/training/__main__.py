"""``python -m cad_fast.zoo.training --data node_modules --work DIR``: train, package and measure the demo model."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from .. import load
from .data import EmojiSet, load_pictures, to_float
from .flow import train_flow
from .package import held_out_accuracy, save_package
from .train import encode, train_classifier, train_diffusion, train_vae

VIEWS = 48


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m cad_fast.zoo.training", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="node_modules with the three emoji packages")
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints; a second run continues there")
    parser.add_argument("--package", type=Path, help="write the finished model here (default: WORK/package)")
    parser.add_argument("--model", choices=["emoji", "emoji-flow"], default="emoji")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)

    data = EmojiSet.build(load_pictures(args.data), views=VIEWS, seed=0)
    if args.model == "emoji-flow":
        vae = load("emoji").vae
        train_flow(data, encode(vae, data.images) * vae.config.scaling_factor, args.work)
        return
    vae = train_vae(data, args.work)
    latents = encode(vae, data.images)
    scale = 1 / latents.std().item()
    vae.register_to_config(scaling_factor=scale)
    with torch.no_grad():
        reconstructed = torch.cat([vae.decode(chunk).sample for chunk in latents.split(256)])
    psnr = 20 * torch.log10(2 / (reconstructed - to_float(data.images)).square().mean().sqrt()).item()
    print(f"autoencoder: {psnr:.1f} dB over {len(latents)} pictures, scaling factor {scale:.4f}")
    model = train_diffusion(data, latents * scale, args.work)
    measured_on = train_classifier(data, reconstructed, args.work, use_held_out=False, name="classifier-held-out")
    classifier = train_classifier(data, reconstructed, args.work, use_held_out=True, name="classifier")
    measured = {"vae_psnr_db": round(psnr, 2), "held_out_accuracy": held_out_accuracy(measured_on, data)}
    folder = args.package or args.work / "package"
    save_package(folder, args.work / "tokenizer", vae, model, classifier, data, measured)


if __name__ == "__main__":
    main()
