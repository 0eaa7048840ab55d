"""A batch of 16 rows under 16 edits, against the plain batch, PEFT's mixed batch and swapping weights row by row.

Also what switching costs, and what 1,000 edits loaded lazily hold in memory.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from cad_fast import ComponentSpace, Edit, EditManager

from .linear import require_right
from .model import MEBIBYTE, MODELS, Sample, _memory
from .shapes import VARIANTS

TARGET = "cross-attention-kv"
SD_WEIGHTS = 107_840
RATIO = 0.03
LORA_RANK = 4
MANY = 1000


def random_edits(unet: nn.Module, count: int, weights: int) -> list[Edit]:
    """Edits of so many weights, spread at random over the cross-attention keys and values."""
    space = ComponentSpace.of(unet, "weight", TARGET)
    made = []
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        indices = torch.randint(space.n, (weights + weights // 8,), generator=generator).unique()
        keep = torch.randperm(len(indices), generator=generator)[:weights].sort().values
        made.append(Edit.from_indices(f"edit-{seed}", space, indices[keep]))
    return made


def size_for(unet: nn.Module) -> int:
    """As many weights as an edit of Stable Diffusion 1.4, or 3% of a smaller model."""
    n = ComponentSpace.of(unet, "weight", TARGET).n
    return SD_WEIGHTS if n > 20 * SD_WEIGHTS else int(RATIO * n)


def with_loras(unet: nn.Module) -> nn.Module:
    """The same UNet, sharing its weights, with a LoRA per row beside its keys and values, as PEFT mixes them."""
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    shared: dict[int, Any] = {id(value): value for value in (*unet.parameters(), *unet.buffers())}
    twin = copy.deepcopy(unet, shared)
    names = [f"lora{row}" for row in range(VARIANTS)]
    pattern = r".*attn2\.to_[kv]"
    for name in names:
        config = LoraConfig(r=LORA_RANK, target_modules=pattern, init_lora_weights=False)
        inject_adapter_in_model(config, twin, name)
    for module in twin.modules():
        if isinstance(module, LoraLayer):
            module.register_forward_pre_hook(
                lambda _, args, kwargs: (args, {**kwargs, "adapter_names": names}), with_kwargs=True
            )
    return twin.eval().requires_grad_(False)


@torch.no_grad()
def measure(name: str, rounds: int) -> dict[str, Any]:
    """Median seconds of a pass of 16 rows for each contender, all taking turns, and what switching takes."""
    unet, call = MODELS[name]()
    edits = random_edits(unet, VARIANTS, size_for(unet))
    manager = EditManager(unet)
    names = [manager.load_edit(edit) for edit in edits]
    mixed = with_loras(unet)
    samples: dict[str, list[Sample]] = {}

    def swapped() -> Tensor:
        outputs = []
        for row, edit in enumerate(edits):
            with edit.applied(unet):
                outputs.append(unet(**{key: value[row : row + 1] for key, value in call.items()}).sample)
        return torch.cat(outputs)

    def turn(with_swaps: bool) -> tuple[Tensor, Tensor]:
        with Sample.of(samples, "plain batch"):
            plain = unet(**call).sample
        with manager.per_prompt(names), Sample.of(samples, "cad_fast, 16 edits"):
            ours = unet(**call).sample
        with manager.per_prompt([names[0]] * VARIANTS), Sample.of(samples, "cad_fast, one edit in all rows"):
            unet(**call)
        with Sample.of(samples, f"PEFT, 16 LoRAs of rank {LORA_RANK}"):
            mixed(**call)
        if not with_swaps:
            return ours, plain
        with Sample.of(samples, "weights swapped per row"):
            return ours, swapped()

    require_right(*turn(True), torch.float32)  # unmeasured, and a wrong result gets no figure
    samples.clear()
    for number in tqdm(range(rounds), desc=name, leave=False):
        turn(number < 3)
    plain = [one.seconds for one in samples["plain batch"]]
    ratios = {
        key: statistics.median(one.seconds / own for one, own in zip(taken, plain, strict=False))
        for key, taken in samples.items()
    }
    figures = {
        "seconds": {key: statistics.median(one.seconds for one in taken) for key, taken in samples.items()},
        "of_plain": ratios,
        "peak_mebibytes": {key: max(one.peak for one in taken) / MEBIBYTE for key, taken in samples.items()},
        "weights_per_edit": edits[0].n_weights,
        **switching(manager, names, call),
    }
    manager.close()
    return figures


def switching(manager: EditManager, names: list[str], call: dict[str, Tensor]) -> dict[str, float]:
    """Milliseconds to make another edit active and ready to run; and to prepare 16 rows of which one has changed."""
    before, after = manager.row_edits._before, manager.row_edits._after
    times: dict[str, list[float]] = {"set_edits_ms": [], "set_edits_and_prepare_ms": [], "one_row_changed_ms": []}
    for number in range(40):
        manager.row_edits._plans.clear()
        start = time.perf_counter()
        manager.set_edits(names[number % len(names)])
        times["set_edits_ms"].append(time.perf_counter() - start)
        before((), call)
        times["set_edits_and_prepare_ms"].append(time.perf_counter() - start)
        after()
    manager.set_edits([])
    for number in range(10):
        rows = [*names[:-1], names[number % len(names)]]
        manager.row_edits._plans.clear()
        with manager.per_prompt(rows):
            start = time.perf_counter()
            before((), call)
            times["one_row_changed_ms"].append(time.perf_counter() - start)
            after()
    return {key: 1e3 * statistics.median(taken) for key, taken in times.items()}


def many(name: str) -> dict[str, float]:
    """What 1,000 lazily loaded edits hold in memory, before and after each was used once."""
    unet, call = MODELS[name]()
    manager = EditManager(unet)
    with tempfile.TemporaryDirectory() as folder:
        folders = [Path(folder) / edit.name for edit in random_edits(unet, 10, size_for(unet))]
        for edit, own in zip(random_edits(unet, 10, size_for(unet)), folders, strict=True):
            edit.save_pretrained(own)
        held, start = _memory("VmRSS"), time.perf_counter()
        for number in range(MANY):
            manager.load_edit(folders[number % len(folders)], f"edit-{number}", lazy=True)
        loading = time.perf_counter() - start
        loaded, start = _memory("VmRSS"), time.perf_counter()
        for number in tqdm(range(MANY), desc="first uses", leave=False):
            manager.set_edits(f"edit-{number}")
            manager.row_edits._before((), call)
            manager.row_edits._after()
        first_use = (time.perf_counter() - start) / MANY
        used = _memory("VmRSS")
    manager.close()
    return {
        "edits": MANY,
        "loading_ms_each": 1e3 * loading / MANY,
        "first_use_ms_each": 1e3 * first_use,
        "loaded_mebibytes": (loaded - held) / MEBIBYTE,
        "all_used_mebibytes": (used - held) / MEBIBYTE,
    }


def markdown(figures: dict[str, dict[str, Any]]) -> str:
    """A table of the passes, and what switching costs."""
    rows = ["| model | contender | seconds | of plain batch | peak MiB |", "|---|---|---|---|---|"]
    for name, figure in figures.items():
        for contender, value in figure["seconds"].items():
            ratio, peak = figure["of_plain"][contender], figure["peak_mebibytes"][contender]
            rows.append(f"| {name} | {contender} | {value:.3g} | {ratio:.3f} | {peak:.0f} |")
    notes = [
        f"- {name}: {figure['weights_per_edit']} weights per edit; set_edits {figure['set_edits_ms']:.3f} ms, with "
        f"preparing {figure['set_edits_and_prepare_ms']:.3f} ms; 16 rows of which one changed "
        f"{figure['one_row_changed_ms']:.2f} ms"
        for name, figure in figures.items()
    ]
    return "### One pass of 16 rows under 16 edits\n\n" + "\n".join([*rows, "", *notes]) + "\n"
