"""Weights of a denoiser in safetensors files, put over those of a pipeline."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ...components.fingerprint import own_tensors
from ...diffusion.denoisers import denoiser_of, require_one_of_its_kind
from ...files import check_tensor_header, read_json
from .config import own_file

WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
INDEX_NAME = f"{WEIGHTS_NAME}.index.json"


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


def own_parameters(denoiser: nn.Module) -> dict[str, Tensor]:
    """Parameters and saved buffers by their names, without adapters that were put beside them."""
    return dict(own_tensors(getattr(denoiser, "_orig_mod", denoiser)))


def stored_weights(source: str | Path, own: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
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
    from ..weights import active_edits

    require_one_of_its_kind(pipeline)
    denoiser = denoiser_of(pipeline)
    if active := active_edits(denoiser):
        raise RuntimeError(f"edit {active[-1].edit.name!r} is in the weights: undo it before others are put there")
    own = own_parameters(denoiser)
    count = 0
    for name, tensor in stored_weights(source, own):
        own[name].copy_(tensor)  # not by .data, which would not tell those who keep what they made of the weights
        count += 1
    return count
