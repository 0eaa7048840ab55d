"""Edited models as checkpoints, and checkpoints of others as the model."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import cad_fast
from cad_fast.attribution import Scores
from cad_fast.components.space import ComponentSpace
from cad_fast.edits import Edit, Selection
from cad_fast.edits.files.checkpoints import export_checkpoint
from cad_fast.edits.files.denoiser_weights import put_denoiser_weights
from tests.pipelines import stable_diffusion

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def pipeline():
    found = copy.copy(stable_diffusion())
    found.unet = copy.deepcopy(found.unet)
    return found


@pytest.fixture
def edit(pipeline):
    space = ComponentSpace.of(pipeline, "weight", "all")
    scores = Scores(torch.randn(space.n, generator=torch.Generator().manual_seed(1)), space, {"concept": "car"})
    return Edit.from_scores(scores, Selection(0.02), name="no-car")


def state(pipeline):
    return {name: tensor.clone() for name, tensor in pipeline.unet.state_dict().items()}


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_export_and_import_of_the_denoiser(pipeline, edit, tmp_path):
    before = state(pipeline)
    with edit.applied(pipeline, 0.5):
        expected = state(pipeline)
    export_checkpoint(edit, pipeline, tmp_path / "half", strength=0.5)
    assert_same(state(pipeline), before)
    assert {path.name for path in tmp_path.iterdir()} == {"half"}
    assert_same(load_file(tmp_path / "half" / WEIGHTS), expected)
    assert_same(type(pipeline.unet).from_pretrained(tmp_path / "half").state_dict(), expected)
    assert put_denoiser_weights(pipeline, tmp_path / "half") == len(before)
    assert_same(state(pipeline), expected)


def test_the_whole_pipeline_and_weights_over_a_base(pipeline, edit, tmp_path):
    export_checkpoint(edit, pipeline, tmp_path / "edited", what="pipeline")
    pipeline.save_pretrained(tmp_path / "base")
    edited = cad_fast.load_pipeline(str(tmp_path / "edited"))
    over = cad_fast.load_pipeline(str(tmp_path / "base"), denoiser_weights=tmp_path / "edited")
    with edit.applied(pipeline):
        assert_same(state(edited), state(pipeline))
        assert_same(state(over), state(pipeline))
    # Concepts can be scored on it, as on any model.
    scores = cad_fast.attribute(over, "a cat", generation=cad_fast.Generation(2, 3.0), kind="head", progress=False)
    recalled = Edit.from_scores(scores, Selection(count=1))
    with recalled.applied(edited):
        pass
    with pytest.raises(ValueError, match="another model"):
        recalled.fuse(pipeline)


def test_export_spares_what_is_there(pipeline, edit, tmp_path):
    (tmp_path / "kept").write_text("")
    with pytest.raises(FileExistsError, match="new or empty folder"):
        export_checkpoint(edit, pipeline, tmp_path)
    before = state(pipeline)

    def fail(*_, **__):
        raise OSError("disk full")

    pipeline.unet.save_pretrained = fail
    with pytest.raises(OSError, match="disk full"):
        export_checkpoint(edit, pipeline, tmp_path / "new")
    assert_same(state(pipeline), before)
    assert {path.name for path in tmp_path.iterdir()} == {"kept"}
    with pytest.raises(ValueError, match="cannot be written as a pipeline"):
        export_checkpoint(edit, pipeline.unet, tmp_path / "new", what="pipeline")
    with pytest.raises(ValueError, match="what is 'unet', expected 'denoiser' or 'pipeline'"):
        export_checkpoint(edit, pipeline, tmp_path / "new", what="unet")


def test_some_weights_only(pipeline, tmp_path):
    """As checkpoints of concept erasure have them, here with the name of the part in the pipeline."""
    before = state(pipeline)
    name = next(key for key in before if key.endswith("attn2.to_k.weight"))
    save_file({f"unet.{name}": torch.ones_like(before[name]).half()}, tmp_path / "esd.safetensors")
    assert put_denoiser_weights(pipeline, tmp_path / "esd.safetensors") == 1
    assert_same(state(pipeline), {**before, name: torch.ones_like(before[name])})


def test_weights_put_under_edits_of_rows_are_noticed(pipeline, tmp_path):
    space = cad_fast.ComponentSpace.of(pipeline, "weight", "cross-attention-kv")
    manager = cad_fast.EditManager(pipeline)
    manager.load_edit(Edit.from_indices("e", space, torch.tensor([0, 5])))
    manager.set_edits("e")
    run = {"num_inference_steps": 1, "output_type": "latent"}
    pipeline("a cat", **run)
    save_file({name: tensor + 0.5 for name, tensor in state(pipeline).items()}, tmp_path / "other.safetensors")
    put_denoiser_weights(pipeline, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="no longer the model that its edits are of"):
        pipeline("a cat", **run)


def test_parts_are_found_by_their_index(pipeline, tmp_path):
    before = state(pipeline)
    names = sorted(before)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for part, of in parts.items():
        save_file({name: before[name] + 1 for name in of}, tmp_path / part)
    index = {"weight_map": {name: part for part, of in parts.items() for name in of}}
    (tmp_path / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    assert put_denoiser_weights(pipeline, tmp_path) == len(before)
    assert_same(state(pipeline), {name: tensor + 1 for name, tensor in before.items()})
    index["weight_map"][names[0]] = "../a.safetensors"
    (tmp_path / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="does not name files in its folder"):
        put_denoiser_weights(pipeline, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w, n: w.update({n + "x": w[n].clone()}),
            "which the denoiser does not have; nearest: .*attn2.to_k.weight",
        ),
        (lambda w, n: w.update({n: torch.zeros(3, 3)}), r"to_k.weight has shape \[3, 3\], the denoiser's has"),
        (lambda w, n: w.update({n: w[n].int()}), "is I32, expected floating-point"),
        (lambda w, n: w.update({"unet." + n: w[n].clone()}), "twice"),
        (lambda w, n: w.clear(), "holds no weights"),
    ],
)
def test_unfit_weights_change_nothing(pipeline, tmp_path, change, message):
    before = state(pipeline)
    weights = {name: tensor + 1 for name, tensor in before.items()}
    change(weights, next(key for key in before if key.endswith("attn2.to_k.weight")))
    save_file(weights, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match=message):
        put_denoiser_weights(pipeline, tmp_path)
    assert_same(state(pipeline), before)


def test_other_formats_and_damage(pipeline, edit, tmp_path):
    (tmp_path / "esd.pt").write_bytes(b"")
    with pytest.raises(ValueError, match="no safetensors file; other formats can run code"):
        put_denoiser_weights(pipeline, tmp_path / "esd.pt")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        put_denoiser_weights(pipeline, tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="holds 0 safetensors files"):
        put_denoiser_weights(pipeline, tmp_path)
    (tmp_path / "x.safetensors").write_bytes(b"junk" * 9)
    with pytest.raises(ValueError, match="truncated or not a safetensors file"):
        put_denoiser_weights(pipeline, tmp_path / "x.safetensors")
    save_file(state(pipeline), tmp_path / "x.safetensors")
    with edit.applied(pipeline), pytest.raises(RuntimeError, match="edit 'no-car' is in the weights"):
        put_denoiser_weights(pipeline, tmp_path / "x.safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("how", ["model", "folder"])
def test_the_difference_of_a_pruned_checkpoint_is_its_edit(pipeline, edit, tmp_path, how, dtype):
    pruned = copy.deepcopy(pipeline.unet)
    edit.fuse(pruned)
    pruned.to(dtype)
    if how == "folder":
        pruned.save_pretrained(tmp_path)
        pruned = tmp_path
    found = Edit.from_checkpoint_difference(pipeline, pruned, name="again")
    assert found.digest() == edit.digest() and found.name == "again"
    assert found.space.fingerprint == edit.space.fingerprint


def test_a_checkpoint_that_is_more_than_pruned_is_refused(pipeline, edit):
    other = copy.deepcopy(pipeline.unet)
    with pytest.raises(ValueError, match="no weight at zero that the base has not"):
        Edit.from_checkpoint_difference(pipeline, other)
    with torch.no_grad():
        other.conv_in.bias.zero_()
    with pytest.raises(ValueError, match=r"zeros in conv_in\.bias"):
        Edit.from_checkpoint_difference(pipeline, other)
    with torch.no_grad():
        other.conv_in.weight[0, 0, 0, 0] += 1
    with pytest.raises(ValueError, match=r"more than pruned: 1 of the \d+ values of conv_in\.weight"):
        Edit.from_checkpoint_difference(pipeline, other)
