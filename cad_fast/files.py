"""Files that appear only when whole, and careful reading of files that come from elsewhere."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image

MAX_JSON = 256 * 2**20  # an evaluation of very many pictures; small files have limits of their own
MAX_HEADER = 64 * 2**20  # of safetensors; what a recording says of a thousand calls stays far below


def _write_whole(path: Path, write: Callable[[Path], object]) -> Path:
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


def write_png(path: str | Path, image: Image.Image) -> Path:
    """Write ``image`` as PNG, as ``write_text`` does; returns its path."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return write_bytes(path, buffer.getvalue())


def write_json(path: str | Path, value: Any) -> Path:
    """Write ``value`` as indented JSON. Raises ValueError for NaN and infinity, which JSON does not have."""
    return write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Path:
    """Write ``tensors`` as safetensors; ``metadata`` goes into the header as JSON under the key ``cad_fast``."""
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {"cad_fast": json.dumps(metadata, allow_nan=False)}
    return _write_whole(Path(path), lambda part: save_file(ready, part, metadata=header))


def parse_json(text: str, what: str) -> Any:
    """The value that ``text`` holds. Raises ValueError naming ``what`` unless it is strict JSON that can be parsed."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not a JSON number")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise ValueError(f"{what} is not valid JSON: it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{what} is not valid JSON: {error}") from error


def read_json(path: str | Path, max_bytes: int = MAX_JSON) -> dict[str, Any]:
    """Read a JSON object.

    Raises FileNotFoundError, or ValueError naming the file when it is not a JSON object or larger than ``max_bytes``.
    """
    path = Path(path)
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(min(size, max_bytes) + 1)  # a read of so many bytes takes as much memory
    if len(data) > max_bytes:
        raise ValueError(f"{path} is larger than {max_bytes} bytes, which is more than such a file needs")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    value = parse_json(text, str(path))
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a JSON {type(value).__name__}, expected an object")
    return value


def check_tensor_header(path: str | Path, max_bytes: int | None = None) -> None:
    """Look at the size of a safetensors file and of its header before anything of it is read.

    Raises FileNotFoundError, or ValueError naming the file when it is larger than ``max_bytes``, or its header than
    the file or ``MAX_HEADER``.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    size = path.stat().st_size
    if max_bytes is not None and size > max_bytes:
        raise ValueError(f"{path} has {size} bytes, expected at most {max_bytes}")
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if size < 8 or header > size - 8:
        raise ValueError(f"{path} is truncated or not a safetensors file: it has {size} bytes")
    if header > MAX_HEADER:
        raise ValueError(f"{path} has a header of {header} bytes, expected at most {MAX_HEADER}")


def read_tensors(
    path: str | Path, check: Callable[[dict[str, tuple[str, list[int]]]], None] | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what ``write_tensors`` wrote: (tensors, metadata).

    ``check`` is given {name: (dtype as safetensors writes it, shape)} before any tensor is read, to raise ValueError.
    Raises FileNotFoundError, or ValueError naming the file when it is truncated or not one of cad_fast's.
    """
    path = Path(path)
    check_tensor_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if check is not None:
                slices = {name: file.get_slice(name) for name in file.keys()}
                check({name: (part.get_dtype(), part.get_shape()) for name, part in slices.items()})
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is truncated or not a safetensors file: {error}") from error
    if "cad_fast" not in header:
        raise ValueError(f"{path} was not written by cad_fast: its header has no 'cad_fast' entry")
    try:
        metadata = parse_json(header["cad_fast"], "its 'cad_fast' entry")
    except ValueError as error:
        raise ValueError(f"{path} has a damaged header: {error}") from error
    if not isinstance(metadata, dict):
        raise ValueError(f"{path} has a damaged header: its 'cad_fast' entry is no JSON object")
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
