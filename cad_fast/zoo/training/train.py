"""Train the demo model's parts one after the other; every stage resumes from its last checkpoint.

The recipe: an autoencoder on augmented drawings, then the UNet and the text encoder jointly on its latents (epsilon
prediction, min-SNR weights as in arXiv 2303.09556, an exponential moving average of the weights), and a classifier,
trained twice: without the held-out emoji to measure it, and with all of them to use it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import CLIPTextModel

from ..classifier import EmojiClassifier
from ..concepts import OBJECTS, SHOWN_LESS, STYLES, caption
from .data import EmojiSet, to_float
from .models import make_scheduler, make_text_encoder, make_tokenizer, make_unet, make_vae
from .stage import Recipe, Stage

MIN_SNR = 5.0
EMPTY_CAPTION = 0.12
VAE = Recipe(steps=1800, batch=32, lr=2e-3)
DIFFUSION = Recipe(steps=5400, batch=48, lr=1.5e-3)
CLASSIFIER = Recipe(steps=1500, batch=64, lr=2e-3)


def train_vae(data: EmojiSet, work: Path) -> AutoencoderKL:
    """Autoencoder on mean squared and absolute error with a light KL term."""
    torch.manual_seed(0)
    stage = Stage("vae", make_vae().to(memory_format=torch.channels_last), VAE, work)

    def loss(generator: torch.Generator, step: int) -> Tensor:
        images = to_float(data.images[torch.randint(len(data.images), (VAE.batch,), generator=generator)])
        images = images.to(memory_format=torch.channels_last)
        posterior = stage.module.encode(images).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator)
        output = stage.module.decode(posterior.mean + posterior.std * noise).sample
        return F.mse_loss(output, images) + 0.2 * F.l1_loss(output, images) + 1e-5 * posterior.kl().mean() / 1024

    return stage.run(loss, seed=1)


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor, batch: int = 256) -> Tensor:
    """Unscaled latent means float [N, 4, 16, 16] of uint8 images [N, 3, 32, 32]."""
    chunks = tqdm(images.split(batch), desc="encode", mininterval=5)
    return torch.cat([vae.encode(to_float(chunk)).latent_dist.mean for chunk in chunks])


class TextToLatent(nn.Module):
    """The text encoder and the UNet, trained together."""

    def __init__(self, text_encoder: CLIPTextModel, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.unet = unet

    def forward(self, sample: Tensor, timestep: Tensor, input_ids: Tensor) -> Tensor:
        return self.unet(sample, timestep, self.text_encoder(input_ids)[0]).sample


def captions(tokenizer: Callable, say: Callable[[str | None, str | None], str] = caption) -> Tensor:
    """Token ids int64 [n_objects + 1, n_styles + 1, 16]; the last row or column leaves the object or style out.

    Args:
        tokenizer: What makes the ids.
        say: The text for an object and a style, each a name or None.
    """
    texts = [say(obj, style) for obj in (*OBJECTS, None) for style in (*STYLES, None)]
    ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return ids.view(len(OBJECTS) + 1, len(STYLES) + 1, -1)


def sampling_weights(data: EmojiSet, weights: Mapping[str, float]) -> Tensor:
    """How often each picture is drawn, float [N]: every object alike, but those in ``weights`` so much as often."""
    by_object = 1 / torch.bincount(data.objects, minlength=len(OBJECTS)).float()
    for obj, weight in weights.items():
        by_object[OBJECTS.index(obj)] *= weight
    return by_object[data.objects]


@dataclass(frozen=True)
class Drawing:
    """What a model that predicts noise or velocity is, and how it is trained. By default the shipped one's."""

    channels: tuple[int, int, int] = (24, 48, 96)
    layers: int = 1
    norm_groups: int = 8
    schedule: Mapping[str, Any] = field(default_factory=dict)
    """What the noise schedule has otherwise than Stable Diffusion's."""
    say: Callable[[str | None, str | None], str] = caption
    """The caption for an object and a style, each a name or None."""
    seed: int = 0
    recipe: Recipe = DIFFUSION
    shown_less: Mapping[str, float] = field(default_factory=lambda: SHOWN_LESS["emoji"])


def train_diffusion(data: EmojiSet, latents: Tensor, work: Path, drawing: Drawing | None = None) -> TextToLatent:
    """UNet and text encoder on scaled ``latents`` float [N, 4, 16, 16] of ``data``."""
    drawing = drawing or Drawing()
    torch.manual_seed(drawing.seed)
    tokenizer = make_tokenizer(work / "tokenizer")
    unet = make_unet(drawing.channels, drawing.layers, drawing.norm_groups).to(memory_format=torch.channels_last)
    stage = Stage("diffusion", TextToLatent(make_text_encoder(tokenizer), unet), drawing.recipe, work)
    ids = captions(tokenizer, drawing.say)
    loss = denoising(stage.module, data, latents, ids, make_scheduler(**drawing.schedule), drawing)
    return stage.run(loss, seed=drawing.seed + 2)


def denoising(
    module: TextToLatent, data: EmojiSet, latents: Tensor, ids: Tensor, scheduler: DDIMScheduler, drawing: Drawing
) -> Callable[[torch.Generator, int], Tensor]:
    """The loss of a step: captions with parts left out, min-SNR weights."""
    snr = scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod)
    of_velocity = scheduler.config.prediction_type == "v_prediction"
    weights = snr.clamp(max=MIN_SNR) / (snr + of_velocity)
    sampling = sampling_weights(data, drawing.shown_less)
    batch = drawing.recipe.batch

    def loss(generator: torch.Generator, step: int) -> Tensor:
        rows = torch.multinomial(sampling, batch, replacement=True, generator=generator)
        objects, styles = data.objects[rows].clone(), data.styles[rows].clone()
        dropped = torch.rand(batch, generator=generator)
        objects[(dropped < EMPTY_CAPTION) | ((dropped > 0.82) & (dropped < 0.87))] = len(OBJECTS)
        styles[(dropped < EMPTY_CAPTION) | (dropped > 0.87)] = len(STYLES)
        x0 = latents[rows]
        noise = torch.randn(x0.shape, generator=generator)
        timesteps = torch.randint(1000, (batch,), generator=generator)
        noisy = scheduler.add_noise(x0, noise, timesteps).to(memory_format=torch.channels_last)
        aim = scheduler.get_velocity(x0, noise, timesteps) if of_velocity else noise
        error = (module(noisy, timesteps, ids[objects, styles]) - aim).square().mean(dim=(1, 2, 3))
        return (weights[timesteps] * error).mean()

    return loss


def train_classifier(
    data: EmojiSet, reconstructed: Tensor, work: Path, *, use_held_out: bool, name: str
) -> EmojiClassifier:
    """Classifier on pictures, half of them through the autoencoder, with noise and colour jitter.

    Without ``use_held_out`` it never sees the held-out emoji, and its accuracy on them can be measured.
    """
    torch.manual_seed(0)
    module = EmojiClassifier().to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch declares it not
    stage = Stage(name, module, CLASSIFIER, work, weight_decay=0.05)
    rows = (data.held_out <= use_held_out).nonzero().flatten()
    counts = torch.bincount(data.objects[rows], minlength=len(OBJECTS)).float()
    sampling = (1 / counts)[data.objects[rows]]

    def loss(generator: torch.Generator, step: int) -> Tensor:
        picked = rows[torch.multinomial(sampling, CLASSIFIER.batch, replacement=True, generator=generator)]
        half = CLASSIFIER.batch // 2
        images = torch.cat([to_float(data.images[picked[:half]]), reconstructed[picked[half:]]])
        gain = 1 + 0.15 * torch.randn(len(images), 3, 1, 1, generator=generator)
        # Colour is scaled around white, so that the background stays white.
        images = 1 - (1 - images) * gain + 0.05 * torch.randn(images.shape, generator=generator)
        objects, styles = stage.module(images)
        smoothing = 0.05
        return F.cross_entropy(objects, data.objects[picked], label_smoothing=smoothing) + F.cross_entropy(
            styles, data.styles[picked], label_smoothing=smoothing
        )

    return stage.run(loss, seed=3)
