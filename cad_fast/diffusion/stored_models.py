"""What a pipeline's folder holds, read from names and headers alone: which files of weights, and in which dtype."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..files import read_json

DENOISERS = ("unet", "transformer")


STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")


# safetensors' names of floating dtypes. Those of 8 bits are storage alone: nothing computes in them.
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "BF16": "bfloat16",
    "F16": "float16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}


# quant_method of a component's config -> the module that reads such weights, and what pip calls it.
_QUANTISERS = {
    "bitsandbytes": ("bitsandbytes", "bitsandbytes"),
    "torchao": ("torchao", "torchao"),
    "gguf": ("gguf", "gguf"),
    "quanto": ("optimum.quanto", "optimum-quanto"),
    "modelopt": ("modelopt", "nvidia-modelopt"),
    "auto-round": ("auto_round", "auto-round"),
    "sdnq": ("sdnq", "sdnq"),
}


_SHARD = re.compile(r"-\d{5}-of-\d{5}$")


@dataclass(frozen=True)
class Weights:
    """The files of weights of one component: variants by name (None: the plain ones), and those of other formats."""

    variants: dict[str | None, list[str]] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, names: Collection[str]) -> Weights:
        """Sorts the names of one folder's files; indices of sharded weights are no files of weights."""
        weights = cls()
        for name in sorted(names):
            stem, _, ending = name.rpartition(".")
            if ending in ("bin", "pt", "pth", "ckpt", "msgpack", "h5"):
                if stem.split(".")[0].split("-")[0] in STEMS:
                    weights.others.append(name)
            elif ending == "safetensors":
                # model.fp16-00001-of-00002 and, as older diffusers wrote it, model-00001-of-00002.fp16
                parts = _SHARD.sub("", stem).split(".", 1)
                if _SHARD.sub("", parts[0]) in STEMS:
                    weights.variants.setdefault(parts[1] if len(parts) > 1 else None, []).append(name)
        return weights


@dataclass(frozen=True)
class StoredModel:
    """A pipeline's files: those in ``folder``, or those that a Hub repository lists (then ``folder`` is None)."""

    name: str
    files: frozenset[str]
    folder: Path | None
    components: tuple[str, ...]

    @classmethod
    def of(cls, folder: Path, name: str, skip: Collection[str] = ()) -> StoredModel:
        """``skip``: components that are not read from the folder. Raises ValueError for a damaged model_index.json."""
        parts = components_of(folder / "model_index.json")
        files = frozenset(
            f"{part}/{file.name}" for part in parts if (folder / part).is_dir() for file in (folder / part).iterdir()
        )
        return cls(name, files, folder, tuple(part for part in parts if part not in skip))

    @classmethod
    def listed(cls, name: str, files: Collection[str], index: Path, skip: Collection[str] = ()) -> StoredModel:
        """Of a Hub repository with these files, of which only ``index``, its model_index.json, is here."""
        parts = components_of(index)
        return cls(name, frozenset(files), None, tuple(part for part in parts if part not in skip))

    def weights(self) -> dict[str, Weights]:
        """The weights of each component that has any."""
        of_parts = {}
        for part in self.components:
            names = [file.split("/")[1] for file in self.files if file.startswith(f"{part}/") and file.count("/") == 1]
            weights = Weights.of(names)
            if weights.variants or weights.others:
                of_parts[part] = weights
        return of_parts

    def require_weights(self, variant: str | None) -> None:
        """Raises FileNotFoundError naming the component without weights that can be read, and what there is instead."""
        weights = self.weights()
        there = sorted({name for each in weights.values() for name in each.variants if name is not None})
        if variant is not None and variant not in there:
            known = f"it has the variants {', '.join(there)}" if there else "it has no variants: leave it out"
            raise FileNotFoundError(f"{self.name} has no weights of variant {variant!r}: {known}")
        for part, each in weights.items():
            if variant in each.variants or None in each.variants:
                continue
            if each.variants:
                names = ", ".join(str(name) for name in each.variants)
                least = "fp16" if "fp16" in each.variants else next(iter(each.variants))
                raise FileNotFoundError(
                    f"{self.name}: its {part} has weights of variant {names} only: pass variant={least!r} "
                    f"(--variant {least})"
                )
            raise FileNotFoundError(
                f"{self.name}: its {part} holds {each.others[0]} and no safetensors. Weights are read from safetensors "
                "only, as other formats can run code. Convert it where you trust it: "
                f"DiffusionPipeline.from_pretrained({self.name!r}, use_safetensors=False)"
                ".save_pretrained(FOLDER, safe_serialization=True)"
            )

    def denoiser(self) -> str | None:
        """The folder of the denoiser; None when there is none of the known names."""
        return next((part for part in DENOISERS if part in self.components), None)

    def dtype(self, variant: str | None) -> str | None:
        """The floating dtype that most of the denoiser's stored weights have; None when it is not known.

        Raises FileNotFoundError naming the file that an index of sharded weights misses, ValueError for a damaged one.
        """
        part = self.denoiser()
        weights = self.weights().get(part) if part is not None else None
        if weights is None or self.folder is None:
            return None
        names = weights.variants.get(variant) or weights.variants.get(None) or []
        folder = self.folder / str(part)
        self._require_shards(folder, variant)
        sizes: dict[str, int] = {}
        for name in names:
            for dtype, size in _sizes(folder / name).items():
                sizes[dtype] = sizes.get(dtype, 0) + size
        floating = {_DTYPES[dtype]: size for dtype, size in sizes.items() if dtype in _DTYPES}
        return max(floating, key=lambda dtype: floating[dtype]) if floating else None

    def _require_shards(self, folder: Path, variant: str | None) -> None:
        for stem in STEMS:
            index = folder / f"{stem}.safetensors.index{'' if variant is None else f'.{variant}'}.json"
            if not index.is_file():
                continue
            names = read_json(index).get("weight_map")
            if not isinstance(names, dict):
                raise ValueError(f"{index} is damaged: it has no 'weight_map'")
            missing = sorted({str(name) for name in names.values() if not (folder / str(name)).is_file()})
            if missing:
                raise FileNotFoundError(f"{self.name}: {index.name} names {missing[0]}, which is not in {folder}")

    def quantisations(self) -> dict[str, str]:
        """{component: method} of those whose config says that their weights are quantised."""
        methods: dict[str, str] = {}
        for part in self.components:
            path = None if self.folder is None else self.folder / part / "config.json"
            config = read_json(path).get("quantization_config") if path is not None and path.is_file() else None
            if isinstance(config, dict):
                eight = config.get("load_in_8bit") or config.get("load_in_4bit")
                methods[part] = str(config.get("quant_method") or ("bitsandbytes" if eight else "an unnamed method"))
        return methods

    def quantised(self) -> tuple[str, ...]:
        return tuple(self.quantisations())

    def require_quantisers(self) -> None:
        """Raises ImportError naming the package that quantised weights need and that is not installed."""
        for part, method in self.quantisations().items():
            module, package = _QUANTISERS.get(method.removesuffix("_4bit").removesuffix("_8bit"), (None, None))
            if module is not None and not _installed(module):
                raise ImportError(
                    f"{self.name}: its {part} is quantised by {method}, which needs {package}: pip install {package}",
                    name=package,
                )


def components_of(index: Path) -> list[str]:
    """The components that a model_index.json names. Raises ValueError when it is damaged."""
    return [key for key, value in read_json(index).items() if isinstance(value, list) and len(value) == 2 and value[1]]


def absent_components(index: Path) -> dict[str, None]:
    """The components that a model_index.json names as absent, as keywords of ``from_pretrained``.

    diffusers wants to be told so of those that a pipeline could have, such as the third text encoder of Stable
    Diffusion 3. Raises ValueError when the file is damaged.
    """
    return {key: None for key, value in read_json(index).items() if value == [None, None]}


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package around it
        return False


def _sizes(path: Path) -> dict[str, int]:
    """{dtype as safetensors writes it: number of elements} of one file. Raises ValueError for a damaged one."""
    sizes: dict[str, int] = {}
    try:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():
                part = file.get_slice(key)
                count = 1
                for side in part.get_shape():
                    count *= side
                sizes[part.get_dtype()] = sizes.get(part.get_dtype(), 0) + count
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is truncated or not a safetensors file: {error}") from error
    return sizes
