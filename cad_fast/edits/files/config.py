"""What ``edit_config.json`` must hold, checked entry by entry: nothing in it is trusted."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...choices import KINDS
from ...components.fingerprint import Fingerprint
from ...components.module_components import ModuleComponents, checked_span, numbered
from ..data import check_edit_name
from .coding import MAX_COUNT

CONFIG_NAME = "edit_config.json"
MODEL_NAME = "edit_model.safetensors"
MAX_CONFIG = 4 * 2**20  # bytes; an edit of all modules of the largest models, with an evaluation, has about 1 MB
MAX_COMPONENTS = 2**27  # of one edit: 1% of a model of 13 billion weights; 1 GiB as int64
MAX_MODULES = 20_000
HEADER_ALLOWANCE = 4 * 2**20  # bytes of a safetensors header: about 150 per module
FORMAT_VERSION = 1
_MODULE_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}(\.[A-Za-z0-9_-]{1,100}){0,30}", re.ASCII)


@dataclass(frozen=True)
class ModuleLayout:
    """The components of one module: ``n`` of them are edited."""

    entry: ModuleComponents
    n: int


@dataclass(frozen=True)
class EditConfig:
    """A checked ``edit_config.json``."""

    name: str
    factor: float
    digest: str
    fingerprint: Fingerprint
    modules: tuple[ModuleLayout, ...]
    provenance: dict[str, Any]

    @property
    def max_bytes(self) -> int:
        """The greatest size that the file with the components can have."""
        return HEADER_ALLOWANCE + 4 * sum(layout.n for layout in self.modules)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> EditConfig:
        """Raises ValueError naming the entry that is missing, of the wrong kind, or out of range."""
        version = value.get("format_version")
        if isinstance(version, bool) or version != FORMAT_VERSION:
            raise ValueError(f"format_version {_short(version)}, expected {FORMAT_VERSION}")
        factor = _number(value, "factor")
        kind = _entry(value, "kind", str)
        if kind not in KINDS:
            raise ValueError(f"'kind' is {_short(kind)}, expected one of {', '.join(KINDS)}")
        described = _entry(value, "modules", dict)
        if not 0 < len(described) <= MAX_MODULES:
            raise ValueError(f"'modules' has {len(described)} entries, expected 1 to {MAX_MODULES}")
        layouts: dict[str, ModuleLayout] = {}
        for module, entry in described.items():
            layouts[module] = _module(module, entry, kind)
        shared = _shared(described, layouts)
        entries = numbered([layout.entry for layout in layouts.values()], shared)
        total = sum(layout.n for module, layout in layouts.items() if module not in shared)
        if total > MAX_COMPONENTS:
            raise ValueError(f"the modules declare {total} components, expected at most {MAX_COMPONENTS}")
        if _integer(value, "n_components", 1, MAX_COMPONENTS) != total:
            raise ValueError(f"'n_components' is {value['n_components']}, but the modules have {total}")
        return cls(
            check_edit_name(_entry(value, "name", str)[:100]),
            factor,
            _entry(value, "digest", str),
            _fingerprint(_entry(value, "model", dict)),
            tuple(ModuleLayout(entry, layouts[entry.module].n) for entry in entries),
            _entry(value, "provenance", dict) if "provenance" in value else {},
        )


def own_file(folder: Path, name: str) -> Path:
    """``folder / name``, a file inside ``folder``.

    Raises FileNotFoundError when there is none, PermissionError when it is a link that leads out of the folder. The
    snapshots of the Hub's cache, whose files are links into the ``blobs`` beside them, are the exception.
    """
    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no {name}: expected a folder written by save_pretrained")
    if path.is_symlink():
        home, target = folder.resolve(), path.resolve()
        blobs = home.parent.parent / "blobs"
        if home not in target.parents and not (home.parent.name == "snapshots" and target.parent == blobs):
            raise PermissionError(f"{path} is a link that leads out of its folder: copy the file there")
    return path


def _module(name: str, value: Any, kind: str) -> ModuleLayout:
    where = f"module {_short(name)}"
    if not _MODULE_NAME.fullmatch(name):
        raise ValueError(f"{where} is not the name of a module: expected letters, digits, _ and - between dots")
    if not isinstance(value, dict):
        raise ValueError(f"{where} is {_short(value)}, expected an object")
    try:
        shape = _entry(value, "weight_shape", list)
        if len(shape) not in (2, 4) or not all(type(side) is int and side > 0 for side in shape):
            raise ValueError(f"'weight_shape' is {_short(shape)}, expected 2 or 4 positive integers")
        if math.prod(shape) > MAX_COUNT:
            raise ValueError(f"'weight_shape' {_short(shape)} has more than {MAX_COUNT} weights")
        block = _integer(value, "block", 1, MAX_COUNT)
        span = checked_span(value["span"], tuple(shape), block) if "span" in value else None
        if span is None and math.prod(shape[1:]) % block:
            raise ValueError(f"'block' is {block}, which does not divide the rows of a weight of shape {shape}")
        if span is not None and kind not in ("neuron", "head"):
            raise ValueError(f"'span' is of neurons and heads, not of kind {kind!r}")
        entry = ModuleComponents(name, kind, tuple(shape), block, 0, span)  # type: ignore[arg-type]
        return ModuleLayout(entry, _integer(value, "n", 1, entry.count))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _shared(described: Mapping[str, Any], layouts: Mapping[str, ModuleLayout]) -> dict[str, str]:
    """{module: the earlier module whose heads it has a share of}, checked."""
    shared: dict[str, str] = {}
    whole: dict[Any, ModuleLayout] = {}
    for module, value in described.items():
        if "shares_heads_of" not in value:
            whole[module] = layouts[module]
            continue
        other, mine = value["shares_heads_of"], layouts[module]
        theirs = whole.get(other) if isinstance(other, str) else None
        same = theirs is not None and (theirs.entry.count, theirs.n) == (mine.entry.count, mine.n)
        if not same or mine.entry.kind != "head":
            raise ValueError(
                f"module {_short(module)}: 'shares_heads_of' is {_short(other)}, expected a module before it with as "
                "many heads, as many of them edited"
            )
        shared[module] = other
    return shared


def _fingerprint(value: Mapping[str, Any]) -> Fingerprint:
    samples = _entry(value, "samples", list)
    if len(samples) > 4096:
        raise ValueError(f"'samples' has {len(samples)} entries, expected at most 4096")
    numbers = tuple(_number({"samples": sample}, "samples") for sample in samples)
    texts = {key: _entry(value, key, str) for key in ("model_class", "architecture")}
    for key, text in texts.items():
        if len(text) > 200 or not text.isprintable():
            raise ValueError(f"{key!r} is {_short(text)}, expected at most 200 printable characters")
    return Fingerprint(texts["model_class"], texts["architecture"], numbers)


def _entry(value: Mapping[str, Any], key: str, kind: type) -> Any:
    if key not in value:
        raise ValueError(f"{key!r} is missing")
    if not isinstance(value[key], kind):
        raise ValueError(f"{key!r} is {_short(value[key])}, expected {_KIND_NAMES[kind]}")
    return value[key]


_KIND_NAMES = {str: "a text", dict: "an object", list: "a list", int: "an integer"}


def _integer(value: Mapping[str, Any], key: str, low: int, high: int) -> int:
    number = _entry(value, key, int)
    if isinstance(number, bool) or not low <= number <= high:
        raise ValueError(f"{key!r} is {_short(number)}, expected {low} to {high}")
    return int(number)


def _number(value: Mapping[str, Any], key: str) -> float:
    number = value.get(key)
    # Integers are unbounded in JSON, and 1e999 is read as infinity.
    if isinstance(number, bool) or not isinstance(number, int | float) or not abs(number) < 1e300:
        raise ValueError(f"{key!r} is {_short(number) if key in value else 'missing'}, expected a finite number")
    return float(number)


def _short(value: Any) -> str:
    """``value`` for an error text: of bounded length whatever it is."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**18:
        return "an integer of more than 18 digits"
    if isinstance(value, list | dict):
        value = f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}" if len(value) > 8 else value
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
