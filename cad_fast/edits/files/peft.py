"""Edits of linear layers as PEFT adapters of single weights, and such adapters as edits: see ``peft_formats``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...components.fingerprint import Fingerprint, fused_adapter
from ...components.module_components import ModuleComponents
from ...components.space import ComponentSpace
from ...diffusion.denoisers import denoiser_of
from ...diffusion.structure import base_modules
from ...extras import require
from ...files import check_tensor_header, json_text, require_writable_folder, text_writer, write_together
from ..data import AnyEdit, EditData
from ..weights import active_edits, intact_fingerprint
from .peft_formats import FORMATS, SparseFormat, format_named, format_of

ADAPTER_NAME = "adapter_model.safetensors"
_FACTOR = "cad_fast_factor"  # of the header
_PREFIX = "base_model.model."  # what PeftModel puts before the names of the model it wraps


def export_peft(
    edit: EditData, pipeline: Any, folder: str | Path, *, strength: float = 1.0, format: str = "shira"
) -> Path:
    """Write ``edit`` as an adapter: ``adapter_config.json`` and ``adapter_model.safetensors``; returns ``folder``.

    ``pipeline`` (or its denoiser) is the model of the edit, whose weights the adapter's deltas are differences from.
    ``format`` is "shira" or "supertuning". SHiRA stores for every linear the same number r of values per row and
    column, Super-Tuning the same share of every weight, so those of a module beyond its edited weights are zeros.
    Deltas are computed in the model's dtype: at factor 0 and strength 1 a weight plus its delta is exactly zero;
    otherwise it is the edited weight up to rounding. ``peft.PeftModel.from_pretrained(denoiser, folder)`` reads it;
    ``load_peft`` puts it into a denoiser without wrapping it.
    Raises ValueError naming the modules that are not linear, or too small for the r that the others need; ValueError
    when the edit is of another model, strength is not finite, or there is no such format; ImportError without peft, or
    with one that does not know the format.
    """
    if not math.isfinite(strength):
        raise ValueError(f"strength is {strength}, expected a finite number")
    kind = format_named(format)
    make_config = _config_class(require("peft", "peft"), kind)
    denoiser = denoiser_of(pipeline)
    edit.space.fingerprint.require_same(intact_fingerprint(denoiser), f"edit {edit.name!r}")
    modules = edit.space.modules(denoiser)
    others = [name for name, module in modules.items() if not isinstance(module, nn.Linear)]
    if others:
        raise ValueError(
            f"edit {edit.name!r} cannot be a PEFT adapter: {kind.title} has linear layers only, these are none: "
            f"{', '.join(others[:8])}{f' and {len(others) - 8} more' if len(others) > 8 else ''}"
        )
    indices = edit.weight_indices()
    size = kind.size(edit, {name: len(own) for name, own in indices.items()})
    factor = 1 - strength * (1 - edit.factor)
    tensors: dict[str, Tensor] = {}
    for name, module in modules.items():
        weight = module.weight.detach()
        flat, deltas = _padded(weight, indices[name], factor, kind.room(size, tuple(weight.shape)))
        tensors[f"{_PREFIX}{name}.{kind.values}"] = deltas
        tensors[f"{_PREFIX}{name}.{kind.places}"] = kind.stored(flat, weight.shape[1])
    folder = require_writable_folder(folder)
    config = make_config(**size, target_modules=list(modules), inference_mode=True)
    _write_adapter(folder, config, tensors, factor)
    return folder


def _config_class(peft: Any, kind: SparseFormat) -> Any:
    found = getattr(peft, kind.config_class, None)
    if found is None:
        raise ImportError(f"peft {peft.__version__} does not know {kind.title}: install a later one", name="peft")
    return found


def _padded(weight: Tensor, indices: Tensor, factor: float, room: int) -> tuple[Tensor, Tensor]:
    """Flat places int64 [room], ascending, and deltas of the same length; beyond the edited weights zeros elsewhere."""
    indices = indices.to(weight.device)
    values = weight.flatten()[indices]
    edited = torch.zeros_like(values) if factor == 0 else values * factor
    free = torch.ones(weight.numel(), dtype=torch.bool, device=weight.device)
    free[indices] = False
    padding = free.nonzero().flatten()[: room - len(indices)]
    order = torch.cat([indices, padding]).sort()
    deltas = torch.cat([edited - values, values.new_zeros(len(padding))])[order.indices]
    return order.values.cpu(), deltas.cpu()


def _write_adapter(folder: Path, config: Any, tensors: dict[str, Tensor], factor: float) -> None:
    """Both files appear, or none. The factor stands in the header, since the deltas tell it but for rounding."""
    from safetensors.torch import save_file

    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    ready = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write_together(
        {
            folder / ADAPTER_NAME: lambda part: save_file(ready, part, metadata={_FACTOR: repr(factor)}),
            folder / "adapter_config.json": text_writer(json_text(plain)),
        }
    )


def load_peft(pipeline: Any, folder: str | Path, adapter_name: str = "edit") -> None:
    """Put an adapter of ``folder`` beside the weights of the pipeline's denoiser, without wrapping the model.

    It is one of SHiRA or Super-Tuning.
    The pipeline then runs with it; diffusers' ``disable_adapters``, ``enable_adapters`` and ``delete_adapters`` of the
    denoiser work on it. (The loaders of diffusers, ``load_lora_weights`` and ``load_lora_adapter``, read LoRA only.)
    Raises FileNotFoundError, or ValueError when the adapter does not fit; ImportError without peft.
    """
    peft = require("peft", "peft")
    denoiser = denoiser_of(pipeline)
    config, _, tensors = _read_adapter(Path(folder), dict(denoiser.named_modules()))
    peft.inject_adapter_in_model(config, denoiser, adapter_name)
    peft.set_peft_model_state_dict(denoiser, tensors, adapter_name=adapter_name)
    denoiser._hf_peft_config_loaded = True  # type: ignore[assignment]  # what diffusers' adapter methods ask for


@torch.no_grad()
def import_peft(pipeline: Any, folder: str | Path, name: str, *, kind: type[AnyEdit]) -> AnyEdit:
    """See ``Edit.from_peft``."""
    folder, denoiser = Path(folder), denoiser_of(pipeline)
    denoiser = getattr(denoiser, "_orig_mod", denoiser)
    fused = fused_adapter(denoiser)
    if fused is not None or active_edits(denoiser):
        raise ValueError(
            f"{folder} holds differences from the weights as they were, but {fused or 'the denoiser'} has an adapter "
            "or an edit fused into its weights: take it out first"
        )
    fingerprint = Fingerprint.of(denoiser)
    layers = base_modules(denoiser)
    _, kind_of_adapter, tensors = _read_adapter(folder, layers)
    entries, components, offset = [], {}, 0
    changes: list[_Change] = []
    for module, layer in layers.items():
        values = tensors.get(f"{module}.{kind_of_adapter.values}")
        if values is None:
            continue
        flat = kind_of_adapter.flat(tensors[f"{module}.{kind_of_adapter.places}"], tuple(layer.weight.shape))
        assert flat is not None, "places outside were refused"
        indices, change = _changes_of(folder, module, layer.weight.detach().cpu(), flat, values)
        if len(indices):
            entries.append(ModuleComponents(module, "weight", tuple(layer.weight.shape), 1, offset))
            offset += entries[-1].count
            components[module] = indices
            changes.append(change)
    if not changes:
        raise ValueError(f"{folder} changes no weight: there is nothing to edit")
    factor = _common_factor(folder, changes, _noted_factor(folder))
    space = ComponentSpace(entries, fingerprint)
    return kind(name, space, components, factor, {"method": f"PEFT adapter ({kind_of_adapter.title})", "trust": []})


class _Change(NamedTuple):
    """Weights [k] of one module, and what an adapter adds to each, in the narrower dtype of the two."""

    weights: Tensor
    deltas: Tensor


def _changes_of(folder: Path, module: str, weight: Tensor, places: Tensor, values: Tensor) -> tuple[Tensor, _Change]:
    """The flat places int64 [k], ascending, that an adapter changes in a module, and how."""
    flat, order = places.sort()
    deltas = values[order]
    if bool((flat[1:] == flat[:-1]).any()):
        raise ValueError(f"{folder}: {module} names a weight twice")
    if not bool(torch.isfinite(deltas).all()):
        raise ValueError(f"{folder}: {module} has changes that are not finite")
    # Compared in the lower of the two precisions: the same weights in half differ by rounding alone.
    wide = torch.promote_types(weight.dtype, deltas.dtype)
    narrow = deltas.dtype if weight.dtype == wide else weight.dtype
    changed = deltas != 0
    flat, deltas = flat[changed], deltas[changed].to(narrow)
    weights = weight.flatten()[flat].to(narrow)
    if bool((weights == 0).any()):
        raise ValueError(
            f"{folder} gives values to {int((weights == 0).sum())} weights of {module} that are zero in the model: an "
            "edit multiplies weights, so that zeros stay zero. Use the adapter as it is (load_peft)"
        )
    return flat, _Change(weights, deltas)


def _noted_factor(folder: Path) -> float | None:
    """The factor that ``export_peft`` noted in the header; None in an adapter from elsewhere."""
    from safetensors import safe_open

    with safe_open(folder / ADAPTER_NAME, framework="pt") as file:
        noted = (file.metadata() or {}).get(_FACTOR)
    try:
        factor = None if noted is None else float(noted)
    except ValueError as error:
        raise ValueError(f"{folder / ADAPTER_NAME} has a damaged header: {error}") from error
    if factor is not None and not math.isfinite(factor):
        raise ValueError(f"{folder / ADAPTER_NAME} has a damaged header: its factor is {factor}")
    return factor


def _common_factor(folder: Path, changes: Sequence[_Change], noted: float | None) -> float:
    """The factor that all weights are multiplied by: the noted one if it gives these changes, or a short one that does.

    Raises:
        ValueError: they are multiplied by different ones, by more than rounding.
    """
    if all(torch.equal(change.deltas, -change.weights) for change in changes):
        return 0.0
    pairs = [(change.weights.double(), change.deltas.double()) for change in changes]
    factor = 1 + float(sum((w * d).sum() for w, d in pairs) / sum((w * w).sum() for w, _ in pairs))
    candidates = [] if noted is None else [noted]
    for candidate in candidates + [float(f"{factor:.{digits}g}") for digits in range(1, 17)]:
        if all(torch.equal(w * candidate - w, d) for w, d in changes):
            return candidate
    for change, (w, d) in zip(changes, pairs, strict=True):
        # A product is rounded, and so is its difference from the weight.
        rounding = torch.finfo(change.deltas.dtype).eps * ((factor * w).abs() + d.abs())
        if bool(((w + d - factor * w).abs() > rounding).any()):
            ratios = torch.cat([1 + d / w for w, d in pairs])
            raise ValueError(
                f"{folder} multiplies weights by different factors, {float(ratios.min()):.3g} to "
                f"{float(ratios.max()):.3g}, and an edit has one for all: use the adapter as it is (load_peft)"
            )
    return factor


def _read_adapter(folder: Path, modules: Mapping[str, nn.Module]) -> tuple[Any, SparseFormat, dict[str, Tensor]]:
    """The config of an adapter, its format, and its tensors by name, all checked. Errors as for ``load_peft``."""
    peft = require("peft", "peft")
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    for name in ("adapter_config.json", ADAPTER_NAME):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} holds no {name}: expected the folder of an adapter of PEFT")
    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{folder / 'adapter_config.json'} is damaged: {error}") from error
    kind = format_of(config.peft_type)
    if kind is None:
        known = ", ".join(each.peft_type for each in FORMATS.values())
        raise ValueError(f"{folder} holds a {config.peft_type} adapter, expected one of single weights: {known}")
    refusal = kind.refusal(vars(config))
    if refusal is not None:
        raise ValueError(f"{folder} {refusal}")
    check_tensor_header(folder / ADAPTER_NAME)
    try:
        stored = load_file(folder / ADAPTER_NAME)
    except SafetensorError as error:
        raise ValueError(f"{folder / ADAPTER_NAME} is truncated or not a safetensors file: {error}") from error
    tensors = {name.removeprefix(_PREFIX): _places(name, tensor) for name, tensor in stored.items()}
    _check_adapter(folder, config, kind, tensors, modules)
    return config, kind, tensors


def _places(name: str, tensor: Tensor) -> Tensor:
    """Places that PEFT wrote as float32, as it does for SHiRA on Windows, as int32; other tensors as they are."""
    if not name.endswith("_indices") or tensor.dtype != torch.float32:
        return tensor
    places = tensor.nan_to_num(-1, -1, -1).clamp(-1, 2**24).to(torch.int32)
    return places if torch.equal(places.float(), tensor) else tensor


def _meant(targets: Any, layers: Iterable[str]) -> set[str]:
    """The layers that a config's list of modules means: by their paths, or by the ends of these."""
    if not isinstance(targets, set | list):
        return set()
    return {name for name in layers if any(name == each or name.endswith(f".{each}") for each in targets)}


def _check_adapter(
    folder: Path, config: Any, kind: SparseFormat, tensors: dict[str, Tensor], modules: Mapping[str, nn.Module]
) -> None:
    """Raises ValueError naming what does not fit: PEFT itself checks no place, and writes wherever they point."""
    named = {key.rpartition(".")[0] for key in tensors}
    if _meant(config.target_modules, [*modules, *named]) != named:
        raise ValueError(f"{folder}: adapter_config.json names other modules than {ADAPTER_NAME} has")
    for key in tensors:
        name, _, last = key.rpartition(".")
        module = modules.get(name)
        if not isinstance(module, nn.Linear) or last not in (kind.values, kind.places):
            raise ValueError(f"{folder} holds {key[:200]!r}, which fits no linear of the denoiser")
        values, places = tensors.get(f"{name}.{kind.values}"), tensors.get(f"{name}.{kind.places}")
        if values is None or places is None or values.ndim != 1 or list(places.shape) != kind.places_shape(len(values)):
            raise ValueError(f"{folder}: the weights and places of {name} do not belong together")
        shape = tuple(module.weight.shape)
        if len(values) != _room(folder, kind, config, shape):
            raise ValueError(f"{folder}: {name} has {len(values)} weights, which its config is not for")
        if places.dtype != torch.int32 or not values.is_floating_point():
            raise ValueError(f"{folder}: {name} has places of {places.dtype} and weights of {values.dtype}")
        if kind.flat(places, shape) is None:
            raise ValueError(f"{folder}: {name} has places outside its weight of shape {list(shape)}")


def _room(folder: Path, kind: SparseFormat, config: Any, shape: tuple[int, ...]) -> int:
    try:
        return kind.room(vars(config), shape)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{folder}: adapter_config.json says no size that can be: {error}") from error
