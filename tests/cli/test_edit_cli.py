"""``cad-fast edit inspect | diff | verify | export | import`` and ``evaluate --card`` on the embedded model."""

import json

import pytest
import torch
from safetensors.torch import load_file

import cad_fast
from cad_fast import zoo
from cad_fast.attribution import Scores
from cad_fast.cli import main
from cad_fast.components.space import ComponentSpace
from cad_fast.edits import Edit, Selection


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two edits and the scores of one, with random values: nothing here depends on what they do."""
    return random_edits(tmp_path_factory.mktemp("edits"), "zoo:emoji")


def random_edits(folder, model):
    space = ComponentSpace.of(cad_fast.load_pipeline(model), "weight", "cross-attention-kv")
    for seed, name in enumerate(("one", "two")):
        values = torch.randn(space.n, generator=torch.Generator().manual_seed(seed))
        scores = Scores(values, space, {"concept": "car", "method": "random"})
        scores.save(folder / "scores")
        Edit.from_scores(scores, Selection(0.02), name=name, factor=seed / 2).save_pretrained(folder / name)
    return folder


def test_inspect(folder, capsys):
    code, out, _ = run(capsys, "edit", "inspect", folder / "one", folder / "two")
    edit = Edit.from_pretrained(folder / "one")
    assert code == 0 and f"one: {edit.n_components} components of kind weight" in out and edit.digest() in out
    assert "trust: the scores were not checked on held-out ablations" in out and "evaluation: none" in out
    module, indices = next(iter(edit.components.items()))
    assert any(line.split()[0] == module and f"{len(indices)} of " in line for line in out.splitlines() if line.strip())
    code, out, _ = run(capsys, "edit", "inspect", folder / "two", "--json")
    found = json.loads(out)["edits"][str(folder / "two")]
    assert code == 0 and found["factor"] == 0.5 and found["concept"] == "car" and found["trust"] == []


def test_diff(folder, capsys):
    one, two = (Edit.from_pretrained(folder / name) for name in ("one", "two"))
    mine, theirs = (
        {(module, i) for module, indices in edit.components.items() for i in indices.tolist()} for edit in (one, two)
    )
    code, out, _ = run(capsys, "edit", "diff", folder / "one", folder / "two", "--json")
    found = json.loads(out)
    assert code == 0 and found["shared"] == len(mine & theirs) and found["only_first"] == len(mine - theirs)
    assert found["jaccard"] == pytest.approx(len(mine & theirs) / len(mine | theirs)) and found["factors"] == [0, 0.5]
    assert sum(entry["only_second"] for entry in found["modules"].values()) == len(theirs - mine)
    code, out, _ = run(capsys, "edit", "diff", folder / "one", folder / "one")
    assert code == 0 and "0 and 0 of one only, Jaccard 1.000" in out and "factors" not in out
    code, out, _ = run(capsys, "edit", "diff", folder / "one", folder / "two")
    assert "factors: 0 and 0.5" in out


def test_edits_of_different_kinds_are_compared_by_weights(folder, tmp_path, capsys):
    space = ComponentSpace.of(cad_fast.load_pipeline("zoo:emoji"), "head", "attention")
    heads = Edit.from_indices("heads", space, torch.tensor([0, 5]))
    heads.save_pretrained(tmp_path)
    code, out, _ = run(capsys, "edit", "diff", tmp_path, folder / "one", "--json")
    found = json.loads(out)
    assert code == 0 and found["compared_as"] == "weight" and found["kinds"] == ["head", "weight"]
    assert found["shared"] + found["only_first"] == heads.n_weights


def test_verify(folder, tmp_path, capsys):
    code, out, err = run(capsys, "edit", "verify", folder / "one", folder / "two", "--model", "zoo:emoji", "--quiet")
    assert (
        code == 0 and out.count("whole and unchanged, fits the model (the digest covers weights and factor, not") == 2
    ), err
    Edit.from_pretrained(folder / "one").save_pretrained(tmp_path)
    data = (tmp_path / "edit_model.safetensors").read_bytes()
    (tmp_path / "edit_model.safetensors").write_bytes(data[:-2] + bytes([data[-2] ^ 8]) + data[-1:])
    code, out, _ = run(capsys, "edit", "verify", folder / "one", tmp_path, folder / "none", "--json")
    found = json.loads(out)
    assert code == 1 and found["failed"] == 2 and found["edits"][str(folder / "one")]["ok"]
    assert "edit_model.safetensors" in found["edits"][str(tmp_path)]["error"]
    code, _, err = run(capsys, "edit", "verify", folder / "one", "--evaluate")
    assert code == 2 and "--evaluate needs --model" in err


@pytest.mark.parametrize("model", [f"zoo:{name}" for name in zoo.MODELS])
def test_a_recorded_evaluation_can_be_repeated(tmp_path, capsys, model):
    tmp_path = random_edits(tmp_path, model) / "one"
    arguments = ["--target", "car", "--per-concept", 1, "--steps", 2, "--quiet", "--card"]
    code, _, err = run(capsys, "evaluate", model, "--edit", tmp_path, *arguments)
    assert code == 0, err
    assert {path.name for path in tmp_path.iterdir()} == {
        "README.md", "sheet.png", "edit_config.json", "edit_model.safetensors",
    }  # fmt: skip
    verify = ["edit", "verify", tmp_path, "--model", model, "--evaluate", "--quiet"]
    code, out, _ = run(capsys, *verify)
    assert code == 0 and "every figure as recorded" in out
    config = json.loads((tmp_path / "edit_config.json").read_text())
    config["provenance"]["evaluation"]["target"]["after_interval"] = [0.5, 0.5]
    config["provenance"]["evaluation"]["settings"]["num_inference_steps"] = 1
    (tmp_path / "edit_config.json").write_text(json.dumps(config))
    code, out, _ = run(capsys, *verify)
    assert code == 1 and "recorded is 50% to 50%" in out
    config["provenance"]["evaluation"]["settings"]["per_concept"] = 10**9
    (tmp_path / "edit_config.json").write_text(json.dumps(config))
    code, out, _ = run(capsys, *verify)
    assert code == 1 and "per_concept 1000000000, expected 1 to 4096" in out
    config["provenance"]["evaluation"]["settings"] |= {"per_concept": 1, "pipeline_kwargs": {"clip_skip": 1}}
    (tmp_path / "edit_config.json").write_text(json.dumps(config))
    code, out, _ = run(capsys, *verify)
    assert code == 1 and "made with further arguments of the pipeline" in out
    code, _, err = run(capsys, "evaluate", model, "--target", "car", "--card")
    assert code == 2 and "--card needs --edit" in err


def test_export(folder, tmp_path, capsys):
    pytest.importorskip("peft")
    common = ["edit", "export", folder / "one", "--model", "zoo:emoji", "--quiet"]
    code, out, err = run(capsys, *common, "--to", "peft", "-o", tmp_path / "peft", "--json")
    assert code == 0, err
    assert set(json.loads(out)["files"]) == {"adapter_config.json", "adapter_model.safetensors"}
    back = ["edit", "import", tmp_path / "peft", "--model", "zoo:emoji", "--name", "back", "-o", tmp_path / "back"]
    code, out, err = run(capsys, *back, "--json")
    assert code == 0, err
    assert json.loads(out)["digest"] == Edit.from_pretrained(folder / "one").to_weights().digest()
    assert Edit.from_pretrained(tmp_path / "back").name == "back"
    code, out, err = run(capsys, *common, "--to", "peft", "--peft-format", "supertuning", "-o", tmp_path / "super")
    assert code == 0, err
    assert "sparsity" in (tmp_path / "super" / "adapter_config.json").read_text()
    code, _, err = run(capsys, *common, "--to", "checkpoint", "--peft-format", "shira", "-o", tmp_path / "unet")
    assert code == 2 and "--peft-format goes with --to peft" in err
    code, _, err = run(capsys, *common, "--to", "checkpoint", "-o", tmp_path / "unet")
    assert code == 0, err
    edit = Edit.from_pretrained(folder / "one")
    weights = load_file(tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    for name, indices in edit.weight_indices().items():
        assert (weights[f"{name}.weight"].flatten()[indices] == 0).all()
    code, _, _ = run(capsys, *common, "--to", "checkpoint", "--whole-pipeline", "-o", tmp_path / "pipeline")
    assert code == 0 and (tmp_path / "pipeline" / "model_index.json").is_file()
    code, _, err = run(capsys, *common, "--to", "checkpoint", "-o", tmp_path / "unet")
    assert code == 2 and "new or empty folder" in err


def test_options_of_loading_need_a_model(folder, tmp_path, capsys):
    make = ["edit", "make", folder / "scores", "--erase", "--count", 3, "-o", tmp_path]
    code, _, err = run(capsys, *make, "--dtype", "float16")
    assert code == 2 and "--dtype goes with --refine" in err
    code, _, err = run(capsys, "edit", "verify", folder / "one", "--denoiser-weights", tmp_path)
    assert code == 2 and "--denoiser-weights goes with --model" in err
