"""Edits of linear layers as PEFT adapters: SHiRA, sparse high-rank adapters (arXiv 2406.13175)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...diffusion.denoisers import denoiser_of
from ...extras import require
from ...files import check_tensor_header, json_text, require_writable_folder, text_writer, write_together
from ..data import EditData
from ..weights import intact_fingerprint

ADAPTER_NAME = "adapter_model.safetensors"
_PREFIX = "base_model.model."  # what PeftModel puts before the names of the model it wraps


def export_peft(edit: EditData, pipeline: Any, folder: str | Path, *, strength: float = 1.0) -> Path:
    """Write ``edit`` as a SHiRA adapter: ``adapter_config.json`` and ``adapter_model.safetensors``; returns ``folder``.

    ``pipeline`` (or its denoiser) is the model of the edit, whose weights the adapter's deltas are differences from.
    SHiRA stores for every linear the same number r of values per row and column, so those of a module beyond its edited
    weights are zeros. Deltas are computed in the model's dtype: at factor 0 and strength 1 a weight plus its delta is
    exactly zero; otherwise it is the edited weight up to rounding. ``peft.PeftModel.from_pretrained(denoiser, folder)``
    reads it; ``load_peft`` puts it into a denoiser without wrapping it.
    Raises ValueError naming the modules that are not linear, or too small for the r that the others need; ValueError
    when the edit is of another model or strength is not finite; ImportError without peft.
    """
    if not math.isfinite(strength):
        raise ValueError(f"strength is {strength}, expected a finite number")
    peft = require("peft", "peft")
    denoiser = denoiser_of(pipeline)
    edit.space.fingerprint.require_same(intact_fingerprint(denoiser), f"edit {edit.name!r}")
    modules = edit.space.modules(denoiser)
    others = [name for name, module in modules.items() if not isinstance(module, nn.Linear)]
    if others:
        raise ValueError(
            f"edit {edit.name!r} cannot be a PEFT adapter: SHiRA has linear layers only, these are none: "
            f"{', '.join(others[:8])}{f' and {len(others) - 8} more' if len(others) > 8 else ''}"
        )
    indices = edit.weight_indices()
    rank = _rank(edit, indices)
    factor = 1 - strength * (1 - edit.factor)
    tensors: dict[str, Tensor] = {}
    for name, module in modules.items():
        places, deltas = _padded(module.weight.detach(), indices[name], factor, rank)
        tensors[f"{_PREFIX}{name}.shira_weight"] = deltas
        tensors[f"{_PREFIX}{name}.shira_indices"] = places
    folder = require_writable_folder(folder)
    config = peft.ShiraConfig(r=rank, target_modules=list(modules), inference_mode=True)
    _write_adapter(folder, config, tensors)
    return folder


def _rank(edit: EditData, indices: dict[str, Tensor]) -> int:
    """The least r with room for the edited weights of every module, r * (in + out)."""
    sides = {entry.module: sum(entry.weight_shape) for entry in edit.space}
    densest = max(sides, key=lambda name: len(indices[name]) / sides[name])
    rank = -(-len(indices[densest]) // sides[densest])
    full = [entry.module for entry in edit.space if rank * sides[entry.module] > entry.rows * entry.columns]
    if full:
        raise ValueError(
            f"edit {edit.name!r} cannot be a PEFT adapter: {densest} needs SHiRA's r = {rank}, for which the weights "
            f"of {', '.join(full[:4])} have no room: edit fewer weights there, or export a checkpoint"
        )
    return rank


def _padded(weight: Tensor, indices: Tensor, factor: float, rank: int) -> tuple[Tensor, Tensor]:
    """Places int32 [2, r * (in + out)] and deltas of the same length; beyond the edited weights zeros elsewhere."""
    indices = indices.to(weight.device)
    room = rank * sum(weight.shape)
    values = weight.flatten()[indices]
    edited = torch.zeros_like(values) if factor == 0 else values * factor
    free = torch.ones(weight.numel(), dtype=torch.bool, device=weight.device)
    free[indices] = False
    padding = free.nonzero().flatten()[: room - len(indices)]
    order = torch.cat([indices, padding]).sort()
    deltas = torch.cat([edited - values, values.new_zeros(len(padding))])[order.indices]
    places = torch.stack([order.values // weight.shape[1], order.values % weight.shape[1]]).to(torch.int32)
    return places.cpu(), deltas.cpu()


def _write_adapter(folder: Path, config: Any, tensors: dict[str, Tensor]) -> None:
    """Both files appear, or none."""
    from safetensors.torch import save_file

    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    ready = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write_together(
        {
            folder / ADAPTER_NAME: lambda part: save_file(ready, part),
            folder / "adapter_config.json": text_writer(json_text(plain)),
        }
    )


def load_peft(pipeline: Any, folder: str | Path, adapter_name: str = "edit") -> None:
    """Put a SHiRA adapter of ``folder`` beside the weights of the pipeline's denoiser, without wrapping the model.

    The pipeline then runs with it; diffusers' ``disable_adapters``, ``enable_adapters`` and ``delete_adapters`` of the
    denoiser work on it. (The loaders of diffusers, ``load_lora_weights`` and ``load_lora_adapter``, read LoRA only.)
    Raises FileNotFoundError, or ValueError when the adapter does not fit; ImportError without peft.
    """
    peft = require("peft", "peft")
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    for name in ("adapter_config.json", ADAPTER_NAME):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} holds no {name}: expected a folder written by export_peft")
    denoiser = denoiser_of(pipeline)
    config = peft.PeftConfig.from_pretrained(str(folder))
    if config.peft_type != peft.PeftType.SHIRA:
        raise ValueError(f"{folder} holds a {config.peft_type} adapter, expected SHIRA")
    check_tensor_header(folder / ADAPTER_NAME)
    try:
        stored = load_file(folder / ADAPTER_NAME)
    except SafetensorError as error:
        raise ValueError(f"{folder / ADAPTER_NAME} is truncated or not a safetensors file: {error}") from error
    tensors = {name.removeprefix(_PREFIX): tensor for name, tensor in stored.items()}
    _check_adapter(folder, config, tensors, denoiser)
    peft.inject_adapter_in_model(config, denoiser, adapter_name)
    peft.set_peft_model_state_dict(denoiser, tensors, adapter_name=adapter_name)
    denoiser._hf_peft_config_loaded = True  # type: ignore[assignment]  # what diffusers' adapter methods ask for


def _check_adapter(folder: Path, config: Any, tensors: dict[str, Tensor], denoiser: nn.Module) -> None:
    """Raises ValueError naming what does not fit: PEFT itself checks no place, and writes wherever they point."""
    modules = dict(denoiser.named_modules())
    named = {key.rpartition(".")[0] for key in tensors}
    if not isinstance(config.target_modules, set | list) or set(config.target_modules) != named:
        raise ValueError(f"{folder}: adapter_config.json names other modules than {ADAPTER_NAME} has")
    for key in tensors:
        name, _, last = key.rpartition(".")
        module = modules.get(name)
        if not isinstance(module, nn.Linear) or last not in ("shira_weight", "shira_indices"):
            raise ValueError(f"{folder} holds {key[:200]!r}, which fits no linear of the denoiser")
        values, places = tensors.get(f"{name}.shira_weight"), tensors.get(f"{name}.shira_indices")
        if values is None or places is None or values.ndim != 1 or list(places.shape) != [2, len(values)]:
            raise ValueError(f"{folder}: the weights and places of {name} do not belong together")
        if len(values) != config.r * sum(module.weight.shape):
            raise ValueError(f"{folder}: {name} has {len(values)} weights, which r = {config.r} is not the number for")
        if places.dtype != torch.int32 or not values.is_floating_point():
            raise ValueError(f"{folder}: {name} has places of {places.dtype} and weights of {values.dtype}")
        limits = torch.tensor(module.weight.shape)[:, None]
        if bool(((places < 0) | (places >= limits)).any()):
            raise ValueError(f"{folder}: {name} has places outside its weight of shape {list(module.weight.shape)}")
