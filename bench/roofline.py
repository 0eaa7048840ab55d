"""``python -m bench.roofline``: the least time each operator can take on a GPU, and what materialising would take.

Counted, not measured: bytes that have to cross the memory bus once, and multiply-adds, against the peaks that the
vendor states for dense arithmetic. A measured time divided by the floor says how far a kernel is from the device.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .shapes import EDIT_FRACTION, VARIANTS

WORD_BYTES = 4
ENTRY_BYTES = 12  # of an edit: an int64 index and a float32 factor
DTYPE_BYTES = {"bfloat16": 2, "float32": 4}


@dataclass(frozen=True)
class Device:
    """Peaks as stated by the vendor: dense arithmetic in TFLOP/s, memory in TB/s."""

    name: str
    bfloat16: float
    float32: float
    memory: float


DEVICES = (
    Device("A100 80 GB SXM", 312, 19.5, 2.04),
    Device("H100 SXM", 989, 67, 3.35),
    Device("H200 SXM", 989, 67, 4.8),
    Device("B200", 2250, 80, 8.0),
)


@dataclass(frozen=True)
class Layer:
    """A product of ``rows`` rows (of one picture, both branches of guidance) with a weight [n, k].

    ``reuse``: for a convolution, how many columns of the implicit product read one element of its input.
    """

    model: str
    name: str
    rows: int
    n: int
    k: int
    reuse: int = 1


def conv(model: str, name: str, channels: int, size: int) -> Layer:
    """A 3 x 3 convolution as an implicit product: every element of the input is read for nine columns."""
    return Layer(model, name, 2 * size * size, channels, 9 * channels, 9)


LAYERS = (
    Layer("SD 1.4, 512", "k/v 320, text", 2 * 77, 320, 768),
    Layer("SD 1.4, 512", "ff up 320", 2 * 4096, 2560, 320),
    Layer("SD 1.4, 512", "ff up 1280", 2 * 256, 10240, 1280),
    Layer("SD 1.4, 512", "ff down 1280, middle", 2 * 64, 1280, 5120),
    conv("SD 1.4, 512", "conv 320, 64 x 64", 320, 64),
    conv("SD 1.4, 512", "conv 1280, 8 x 8", 1280, 8),
    Layer("SDXL, 1024", "k/v 1280, text", 2 * 77, 1280, 2048),
    Layer("SDXL, 1024", "ff up 640", 2 * 4096, 5120, 640),
    Layer("SDXL, 1024", "ff up 1280", 2 * 1024, 10240, 1280),
    conv("SDXL, 1024", "conv 320, 128 x 128", 320, 128),
    Layer("FLUX.1, 1024", "modulation", 1, 18432, 3072),
    Layer("FLUX.1, 1024", "ff up", 4096 + 512, 12288, 3072),
    Layer("FLUX.1, 1024", "single block in", 4096 + 512, 21504, 3072),
)


@dataclass(frozen=True)
class Work:
    """FLOPs and bytes of one pass over memory."""

    flops: float
    bytes: float

    def floor(self, device: Device, dtype: str) -> float:
        """Seconds."""
        return max(self.flops / (getattr(device, dtype) * 1e12), self.bytes / (device.memory * 1e12))


def product(layer: Layer, dtype: str, weights: int = 1, variants: int = VARIANTS) -> Work:
    """The dense product of all variants, reading ``weights`` copies of the weight."""
    size = DTYPE_BYTES[dtype]
    rows = variants * layer.rows
    moved = rows * layer.k / layer.reuse + rows * layer.n + weights * layer.n * layer.k
    return Work(2.0 * rows * layer.n * layer.k, size * moved)


def masked(layer: Layer, dtype: str) -> list[Work]:
    """masked_linear, masked_conv2d: the product and the packed words of every variant."""
    dense = product(layer, dtype)
    return [Work(dense.flops, dense.bytes + VARIANTS * layer.n * -(-layer.k // 32) * WORD_BYTES)]


def edited(layer: Layer, dtype: str) -> list[Work]:
    """edited_linear, edited_conv2d: the product and every variant's entries."""
    dense = product(layer, dtype)
    return [Work(dense.flops, dense.bytes + VARIANTS * EDIT_FRACTION * layer.n * layer.k * ENTRY_BYTES)]


def gated(layer: Layer, dtype: str) -> list[Work]:
    """gated_linear: the product and one gate per column of every variant's input."""
    dense = product(layer, dtype)
    return [Work(dense.flops, dense.bytes + VARIANTS * layer.k * DTYPE_BYTES[dtype])]


def gated_filters(layer: Layer, dtype: str) -> list[Work]:
    """gated_conv2d: the product and one gate per filter of every variant."""
    dense = product(layer, dtype)
    return [Work(dense.flops, dense.bytes + VARIANTS * layer.n * DTYPE_BYTES[dtype])]


def composed(layer: Layer, dtype: str) -> list[Work]:
    """Gates without a kernel: a pass that reads and writes a linear's input, or a convolution's output, the product."""
    elements = VARIANTS * layer.rows * (layer.k if layer.reuse == 1 else layer.n)
    return [Work(elements, 2 * elements * DTYPE_BYTES[dtype]), product(layer, dtype)]


def scores(layer: Layer, dtype: str) -> list[Work]:
    """masked_linear_scores: delta^T x of every variant, added to two float32 sums, which are read and written once."""
    dense = product(layer, dtype)
    words = VARIANTS * layer.n * -(-layer.k // 32) * WORD_BYTES
    return [Work(dense.flops, dense.bytes + words + 4 * 4 * layer.n * layer.k)]


def materialised(layer: Layer, dtype: str) -> list[Work]:
    """Writing W * M of every variant from a mask of bytes, then one batched product."""
    elements = VARIANTS * layer.n * layer.k
    write = Work(elements, elements + (layer.n * layer.k + elements) * DTYPE_BYTES[dtype])
    return [write, product(layer, dtype, weights=VARIANTS)]


def swapped(layer: Layer, dtype: str) -> list[Work]:
    """Editing the weight in place for one variant after the other, and undoing it: values read and written twice."""
    entries = EDIT_FRACTION * layer.n * layer.k
    change = Work(0, 2 * entries * (ENTRY_BYTES + 2 * DTYPE_BYTES[dtype]))
    return VARIANTS * [change, product(layer, dtype, variants=1)]


def total(passes: Iterable[Work], device: Device, dtype: str) -> float:
    """Seconds of passes that follow each other."""
    return sum(work.floor(device, dtype) for work in passes)


def table(device: Device, dtype: str) -> list[str]:
    """One device's table, Markdown."""
    lines = [
        "| model | layer | rows | GFLOP | MB | floor, us | bound by | masked / dense | edited / dense | "
        "materialised / masked | swapped / edited | pass, dense / gated | scores, us |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for layer in LAYERS:
        (own,) = masked(layer, dtype)
        floor = own.floor(device, dtype)
        dense = product(layer, dtype).floor(device, dtype)
        fused = gated if layer.reuse == 1 else gated_filters
        edit = total(edited(layer, dtype), device, dtype)
        bound = "arithmetic" if own.flops / getattr(device, dtype) > own.bytes / device.memory else "memory"
        lines.append(
            f"| {layer.model} | {layer.name} | {layer.rows} | {own.flops / 1e9:.0f} | {own.bytes / 1e6:.0f} "
            f"| {1e6 * floor:.1f} | {bound} | {floor / dense:.2f} | {edit / dense:.2f} "
            f"| {total(materialised(layer, dtype), device, dtype) / floor:.2f} "
            f"| {total(swapped(layer, dtype), device, dtype) / edit:.2f} "
            f"| {total(composed(layer, dtype), device, dtype) / total(fused(layer, dtype), device, dtype):.2f} "
            f"| {1e6 * total(scores(layer, dtype), device, dtype):.1f} |"
        )
    return lines


def page() -> str:
    """All tables, Markdown."""
    lines: list[str] = []
    for dtype in DTYPE_BYTES:
        for device in DEVICES:
            peak = getattr(device, dtype)
            lines += [f"### {device.name}, {dtype} ({peak:g} TFLOP/s, {device.memory:g} TB/s)", ""]
            lines += [*table(device, dtype), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    print(page())
