"""Pipelines with several denoisers, on the command line and when they are loaded."""

import json

import pytest
import torch
from safetensors.torch import save_file

import cad_fast
from cad_fast.cli import main
from tests.families.registry import FAMILIES


def test_one_of_several_denoisers(tmp_path, capsys) -> None:
    """Wan 2.2 as a folder: the part is named, or the error says how."""
    pipeline = FAMILIES["wan-2.2"].pipeline()
    pipeline.save_pretrained(tmp_path / "wan")
    model = str(tmp_path / "wan")
    assert main(["inspect", model, "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert (whole["denoiser"], whole["further_denoisers"]) == ("transformer", ["transformer_2"])
    assert main(["inspect", model, "--part", "transformer_2", "--target-modules", "feed-forward", "--json"]) == 0
    part = json.loads(capsys.readouterr().out)
    assert part["denoiser"] == part["model"]["part"] == "transformer_2"
    assert {layer["presets"][0] for layer in part["layers"]} == {"feed-forward"}
    options = ["--prompt", "a cat", "--steps", "2", "--size", "16x16", "-o", str(tmp_path / "run"), "--quiet"]
    assert main(["attribute", model, *options]) == 2
    assert "or --part on the command line" in capsys.readouterr().err
    assert main(["inspect", model, "--part", "unet"]) == 2
    assert "no denoiser 'unet'; it has transformer, transformer_2" in capsys.readouterr().err
    loaded = cad_fast.load_pipeline(model, part="transformer_2")
    assert torch.equal(next(loaded.transformer_2.parameters()), next(pipeline.transformer_2.parameters()))
    weights = {"proj_out.bias": torch.full_like(loaded.transformer_2.proj_out.bias, 0.5)}
    save_file(weights, tmp_path / "new.safetensors")
    put = cad_fast.load_pipeline(model, part="transformer_2", denoiser_weights=tmp_path / "new.safetensors")
    assert put.transformer_2.proj_out.bias.eq(0.5).all() and not put.transformer.proj_out.bias.eq(0.5).all()
    with pytest.raises(ValueError, match="draws with transformer and transformer_2"):
        cad_fast.load_pipeline(model, denoiser_weights=tmp_path / "new.safetensors")
