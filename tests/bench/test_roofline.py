"""The counts of bench.roofline, against counting one case by hand."""

from __future__ import annotations

import pytest

from bench import roofline
from bench.roofline import Device, Layer

SLOW_MEMORY = Device("slow memory", bfloat16=1e6, float32=1e6, memory=1e-12)
SLOW_ARITHMETIC = Device("slow arithmetic", bfloat16=1e-12, float32=1e-12, memory=1e6)
LAYER = Layer("model", "layer", rows=3, n=5, k=33)


def test_masked_moves_inputs_outputs_the_weight_and_two_words_per_row_of_it() -> None:
    (work,) = roofline.masked(LAYER, "float32")
    assert work.flops == 2 * 16 * 3 * 5 * 33
    assert work.bytes == 4 * (16 * 3 * 33 + 16 * 3 * 5 + 5 * 33) + 16 * 5 * 2 * 4
    assert work.floor(SLOW_MEMORY, "float32") == pytest.approx(work.bytes)
    assert work.floor(SLOW_ARITHMETIC, "float32") == pytest.approx(work.flops)


def test_materialising_writes_and_reads_the_weight_of_every_variant() -> None:
    write, product = roofline.materialised(LAYER, "bfloat16")
    assert write.bytes == 16 * 5 * 33 + 2 * 5 * 33 + 2 * 16 * 5 * 33
    assert product.bytes == 2 * (16 * 3 * 33 + 16 * 3 * 5 + 16 * 5 * 33)
    assert product.flops == roofline.product(LAYER, "bfloat16").flops


def test_gates_of_their_own_pass_read_and_write_what_they_gate() -> None:
    (work,) = roofline.gated(LAYER, "bfloat16")
    assert work.bytes == 2 * (16 * 3 * 33 + 16 * 3 * 5 + 5 * 33 + 16 * 33)
    scaling, product = roofline.composed(LAYER, "bfloat16")
    assert scaling.bytes == 2 * 2 * 16 * 3 * 33
    assert product.bytes == work.bytes - 2 * 16 * 33 and product.flops == work.flops
    layer = roofline.conv("model", "layer", channels=7, size=4)
    assert roofline.composed(layer, "float32")[0].bytes == 4 * 2 * 16 * 32 * 7
    (filters,) = roofline.gated_filters(layer, "float32")
    assert filters.bytes == roofline.product(layer, "float32").bytes + 4 * 16 * 7


def test_a_convolution_reads_its_input_once() -> None:
    layer = roofline.conv("model", "layer", channels=7, size=4)
    assert roofline.product(layer, "float32").bytes == 4 * (16 * 32 * 7 + 16 * 32 * 7 + 7 * 63)


def test_the_page_has_a_line_per_layer_device_and_dtype() -> None:
    rows = [line for line in roofline.page().splitlines() if line.startswith(("| SD", "| FLUX"))]
    assert len(rows) == len(roofline.LAYERS) * len(roofline.DEVICES) * len(roofline.DTYPE_BYTES)
