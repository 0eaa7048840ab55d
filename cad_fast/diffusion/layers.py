"""Named choices of a denoiser's linears and convolutions."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence

from torch import nn

from .structure import Layer, LayerRole, base_modules, layer_roles

_KEYS_AND_VALUES = {"key", "value", "key and value", "text key", "text value", "text key and value"}


def _in_cross_attention(role: LayerRole, module: Layer) -> bool:
    return role.part == "attention" and role.cross


PRESETS: dict[str, Callable[[LayerRole, Layer], bool]] = {
    "feed-forward": lambda role, module: "feed-forward" in role.part,
    "cross-attention-kv": lambda role, module: _in_cross_attention(role, module) and role.function in _KEYS_AND_VALUES,
    "cross-attention": _in_cross_attention,
    "attention": lambda role, module: "attention" in role.part,
    "convolution": lambda role, module: isinstance(module, nn.Conv2d),
    "all": lambda role, module: True,
}
"""By name, whether a module of this role belongs to the choice.

In a joint attention the text's projections are the cross-attention. A single-stream block's matrices that serve its
attention and its feed-forward are in both.
"""


def presets_of(role: LayerRole, module: Layer) -> tuple[str, ...]:
    """The presets that a module is in, but for "all"."""
    return tuple(name for name, has in PRESETS.items() if name != "all" and has(role, module))


def match_modules(
    denoiser: nn.Module, target_modules: str | Sequence[str], roles: Mapping[str, LayerRole] | None = None
) -> dict[str, Layer]:
    """The linears and convolutions that ``target_modules`` names, in the model's order.

    Args:
        denoiser: whose modules.
        target_modules: a preset (``feed-forward``, ``cross-attention-kv``, ...), or, as in PEFT, a regular expression
            that the whole path must match, or a list of paths or their last parts.
        roles: what ``layer_roles(denoiser)`` gave, if it is known.

    Raises:
        ValueError: nothing matches, or one entry of a list does not; the message says what there is.
    """
    modules = base_modules(denoiser)
    if isinstance(target_modules, str):
        if target_modules in PRESETS:
            roles = layer_roles(denoiser) if roles is None else roles
            has = PRESETS[target_modules]
            matched = {name: module for name, module in modules.items() if has(roles[name], module)}
            if not matched:
                raise ValueError(_empty_preset(target_modules, denoiser, modules, roles))
            return matched
        try:
            pattern = re.compile(target_modules)
        except re.error as error:
            raise ValueError(f"target_modules {target_modules!r} is not a regular expression: {error}") from error
        matched = {name: module for name, module in modules.items() if pattern.fullmatch(name)}
        if not matched:
            raise ValueError(_nothing_matches(target_modules, modules))
        return matched
    wanted = list(target_modules)
    for entry in wanted:
        if not any(_ends_with(name, entry) for name in modules):
            raise ValueError(_nothing_matches(entry, modules))
    if not wanted:
        raise ValueError("target_modules is empty")
    return {n: m for n, m in modules.items() if any(_ends_with(n, entry) for entry in wanted)}


def match_names(presets: Mapping[str, Sequence[str]], target_modules: str | Sequence[str]) -> list[str]:
    """Those of the modules that ``target_modules`` names, as ``match_modules`` but without a denoiser.

    Args:
        presets: {path of a module: what ``presets_of`` gave}.
        target_modules: as for ``match_modules``.

    Raises:
        ValueError: there are none.
    """
    if isinstance(target_modules, str) and target_modules in PRESETS:
        matched = [name for name, of_module in presets.items() if target_modules in ("all", *of_module)]
        if not matched and not any(presets.values()):
            raise ValueError(
                f"preset {target_modules!r}: it is not known which presets the modules are in, as the scores were made "
                "by an earlier version: name the modules by a pattern"
            )
    elif isinstance(target_modules, str):
        matched = [name for name in presets if re.fullmatch(target_modules, name)]
    else:
        matched = [name for name in presets if any(_ends_with(name, entry) for entry in target_modules)]
    if not matched:
        raise ValueError(f"none of the {len(presets)} modules matches {target_modules!r}")
    return matched


def _ends_with(name: str, suffix: str) -> bool:
    return name == suffix or name.endswith(f".{suffix}")


def _nothing_matches(target: str, modules: dict[str, Layer]) -> str:
    last_parts = {name.rsplit(".", 1)[-1] for name in modules} | {".".join(n.split(".")[-2:]) for n in modules}
    candidates = [*PRESETS, *sorted(last_parts), *modules]
    near = difflib.get_close_matches(target, candidates, n=4, cutoff=0.3)
    hint = f"; nearest: {', '.join(near)}" if near else ""
    presets = ", ".join(PRESETS)
    return f"no linear or convolution of the denoiser matches target_modules {target!r}{hint}; presets: {presets}"


def _empty_preset(
    preset: str, denoiser: nn.Module, modules: Mapping[str, Layer], roles: Mapping[str, LayerRole]
) -> str:
    counts = {name: sum(has(roles[path], modules[path]) for path in modules) for name, has in PRESETS.items()}
    there = ", ".join(f"{name} ({count})" for name, count in counts.items() if count)
    return (
        f"no linear or convolution of {type(denoiser).__name__} is in the preset {preset!r}; there are: {there}. "
        "`cad-fast inspect` shows each"
    )
