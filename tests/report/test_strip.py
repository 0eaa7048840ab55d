"""The strip over strengths: each picture is the one that the pipeline draws with the edit in its weights."""

import numpy as np
import pytest
import torch
from PIL import Image

import cad_fast
from cad_fast.cli import main
from tests.edits.test_manager import edits_of, own

SETTINGS = {"num_inference_steps": 3, "guidance_scale": 3.0}


def pixels(image) -> np.ndarray:
    return np.asarray(image, dtype=int)


def test_every_strength_in_one_batch() -> None:
    pipeline, _ = own("sd")
    edits = edits_of(pipeline)
    prompts, strengths = ["a cat", "a clock"], [1.5, 0.0, -1.0]
    calls = []
    handle = pipeline.unet.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    made = cad_fast.strip(pipeline, list(edits.values()), prompts, strengths, seed=3, **SETTINGS)
    handle.remove()
    assert calls == [2 * 6] * 3
    assert isinstance(made.sheet, Image.Image) and made.strengths == strengths
    assert all("forward" not in module.__dict__ for module in pipeline.unet.modules())
    for column, strength in enumerate(strengths):
        handles = [edit.fuse(pipeline, strength) for edit in edits.values()]
        generator = [torch.Generator().manual_seed(3) for _ in prompts]
        expected = pipeline(prompts, generator=generator, **SETTINGS).images
        for handle in handles[::-1]:
            handle.undo()
        for row in range(len(prompts)):
            assert abs(pixels(made.images[row][column]) - pixels(expected[row])).max() <= 1
    assert abs(pixels(made.images[0][0]) - pixels(made.images[0][1])).max() > 1


def test_a_manager_keeps_its_edits() -> None:
    pipeline, _ = own("sd")
    edits = edits_of(pipeline)
    manager = cad_fast.EditManager(pipeline)
    manager.load_edit(edits["a"])
    manager.set_edits("a")
    cad_fast.strip(manager, ["a", edits["b"]], "a cat", [1.0, 0.5], **SETTINGS)
    assert manager.get_list_edits() == {"unet": ["a"]} and manager.get_active_edits() == ["a"]
    for arguments, message in (
        (([], "a cat"), "no edits"),
        (("a", []), "no prompts"),
        (("a", "a cat", []), "no strengths"),
        (("a", "a cat", [float("nan")]), "the strength of edit 'a' is nan"),
    ):
        with pytest.raises(ValueError, match=message):
            cad_fast.strip(manager, *arguments)
    assert manager.get_list_edits() == {"unet": ["a"]}


def test_command(tmp_path, capsys) -> None:
    pipeline = cad_fast.zoo.load()
    edits_of(pipeline)["a"].save_pretrained(tmp_path / "edit")
    arguments = [
        "dial",
        "zoo:emoji",
        "--edit",
        str(tmp_path / "edit"),
        "--prompt",
        "a car in noto style",
        "--steps",
        "2",
    ]
    output = tmp_path / "out" / "strip.png"
    assert (
        main([*arguments, "--strength", "1", "0", "-1", "--timesteps", "500", "1000", "-o", str(output), "--quiet"])
        == 0
    )
    assert Image.open(output).width > 3 * 32 and "written to" in capsys.readouterr().out
    assert main([*arguments, "-o", str(tmp_path / "strip.gif")]) == 2
    assert "expected a file name that ends in .png" in capsys.readouterr().err
