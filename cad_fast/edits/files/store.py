"""Edits as files: ``edit_config.json`` and ``edit_model.safetensors``, laid out like a PEFT adapter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...components.fingerprint import Fingerprint
from ...components.space import ComponentSpace
from ...diffusion.denoisers import denoiser_of
from ...files import check_tensor_header, read_json, read_tensors, require_writable_folder, write_tensors, write_text
from ...version import __version__
from ..edit import Edit
from ..weights import intact_fingerprint
from .coding import decode_sorted, encode_sorted, encoded_size
from .config import CONFIG_NAME, MAX_CONFIG, MODEL_NAME, EditConfig, ModuleLayout, own_file
from .hub import download

FORMAT_VERSION = 2


def save_edit(edit: Edit, folder: str | Path) -> None:
    """Write ``edit`` into ``folder``.

    Raises PermissionError or NotADirectoryError naming the folder, ValueError for a provenance that is no JSON or more
    than ``load_edit`` reads; what the folder held is left as it was then.
    """
    folder = require_writable_folder(folder)
    tensors, modules = {}, {}
    for entry in edit.space:
        indices = edit.components[entry.module]
        tensors[entry.module], bits = encode_sorted(indices)
        shape = list(entry.weight_shape)
        modules[entry.module] = {"weight_shape": shape, "block": entry.block, "n": len(indices), "rice_bits": bits}
    config = {
        "format_version": FORMAT_VERSION,
        "cad_fast_version": __version__,
        "name": edit.name,
        "kind": edit.space.kind,
        "factor": edit.factor,
        "n_components": edit.n_components,
        "digest": edit.digest(),
        "model": edit.space.fingerprint.to_dict(),
        "modules": modules,
        "provenance": edit.provenance,
    }
    text = _as_json(edit, config)
    # The tensors first: a config without its tensors would look like a whole edit.
    write_tensors(folder / MODEL_NAME, tensors, {"format": "edit", "digest": config["digest"]})
    write_text(folder / CONFIG_NAME, text)


def _as_json(edit: Edit, config: dict[str, Any]) -> str:
    try:
        text = json.dumps(config, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ValueError(f"edit {edit.name!r}: its provenance cannot be written as JSON: {error}") from error
    if len(text.encode()) > MAX_CONFIG:
        raise ValueError(
            f"edit {edit.name!r}: its config would be larger than the {MAX_CONFIG} bytes that are read back"
        )
    return text


def load_edit(source: str | Path, pipeline: Any = None, **hub_kwargs: Any) -> Edit:
    """Read an edit; see ``Edit.from_pretrained``. ``hub_kwargs`` (revision, token, ...) go to the Hub download.

    Nothing in the files is trusted: sizes are checked before they are allocated, so that memory stays within about
    100 times the size of the files. Raises FileNotFoundError, PermissionError, or ValueError naming the file and what
    is wrong with it.
    """
    folder = Path(source)
    if not folder.is_dir():
        folder = download(str(source), (CONFIG_NAME, MODEL_NAME), hub_kwargs)
    config, model_path = read_config(folder), own_file(folder, MODEL_NAME)
    edit, metadata = _read(config, model_path)
    if not edit.digest() == config.digest == metadata.get("digest"):
        raise ValueError(f"{folder}: {CONFIG_NAME} and {MODEL_NAME} do not belong together, or one was changed")
    if pipeline is not None:
        fingerprint: Fingerprint = intact_fingerprint(denoiser_of(pipeline))
        edit.space.fingerprint.require_same(fingerprint, f"edit {edit.name!r}")
    return edit


def read_config(folder: Path) -> EditConfig:
    """What the config in ``folder`` says, without the components. Raises FileNotFoundError, ValueError naming it."""
    path = own_file(folder, CONFIG_NAME)
    value = read_json(path, MAX_CONFIG)
    try:
        return EditConfig.from_dict(value)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _read(config: EditConfig, path: Path) -> tuple[Edit, dict[str, Any]]:
    """The edit whose components lie in ``path``, and the metadata there. Raises ValueError naming ``path``."""
    check_tensor_header(path, config.max_bytes)

    def check(found: Mapping[str, tuple[str, list[int]]]) -> None:
        try:
            _check_tensors(config, found)
        except ValueError as error:
            raise ValueError(f"{path} does not fit {CONFIG_NAME}: {error}") from error

    tensors, metadata = read_tensors(path, check)
    components = {}
    for layout in config.modules:
        try:
            components[layout.entry.module] = _decode(layout, tensors.pop(layout.entry.module))
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {layout.entry.module!r}: {error}") from error
    space = ComponentSpace([layout.entry for layout in config.modules], config.fingerprint)
    try:
        return Edit(config.name, space, components, config.factor, config.provenance), metadata
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _check_tensors(config: EditConfig, found: Mapping[str, tuple[str, list[int]]]) -> None:
    """Raises ValueError naming the tensor that is missing, superfluous, or of a dtype or size it cannot have."""
    modules = {layout.entry.module: layout for layout in config.modules}
    if found.keys() != modules.keys():
        name = min(found.keys() ^ modules.keys())
        raise ValueError(f"the module {name[:200]!r} is in only one of them")
    for name, (dtype, shape) in found.items():
        layout = modules[name]
        wanted = "I32" if layout.rice_bits is None else "U8"
        if dtype != wanted or len(shape) != 1:
            raise ValueError(f"{name!r} is {dtype} of shape {shape}, expected {wanted} of one dimension")
        if layout.rice_bits is not None:
            least, most = encoded_size(layout.n, layout.rice_bits, layout.entry.count)
        else:
            least, most = 1, layout.entry.count
        if not least <= shape[0] <= most:
            raise ValueError(f"{name!r} has {shape[0]} entries, expected {least} to {most}")


def _decode(layout: ModuleLayout, stored: Tensor) -> Tensor:
    if layout.rice_bits is None:
        return stored.to(torch.int64)
    return decode_sorted(stored, layout.n, layout.rice_bits, layout.entry.count)
