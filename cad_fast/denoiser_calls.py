"""One call of a denoiser as plain data: its arguments by name, which of them belong to rows, and its outputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

TIMESTEP_NAMES = ("timestep", "timesteps", "t", "timestep_ratio")
# Arguments that hold positions or layer numbers: shared by all rows even where their length happens to equal the rows.
SHARED_NAMES = frozenset({"img_ids", "txt_ids", "image_rotary_emb", "rotary_emb", "freqs_cis", "skip_layers"})
SCALARS = (type(None), bool, int, float, str)


def denoiser_of(pipeline_or_module: Any) -> nn.Module:
    """The denoiser: ``pipeline.unet``, ``pipeline.transformer``, or the module itself.

    Raises TypeError naming what was found when there is neither.
    """
    if isinstance(pipeline_or_module, nn.Module):
        return pipeline_or_module
    for name in ("unet", "transformer"):
        denoiser = getattr(pipeline_or_module, name, None)
        if isinstance(denoiser, nn.Module):
            return denoiser
    found = sorted(getattr(pipeline_or_module, "components", None) or {})
    parts = f"whose parts are {', '.join(found)}" if found else "which is neither a pipeline nor a torch module"
    raise TypeError(
        f"no denoiser found: expected a pipeline with a `unet` or a `transformer`, or the module itself; "
        f"got {type(pipeline_or_module).__name__}, {parts}"
    )


@dataclass(frozen=True)
class ForwardSignature:
    """How a denoiser's forward names its arguments: the sample comes first, the timestep is known by name."""

    signature: inspect.Signature
    sample_key: str
    timestep_key: str
    owner: str

    @classmethod
    def of(cls, denoiser: nn.Module) -> ForwardSignature:
        """Raises ValueError naming the parameters found when the sample or the timestep is not among them."""
        module = getattr(denoiser, "_orig_mod", denoiser)  # what torch.compile wraps
        owner = type(module).__name__
        signature = inspect.signature(module.forward)
        variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        names = [name for name, parameter in signature.parameters.items() if parameter.kind not in variadic]
        timestep_key = next((name for name in TIMESTEP_NAMES if name in names), None)
        if not names or timestep_key is None or names[0] == timestep_key:
            raise ValueError(
                f"{owner}.forward takes ({', '.join(names)}): expected the sample first, "
                f"and a timestep named one of {', '.join(TIMESTEP_NAMES)}"
            )
        return cls(signature, names[0], timestep_key, owner)

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of one call by name. Raises ValueError when the sample is not one tensor, or absent."""
        bound = self.signature.bind_partial(*args, **kwargs).arguments
        inputs: dict[str, Any] = {}
        for name, value in bound.items():
            kind = self.signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_POSITIONAL and value:
                raise ValueError(f"{self.owner} was called with nameless arguments (*{name}), which cannot be recorded")
            if kind is inspect.Parameter.VAR_KEYWORD:
                inputs.update(value)
            elif kind is not inspect.Parameter.VAR_POSITIONAL:
                inputs[name] = value
        sample = inputs.get(self.sample_key)
        if not isinstance(sample, Tensor) or sample.ndim < 2:
            raise ValueError(
                f"{self.owner}'s first argument {self.sample_key!r} is a {type(sample).__name__}, expected one tensor "
                "whose rows are the samples; models that take a list of tensors are not supported"
            )
        if self.timestep_key not in inputs:
            raise ValueError(f"{self.owner} was called without {self.timestep_key!r}")
        return inputs


def _has_tensor(tree: Any) -> bool:
    if isinstance(tree, dict):
        return any(_has_tensor(value) for value in tree.values())
    if isinstance(tree, (list, tuple)):
        return any(_has_tensor(value) for value in tree)
    return isinstance(tree, Tensor)


def map_leaves(tree: Any, function: Callable[[str, Any], Any], path: str = "") -> Any:
    """``tree`` with each leaf replaced by ``function(path, leaf)``.

    A leaf is a tensor, or anything that holds no tensor at any depth; a path reads ``added_cond_kwargs.time_ids``.
    """
    if isinstance(tree, Tensor) or not _has_tensor(tree):
        return function(path, tree)
    if isinstance(tree, dict):
        return {key: map_leaves(value, function, f"{path}.{key}" if path else str(key)) for key, value in tree.items()}
    return type(tree)([map_leaves(value, function, f"{path}.{i}") for i, value in enumerate(tree)])


def map_arguments(inputs: Mapping[str, Any], function: Callable[[str, Any], Any]) -> dict[str, Any]:
    """``map_leaves`` over each argument by name (so that an argument without tensors is one leaf, not the whole)."""
    return {name: map_leaves(value, function, name) for name, value in inputs.items()}


def leaves(inputs: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(path, leaf) of each leaf of the arguments."""
    found: list[tuple[str, Any]] = []
    map_arguments(inputs, lambda path, leaf: found.append((path, leaf)))
    return iter(found)


def same_leaf(first: Any, second: Any) -> bool:
    """Whether two leaves, or two trees of them, hold the same values."""
    if first is second:
        return True
    if isinstance(first, Tensor) or isinstance(second, Tensor):
        if not (isinstance(first, Tensor) and isinstance(second, Tensor)):
            return False
        same_kind = first.shape == second.shape and first.dtype == second.dtype
        return same_kind and torch.equal(first, second.to(first.device))
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(same_leaf(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)):
        return len(first) == len(second) and all(same_leaf(a, b) for a, b in zip(first, second, strict=True))
    return type(first) is type(second) and bool(first == second)


def find_row_paths(inputs: Mapping[str, Any], rows: int) -> frozenset[str]:
    """Paths of the leaves with one entry per row: tensors whose first dimension is ``rows``, lists of that length."""

    def belongs_to_rows(path: str, leaf: Any) -> bool:
        if SHARED_NAMES & set(path.split(".")):
            return False
        if isinstance(leaf, Tensor):
            return leaf.ndim > 0 and len(leaf) == rows
        return isinstance(leaf, list) and len(leaf) == rows

    return frozenset(path for path, leaf in leaves(inputs) if belongs_to_rows(path, leaf))


def output_tensor(output: Any) -> Tensor:
    """The tensor in what a denoiser returned: itself, its ``.sample``, or the first of a tuple.

    Raises TypeError naming the type otherwise.
    """
    found = output
    if not isinstance(found, Tensor):
        found = output[0] if isinstance(output, tuple) and output else getattr(output, "sample", None)
    if not isinstance(found, Tensor):
        raise TypeError(f"the denoiser returned a {type(output).__name__}, expected a tensor, a tuple or `.sample`")
    return found


def timestep_value(value: Any) -> float | Tensor:
    """A denoiser's timestep argument as a number, or float32 [rows] where rows differ (of several in a row largest)."""
    if not isinstance(value, Tensor):
        return float(value)
    flat = value.detach().cpu().float().reshape(len(value), -1).amax(1) if value.ndim else value.detach().cpu().float()
    return float(flat.flatten()[0]) if bool((flat == flat.flatten()[0]).all()) else flat


def device_of(module: nn.Module) -> torch.device | None:
    """Where the module's parameters are; None when they are offloaded or there are none (then nothing is moved)."""
    device = next((parameter.device for parameter in module.parameters()), None)
    return None if device is None or device.type == "meta" or hasattr(module, "_hf_hook") else device


@dataclass(eq=False, repr=False)
class DenoiserCall:
    """What one denoiser call was given and gave, for the conditional rows [B, ...] of one timestep.

    ``timestep`` is the value the denoiser was given (Flux: 0 to 1; most others: 0 to 1000), one number, or float32 [B]
    where rows differ. ``inputs`` are its arguments by name, with nested dicts, lists and tuples of tensors.
    ``unconditional_*`` are None without classifier-free guidance; ``output`` and ``target`` are None where
    there is none (calls made by ``renoise`` have a target and no output, recorded ones the reverse); ``base_output``
    comes from ``with_base``. ``row_paths`` names the inputs with one entry per row, ``unconditional_row_paths`` the
    unconditional ones (which may share one negative prompt); they are found by length if not given.
    """

    step: int
    timestep: float | Tensor
    inputs: dict[str, Any]
    sample_key: str
    output: Tensor | None
    unconditional_inputs: dict[str, Any] | None = None
    unconditional_output: Tensor | None = None
    base_output: Tensor | None = None
    target: Tensor | None = None
    timestep_key: str = "timestep"
    row_paths: frozenset[str] | None = None
    unconditional_row_paths: frozenset[str] | None = None

    def __post_init__(self) -> None:
        sample = self.inputs.get(self.sample_key)
        if not isinstance(sample, Tensor) or sample.ndim < 2:
            raise ValueError(f"step {self.step}: the input {self.sample_key!r} is not a tensor with rows")
        if self.row_paths is None:
            self.row_paths = find_row_paths(self.inputs, len(sample))
        if self.unconditional_row_paths is None:
            self.unconditional_row_paths = find_row_paths(self.unconditional_inputs or {}, len(sample))
        for name in OUTPUT_NAMES:
            tensor = getattr(self, name)
            if tensor is not None and (tensor.ndim < 1 or len(tensor) != len(sample)):
                raise ValueError(
                    f"step {self.step}: {name} has shape {list(tensor.shape)}, expected {len(sample)} rows"
                )

    def __repr__(self) -> str:
        held = [name for name in OUTPUT_NAMES if getattr(self, name) is not None]
        return f"DenoiserCall(step={self.step}, timestep={self.timestep}, rows={self.rows}, with {', '.join(held)})"

    @property
    def sample(self) -> Tensor:
        """The noisy sample given to the denoiser, [B, ...]."""
        return self.inputs[self.sample_key]

    @property
    def rows(self) -> int:
        return len(self.sample)

    def prediction(self, output: Tensor) -> Tensor:
        """The part of a denoiser output [R, C or 2C, ...] that is its prediction: without learned variances.

        Models with twice as many output as input channels (PixArt, DiT) predict a variance in the second half, which
        pipelines drop.
        """
        channels = self.sample.shape[1] if self.sample.ndim == output.ndim == 4 else None
        return output[:, :channels] if channels is not None and output.shape[1] == 2 * channels else output

    def run(self, denoiser: nn.Module, **overrides: Any) -> Tensor:
        """Call ``denoiser`` on the conditional inputs, some replaced by ``overrides``; returns its output tensor.

        Tensors are moved to the denoiser's device and keep their dtype. Whether gradients are kept is the caller's
        choice. Raises TypeError when the denoiser returns no tensor, ValueError when it has another dtype than the one
        that was recorded and cannot take these inputs.
        """
        device = device_of(denoiser)
        arguments: dict[str, Any] = {**self.inputs, **overrides}
        if device is not None:
            arguments = map_arguments(arguments, lambda _, leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf)
        try:
            return output_tensor(denoiser(**arguments))
        except RuntimeError as error:
            weight = next((each for each in denoiser.parameters() if each.is_floating_point()), self.sample)
            if "type" not in str(error) or weight.dtype == self.sample.dtype:
                raise
            raise ValueError(
                f"the recording is of {self.sample.dtype}, the denoiser of {weight.dtype}: load the model in the "
                "recording's dtype, or record again"
            ) from error

    def select_rows(self, rows: Sequence[int] | Tensor) -> DenoiserCall:
        """The same call with the given rows in the given order; a row may be repeated. Raises IndexError."""
        return self._on_rows(RowPicker(check_rows(rows, self.rows)))

    def _on_rows(self, pick: Callable[[Any], Any]) -> DenoiserCall:
        def on_rows(inputs: dict[str, Any], paths: frozenset[str] | None) -> dict[str, Any]:
            return map_arguments(inputs, lambda path, leaf: pick(leaf) if path in (paths or ()) else leaf)

        without = self.unconditional_inputs
        changes: dict[str, Any] = {name: _optional(pick, getattr(self, name)) for name in OUTPUT_NAMES}
        return replace(
            self,
            timestep=pick(self.timestep) if isinstance(self.timestep, Tensor) else self.timestep,
            inputs=on_rows(self.inputs, self.row_paths),
            unconditional_inputs=None if without is None else on_rows(without, self.unconditional_row_paths),
            **changes,
        )


OUTPUT_NAMES = ("output", "unconditional_output", "base_output", "target")


def _optional(function: Callable[[Any], Any], value: Any) -> Any:
    return None if value is None else function(value)


def check_rows(rows: Sequence[int] | Tensor, n_rows: int) -> list[int]:
    """``rows`` as a list of non-negative integers. Raises ValueError when empty, IndexError outside the rows."""
    listed = [
        row if isinstance(row, int) else int(row) for row in (rows.tolist() if isinstance(rows, Tensor) else rows)
    ]
    if any(isinstance(row, bool) for row in listed):
        raise ValueError("rows are given by their numbers, not by a mask")
    if not listed:
        raise ValueError("no rows were selected")
    outside = [row for row in listed if not -n_rows <= row < n_rows]
    if outside:
        raise IndexError(f"rows {outside} are not among the {n_rows} rows recorded")
    return [row % n_rows for row in listed]


class RowPicker:
    """Picks rows out of tensors [B, ...] and lists; what is one object before is one object after."""

    def __init__(self, rows: list[int]) -> None:
        self.rows = rows
        self._done: dict[int, tuple[Any, Any]] = {}  # keeps the original alive, so that its id stays its own

    def __call__(self, value: Any) -> Any:
        if id(value) not in self._done:
            if isinstance(value, Tensor):
                picked: Any = value.index_select(0, torch.tensor(self.rows, device=value.device))
            else:
                picked = [value[row] for row in self.rows]
            self._done[id(value)] = (value, picked)
        return self._done[id(value)][1]
