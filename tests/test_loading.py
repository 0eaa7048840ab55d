"""Models as people have them: every part in one dtype, and errors that say what is missing."""

import copy
import json

import pytest
import torch
from PIL import Image

import cad_fast
from cad_fast import zoo
from cad_fast.diffusion import dtypes
from cad_fast.diffusion.dtypes import choose_dtype, dtype_of, one_dtype
from cad_fast.diffusion.loaded import loading_of, model_facts
from cad_fast.diffusion.stored_models import StoredModel, Weights
from cad_fast.evaluation import LabelledPrompt, PromptSet
from cad_fast.loading import load_pipeline
from cad_fast.recording.record import record
from tests.pipelines import PIPELINES, stable_diffusion

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def saved(folder, dtype=torch.float32, **options):
    """The tiny pipeline, stored in ``dtype``."""
    copy.deepcopy(stable_diffusion()).to(dtype).save_pretrained(folder, **options)
    return folder


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("half"), torch.float16)


def dtypes_of(pipeline):
    return {dtype_of(part) for part in pipeline.components.values() if isinstance(part, torch.nn.Module)}


@pytest.mark.parametrize("dtype", list(NAMES))
def test_all_parts_have_the_dtype_asked_for(half, dtype) -> None:
    for given in (dtype, NAMES[dtype]):
        pipeline = load_pipeline(str(half), dtype=given)
        assert dtypes_of(pipeline) == {dtype}
    loading = loading_of(pipeline)
    assert loading == loading_of(pipeline.unet)
    assert (loading.dtype, loading.stored, loading.reason) == (NAMES[dtype], "float16", "as asked for")
    assert pipeline.config._name_or_path == str(half)


def test_what_is_stored_in_half_precision_is_loaded_as_the_machine_is_fast(half, monkeypatch) -> None:
    for fast, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(dtypes, "bfloat16_is_fast", lambda fast=fast: fast)
        pipeline = load_pipeline(str(half))
        assert dtypes_of(pipeline) == {dtype}
        assert "stored in float16" in str(loading_of(pipeline))


@pytest.mark.parametrize(
    ("stored", "device", "fast", "dtype"),
    [
        ("float32", CPU, True, torch.float32),
        ("float32", CUDA, True, torch.float32),
        ("float64", CPU, True, torch.float32),
        ("float16", CUDA, False, torch.float16),
        ("bfloat16", CUDA, False, torch.bfloat16),
        ("float8_e4m3fn", CUDA, False, torch.bfloat16),
        ("float16", CPU, True, torch.bfloat16),
        ("bfloat16", CPU, False, torch.float32),
        (None, CUDA, True, torch.float32),
    ],
)
def test_the_choice(monkeypatch, stored, device, fast, dtype) -> None:
    monkeypatch.setattr(dtypes, "bfloat16_is_fast", lambda: fast)
    assert choose_dtype("auto", stored, device)[0] is dtype
    assert choose_dtype("float16", stored, device) == (torch.float16, "as asked for")


def test_float32_stays(tmp_path) -> None:
    assert dtypes_of(load_pipeline(str(saved(tmp_path)))) == {torch.float32}


@pytest.mark.parametrize("name", [f"zoo:{name}" for name in zoo.MODELS])
def test_the_zoo_is_float32(name) -> None:
    pipeline = load_pipeline(name)
    assert dtypes_of(pipeline) == {torch.float32}
    assert loading_of(pipeline).reason == "the zoo's figures are of float32"
    assert dtypes_of(load_pipeline(name, dtype="bfloat16")) == {torch.bfloat16}
    with pytest.raises(ValueError, match=f"{name} comes with cad_fast in one version: it has no variant 'fp16'"):
        load_pipeline(name, variant="fp16")
    with pytest.raises(ValueError, match="it has no revision 'main'"):
        load_pipeline(name, revision="main")


def test_a_folder_without_a_component_that_the_pipeline_could_have(tmp_path) -> None:
    """Stable Diffusion 3 without T5, as a user saved it: diffusers alone wants to be told what is absent."""
    zoo.load("emoji-flow").save_pretrained(tmp_path)
    pipeline = load_pipeline(str(tmp_path))
    assert pipeline.text_encoder_3 is None and pipeline.text_encoder_2 is not None


def test_variants(tmp_path) -> None:
    saved(tmp_path, torch.float16, variant="fp16")
    with pytest.raises(FileNotFoundError, match="has weights of variant fp16 only: pass variant='fp16'"):
        load_pipeline(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no weights of variant 'bf16': it has the variants fp16"):
        load_pipeline(str(tmp_path), variant="bf16")
    pipeline = load_pipeline(str(tmp_path), variant="fp16", dtype="float32")
    assert dtypes_of(pipeline) == {torch.float32} and loading_of(pipeline).stored == "float16"
    saved(tmp_path)  # both beside each other
    assert loading_of(load_pipeline(str(tmp_path))).stored == "float32"
    with pytest.raises(FileNotFoundError, match="has no weights of variant 'fp16': it has no variants"):
        load_pipeline(str(saved(tmp_path / "plain")), variant="fp16")


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_sharded_weights(tmp_path, variant) -> None:
    saved(tmp_path, torch.bfloat16, max_shard_size="20KB", variant=variant)
    assert len(list((tmp_path / "unet").glob("*.safetensors"))) > 2
    pipeline = load_pipeline(str(tmp_path), variant=variant, dtype="float32")
    assert dtypes_of(pipeline) == {torch.float32} and loading_of(pipeline).stored == "bfloat16"
    weight = stable_diffusion().unet.conv_in.weight
    torch.testing.assert_close(pipeline.unet.conv_in.weight, weight.bfloat16().float())
    next(iter(sorted((tmp_path / "unet").glob("*.safetensors")))).unlink()
    with pytest.raises(FileNotFoundError, match=r"index.* names .*-00001-of-"):
        load_pipeline(str(tmp_path), variant=variant)


def test_names_of_files_of_weights() -> None:
    weights = Weights.of(
        ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors", "config.json"]
    )
    assert set(weights.variants) == {None, "fp16"} and weights.others == []
    weights = Weights.of(["model.fp16-00001-of-00002.safetensors", "model-00001-of-00002.bf16.safetensors"])
    assert set(weights.variants) == {"fp16", "bf16"}
    weights = Weights.of(["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "training_args.bin"])
    assert not weights.variants and len(weights.others) == 2


def test_a_hub_repository_is_looked_at_before_it_is_fetched(tmp_path) -> None:
    index = tmp_path / "model_index.json"
    index.write_text(json.dumps({"unet": ["diffusers", "UNet2DConditionModel"], "vae": [None, None]}))
    files = ["model_index.json", "unet/diffusion_pytorch_model.fp16.safetensors", "vae/x.bin", "lora/pytorch_model.bin"]
    listed = StoredModel.listed("some/model", files, index)
    listed.require_weights("fp16")
    with pytest.raises(FileNotFoundError, match="some/model: its unet has weights of variant fp16 only"):
        listed.require_weights(None)


def test_other_formats_are_refused(tmp_path) -> None:
    saved(tmp_path, safe_serialization=False)
    with pytest.raises(FileNotFoundError, match=r"holds diffusion_pytorch_model.bin and no safetensors.*Convert it"):
        load_pipeline(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"is one file: expected a folder.*from_single_file"):
        load_pipeline(str(tmp_path / "model.safetensors"))
    with pytest.raises(FileNotFoundError, match=r"nowhere.safetensors does not exist: expected zoo:emoji, zoo:"):
        load_pipeline("some/nowhere.safetensors")


def test_quantised_parts_need_their_package(half, tmp_path, monkeypatch) -> None:
    pipeline = load_pipeline(str(half))
    pipeline.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "unet" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (tmp_path / "unet" / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("cad_fast.diffusion.stored_models._installed", lambda module: module != "bitsandbytes")
    with pytest.raises(ImportError, match="its unet is quantised by bitsandbytes, which needs bitsandbytes: pip"):
        load_pipeline(str(tmp_path))
    assert StoredModel.of(tmp_path, "x").quantised() == ("unet",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "half"}, "unknown dtype 'half': expected one of auto, float32"),
        ({"dtype": torch.float64}, "dtype is torch.float64, expected torch.float32"),
        ({"offload": "disk"}, "unknown offload 'disk': expected one of none, model, sequential"),
        ({"offload": "model", "device": "cpu"}, "offload 'model' moves parts to an accelerator"),
        ({"device": "gpu"}, "unknown device 'gpu': expected cpu, cuda"),
        ({"device": "meta"}, "holds no weights"),
        ({"revision": "main"}, "is a local folder and has no revisions: revision 'main' is for Hub"),
    ],
)
def test_options_that_do_not_fit(half, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        load_pipeline(str(half), **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_devices_that_are_not_there(half) -> None:
    for options in ({"device": "cuda"}, {"device": "cuda:1"}):
        with pytest.raises(ValueError, match=f"device '{options['device']}': torch .* finds no CUDA device here"):
            load_pipeline(str(half), **options)
    with pytest.raises(ValueError, match=r"offload 'sequential' .*: torch finds none on this machine"):
        load_pipeline(str(half), offload="sequential")


def mixed(encoder: torch.dtype, denoiser: torch.dtype):
    pipeline = copy.deepcopy(stable_diffusion())
    pipeline.text_encoder.to(encoder)
    pipeline.unet.to(denoiser)
    pipeline.vae.to(denoiser)
    return pipeline


def test_a_pipeline_of_unequal_parts_is_explained() -> None:
    pipeline = mixed(torch.float16, torch.float32)
    message = "text_encoder is torch.float16, unet is torch.float32.*load it with one dtype"
    with pytest.raises(ValueError, match=message):
        record(pipeline, "a cat", num_inference_steps=2, progress=False)
    with pytest.raises(ValueError, match=message):
        cad_fast.attribute(pipeline, "a cat", generation=cad_fast.Generation(2), progress=False)
    with pytest.raises(ValueError, match=message):
        cad_fast.record_images(pipeline, [Image.new("RGB", (16, 16))], "a cat", timesteps=2)
    prompts = PromptSet([LabelledPrompt("a cat", {"concept": "cat"})])
    with pytest.raises(ValueError, match=message):
        cad_fast.evaluate(pipeline, prompts, _Judge(), per_concept=1, generation=cad_fast.Generation(1), progress=False)


class _Judge:
    axes = {"concept": ("cat",)}  # noqa: RUF012

    def __call__(self, images):
        return {"concept": torch.ones(len(images), 1)}


def test_other_errors_stay_as_they_are() -> None:
    with pytest.raises(RuntimeError, match="the type of this"), one_dtype(stable_diffusion()):
        raise RuntimeError("the type of this")


@pytest.mark.parametrize("name", ["sd", "sdxl", "flux", "pixart"])
def test_parts_that_are_kept_in_float32_are_not_refused(name) -> None:
    """Of T5 some weights, and the autoencoder of SDXL."""
    factory, more = PIPELINES[name]
    pipeline = copy.deepcopy(factory()).to(torch.bfloat16)
    for part in ("text_encoder", "text_encoder_2"):
        for module in getattr(pipeline, part, torch.nn.Identity()).modules():
            if name in ("flux", "pixart") and type(module).__name__ == "T5LayerFF":
                module.DenseReluDense.wo.float()
    if name == "sdxl":
        pipeline.vae.float()
    recording = record(pipeline, "a cat", num_inference_steps=2, progress=False, **more)
    assert recording.calls[0].sample.dtype is torch.bfloat16


def test_what_was_loaded_stands_in_what_is_made_of_it(half) -> None:
    pipeline = load_pipeline(str(half), dtype="bfloat16")
    scores = cad_fast.attribute(
        pipeline, "a cat", generation=cad_fast.Generation(2), target_modules="cross-attention-kv", progress=False
    )
    assert scores.provenance["model"]["dtype"] == "bfloat16" and scores.provenance["model"]["stored"] == "float16"
    assert str(half) not in json.dumps(scores.provenance)
    assert cad_fast.Edit.from_scores(scores, cad_fast.Selection(0.1)).provenance["model"] == scores.provenance["model"]
    assert model_facts(stable_diffusion()) == {"dtype": "float32"}


@pytest.fixture
def hub(half, monkeypatch):
    """A Hub with the repository some/model, which is ``half``: (what was asked of it, errors that it answers with)."""
    import huggingface_hub
    from diffusers import DiffusionPipeline

    asked, errors = [], {}

    def listed(self, name, revision=None, token=None):
        asked.append(("list", name, revision))
        if "list" in errors:
            raise errors["list"]
        return [str(path.relative_to(half)) for path in half.rglob("*") if path.is_file()]

    def downloaded(name, **options):
        asked.append(("download", name, options))
        if "download" in errors:
            raise errors["download"]
        return str(half)

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", listed)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda name, file, **_: str(half / file))
    monkeypatch.setattr(DiffusionPipeline, "download", downloaded)
    return asked, errors


def test_a_hub_repository(hub) -> None:
    asked, _ = hub
    pipeline = load_pipeline("some/model", revision="v2", token="secret")
    assert asked[0] == ("list", "some/model", "v2")
    assert asked[1][2] == {"use_safetensors": True, "variant": None, "revision": "v2", "token": "secret"}
    assert pipeline.config._name_or_path == "some/model"
    assert (loading_of(pipeline).name, loading_of(pipeline).revision) == ("some/model", "v2")
    with pytest.raises(FileNotFoundError, match="some/model has no weights of variant 'fp16': it has no variants"):
        load_pipeline("some/model", variant="fp16")
    assert len(asked) == 3, "nothing was fetched"


def test_a_hub_that_cannot_be_reached_leaves_what_was_fetched_before(hub) -> None:
    asked, errors = hub
    errors["list"] = ConnectionError("no route")
    load_pipeline("some/model")
    assert asked[1][2]["local_files_only"] is True
    errors["download"] = OSError("not cached")
    with pytest.raises(FileNotFoundError, match=r"'some/model' is neither a local folder nor a Hub .*no route"):
        load_pipeline("some/model")
