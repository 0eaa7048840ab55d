"""Edits as files: ``edit_config.json`` and ``edit_model.safetensors``, laid out like a PEFT adapter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...components.fingerprint import Fingerprint
from ...components.space import ComponentSpace
from ...diffusion.denoisers import denoiser_of
from ...files import (
    check_tensor_header,
    json_text,
    parse_json,
    read_json,
    read_tensors,
    require_writable_folder,
    tensors_writer,
    text_writer,
    write_together,
)
from ...version import __version__
from ..data import AnyEdit, EditData
from ..weights import intact_fingerprint
from .coding import decode_gaps, encode_gaps
from .config import CONFIG_NAME, FORMAT_VERSION, MAX_CONFIG, MODEL_NAME, EditConfig, own_file
from .hub import download, hub_repository


def save_edit(edit: EditData, folder: str | Path) -> None:
    """Write ``edit`` into ``folder``.

    Raises PermissionError or NotADirectoryError naming the folder, ValueError for a provenance that is no JSON or more
    than ``load_edit`` reads; what the folder held is left as it was then.
    """
    folder = require_writable_folder(folder)
    tensors, modules, shared = {}, {}, edit.space.shared()
    for entry in edit.space:
        indices = edit.components[entry.module]
        tensors[entry.module] = encode_gaps(indices)
        layout = {"weight_shape": list(entry.weight_shape), "block": entry.block, "n": len(indices)}
        if entry.span is not None:
            layout["span"] = list(entry.span)
        if shared[entry.module] != entry.module:
            layout["shares_heads_of"] = shared[entry.module]
        modules[entry.module] = layout
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
    about = {"format": "edit", "digest": config["digest"]}
    write_together(
        {folder / MODEL_NAME: tensors_writer(tensors, about), folder / CONFIG_NAME: text_writer(text)},
    )


def _as_json(edit: EditData, config: dict[str, Any]) -> str:
    try:
        text = json_text(config)
        parse_json(text, "it")
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"edit {edit.name!r}: its provenance cannot be written as JSON: {error}") from error
    if len(text.encode()) > MAX_CONFIG:
        raise ValueError(
            f"edit {edit.name!r}: its config would be larger than the {MAX_CONFIG} bytes that are read back"
        )
    return text


def read_edit(
    source: str | Path,
    pipeline: Any = None,
    *,
    kind: type[AnyEdit] = EditData,  # type: ignore[assignment]  # mypy knows no default of a type variable
    **hub_kwargs: Any,
) -> AnyEdit:
    """Read an edit as ``kind``: see ``Edit.from_pretrained``. ``hub_kwargs`` (revision, token, ...) go to the download.

    Only what ``hub_repository`` takes for a repository is asked of the Hub.
    Nothing in the files is trusted: sizes are checked before they are allocated. Two bytes of a file become eight of
    memory, twice that for a moment. Raises FileNotFoundError, PermissionError, or ValueError naming the file and what
    is wrong with it.
    """
    folder = Path(source)
    if not folder.is_dir():
        folder = download(hub_repository(source), (CONFIG_NAME, MODEL_NAME), hub_kwargs)
    return read_folder(folder, pipeline, kind=kind)


def read_folder(
    folder: Path,
    pipeline: Any = None,
    *,
    kind: type[AnyEdit] = EditData,  # type: ignore[assignment]  # as above
) -> AnyEdit:
    """As ``read_edit``, of a folder alone: the Hub is never asked."""
    config, model_path = read_config(folder), own_file(folder, MODEL_NAME)
    edit, metadata = _read(config, model_path, kind)
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


def _read(config: EditConfig, path: Path, kind: type[AnyEdit]) -> tuple[AnyEdit, dict[str, Any]]:
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
            components[layout.entry.module] = decode_gaps(tensors.pop(layout.entry.module), layout.entry.count)
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {layout.entry.module!r}: {error}") from error
    space = ComponentSpace([layout.entry for layout in config.modules], config.fingerprint)
    try:
        return kind(config.name, space, components, config.factor, config.provenance), metadata
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _check_tensors(config: EditConfig, found: Mapping[str, tuple[str, list[int]]]) -> None:
    """Raises ValueError naming the tensor that is missing, superfluous, or of a dtype or size it cannot have."""
    modules = {layout.entry.module: layout for layout in config.modules}
    if found.keys() != modules.keys():
        name = min(found.keys() ^ modules.keys())
        raise ValueError(f"the module {name[:200]!r} is in only one of them")
    for name, (dtype, shape) in found.items():
        if dtype not in ("U16", "I32") or shape != [modules[name].n]:
            raise ValueError(f"{name!r} is {dtype} of shape {shape}, expected U16 or I32 of shape [{modules[name].n}]")
