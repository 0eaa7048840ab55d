"""Edits as checkpoints of the whole denoiser: export with the edit fused, and weights that others have pruned."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...components.module_components import ModuleComponents
from ...components.space import ComponentSpace
from ...diffusion.denoisers import denoiser_of
from ...diffusion.structure import base_modules
from ...files import even_permissions, naming, part_name
from ..data import AnyEdit, EditData
from ..weights import applied_edit, intact_fingerprint
from .denoiser_weights import own_parameters, stored_weights


def export_checkpoint(
    edit: EditData,
    pipeline: Any,
    folder: str | Path,
    *,
    strength: float = 1.0,
    what: Literal["denoiser", "pipeline"] = "denoiser",
) -> Path:
    """Write the denoiser (or the whole pipeline) with ``edit`` fused, as diffusers' ``save_pretrained`` does.

    The model in memory is afterwards as it was, bit for bit. ``folder`` appears only when whole.
    Raises FileExistsError when ``folder`` exists and is not empty, ValueError when the edit does not fit the model,
    ``what`` is neither of the two or there is no pipeline to write.
    """
    if what not in ("denoiser", "pipeline"):
        raise ValueError(f"what is {what!r}, expected 'denoiser' or 'pipeline'")
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists: a checkpoint is written to a new or empty folder")
    saved: Any = denoiser_of(pipeline) if what == "denoiser" else pipeline
    if not hasattr(saved, "save_pretrained") or (what == "pipeline" and isinstance(pipeline, nn.Module)):
        raise ValueError(f"a {type(saved).__name__} cannot be written as a {what}: it is no model of diffusers")
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = part_name(folder)
    try:
        with applied_edit(edit, pipeline, strength), naming(folder):
            part.mkdir()
            saved.save_pretrained(part, safe_serialization=True)
            even_permissions(part)
        if folder.exists():
            folder.rmdir()
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


@torch.no_grad()
def checkpoint_difference(base: Any, pruned: Any, name: str, *, kind: type[AnyEdit]) -> AnyEdit:
    """See ``Edit.from_checkpoint_difference``."""
    denoiser = denoiser_of(base)
    own = own_parameters(denoiser)
    if isinstance(pruned, str | Path):
        theirs: Iterator[tuple[str, Tensor]] = stored_weights(pruned, own)
        source = str(pruned)
    else:
        other = own_parameters(denoiser_of(pruned))
        if other.keys() != own.keys():
            raise ValueError(f"the models differ: {min(other.keys() ^ own.keys())!r} is in only one of them")
        for key, tensor in other.items():
            if tensor.shape != own[key].shape:
                raise ValueError(f"{key} has shapes {list(own[key].shape)} and {list(tensor.shape)}")
        theirs, source = iter(other.items()), type(denoiser_of(pruned)).__name__
    modules = base_modules(denoiser)
    zeroed: dict[str, Tensor] = {}
    for key, tensor in theirs:
        mine = own[key].detach()
        tensor = tensor.to(mine.device)
        # Compared in the lower of the two precisions: the same weights saved in half differ by rounding alone, and the
        # smallest of them are rounded to zero.
        wide = torch.promote_types(mine.dtype, tensor.dtype)
        narrow = tensor.dtype if mine.dtype == wide else mine.dtype
        own_values, other_values = mine.to(narrow), tensor.to(narrow)
        gone = (other_values == 0) & (own_values != 0)
        changed = (own_values != other_values) & ~gone
        if changed.any():
            raise ValueError(
                f"{source} is more than pruned: {int(changed.sum())} of the {changed.numel()} values of {key} are "
                "neither zero nor those of the base"
            )
        if not gone.any():
            continue
        module = key.removesuffix(".weight")
        if module not in modules or not key.endswith(".weight"):
            raise ValueError(f"{source} has zeros in {key}, which is no weight of a linear or convolution")
        zeroed[module] = gone.flatten().nonzero().flatten().cpu()
    if not zeroed:
        raise ValueError(f"{source} has no weight at zero that the base has not: there is nothing to edit")
    entries, offset = [], 0
    for module in modules:
        if module in zeroed:
            entries.append(ModuleComponents(module, "weight", tuple(modules[module].weight.shape), 1, offset))
            offset += entries[-1].count
    space = ComponentSpace(entries, intact_fingerprint(denoiser))
    return kind(name, space, zeroed, 0.0, {"method": "checkpoint difference", "trust": []})
