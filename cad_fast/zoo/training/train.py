"""Train the demo model's parts one after the other; every stage resumes from its last checkpoint.

The recipe: an autoencoder on augmented drawings, then the UNet and the text encoder jointly on its latents (epsilon
prediction, min-SNR weights as in arXiv 2303.09556, an exponential moving average of the weights), and a classifier,
trained twice: without the held-out emoji to measure it, and with all of them to use it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import CLIPTextModel

from ...files import write_whole
from ..classifier import EmojiClassifier
from ..concepts import OBJECTS, RARE_OBJECT, STYLES, caption
from .data import EmojiSet, to_float
from .models import make_scheduler, make_text_encoder, make_tokenizer, make_unet, make_vae

CHECKPOINT_EVERY = 500
MIN_SNR = 5.0
EMPTY_CAPTION = 0.12
# How often the rare object is drawn, against once for every other object.
RARE_WEIGHT = 0.01


@dataclass
class Recipe:
    """Steps, batch size and peak learning rate of one stage."""

    steps: int
    batch: int
    lr: float
    warmup: int = 200


VAE = Recipe(steps=1800, batch=32, lr=2e-3)
DIFFUSION = Recipe(steps=5400, batch=48, lr=1.5e-3)
CLASSIFIER = Recipe(steps=1500, batch=64, lr=2e-3)


def _learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, constant until 40% of the steps, then a cosine to 1% of the peak."""
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / recipe.warmup
    progress = max(0.0, (step / recipe.steps - 0.4) / 0.6)
    return recipe.lr * (0.01 + 0.99 * 0.5 * (1 + torch.cos(torch.tensor(progress * torch.pi)).item()))


def _generator(seed: int, step: int) -> torch.Generator:
    """Each step draws from its own generator, so that a resumed run sees the same batches."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


Trained = TypeVar("Trained", bound=nn.Module)


class Stage(Generic[Trained]):
    """A training loop with an EMA of the weights and a checkpoint file from which it continues."""

    def __init__(self, name: str, module: Trained, recipe: Recipe, work: Path, weight_decay: float = 0.01) -> None:
        self.name, self.module, self.recipe = name, module, recipe
        self.path = work / f"{name}.pt"
        self.ema = copy.deepcopy(module).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(module.parameters(), lr=recipe.lr, weight_decay=weight_decay)
        self.step = 0
        if self.path.exists():
            state = torch.load(self.path, weights_only=True)
            self.step = state["step"]
            self.module.load_state_dict(state["module"])
            self.ema.load_state_dict(state["ema"])
            self.optimizer.load_state_dict(state["optimizer"])

    def save(self) -> None:
        state = {
            "step": self.step,
            "module": self.module.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        write_whole(self.path, lambda part: torch.save(state, part))

    def _update_ema(self) -> None:
        decay = min(0.999, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.parameters()), list(self.module.parameters()), 1 - decay)
            for mine, theirs in zip(self.ema.buffers(), self.module.buffers(), strict=True):
                mine.copy_(theirs)

    def run(self, loss: Callable[[torch.Generator, int], Tensor], seed: int) -> Trained:
        """Minimise ``loss(generator, step)`` for the recipe's steps; returns the averaged module in eval mode."""
        bar = tqdm(total=self.recipe.steps, initial=self.step, desc=self.name, mininterval=5)
        average = None
        while self.step < self.recipe.steps:
            for group in self.optimizer.param_groups:
                group["lr"] = _learning_rate(self.recipe, self.step)
            value = loss(_generator(seed, self.step), self.step)
            if not torch.isfinite(value):
                raise FloatingPointError(f"{self.name}: the loss is {value.item()} at step {self.step}")
            self.optimizer.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
            self.optimizer.step()
            self.step += 1
            self._update_ema()
            average = value.item() if average is None else 0.98 * average + 0.02 * value.item()
            bar.update()
            bar.set_postfix(loss=f"{average:.4f}", refresh=False)
            if self.step % CHECKPOINT_EVERY == 0 or self.step == self.recipe.steps:
                self.save()
        bar.close()
        return self.ema.eval()


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


def _captions(tokenizer: Callable) -> Tensor:
    """Token ids int64 [n_objects + 1, n_styles + 1, 16]; the last row or column leaves the object or style out."""
    texts = [caption(obj, style) for obj in (*OBJECTS, None) for style in (*STYLES, None)]
    ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return ids.view(len(OBJECTS) + 1, len(STYLES) + 1, -1)


def train_diffusion(data: EmojiSet, latents: Tensor, work: Path) -> TextToLatent:
    """UNet and text encoder on scaled ``latents`` float [N, 4, 16, 16] of ``data``."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer(work / "tokenizer")
    unet = make_unet().to(memory_format=torch.channels_last)
    stage = Stage("diffusion", TextToLatent(make_text_encoder(tokenizer), unet), DIFFUSION, work)
    ids = _captions(tokenizer)
    scheduler = make_scheduler()
    snr = scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod)
    weights = snr.clamp(max=MIN_SNR) / snr
    by_object = torch.bincount(data.objects, minlength=len(OBJECTS)).float()
    sampling = 1 / by_object
    sampling[OBJECTS.index(RARE_OBJECT)] *= RARE_WEIGHT
    sampling = sampling[data.objects]

    def loss(generator: torch.Generator, step: int) -> Tensor:
        rows = torch.multinomial(sampling, DIFFUSION.batch, replacement=True, generator=generator)
        objects, styles = data.objects[rows].clone(), data.styles[rows].clone()
        dropped = torch.rand(DIFFUSION.batch, generator=generator)
        objects[(dropped < EMPTY_CAPTION) | ((dropped > 0.82) & (dropped < 0.87))] = len(OBJECTS)
        styles[(dropped < EMPTY_CAPTION) | (dropped > 0.87)] = len(STYLES)
        x0 = latents[rows]
        noise = torch.randn(x0.shape, generator=generator)
        timesteps = torch.randint(1000, (DIFFUSION.batch,), generator=generator)
        noisy = scheduler.add_noise(x0, noise, timesteps).to(memory_format=torch.channels_last)
        error = (stage.module(noisy, timesteps, ids[objects, styles]) - noise).square().mean(dim=(1, 2, 3))
        return (weights[timesteps] * error).mean()

    return stage.run(loss, seed=2)


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
