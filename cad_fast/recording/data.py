"""A recording: the denoiser calls of one generation, which can be selected from, joined, saved and replayed."""

from __future__ import annotations

import io
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from ..components.fingerprint import Fingerprint
from ..diffusion.generation import Generation
from ..diffusion.timesteps import TimestepWindow, Window
from ..diffusion.trees import SCALARS, leaves
from ..files import json_text, png_bytes, read_json, read_tensors, tensors_writer, text_writer, write_together
from .call import OUTPUT_NAMES, DenoiserCall, RowPicker, check_rows
from .joining import ROW_PATH_NAMES, Joiner
from .state import check_call, check_state, require_tensors

FORMAT = 1
# Replaying in another batch size, or with TF32, moves an output by less than this, relative to its norm.
REPLAY_TOLERANCE = {torch.float64: 1e-3, torch.float32: 2e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}


@dataclass(eq=False, repr=False)
class Recording:
    """The denoiser calls that generated ``n_rows`` images, one call per step, each with all rows.

    ``generation`` has the steps and the guidance that were used (None where the pipeline has no guidance) and the
    pipeline's further arguments, those with one entry per row in ``row_kwargs``, as far as JSON can hold them.
    ``base_prompts`` are those of ``with_base``, one per row.
    ``prediction_type`` is epsilon, v_prediction, sample or flow_prediction, None where the scheduler does not tell;
    ``latents`` [n_rows, ...] are the final ones (of ``renoise``: the clean ones); ``denoiser_calls`` counts the
    denoiser evaluations really made: a guided evaluation of one batch at one step counts one. ``not_kept`` names the
    arguments that JSON cannot hold, such as ``prompt_embeds``.
    """

    calls: list[DenoiserCall]
    prompts: list[str]
    seeds: list[int]
    generation: Generation
    scheduler_config: dict[str, Any]
    prediction_type: str | None
    fingerprint: Fingerprint
    images: list[Image.Image] | None = None
    latents: Tensor | None = None
    denoiser_calls: int = 0
    row_kwargs: dict[str, list[Any]] = field(default_factory=dict)
    not_kept: list[str] = field(default_factory=list)
    base_prompts: list[str] | None = None

    def __post_init__(self) -> None:
        if not self.calls or not self.prompts:
            raise ValueError("a recording needs at least one denoiser call and one row")
        if self.generation.num_inference_steps is None:
            raise ValueError("generation has no num_inference_steps, expected the number that was used")
        lengths = {f"step {call.step}": call.rows for call in self.calls}
        lengths |= {"seeds": len(self.seeds)} | {name: len(values) for name, values in self.row_kwargs.items()}
        lengths |= {name: len(value) for name in _PER_ROW if (value := getattr(self, name)) is not None}
        for name, length in lengths.items():
            if length != self.n_rows:
                raise ValueError(f"{name} has {length} rows, but there are {self.n_rows} prompts")

    def __repr__(self) -> str:
        shape = list(self.calls[0].sample.shape[1:])
        return f"Recording({self.n_rows} rows, {self.n_steps} steps, samples {shape}, {self.nbytes / 2**20:.1f} MiB)"

    @property
    def n_rows(self) -> int:
        return len(self.prompts)

    @property
    def n_steps(self) -> int:
        return len(self.calls)

    @property
    def num_inference_steps(self) -> int:
        """The number of steps that the pipeline was asked for. A scheduler of second order makes more calls."""
        assert self.generation.num_inference_steps is not None  # __post_init__ checks it
        return self.generation.num_inference_steps

    @property
    def timesteps(self) -> list[float]:
        """Per call the timestep given to the denoiser; the largest where rows differ."""
        return [_highest(call.timestep) for call in self.calls]

    @property
    def nbytes(self) -> int:
        """Bytes held by the tensors, each shared one counted once."""
        sizes = {id(tensor): tensor.nbytes for call in self.calls for tensor in _tensors_of(call)}
        if self.latents is not None:
            sizes[id(self.latents)] = self.latents.nbytes
        return sum(sizes.values())

    def select(
        self,
        steps: Sequence[int] | None = None,
        rows: Sequence[int] | None = None,
        timesteps: Window | None = None,
    ) -> Recording:
        """Return a recording of some of the calls, with some of the rows.

        Args:
            steps: Calls by their ``step``, in this order. None for all.
            rows: Rows by their number, in this order; a row may come several times. None for all.
            timesteps: The window that a call's timestep must be in, both ends included: a TimestepWindow, or two
                timesteps in either order. None for all.

        Raises:
            IndexError: A row does not exist.
            TypeError: ``timesteps`` is no window.
            ValueError: No call is left, or a step is unknown, or ``timesteps`` is no window.
        """
        calls = self.calls
        if steps is not None:
            by_step = {call.step: call for call in calls}
            unknown = [step for step in steps if step not in by_step]
            if unknown:
                raise ValueError(f"steps {unknown} are not recorded; there are {sorted(by_step)}")
            calls = [by_step[step] for step in steps]
        window = TimestepWindow.of(timesteps)
        if window is not None:
            calls = [call for call in calls if window.contains(call.timestep)]
        if not calls:
            raise ValueError(f"no recorded call is in the selection; the timesteps recorded are {self.timesteps}")
        selected = replace(self, calls=calls)
        return selected if rows is None else selected._on_rows(RowPicker(check_rows(rows, self.n_rows)))

    def _on_rows(self, pick: RowPicker) -> Recording:
        return replace(
            self,
            calls=[call._on_rows(pick) for call in self.calls],
            prompts=pick(self.prompts),
            seeds=pick(self.seeds),
            images=None if self.images is None else pick(self.images),
            base_prompts=None if self.base_prompts is None else pick(self.base_prompts),
            latents=None if self.latents is None else pick(self.latents),
            row_kwargs={name: pick(values) for name, values in self.row_kwargs.items()},
        )

    @staticmethod
    def concat(recordings: Iterable[Recording]) -> Recording:
        """One recording with the rows of all. Raises ValueError naming the difference when they do not fit together."""
        parts = list(recordings)
        if not parts:
            raise ValueError("there are no recordings to join")
        for part in parts[1:]:
            _require_alike(parts[0], part)
        joiner = Joiner()
        first = parts[0]
        images = [part.images for part in parts]
        latents = [part.latents for part in parts]
        bases = [part.base_prompts for part in parts]
        return replace(
            first,
            calls=[joiner.join_calls([part.calls[i] for part in parts]) for i in range(first.n_steps)],
            prompts=[prompt for part in parts for prompt in part.prompts],
            seeds=[seed for part in parts for seed in part.seeds],
            images=None if any(x is None for x in images) else [image for some in images for image in some or ()],
            latents=None if any(x is None for x in latents) else joiner("latents", latents, True),
            base_prompts=None if any(x is None for x in bases) else [text for some in bases for text in some or ()],
            denoiser_calls=sum(part.denoiser_calls for part in parts),
            row_kwargs={name: [x for part in parts for x in part.row_kwargs[name]] for name in first.row_kwargs},
        )

    def check(self, denoiser: nn.Module) -> None:
        """Replay one call. Raises ValueError when ``denoiser`` is another model or gives another output.

        The first row of the first call is replayed; only the fingerprint is compared where no output was recorded.
        """
        self.fingerprint.require_same(Fingerprint.of(denoiser), "the recording")
        call = self.calls[0].select_rows([0])
        if call.output is None:
            return
        with torch.no_grad():
            replayed = call.run(denoiser).float().cpu()
        recorded = call.output.float().cpu()
        if replayed.shape != recorded.shape:
            raise ValueError(f"the replayed output has shape {list(replayed.shape)}, recorded {list(recorded.shape)}")
        distance = ((replayed - recorded).norm() / recorded.norm().clamp(min=1e-30)).item()
        allowed = REPLAY_TOLERANCE.get(call.output.dtype, 5e-2)
        if not distance <= allowed:
            raise ValueError(
                f"replaying step {call.step} gives another output than recorded: it differs by {100 * distance:.2g}% "
                f"(rounding in {call.output.dtype} is at most {100 * allowed:.2g}%). Was an adapter or an edit "
                "switched on or off in between, or is the denoiser in training mode?"
            )

    def save(self, folder: str | Path) -> Path:
        """Write ``recording.json``, ``recording.safetensors`` and ``images/*.png`` into ``folder``; returns it."""
        folder = Path(folder)
        packer = _Packer()
        state: dict[str, Any] = {
            **{name: getattr(self, name) for name in _PLAIN},
            **self.generation.to_dict(),
            "format": FORMAT,
            "save_id": uuid.uuid4().hex,
            "fingerprint": self.fingerprint.to_dict(),
            "latents": packer.pack(self.latents),
            "n_images": None if self.images is None else len(self.images),
            "calls": [packer.pack_call(call) for call in self.calls],
        }
        # The tensors first: a folder with recording.json is a whole one, and the id tells a mixture of two.
        writes = {folder / "recording.safetensors": tensors_writer(packer.tensors, {"save_id": state["save_id"]})}
        for i, image in enumerate(self.images or ()):
            writes[folder / "images" / f"{i:05d}.png"] = partial(_write_png, image)
        writes[folder / "recording.json"] = text_writer(json_text(state))
        write_together(writes)
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Recording:
        """Read what ``save`` wrote.

        Raises FileNotFoundError, or ValueError naming the file when it is truncated, malformed or of another save.
        """
        folder = Path(folder)
        path = folder / "recording.json"
        state = read_json(path)
        tensors, header = read_tensors(folder / "recording.safetensors")
        try:
            if state["format"] != FORMAT:
                raise ValueError(f"it has format {state['format']!r}, this version reads {FORMAT}")
            if state["save_id"] != header.get("save_id"):
                raise ValueError("recording.safetensors beside it belongs to another save")
            check_state(state)
            return cls(
                **{name: state[name] for name in _PLAIN if name in state},
                generation=Generation.from_dict(state),
                calls=[_unpack_call(call, tensors) for call in state["calls"]],
                fingerprint=Fingerprint.from_dict(state["fingerprint"]),
                latents=_unpack(state["latents"], tensors),
                images=_load_images(folder, state["n_images"]),
            )
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError, RuntimeError, IndexError) as error:
            raise ValueError(f"{path} is not a whole recording: {_reason(error)}") from error


_PER_ROW = ("images", "latents", "base_prompts")
_APART = {"calls", "generation", "fingerprint", "latents", "images"}
_PLAIN = tuple(entry.name for entry in fields(Recording) if entry.name not in _APART)


def _highest(timestep: float | Tensor) -> float:
    return float(timestep.max()) if isinstance(timestep, Tensor) else timestep


def _tensors_of(call: DenoiserCall) -> list[Tensor]:
    held = [leaf for _, leaf in leaves(call.inputs)] + [leaf for _, leaf in leaves(call.unconditional_inputs or {})]
    held += [getattr(call, name) for name in OUTPUT_NAMES] + [call.timestep]
    return [value for value in held if isinstance(value, Tensor)]


def _reason(error: Exception) -> str:
    return f"the entry {str(error)[:200]} is missing" if isinstance(error, KeyError) else str(error)[:500]


def _write_png(image: Image.Image, path: Path) -> None:
    path.write_bytes(png_bytes(image))


def _load_images(folder: Path, n_images: int | None) -> list[Image.Image] | None:
    if n_images is None:
        return None
    if type(n_images) is not int or n_images < 0:
        raise ValueError(f"n_images is {n_images!r:.40}, expected a whole number from 0 on")
    images: list[Image.Image] = []
    for i in range(n_images):
        path = folder / "images" / f"{i:05d}.png"
        try:
            image = Image.open(io.BytesIO(path.read_bytes()))
            image.load()
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"{path} is missing or damaged: {error}") from error
        images.append(image)
    return images


def _settings(recording: Recording) -> dict[str, Any]:
    """What recordings that are joined have in common."""
    names = ("timesteps", "prediction_type", "scheduler_config")
    return {**{name: getattr(recording, name) for name in names}, **recording.generation.to_dict()}


def _require_alike(first: Recording, other: Recording) -> None:
    """Raise ValueError naming what differs between recordings that cannot be joined."""
    reason = first.fingerprint.difference(other.fingerprint)
    if reason:
        raise ValueError(f"the recordings are of different models: {reason}")
    for name, mine in _settings(first).items():
        if mine != (theirs := _settings(other)[name]):
            raise ValueError(f"the recordings differ in {name}: {mine} and {theirs}")
    if first.row_kwargs.keys() != other.row_kwargs.keys():
        raise ValueError(f"the recordings differ in row_kwargs: {list(first.row_kwargs)} and {list(other.row_kwargs)}")
    if first.not_kept != other.not_kept:
        raise ValueError(f"the recordings differ in arguments that were not kept: {first.not_kept}, {other.not_kept}")


class _Packer:
    """Turns trees of tensors into JSON plus named tensors, each object stored once."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._names: dict[int, str] = {}

    def pack(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            if id(value) not in self._names:
                self._names[id(value)] = f"t{len(self._names):05d}"
                self.tensors[self._names[id(value)]] = value
            return {"tensor": self._names[id(value)]}
        if isinstance(value, dict):
            return {"dict": {key: self.pack(entry) for key, entry in value.items()}}
        if isinstance(value, (list, tuple)):
            return {type(value).__name__: [self.pack(entry) for entry in value]}
        return value

    def pack_call(self, call: DenoiserCall) -> dict[str, Any]:
        packed = {f.name: self.pack(getattr(call, f.name)) for f in fields(call) if f.name not in ROW_PATH_NAMES}
        return {**packed, **{name: sorted(getattr(call, name) or ()) for name in ROW_PATH_NAMES}}


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        if not isinstance(value, SCALARS):
            raise ValueError(f"unexpected {type(value).__name__} among the inputs")
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        if content not in tensors:
            raise ValueError(f"the tensor {content} is missing from recording.safetensors")
        return tensors[content]
    if kind == "dict":
        return {key: _unpack(entry, tensors) for key, entry in content.items()}
    if kind in ("list", "tuple"):
        entries = [_unpack(entry, tensors) for entry in content]
        return entries if kind == "list" else tuple(entries)
    raise ValueError(f"unknown kind {kind!r} among the inputs")


def _unpack_call(value: dict[str, Any], tensors: dict[str, Tensor]) -> DenoiserCall:
    check_call(value)
    names = [f.name for f in fields(DenoiserCall) if f.name not in ROW_PATH_NAMES]
    arguments: dict[str, Any] = {name: _unpack(value[name], tensors) for name in names}
    arguments |= {name: frozenset(value[name]) for name in ROW_PATH_NAMES}
    require_tensors(arguments)
    return DenoiserCall(**arguments)
