"""Times of the operators on 3 x 3 convolutions, bfloat16, 16 variants, against cuDNN and what one would write."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from cad_fast import ops

from .. import roofline
from ..roofline import Layer
from ..shapes import VARIANTS
from . import clock
from .figures import Bar, Contender, at_most, floor_us, measure, ours
from .figures_names import DENSE
from .inputs import Random, edits
from .worker import Worker

# Name, channels, size, images per variant.
LAYERS = (
    ("sd15 conv 320", 320, 64, 1),
    ("sd15 conv 1280", 1280, 8, 1),
    ("sd15 conv 640", 640, 32, 1),
    ("sd15 conv 1280", 1280, 16, 1),
    ("sd15 conv 1280", 1280, 8, 2),
    ("sdxl conv 320", 320, 128, 1),
)
TINY = (("tiny conv", 8, 6, 1), ("tiny conv", 6, 5, 2))
PLAIN = "cuDNN, channels first"


class Inputs(NamedTuple):
    """Images [variants, images, channels, size, size] and a weight, both channels last."""

    x: Tensor
    weight: Tensor
    words: Tensor


def cases(worker: Worker) -> Iterator[tuple[str, Callable[[], None]]]:
    """Layer by layer, the masked operator first."""
    torch.backends.cudnn.benchmark = True
    for name, channels, size, images in TINY if worker.dry else LAYERS:
        layer = Layer("", f"{name} at {size}x{size}", images * size * size, channels, 9 * channels, 9)
        for op, run in MEASURED.items():
            yield f"{op}, {title(layer, images)}", functools.partial(run, worker, layer, images, size)


def title(layer: Layer, images: int) -> str:
    return f"{layer.name}, {images} images"


def bars_of_masked(size: int) -> list[Bar]:
    """What masked_conv2d has to reach on images of this size."""
    return [at_most({64: 1.3, 8: 2.0}[size], DENSE)] if size in (8, 64) else []


def _sets(worker: Worker, layer: Layer, images: int, size: int) -> list[Inputs]:
    channels = layer.n
    bytes_of_set = 2 * (2 * VARIANTS * layer.rows * channels + channels * layer.k) + VARIANTS * channels * layer.k // 8
    sets = []
    for seed in range(clock.sets_for(worker, bytes_of_set)):
        random = Random(worker.device, worker.dtype(), seed)
        x = random.normal(VARIANTS * images, channels, size, size).contiguous(memory_format=torch.channels_last)
        weight = random.normal(channels, channels, 3, 3, scale=layer.k**-0.5)
        weight = weight.contiguous(memory_format=torch.channels_last)
        sets.append(Inputs(x.unflatten(0, (VARIANTS, images)), weight, random.words(VARIANTS, channels, k=layer.k)))
    return sets


def _dense(sets: list[Inputs]) -> dict[str, Contender]:
    def call(inputs: Inputs) -> Tensor:
        return conv2d(inputs.x.flatten(0, 1), inputs.weight, padding=1)

    x, weight = sets[0].x.flatten(0, 1).contiguous(), sets[0].weight.contiguous()
    return {
        DENSE: Contender([functools.partial(call, inputs) for inputs in sets], host=True),
        PLAIN: Contender([lambda: conv2d(x, weight, padding=1)]),
    }


def masked_conv2d(worker: Worker, layer: Layer, images: int, size: int) -> None:
    """Random masks of 5% in each variant."""
    sets = _sets(worker, layer, images, size)

    def call(inputs: Inputs, backend: str | None) -> Tensor:
        return ops.masked_conv2d(inputs.x, inputs.weight, inputs.words, padding=1, backend=backend)

    contenders = _dense(sets) | ours(worker, "masked_conv2d", call, sets)
    first = Inputs(sets[0].x.contiguous(), sets[0].weight.contiguous(), sets[0].words)
    contenders["ours, channels first"] = Contender([lambda: call(first, None)], host=True)
    if not worker.warming:
        keep = ~ops.unpack_bits(first.words, layer.k).view(VARIANTS, *first.weight.shape)

        def loop() -> list[Tensor]:
            return [conv2d(first.x[v], first.weight * keep[v], padding=1) for v in range(VARIANTS)]

        def grouped() -> Tensor:
            stacked = (first.weight * keep).flatten(0, 1)
            return conv2d(first.x.transpose(0, 1).flatten(1, 2), stacked, padding=1, groups=VARIANTS)

        contenders |= {"loop over W*M": Contender([loop]), "one grouped conv": Contender([grouped])}
    floor = floor_us(worker, roofline.masked(layer, "bfloat16"))
    measure(worker, "masked_conv2d", title(layer, images), contenders, floor, bars_of_masked(size), sets=len(sets))


def edited_conv2d(worker: Worker, layer: Layer, images: int, size: int) -> None:
    """16 edits of 1% of the weights each, with factor 0."""
    sets = _sets(worker, layer, images, size)
    entries = edits([images] * VARIANTS, layer.n * layer.k, worker.device)

    def call(inputs: Inputs, backend: str | None) -> Tensor:
        x = inputs.x.flatten(0, 1)
        return ops.edited_conv2d(x, inputs.weight, *entries[:4], padding=1, backend=backend)

    contenders = _dense(sets) | ours(worker, "edited_conv2d", call, sets)
    editable, x = sets[0].weight.contiguous().clone(), sets[0].x

    def swap() -> list[Tensor]:
        view, outputs = editable.view(-1), []
        for v, indices in enumerate(entries.each):
            originals = view[indices]
            view.index_fill_(0, indices, 0)
            outputs.append(conv2d(x[v], editable, padding=1))
            view.index_copy_(0, indices, originals)
        return outputs

    contenders["weight swapping"] = Contender([swap])
    floor = floor_us(worker, roofline.edited(layer, "bfloat16"))
    measure(worker, "edited_conv2d", title(layer, images), contenders, floor, [], sets=len(sets))


def gated_conv2d(worker: Worker, layer: Layer, images: int, size: int) -> None:
    """5% of the filters removed in each variant."""
    sets = _sets(worker, layer, images, size)
    random = Random(worker.device, worker.dtype(), 1)
    gates, bias = (~random.mask(VARIANTS, layer.n)).to(worker.dtype()), random.normal(layer.n)

    def call(inputs: Inputs, backend: str | None) -> Tensor:
        return ops.gated_conv2d(inputs.x, inputs.weight, gates, bias, 1, 1, backend=backend)

    def multiply() -> Tensor:
        y = conv2d(sets[0].x.flatten(0, 1), sets[0].weight, padding=1)
        each = gates.repeat_interleave(images, 0)[:, :, None, None]
        return torch.addcmul(bias[:, None, None], y, each)

    contenders = _dense(sets) | ours(worker, "gated_conv2d", call, sets)
    contenders["conv, multiply, add"] = Contender([multiply])
    floor = floor_us(worker, roofline.gated_filters(layer, "bfloat16"))
    measure(worker, "gated_conv2d", title(layer, images), contenders, floor, [], sets=len(sets))


MEASURED = {"masked_conv2d": masked_conv2d, "edited_conv2d": edited_conv2d, "gated_conv2d": gated_conv2d}
