"""Caches of diffusers, with which a call of a denoiser depends on the calls before it and decides for all its rows."""

from __future__ import annotations

from torch import nn


def cache_of(denoiser: nn.Module) -> tuple[str, str] | None:
    """The name of a denoiser's cache and what removes it; None without one.

    ``enable_cache`` leaves its config. What was put there by a function such as ``apply_pyramid_attention_broadcast``
    is seen by the hooks alone.
    """
    config = getattr(denoiser, "_cache_config", None)
    if config is not None:
        return type(config).__name__, "disable_cache"
    for module in denoiser.modules():
        hooks = getattr(module.__dict__.get("_diffusers_hook"), "hooks", {})
        for name, hook in hooks.items():
            if getattr(hook, "_is_stateful", False):
                return type(hook).__name__, f"HookRegistry.remove_hook({name!r}, recurse=True)"
    return None
