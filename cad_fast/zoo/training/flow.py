"""Train the flow model: the transformer and both text encoders jointly, on the latents of the shipped autoencoder.

The recipe: rectified flow (arXiv 2403.03206) with velocity prediction and noise levels drawn towards the noisy side,
Muon (arXiv 2502.16982) on the matrices of the blocks, AdamW on the rest, an exponential moving average of the weights.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModelWithProjection

from ..concepts import OBJECTS, SHOWN_LESS, STYLES
from .data import EmojiSet
from .flow_models import PROMPT_LENGTH, make_projecting_encoder, make_transformer
from .models import make_tokenizer
from .stage import Recipe, Stage
from .train import captions, sampling_weights

FLOW = Recipe(steps=3600, batch=48, lr=1.5e-3, warmup=300)
MUON_LR = 4e-3
EMPTY_CAPTION, NO_OBJECT, NO_STYLE = 0.1, 0.03, 0.05
# The pipeline's `max_sequence_length`, of which every value gives a model that was trained for it.
LONGEST_ABSENT_TEXT = 512
NOISE_LEVELS = torch.distributions.Normal(0.4, 1.1)


class _AttendManyTimes:
    """SD3's joint attention, with a number added to the logits of each key.

    A key with log(n) added counts like n equal keys.
    """

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, attention_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        def heads(states: Tensor, norm: nn.Module | None) -> Tensor:
            states = states.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            return states if norm is None else norm(states)

        image, text = hidden_states, encoder_hidden_states
        query = torch.cat([heads(attn.to_q(image), attn.norm_q), heads(attn.add_q_proj(text), attn.norm_added_q)], 2)
        key = torch.cat([heads(attn.to_k(image), attn.norm_k), heads(attn.add_k_proj(text), attn.norm_added_k)], 2)
        value = torch.cat([heads(attn.to_v(image), None), heads(attn.add_v_proj(text), None)], 2)
        # Written out: in bfloat16 the fused attention's backward pass takes the CPU ten times as long.
        logits = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]) + attention_mask
        joint = logits.softmax(-1) @ value
        image, text = joint.transpose(1, 2).flatten(2).split([image.shape[1], text.shape[1]], dim=1)
        return attn.to_out[0](image), text if attn.context_pre_only else attn.to_add_out(text)


class TextToVelocity(nn.Module):
    """Both text encoders and the transformer, trained together as ``StableDiffusion3Pipeline`` joins them."""

    def __init__(
        self,
        text_encoder: CLIPTextModelWithProjection,
        text_encoder_2: CLIPTextModelWithProjection,
        transformer: SD3Transformer2DModel,
    ) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.text_encoder_2 = text_encoder_2
        self.transformer = transformer
        transformer.set_attn_processor(_AttendManyTimes())

    def forward(self, sample: Tensor, timestep: Tensor, input_ids: Tensor, absent: Tensor) -> Tensor:
        """Return the velocity at ``sample`` float [B, 4, 16, 16].

        Without its third encoder the pipeline appends ``max_sequence_length`` tokens of zeros. They are equal, in every
        block, so one of them stands here for all.

        Args:
            sample: Noisy latents.
            timestep: float [B] in 0..1000.
            input_ids: int64 [B, 10] captions.
            absent: float [B] how many tokens of zeros the last token stands for.
        """
        encoded = [
            encoder(input_ids, output_hidden_states=True) for encoder in (self.text_encoder, self.text_encoder_2)
        ]
        text = torch.cat([output.hidden_states[-2] for output in encoded], dim=-1)
        text = F.pad(text, (0, 0, 0, 1))
        tokens = sample.shape[2] * sample.shape[3] // self.transformer.config.patch_size**2 + text.shape[1]
        bias = F.pad(absent.log().view(-1, 1, 1, 1), (tokens - 1, 0))
        with torch.autocast("cpu", torch.bfloat16, enabled=self.training):
            velocity = self.transformer(
                hidden_states=sample,
                timestep=timestep,
                encoder_hidden_states=text,
                pooled_projections=torch.cat([output.text_embeds for output in encoded], dim=-1),
                joint_attention_kwargs={"attention_mask": bias},
            ).sample
        return velocity.float()


def _optimizers(model: TextToVelocity) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for everything else."""
    matrices = [
        parameter
        for name, parameter in model.transformer.transformer_blocks.named_parameters()
        if parameter.ndim == 2 and ".norm1" not in name
    ]
    taken = {id(parameter) for parameter in matrices}
    others = [parameter for parameter in model.parameters() if id(parameter) not in taken]
    return [
        torch.optim.Muon(matrices, lr=MUON_LR, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=FLOW.lr, weight_decay=0.01, betas=(0.9, 0.99)),
    ]


def train_flow(data: EmojiSet, latents: Tensor, work: Path) -> TextToVelocity:
    """Transformer and text encoders on scaled ``latents`` float [N, 4, 16, 16] of ``data``."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer(work / "tokenizer", PROMPT_LENGTH)
    model = TextToVelocity(make_projecting_encoder(tokenizer), make_projecting_encoder(tokenizer), make_transformer())
    stage = Stage("flow", model, FLOW, work, optimizers=_optimizers(model))
    ids = captions(tokenizer)
    sampling = sampling_weights(data, SHOWN_LESS["emoji-flow"])

    def loss(generator: torch.Generator, step: int) -> Tensor:
        rows = torch.multinomial(sampling, FLOW.batch, replacement=True, generator=generator)
        objects, styles = data.objects[rows].clone(), data.styles[rows].clone()
        dropped = torch.rand(FLOW.batch, generator=generator)
        objects[dropped < EMPTY_CAPTION + NO_OBJECT] = len(OBJECTS)
        styles[(dropped < EMPTY_CAPTION) | (dropped > 1 - NO_STYLE)] = len(STYLES)
        x0 = latents[rows]
        noise = torch.randn(x0.shape, generator=generator)
        level = NOISE_LEVELS.mean + NOISE_LEVELS.stddev * torch.randn(FLOW.batch, generator=generator)
        sigma = level.sigmoid()
        noisy = torch.lerp(x0, noise, sigma.view(-1, 1, 1, 1))
        absent = torch.exp(math.log(LONGEST_ABSENT_TEXT) * torch.rand(FLOW.batch, generator=generator))
        velocity = stage.module(noisy, 1000 * sigma, ids[objects, styles], absent)
        return F.mse_loss(velocity, noise - x0)

    return stage.run(loss, seed=4)
