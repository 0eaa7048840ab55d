"""Edits as checkpoints of the whole denoiser: export with the edit fused, and weights that others have pruned."""

from __future__ import annotations

import difflib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..components.space import ComponentSpace, ModuleComponents
from ..diffusion.denoisers import denoiser_of
from ..diffusion.layers import base_modules, base_name
from ..files import check_tensor_header, read_json
from .apply import intact_fingerprint
from .edit import Edit
from .layout import own_file

WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
INDEX_NAME = f"{WEIGHTS_NAME}.index.json"


def export_checkpoint(
    edit: Edit,
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
    saved = denoiser_of(pipeline) if what == "denoiser" else pipeline
    if not hasattr(saved, "save_pretrained") or (what == "pipeline" and isinstance(pipeline, nn.Module)):
        raise ValueError(f"a {type(saved).__name__} cannot be written as a {what}: it is no model of diffusers")
    part = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    try:
        with edit.applied(pipeline, strength):
            saved.save_pretrained(part, safe_serialization=True)
        if folder.exists():
            folder.rmdir()
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def weight_files(source: str | Path) -> list[Path]:
    """The safetensors files that ``source`` stands for: itself, or those of a folder of a denoiser's weights.

    A folder holds ``diffusion_pytorch_model.safetensors``, the index of its parts, or one safetensors file; of a
    pipeline's folder its ``unet`` or ``transformer``. Raises FileNotFoundError, PermissionError for a link out of the
    folder, or ValueError for files of another format.
    """
    source = Path(source)
    if source.is_file():
        if source.suffix != ".safetensors":
            raise ValueError(
                f"{source} is no safetensors file; other formats can run code when they are read: convert it where you "
                "trust it"
            )
        return [source]
    if not source.is_dir():
        raise FileNotFoundError(f"{source} does not exist: expected a safetensors file or a folder of weights")
    for part in ("unet", "transformer"):
        if (source / "model_index.json").is_file() and (source / part).is_dir():
            source = source / part
    if (source / INDEX_NAME).is_file():
        names = read_json(own_file(source, INDEX_NAME)).get("weight_map")
        names = sorted({str(name) for name in names.values()}) if isinstance(names, dict) else []
        if not names or any(Path(name).name != name or not name.endswith(".safetensors") for name in names):
            raise ValueError(f"{source / INDEX_NAME} is damaged: 'weight_map' does not name files in its folder")
        return [own_file(source, name) for name in names]
    found = [WEIGHTS_NAME] if (source / WEIGHTS_NAME).is_file() else [p.name for p in source.glob("*.safetensors")]
    if len(found) != 1:
        raise FileNotFoundError(f"{source} holds {len(found)} safetensors files and no {WEIGHTS_NAME}: name the file")
    return [own_file(source, found[0])]


def _own_parameters(denoiser: nn.Module) -> dict[str, Tensor]:
    """Parameters and saved buffers by their names without PEFT's adapters."""
    state = denoiser.state_dict(keep_vars=True)
    return {base_name(name): tensor for name, tensor in state.items() if ".lora_" not in name}


def _stored(source: str | Path, own: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """(name in the denoiser, tensor) of the weights in ``source``, all of them checked against ``own`` beforehand."""
    places: dict[str, tuple[Path, str]] = {}
    shapes: dict[str, tuple[str, list[int]]] = {}
    for path in weight_files(source):
        check_tensor_header(path)
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():
                    part = file.get_slice(key)
                    # Some tools save the denoiser as a part of its pipeline.
                    name = key if key in own else key.removeprefix("unet.").removeprefix("transformer.")
                    if name in places:
                        raise ValueError(f"{source} holds {name!r} twice")
                    places[name], shapes[name] = (path, key), (part.get_dtype(), part.get_shape())
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is truncated or not a safetensors file: {error}") from error
    if not places:
        raise ValueError(f"{source} holds no weights")
    for name, (dtype, shape) in shapes.items():
        _require_fit(f"{source}", name, dtype, shape, own)
    for path in dict.fromkeys(path for path, _ in places.values()):
        with safe_open(path, framework="pt") as file:
            for name, (home, key) in places.items():
                if home == path:
                    yield name, file.get_tensor(key)


def _require_fit(source: str, name: str, dtype: str, shape: list[int], own: dict[str, Tensor]) -> None:
    if name not in own:
        near = difflib.get_close_matches(name[:200], own, n=2, cutoff=0.6)
        hint = f"; nearest: {', '.join(near)}" if near else ""
        raise ValueError(f"{source} holds {name[:200]!r}, which the denoiser does not have{hint}")
    if list(own[name].shape) != shape:
        raise ValueError(f"{source}: {name} has shape {shape}, the denoiser's has {list(own[name].shape)}")
    if own[name].is_floating_point() and dtype not in ("F16", "BF16", "F32", "F64"):
        raise ValueError(f"{source}: {name} is {dtype}, expected floating-point weights")


@torch.no_grad()
def put_denoiser_weights(pipeline: Any, source: str | Path) -> int:
    """Put the weights of ``source`` (see ``weight_files``) over those of the pipeline's denoiser, in its dtype.

    ``source`` may hold some of them only, as checkpoints of concept erasure often do; every name and shape is checked
    before the first is changed. Returns how many tensors were put. Raises ValueError naming the weight that the
    denoiser lacks or has in another shape, RuntimeError when edits are in place.
    """
    from .apply import active_edits

    denoiser = denoiser_of(pipeline)
    if active := active_edits(denoiser):
        raise RuntimeError(f"edit {active[-1].edit.name!r} is in the weights: undo it before others are put there")
    own = _own_parameters(denoiser)
    count = 0
    for name, tensor in _stored(source, own):
        own[name].data.copy_(tensor)
        count += 1
    return count


@torch.no_grad()
def checkpoint_difference(base: Any, pruned: Any, name: str = "pruned") -> Edit:
    """See ``Edit.from_checkpoint_difference``."""
    denoiser = denoiser_of(base)
    own = _own_parameters(denoiser)
    if isinstance(pruned, str | Path):
        theirs: Iterator[tuple[str, Tensor]] = _stored(pruned, own)
        source = str(pruned)
    else:
        other = _own_parameters(denoiser_of(pruned))
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
    return Edit(name, space, zeroed, 0.0, {"method": "checkpoint difference", "trust": []})
