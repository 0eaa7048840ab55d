"""Recognise a model: the same architecture and, within rounding to half precision, the same weights.

Two fingerprints are of one model when the names and shapes of their parameters are the same and the 64 sampled weights
differ by no more than rounding: by 0.4% of their norm, beside what float16 cannot resolve of very small weights. So
scores and edits made in float32, bfloat16 or float16 fit the model loaded in any other of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..diffusion.quantised import plain_values

N_SAMPLES = 64
# Rounding to bfloat16 moves a weight by at most 2^-9 of its value; fine-tuning moves weights by more than this.
TOLERANCE = 4e-3
# Below 2^-14 the numbers of float16 lie 2^-24 apart, however small the weight.
FLOAT16_STEP = 2.0**-24


# Classes of modules that diffusers adds to a model, by a part of their names.
_ADDED = ("IPAdapter", "CustomDiffusion")
# What fuse_qkv_projections adds, beside the projections that it copies from.
_COPIES = {"to_qkv": "to_q", "to_kv": "to_k", "to_added_qkv": "add_q_proj"}


def _base_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The model's own parameters, each once, without adapters and copies that were put beside them."""
    known: set[int] = set()
    for name, tensor in own_tensors(model):
        if isinstance(tensor, nn.Parameter) and id(tensor) not in known:
            known.add(id(tensor))
            yield name, tensor


def own_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The model's own parameters and saved buffers, without adapters and copies that were put beside them."""
    yield from _walk(_without_adapters(model), "")


def _walk(module: nn.Module, prefix: str) -> Iterator[tuple[str, Tensor]]:
    saved = {name: b for name, b in module._buffers.items() if name not in module._non_persistent_buffers_set}
    for name, tensor in {**module._parameters, **saved}.items():
        if tensor is not None:
            yield prefix + name, tensor
    for name, child in module._modules.items():
        if child is None or any(part in type(child).__name__ for part in _ADDED):
            continue
        if _COPIES.get(name) in module._modules:
            continue
        if name == "text_encoder_hid_proj":  # where an IP-Adapter puts the model's own aside
            name = "encoder_hid_proj"
        yield from _walk(_without_adapters(child), f"{prefix}{name}.")


def _without_adapters(module: nn.Module) -> nn.Module:
    """The module that adapters of PEFT stand for; the module itself where there are none."""
    while True:
        own = module._modules.get("base_layer")
        if own is None and "modules_to_save" in module._modules:
            own = module._modules.get("original_module")
        if own is None:
            return module
        module = own


def fused_adapter(model: nn.Module) -> str | None:
    """The path of a module into whose weights an adapter of PEFT is fused; None if there is none."""
    return next((name for name, module in model.named_modules() if getattr(module, "merged_adapters", None)), None)


@dataclass(frozen=True)
class Fingerprint:
    """Class name, a digest of parameter names and shapes, and 64 weights sampled at fixed places."""

    model_class: str
    architecture: str
    samples: tuple[float, ...]

    @classmethod
    def of(cls, model: nn.Module) -> Fingerprint:
        """The fingerprint of ``model``; the same in fp32, fp16 and bf16 up to rounding, and with adapters beside it.

        Raises ValueError for weights that are offloaded to the meta device.
        """
        parameters = sorted(_base_parameters(model), key=lambda item: item[0])
        layout = "\n".join(f"{name}{list(parameter.shape)}" for name, parameter in parameters)
        matrices = [parameter for _, parameter in parameters if parameter.ndim > 1 and parameter.numel() > 0]
        away = next((name for name, parameter in parameters if parameter.device.type == "meta"), None)
        if away is not None:
            raise ValueError(
                f"{away} is offloaded (meta device), so that the model cannot be recognised: record it or "
                "load edits, before enabling sequential offloading, or offload whole parts (enable_model_cpu_offload)"
            )
        samples = []
        for i in range(N_SAMPLES if matrices else 0):
            weights = plain_values(matrices[i * len(matrices) // N_SAMPLES]).flatten()
            samples.append(weights[(i * 7919 + 13) % weights.numel()])
        values = torch.stack([sample.float().cpu() for sample in samples]).tolist() if samples else []
        return cls(type(model).__name__, hashlib.sha256(layout.encode()).hexdigest(), tuple(values))

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Fingerprint:
        """Raises ValueError naming the entry that is missing or of the wrong kind."""
        try:
            samples = tuple(float(sample) for sample in value["samples"])
            return cls(str(value["model_class"]), str(value["architecture"]), samples)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"damaged model fingerprint: {error!r}") from error

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "samples": list(self.samples)}

    def difference(self, other: Fingerprint) -> str | None:
        """Why ``other`` is another model, in words; None when it is the same."""
        if self.architecture != other.architecture:
            kind = "" if self.model_class == other.model_class else f" ({self.model_class} and {other.model_class})"
            return f"their parameters have other names or shapes{kind}"
        mine, theirs = torch.tensor(self.samples), torch.tensor(other.samples)
        if mine.shape != theirs.shape:
            return "their fingerprints sample another number of weights"
        if not bool(torch.isfinite(mine).all() and torch.isfinite(theirs).all()):
            return "one of them has weights that are not finite: too large for float16?"
        apart, norm = (mine - theirs).norm().item(), max(mine.norm().item(), 1e-30)
        distance = apart / norm
        if apart > TOLERANCE * norm + FLOAT16_STEP / 2 * len(mine) ** 0.5:
            return f"their weights differ by {100 * distance:.2g}% (at most {100 * TOLERANCE:.2g}% is rounding)"
        return None

    def require_same(self, other: Fingerprint, name: str) -> None:
        """Raises ValueError with the reason when ``other``, the model at hand, is not the one ``what`` was made for."""
        reason = self.difference(other)
        if reason:
            raise ValueError(f"{name} was made for another model: {reason}")
