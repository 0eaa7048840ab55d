"""An edit as a hook of diffusers, for programs that know ``HookRegistry`` and nothing of edits.

::

    from cad_fast.integrations.diffusers_hooks import apply_cad_fast_edit, remove_cad_fast_edit

    apply_cad_fast_edit(pipe.unet, "edits/no-car")
    pipe("a car in noto style")
    remove_cad_fast_edit(pipe.unet)
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..diffusion.caches import diffusers_hooks_of
from ..diffusion.denoisers import denoiser_of, require_one_of_its_kind
from ..diffusion.timesteps import Window
from ..edits.data import EditData
from ..edits.rows.row_edits import RowEdits
from ..edits.rows.uses import CallFacts, EditUse, RowUses, checked_strength, checked_window

try:
    from diffusers.hooks import HookRegistry, ModelHook
except ImportError as error:
    raise ImportError("edits as hooks need diffusers 0.33 or later, which has diffusers.hooks") from error

HOOK_NAME = "cad_fast_edit"


class CadFastEditHook(ModelHook):
    """A hook that has an edit act in the calls of its denoiser, all of whose rows run under it.

    Register it on the denoiser itself, under any name. The weights stay as they are. Several such hooks on one denoiser
    act together, as active edits of an ``EditManager`` do.

    Args:
        edit: the edit, its folder, or its repository on the Hub.
        strength: 0 is off, 1 the edit.
        window: the timesteps at which it acts; None for all.

    Raises:
        ValueError: strength is not finite, or the window is none.
    """

    def __init__(self, edit: EditData | str | Path, strength: float = 1.0, window: Window | None = None) -> None:
        super().__init__()
        name = edit.name if isinstance(edit, EditData) else str(edit)
        self.edit = edit
        self.strength, self.window = checked_strength(strength, name), checked_window(window, name)
        self._row_edits: RowEdits | None = None
        self._use: EditUse | None = None

    def initialize_hook(self, module: nn.Module) -> nn.Module:
        """Add the edit to the denoiser, whose calls it does not change yet.

        Raises:
            ValueError: the edit is of another model, the hook has a denoiser already, or the edit acts there already.
            TypeError: a module of the edit has quantised weights, or is no plain linear or convolution.
        """
        if self._row_edits is not None:
            raise ValueError("this hook has a denoiser already: make another CadFastEditHook")
        others = edit_hooks(module)
        row_edits = others[0]._row_edits if others else RowEdits(module)
        assert row_edits is not None, "attached hooks were initialised"
        if isinstance(self.edit, EditData) and self.edit.name in row_edits.names:
            raise ValueError(f"edit {self.edit.name!r} acts in this denoiser already, by another hook")
        name = row_edits.add(self.edit)
        self._row_edits, self._use = row_edits, EditUse(name, self.strength, self.window)
        return module

    def deinitalize_hook(self, module: nn.Module) -> nn.Module:  # as diffusers spells it
        """Take the edit away from the denoiser."""
        if self._row_edits is not None and self._use is not None:
            self._row_edits.remove(self._use.name)
            if not self._row_edits.names:
                self._row_edits.close()
        self._row_edits = self._use = None
        _mend(module)
        own = module.__dict__.get("forward")  # diffusers leaves the forward of the class here
        if getattr(own, "__func__", None) is type(module).forward:
            del module.__dict__["forward"]
        return module

    @torch.compiler.disable
    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments as they are, having seen to it that the denoiser runs by ``new_forward``."""
        _mend(module)
        return args, kwargs

    @torch.compiler.disable(recursive=False)
    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Run the denoiser's forward under the edits of all such hooks of it.

        Raises:
            RuntimeError: other edits act in the call (those of an ``EditManager``, or rows under ablations).
            ValueError, TypeError: an edit cannot act in a layer; the message names the layer and what is in the way.
        """
        forward = self.fn_ref.original_forward
        hooks = edit_hooks(module)
        if hooks[-1] is not self:  # the outermost acts for all
            return forward(*args, **kwargs)
        row = tuple(hook._use for hook in hooks if hook._use is not None)

        def rows(facts: CallFacts) -> list[RowUses]:
            return [row] * facts.rows

        assert self._row_edits is not None, "the hook is attached"
        return self._row_edits.run(rows, forward, args, kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> CadFastEditHook:
        raise TypeError(
            "a denoiser with diffusers' hooks cannot be copied, as the copy's forward would be the original's: remove "
            "the edit (remove_cad_fast_edit), copy, and apply it to both"
        )

    def __repr__(self) -> str:
        window = "" if self.window is None else f", {self.window}"
        return f"CadFastEditHook({self.edit!r}, {self.strength:g}{window})"


def _mend(module: nn.Module) -> None:
    """Have each hook's ``new_forward`` run again.

    ``HookRegistry.remove_hook`` (diffusers 0.42.1) makes the hook around the removed one call the forward beneath, past
    its own ``new_forward``.
    """
    attached = diffusers_hooks_of(module)
    for name, reference in zip(attached._hook_order, attached._fn_refs, strict=True):
        run = getattr(attached.hooks[name], "new_forward", None)
        if run is not None and getattr(reference.forward, "func", None) != run:
            reference.original_forward = reference.forward
            reference.forward = functools.update_wrapper(functools.partial(run, module), run)


def edit_hooks(denoiser: nn.Module) -> list[CadFastEditHook]:
    """Return the hooks of edits that a denoiser has, the innermost first."""
    attached = diffusers_hooks_of(denoiser)
    if attached is None:
        return []
    hooks = [attached.hooks[name] for name in attached._hook_order]
    return [hook for hook in hooks if isinstance(hook, CadFastEditHook)]


def apply_cad_fast_edit(
    denoiser: Any,
    edit: EditData | str | Path,
    strength: float = 1.0,
    *,
    window: Window | None = None,
    hook_name: str = HOOK_NAME,
) -> CadFastEditHook:
    """Have an edit act in a denoiser by a hook of diffusers, until ``remove_cad_fast_edit``.

    Args:
        denoiser: the UNet or transformer, or its pipeline.
        edit: the edit, its folder, or its repository on the Hub.
        strength: 0 is off, 1 the edit.
        window: the timesteps at which it acts; None for all.
        hook_name: the name in the denoiser's ``HookRegistry``. Each further edit needs a name of its own.

    Returns:
        The hook.

    Raises:
        ValueError: the name is taken, or as ``CadFastEditHook``.
        TypeError: as ``CadFastEditHook``, or there is no denoiser.
    """
    module = _denoiser(denoiser)
    taken = _hook(module, hook_name)
    if taken is not None:
        has = f"{taken.edit}" if isinstance(taken, CadFastEditHook) else f"a {type(taken).__name__}"
        raise ValueError(
            f"the hook {hook_name!r} of {type(module).__name__} is {has} already: remove it first, or give this edit "
            "another hook_name"
        )
    hook = CadFastEditHook(edit, strength, window)
    HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, hook_name)
    return hook


def remove_cad_fast_edit(denoiser: Any, *, hook_name: str = HOOK_NAME) -> None:
    """Take a hook of ``apply_cad_fast_edit`` out; the denoiser's outputs are as before, bit for bit.

    Raises:
        ValueError: there is no such hook, or it is of something else; the message names the hooks of edits.
    """
    module = _denoiser(denoiser)
    if not isinstance(_hook(module, hook_name), CadFastEditHook):
        attached = diffusers_hooks_of(module)
        names = [] if attached is None else [n for n, h in attached.hooks.items() if isinstance(h, CadFastEditHook)]
        raise ValueError(
            f"{type(module).__name__} has no edit by the hook {hook_name!r}; its hooks of edits are: "
            f"{', '.join(names) or 'none'}"
        )
    diffusers_hooks_of(module).remove_hook(hook_name, recurse=False)


def _denoiser(denoiser: Any) -> nn.Module:
    """The denoiser itself, which torch.compile may wrap."""
    require_one_of_its_kind(denoiser)
    module = denoiser_of(denoiser)
    return getattr(module, "_orig_mod", module)


def _hook(module: nn.Module, name: str) -> Any:
    attached = diffusers_hooks_of(module)
    return None if attached is None else attached.get_hook(name)
