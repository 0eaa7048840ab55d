"""Edits as files: ``edit_config.json`` and ``edit_model.safetensors``, laid out like a PEFT adapter."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..components import ComponentSpace
from ..denoiser_calls import denoiser_of
from ..files import read_json, read_tensors, require_writable_folder, write_json, write_tensors
from ..fingerprint import Fingerprint
from ..version import __version__
from .apply import intact_fingerprint
from .edit import Edit

CONFIG_NAME = "edit_config.json"
MODEL_NAME = "edit_model.safetensors"
FORMAT_VERSION = 1


def save_edit(edit: Edit, folder: str | Path) -> None:
    """Write ``edit`` into ``folder``. Raises PermissionError or NotADirectoryError naming the folder."""
    folder = require_writable_folder(folder)
    modules = {entry.module: {**asdict(entry), "weight_shape": list(entry.weight_shape)} for entry in edit.space}
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
    tensors = {module: indices.to(torch.int32) for module, indices in edit.components.items()}
    # The tensors first: a config without its tensors would look like a whole edit.
    write_tensors(folder / MODEL_NAME, tensors, {"format": "edit", "digest": config["digest"]})
    write_json(folder / CONFIG_NAME, config)


def load_edit(source: str | Path, pipeline: Any = None, **hub_kwargs: Any) -> Edit:
    """Read an edit; see ``Edit.from_pretrained``. ``hub_kwargs`` (revision, token, ...) go to the Hub download."""
    folder = Path(source)
    if not folder.is_dir():
        folder = _download(str(source), hub_kwargs)
    for name in (CONFIG_NAME, MODEL_NAME):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} holds no {name}: expected a folder written by save_pretrained")
    config = read_json(folder / CONFIG_NAME)
    if config.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{folder / CONFIG_NAME} has format_version {config.get('format_version')!r}, expected {FORMAT_VERSION}"
        )
    tensors, metadata = read_tensors(folder / MODEL_NAME)
    try:
        space = ComponentSpace.from_dict({"entries": list(config["modules"].values()), "fingerprint": config["model"]})
        components = {module: indices.to(torch.int64) for module, indices in tensors.items()}
        edit = Edit(config["name"], space, components, float(config["factor"]), dict(config.get("provenance", {})))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{folder} holds a damaged edit: {error}") from error
    if not edit.digest() == config.get("digest") == metadata.get("digest"):
        raise ValueError(f"{folder}: {CONFIG_NAME} and {MODEL_NAME} do not belong together, or one was changed")
    if pipeline is not None:
        fingerprint: Fingerprint = intact_fingerprint(denoiser_of(pipeline))
        edit.space.fingerprint.require_same(fingerprint, f"edit {edit.name!r}")
    return edit


def _download(repository: str, hub_kwargs: dict[str, Any]) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        paths = [Path(hf_hub_download(repository, name, **hub_kwargs)) for name in (CONFIG_NAME, MODEL_NAME)]
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(
            f"{repository!r} is neither a folder with an edit nor a repository that can be read: {error}"
        ) from error
    return paths[0].parent
