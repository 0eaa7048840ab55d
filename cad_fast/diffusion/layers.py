"""The linears and convolutions of a denoiser, and named choices of them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

Layer = nn.Linear | nn.Conv2d
"""What has components: the modules of a denoiser that can be ablated and edited."""


@dataclass(frozen=True)
class Preset:
    """A named choice of modules: a pattern that a module's whole path must match, and the types it may have."""

    pattern: str
    types: tuple[type[nn.Module], ...] = (nn.Linear,)


_ATTENTION = r"(to_q|to_k|to_v|to_out\.0|add_[qkv]_proj|to_add_out)"
# Module names as diffusers' UNets and transformers have them; attn2 is the cross-attention of a transformer block,
# add_*_proj the text stream of a joint attention (SD3, Flux).
PRESETS: dict[str, Preset] = {
    "feed-forward": Preset(r"(.*\.)?((ff|ff_context|feed_forward|mlp)\..+|proj_mlp)"),
    "cross-attention-kv": Preset(r"(.*\.)?(attn2\.to_[kv]|add_[kv]_proj)"),
    "cross-attention": Preset(rf"(.*\.)?(attn2\.{_ATTENTION}|add_[qkv]_proj|to_add_out)"),
    "attention": Preset(rf"(.*\.)?{_ATTENTION}"),
    "convolution": Preset(r".*", (nn.Conv2d,)),
    "all": Preset(r".*", (nn.Linear, nn.Conv2d)),
}


def base_name(name: str) -> str:
    """A module path without the level that a PEFT adapter inserts."""
    return name.replace(".base_layer", "")


def base_modules(denoiser: nn.Module) -> dict[str, Layer]:
    """Every linear and 2-D convolution by its path, adapters looked through (``to_q``, not ``to_q.base_layer``)."""
    return {
        base_name(name): module
        for name, module in denoiser.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d)) and ".lora_" not in name
    }


def match_modules(denoiser: nn.Module, target_modules: str | Sequence[str]) -> dict[str, Layer]:
    """The linears and convolutions that ``target_modules`` names, in the model's order.

    A string is a preset (``feed-forward``, ``cross-attention-kv``, ...) or, as in PEFT, a regular expression that the
    whole path must match; a list holds paths or their last parts.
    Raises ValueError naming the nearest names when nothing matches, or one entry of a list does not.
    """
    modules = base_modules(denoiser)
    if isinstance(target_modules, str):
        preset = PRESETS.get(target_modules)
        try:
            pattern = re.compile(preset.pattern if preset else target_modules)
        except re.error as error:
            raise ValueError(f"target_modules {target_modules!r} is not a regular expression: {error}") from error
        types = preset.types if preset else (nn.Linear, nn.Conv2d)
        found = {n: m for n, m in modules.items() if isinstance(m, types) and pattern.fullmatch(n)}
        if not found:
            raise ValueError(_nothing_matches(target_modules, modules))
        return found
    wanted = list(target_modules)
    for entry in wanted:
        if not any(_ends_with(name, entry) for name in modules):
            raise ValueError(_nothing_matches(entry, modules))
    if not wanted:
        raise ValueError("target_modules is empty")
    return {n: m for n, m in modules.items() if any(_ends_with(n, entry) for entry in wanted)}


def match_names(names: Sequence[str], target_modules: str | Sequence[str]) -> list[str]:
    """Those of the module paths ``names`` that ``target_modules`` names, as ``match_modules`` but by name alone.

    Raises ValueError when there are none.
    """
    if isinstance(target_modules, str):
        pattern = PRESETS[target_modules].pattern if target_modules in PRESETS else target_modules
        found = [name for name in names if re.fullmatch(pattern, name)]
    else:
        found = [name for name in names if any(_ends_with(name, entry) for entry in target_modules)]
    if not found:
        raise ValueError(f"none of the {len(names)} modules matches {target_modules!r}")
    return found


def _ends_with(name: str, suffix: str) -> bool:
    return name == suffix or name.endswith(f".{suffix}")


def _nothing_matches(target: str, modules: dict[str, Layer]) -> str:
    last_parts = {name.rsplit(".", 1)[-1] for name in modules} | {".".join(n.split(".")[-2:]) for n in modules}
    candidates = [*PRESETS, *sorted(last_parts), *modules]
    near = difflib.get_close_matches(target, candidates, n=4, cutoff=0.3)
    hint = f"; nearest: {', '.join(near)}" if near else ""
    presets = ", ".join(PRESETS)
    return f"no linear or convolution of the denoiser matches target_modules {target!r}{hint}; presets: {presets}"
