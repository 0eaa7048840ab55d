"""Random CLIP and SigLIP models of a few thousand weights, as folders of transformers."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, SiglipConfig, SiglipImageProcessor, SiglipModel

from cad_fast.zoo.training.models import make_tokenizer

SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def save_clip(folder: Path, dim: int = 8) -> Path:
    """A CLIP that knows the zoo's words."""
    tokenizer = make_tokenizer(folder)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = CLIPConfig(
        text_config={**SMALL, **ids, "vocab_size": len(tokenizer), "max_position_embeddings": 16},
        vision_config={**SMALL, "image_size": 16, "patch_size": 8},
        projection_dim=dim,
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        CLIPModel(config).save_pretrained(folder)
    sizes = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    CLIPImageProcessor(**sizes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_siglip(folder: Path) -> Path:
    """A SigLIP with the zoo's tokenizer."""
    tokenizer = make_tokenizer(folder)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = SiglipConfig(
        text_config={**SMALL, **ids, "vocab_size": len(tokenizer), "max_position_embeddings": 16},
        vision_config={**SMALL, "image_size": 16, "patch_size": 8},
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        SiglipModel(config).save_pretrained(folder)
    SiglipImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
