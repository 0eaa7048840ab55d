"""Caches of diffusers, with which a call of a denoiser depends on the calls before it and decides for all its rows."""

from __future__ import annotations

from typing import Any

from torch import nn


def diffusers_hooks_of(module: nn.Module) -> Any:
    """The ``HookRegistry`` of diffusers that the module has; None where it has none."""
    return module.__dict__.get("_diffusers_hook")


def cache_of(denoiser: nn.Module) -> tuple[str, str] | None:
    """The name of a denoiser's cache and what removes it; None without one.

    ``enable_cache`` leaves its config. What was put there by a function such as ``apply_pyramid_attention_broadcast``
    is seen by the hooks alone.
    """
    config = getattr(denoiser, "_cache_config", None)
    if config is not None:
        return type(config).__name__, "disable_cache"
    for module in denoiser.modules():
        hooks = getattr(diffusers_hooks_of(module), "hooks", {})
        for name, hook in hooks.items():
            if getattr(hook, "_is_stateful", False):
                return type(hook).__name__, f"HookRegistry.remove_hook({name!r}, recurse=True)"
    return None
