"""What stands around a layer: the module that calls it, and the adapters that PEFT puts in its place.

An edit acts in the call of a layer. It does not act where something reads the layer's weight instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ..diffusion.caches import diffusers_hooks_of
from ..diffusion.structure import base_name

PROJECTION = re.compile(r"(to|add)_[qkv](_proj)?")
"""The last part of the path of a projection that attentions can fuse."""

# PEFT's layers that call the layer they stand for, and take nothing else from its weight.
_CALLING = frozenset({"LoraLayer", "LycorisLayer", "IA3Layer", "OFTLayer", "VeraLayer", "FourierFTLayer"})


def runs_fused(attention: nn.Module) -> bool:
    """Whether an attention runs copies of its projections' weights (fuse_qkv_projections)."""
    if not getattr(attention, "fused_projections", False):
        return False
    processor = type(getattr(attention, "processor", None)).__name__
    # diffusers' first attention class keeps the flag when the projections are unfused; its processor tells.
    return type(attention).__name__ != "Attention" or processor.startswith("Fused")


def check_projections(denoiser: nn.Module, modules: Iterable[str]) -> None:
    """Raise ValueError if one of the modules is a projection of which its attention runs a copy."""
    for name, module in denoiser.named_modules():
        if runs_fused(module):
            prefix = f"{base_name(name)}."
            unused = [n for n in modules if n.startswith(prefix) and PROJECTION.fullmatch(n[len(prefix) :])]
            if unused:
                raise ValueError(f"{unused[0]} is not in use, its attention runs fused projections: unfuse them first")


def modules_by_path(denoiser: nn.Module) -> dict[str, nn.Module]:
    """All modules by their paths without the level that PEFT inserts; adapters, not the layers that they stand for."""
    by_path: dict[str, nn.Module] = {}
    for name, module in denoiser.named_modules():
        by_path.setdefault(base_name(name), module)
    return by_path


def switched_off(module: nn.Module | None) -> bool:
    """Whether a module lets its input through without calling its layers, as GLIGEN's do for the later steps."""
    return getattr(module, "enabled", None) is False


def may_be_passed_over(module: nn.Module) -> bool:
    """Whether a hook of diffusers stands in the place of a module's forward and may leave it out, as caches do."""
    hooks = getattr(diffusers_hooks_of(module), "hooks", {})
    return any(hasattr(hook, "new_forward") for hook in hooks.values())


class CallCounter:
    """A forward pre-hook that counts the calls of the module that holds some layers. Compiled calls do not count."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, *_: Any) -> None:
        if not torch.compiler.is_compiling():
            self.calls += 1

    def __deepcopy__(self, memo: dict[int, Any]) -> CallCounter:
        return CallCounter()


def caller_path(name: str, modules: Mapping[str, nn.Module]) -> str:
    """The path of the module that calls a layer, which may hold it in a list; empty for the denoiser itself."""
    parent = name.rpartition(".")[0]
    while parent and isinstance(modules.get(parent), (nn.ModuleList, nn.ModuleDict)):
        parent = parent.rpartition(".")[0]
    return parent


class Callers:
    """The modules that call some layers, each with a counter of its calls.

    Args:
        names: the layers' paths, without the level that PEFT inserts.
        modules: all modules of the denoiser by their paths, likewise without that level.
    """

    def __init__(self, names: Iterable[str], modules: Mapping[str, nn.Module]) -> None:
        self._paths = {name: caller_path(name, modules) for name in names}
        callers = {path: modules[path] for path in self._paths.values() if path and path in modules}
        self._counters = {path: (module, CallCounter()) for path, module in callers.items()}
        self._handles = [module.register_forward_pre_hook(counter) for module, counter in self._counters.values()]

    def begin(self) -> None:
        """Count from here which callers run."""
        for _, counter in self._counters.values():
            counter.calls = 0

    def leaving_out(self, name: str) -> str | None:
        """The caller of a layer that was not called, if it ran since ``begin``; None if it did not."""
        path = self._paths[name]
        if path not in self._counters:
            return path or "the denoiser"
        module, counter = self._counters[path]
        return path if counter.calls and not switched_off(module) and not may_be_passed_over(module) else None

    def close(self) -> None:
        """Stop counting."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


class Surroundings:
    """The surroundings of one layer.

    Args:
        name: the layer's path, without the level that PEFT inserts.
        layer: the layer.
        modules: all modules of the denoiser by their paths, likewise without that level.
    """

    def __init__(self, name: str, layer: nn.Module, modules: Mapping[str, nn.Module]) -> None:
        self.name, self.layer = name, layer
        parent, _, self._last = name.rpartition(".")
        self._holder = modules.get(parent)
        self._callers = Callers([name], modules)

    def close(self) -> None:
        """Stop counting."""
        self._callers.close()

    def begin(self) -> None:
        """Count from here whether the caller runs."""
        self._callers.begin()

    @property
    def caller_that_ran(self) -> str | None:
        """The module that calls the layer, if it ran since ``begin``."""
        return self._callers.leaving_out(self.name)

    def check(self) -> None:
        """Raise ValueError if an adapter in the layer's place has changed its weight, or reads it."""
        if self._holder is not None:
            _check_adapters(self.name, self.layer, self._holder._modules.get(self._last))


def adapters_of(layer: nn.Module, outer: nn.Module | None) -> Iterator[nn.Module]:
    """The adapters in the layer's place that are active, ``outer`` being what stands there."""
    while outer is not None and outer is not layer:
        if getattr(outer, "active_adapters", None) and not getattr(outer, "disable_adapters", False):
            yield outer
        outer = outer._modules.get("base_layer")


def check_adapters(name: str, layer: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    """Raise ValueError as ``Surroundings.check``."""
    _check_adapters(name, layer, modules.get(name))


def _check_adapters(name: str, layer: nn.Module, outer: nn.Module | None) -> None:
    for adapter in adapters_of(layer, outer):
        _check_adapter(name, adapter)


def _check_adapter(name: str, adapter: nn.Module) -> None:
    if getattr(adapter, "merged", False):
        names = ", ".join(getattr(adapter, "merged_adapters", []))
        raise ValueError(
            f"{name}.weight has the adapter {names} fused into it, which an edit or ablation of the model would act on "
            "too: unfuse the adapter first (unfuse_lora)"
        )
    active: Any = adapter.active_adapters
    kinds = [kind.__name__ for kind in type(adapter).__mro__]
    variants = [type(v).__name__ for key, v in getattr(adapter, "lora_variant", {}).items() if key in active]
    if "base_layer" in adapter._modules and (variants or _CALLING.isdisjoint(kinds)):
        kind = next((name for name in [*variants, *kinds] if name.endswith(("Variant", "Layer"))), kinds[0])
        raise ValueError(
            f"{name} has an adapter ({kind}) that reads its weight, or may do so, rather than only call it: an edit of "
            "rows would be left out or act otherwise. Put the edit into the weights (fuse_edits, Edit.fuse), or "
            "disable the adapter"
        )
