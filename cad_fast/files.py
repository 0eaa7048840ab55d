"""Files that appear only when whole, and careful reading of files that come from elsewhere."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


def _write_whole(path: Path, write: Callable[[Path], None]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        write(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def write_text(path: str | Path, text: str) -> Path:
    """Write ``text`` to ``path``, creating its folder; readers see the old file or the whole new one, never a part."""
    return _write_whole(Path(path), lambda part: part.write_text(text, encoding="utf-8"))


def write_bytes(path: str | Path, data: bytes) -> Path:
    """Write ``data`` to ``path`` as ``write_text`` does."""
    return _write_whole(Path(path), lambda part: part.write_bytes(data))


def write_json(path: str | Path, value: Any) -> Path:
    """Write ``value`` as indented JSON. Raises ValueError for NaN and infinity, which JSON does not have."""
    return write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Path:
    """Write ``tensors`` as safetensors; ``metadata`` goes into the header as JSON under the key ``cad_fast``."""
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {"cad_fast": json.dumps(metadata, allow_nan=False)}
    return _write_whole(Path(path), lambda part: save_file(ready, part, metadata=header))


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises FileNotFoundError, or ValueError naming the file when it is not a JSON object.
    """
    path = Path(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a JSON {type(value).__name__}, expected an object")
    return value


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what ``write_tensors`` wrote: (tensors, metadata).

    Raises FileNotFoundError, or ValueError naming the file when it is truncated or not one of cad_fast's.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is truncated or not a safetensors file: {error}") from error
    if "cad_fast" not in header:
        raise ValueError(f"{path} was not written by cad_fast: its header has no 'cad_fast' entry")
    try:
        metadata = json.loads(header["cad_fast"])
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} has a damaged header: {error}") from error
    return tensors, metadata


def require_writable_folder(path: str | Path) -> Path:
    """Create ``path`` if need be and check that it can be written, before long work starts.

    Raises NotADirectoryError or PermissionError naming the folder.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{path} is a file, expected a folder for the output")
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".writable.{os.getpid()}.part"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise PermissionError(f"the output folder {path} cannot be written: {error.strerror}") from error
    return path
