"""Files that appear only when whole, and careful reading of files that come from elsewhere."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
import platform
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image

MAX_JSON = 256 * 2**20  # an evaluation of very many pictures; small files have limits of their own
MAX_HEADER = 64 * 2**20  # of safetensors; what a recording says of a thousand calls stays far below
MAX_DEPTH = 64  # of JSON: what walks through it may recurse
MAX_DIGITS = 40  # of an integer in JSON: far below what is no double any more
_PART = re.compile(r"\..*\.([0-9a-f]{8})\.([0-9]{1,10})\.[0-9a-f]{16}\.part")

Write = Callable[[Path], object]


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Make an error of writing inside the context an OSError that names ``path``, whoever raised it."""
    try:
        yield
    except SafetensorError as error:  # which is no OSError, and names no file
        code = re.search(r"os error ([0-9]+)", str(error))
        number = int(code[1]) if code else errno.EIO
        raise _unwritten(path, number, os.strerror(number) if code else str(error)) from error
    except OSError as error:
        raise _unwritten(path, error.errno, error.strerror or str(error)) from error


def _unwritten(path: str | Path, number: int | None, reason: str) -> OSError:
    kind = OSError if number is None else type(OSError(number, ""))
    error = kind(f"{path} cannot be written: {reason}")
    error.errno = number
    return error


def write_together(writes: Mapping[Path, Write]) -> None:
    """Write files that belong together: all of them appear, or what was there stays.

    Each is written under a name of its own that nobody can guess or have put there before, and renamed when all are
    whole. Their permissions are those of the umask.

    Args:
        writes: for each file a function that writes it to the path that it is given.

    Raises:
        OSError: A file cannot be written, such as on a full disk. The message names it.
    """
    parts: dict[Path, Path] = {}
    try:
        for path, write in writes.items():
            with naming(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                parts[path] = part = _new_part(path)
                mode = part.stat().st_mode & 0o777
                write(part)
                if part.stat().st_mode & 0o777 != mode:  # safetensors makes files that only their owner reads
                    part.chmod(mode)
        for path, part in parts.items():
            with naming(path):
                os.replace(part, path)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


def even_permissions(folder: Path) -> None:
    """Give all files in ``folder`` the permissions of the umask, which those of safetensors do not have."""
    probe = _new_part(folder / "mode")
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)


def write_whole(path: Path, write: Write) -> Path:
    """Write one file as ``write_together`` does; returns its path."""
    write_together({path: write})
    return path


def _new_part(path: Path) -> Path:
    """Make an empty file beside ``path``, which was not there before, and follow no link to it."""
    part = part_name(path)
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    os.close(os.open(part, flags, 0o666))
    return part


def part_name(path: Path) -> Path:
    """A name beside ``path`` for what is not whole yet. Remove first what processes that have ended left there."""
    _sweep(path.parent)
    return path.with_name(f".{path.name[:120]}.{_machine()}.{os.getpid()}.{secrets.token_hex(8)}.part")


@cache
def _machine() -> str:
    """Eight characters for where process ids are told apart: another machine or container has others."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    return hashlib.sha256(f"{platform.node()} {space}".encode()).hexdigest()[:8]


@cache
def _sweep(folder: Path) -> None:
    """Remove, once for each folder, the parts of processes of this machine that have ended."""
    for entry in list(os.scandir(folder)):
        match = _PART.fullmatch(entry.name)
        if match is None or match[1] != _machine() or _runs(int(match[2])):
            continue
        try:
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                os.unlink(entry.path)
        except OSError:
            pass  # another process was faster, or it is not ours to remove


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def write_text(path: str | Path, text: str) -> Path:
    """Write ``text`` to ``path``, creating its folder; readers see the old file or the whole new one, never a part.

    Raises OSError naming the file.
    """
    return write_whole(Path(path), text_writer(text))


def text_writer(text: str) -> Write:
    """A function for ``write_together`` that writes ``text``."""
    return lambda part: part.write_text(text, encoding="utf-8")


def write_bytes(path: str | Path, data: bytes) -> Path:
    """Write ``data`` to ``path`` as ``write_text`` does."""
    return write_whole(Path(path), lambda part: part.write_bytes(data))


def write_png(path: str | Path, image: Image.Image) -> Path:
    """Write ``image`` as PNG, as ``write_text`` does; returns its path."""
    return write_bytes(path, png_bytes(image, optimize=True))


def png_bytes(image: Image.Image, *, optimize: bool = False) -> bytes:
    """Encode ``image`` as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=optimize)
    return buffer.getvalue()


def write_json(path: str | Path, value: Any) -> Path:
    """Write ``value`` as indented JSON. Raises ValueError for NaN and infinity, which JSON does not have."""
    return write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """``value`` as indented JSON. Raises ValueError for NaN and infinity."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Path:
    """Write ``tensors`` as safetensors; ``metadata`` goes into the header as JSON under the key ``cad_fast``.

    Raises OSError naming the file, ValueError for metadata that ``read_tensors`` would refuse.
    """
    return write_whole(Path(path), tensors_writer(tensors, metadata))


def tensors_writer(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Write:
    """A function for ``write_together`` that writes what ``write_tensors`` does."""
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(metadata, allow_nan=False)
    parse_json(text, "the metadata")
    return lambda part: save_file(ready, part, metadata={"cad_fast": text})


def parse_json(text: str, what: str) -> Any:
    """The value that ``text`` holds.

    Raises ValueError naming ``what`` unless it is strict JSON whose readers agree on what it says: no key twice, no
    number beyond a double or of more than ``MAX_DIGITS`` digits, at most ``MAX_DEPTH`` objects and lists in each other.
    """
    try:
        value = json.loads(
            text, parse_constant=_constant, parse_float=_double, parse_int=_whole, object_pairs_hook=_object
        )
    except RecursionError:
        raise ValueError(f"{what} is not valid JSON: it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{what} is not valid JSON: {error}") from error
    if _deeper(value, MAX_DEPTH):
        raise ValueError(f"{what} is not valid JSON: it is nested too deeply, more than {MAX_DEPTH} times")
    return value


def _constant(text: str) -> None:
    raise ValueError(f"{text} is not a JSON number")


def _double(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is too large a number")
    return number


def _whole(text: str) -> int:
    if len(text.lstrip("-")) > MAX_DIGITS:
        raise ValueError(f"an integer has {len(text.lstrip('-'))} digits, expected at most {MAX_DIGITS}")
    return int(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key[:80]!r} comes twice")
            seen.add(key)
    return value


def _deeper(value: Any, most: int) -> bool:
    """Whether more than ``most`` containers lie in each other."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(most):
        if not level:
            return False
        inner = (entry for each in level for entry in (each.values() if isinstance(each, dict) else each))
        level = [entry for entry in inner if isinstance(entry, dict | list)]
    return bool(level)


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
        _new_part(path / "writable").unlink()
    except OSError as error:
        raise PermissionError(f"the output folder {path} cannot be written: {error.strerror}") from error
    return path
