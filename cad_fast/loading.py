"""Load a diffusers pipeline by name, all of its parts in one dtype, and say what was chosen and why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .choices import DTYPES, OFFLOADS, DtypeName, Offload
from .diffusion.denoisers import PipelinePart
from .diffusion.dtypes import as_dtype, choose_dtype, dtype_keyword, dtype_name
from .diffusion.loaded import Loading, note_loading
from .diffusion.stored_models import StoredModel, absent_components
from .zoo.concepts import MODELS, VARIANTS

# What diffusers' `DiffusionPipeline.download` takes of the arguments of `from_pretrained`.
_HUB_ARGUMENTS = (
    "cache_dir",
    "custom_pipeline",
    "custom_revision",
    "force_download",
    "local_files_only",
    "proxies",
    "token",
    "trust_remote_code",
)


def load_pipeline(
    name: str,
    *,
    dtype: DtypeName | torch.dtype = "auto",
    variant: str | None = None,
    revision: str | None = None,
    device: str | torch.device | None = None,
    offload: Offload | None = None,
    denoiser_weights: str | Path | None = None,
    part: str | None = None,
    **kwargs: Any,
) -> Any:
    """Load the pipeline that ``name`` stands for: ``zoo:NAME``, a local diffusers folder, or a Hub repository.

    Args:
        name: what to load. ``zoo:emoji`` and ``zoo:emoji-flow`` are embedded. A repository is ``hub:OWNER/NAME``, or
            ``OWNER/NAME`` where no OWNER is on the disk. Weights are read from safetensors only.
        dtype: one dtype for all parts. "auto": a model stored in float32 stays so. One stored in half precision keeps
            its dtype on a GPU; on a CPU it becomes bfloat16 where that is fast, else float32. The zoo's models are
            float32. Quantised parts keep their own dtypes.
        variant: which of several files of weights, such as "fp16" for ``*.fp16.safetensors``.
        revision: branch, tag or commit of a Hub repository.
        device: where to put the pipeline, such as "cuda:1"; None leaves it on the CPU.
        offload: "model" or "sequential" keeps parts on the CPU and moves them to the accelerator as they are needed.
        denoiser_weights: a safetensors file or a folder with weights of the denoiser, all or some of them, to put over
            its own, such as a checkpoint that another method of erasing has pruned or trained.
        part: which denoiser is meant, of a pipeline with several, such as "transformer_2".
        **kwargs: go to ``DiffusionPipeline.from_pretrained``.

    Returns:
        The pipeline, or with ``part`` a ``PipelinePart`` of it; ``loading_of`` says what was chosen.

    Raises:
        ValueError: for an option that is unknown or does not fit the model or the machine.
        FileNotFoundError: when there is nothing of that name, or weights are missing.
        ImportError: naming the package that quantised weights or offloading need.
    """
    if "torch_dtype" in kwargs:
        raise TypeError("load_pipeline takes dtype=, whatever diffusers calls it")
    place = checked_device(device)
    _check_options(dtype, offload, place)
    if name.startswith("zoo:"):
        pipeline, loading = _from_zoo(name, dtype, variant, revision, kwargs)
    else:
        pipeline, loading = _from_files(name, dtype, variant, revision, place, offload, kwargs)
    if part is not None:
        pipeline, loading = PipelinePart(pipeline, part), replace(loading, part=part)
    if denoiser_weights is not None:
        from .edits.files.denoiser_weights import put_denoiser_weights

        put_denoiser_weights(pipeline, denoiser_weights)
        loading = replace(loading, denoiser_weights=str(denoiser_weights))
    loading = _put(pipeline, loading, place, offload)
    note_loading(pipeline, loading)
    return pipeline


def _check_options(dtype: Any, offload: Any, device: torch.device | None) -> None:
    if not isinstance(dtype, torch.dtype) and dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
    if isinstance(dtype, torch.dtype) and dtype_name(dtype) not in DTYPES:
        raise ValueError(f"dtype is {dtype}, expected torch.float32, torch.bfloat16 or torch.float16")
    if offload is not None and offload not in OFFLOADS:
        raise ValueError(f"unknown offload {offload!r}: expected one of {', '.join(OFFLOADS)}")
    if offload in (None, "none"):
        return
    if device is not None and device.type == "cpu":
        raise ValueError(f"offload {offload!r} moves parts to an accelerator as they are needed, device is {device}")
    if device is None and _accelerator() is None:
        raise ValueError(
            f"offload {offload!r} moves parts to an accelerator as they are needed: torch finds none on this machine"
        )
    import importlib.util

    if importlib.util.find_spec("accelerate") is None:
        raise ImportError(f"offload {offload!r} needs accelerate: pip install accelerate", name="accelerate")


def _accelerator() -> torch.device | None:
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("xpu") if hasattr(torch, "xpu") and torch.xpu.is_available() else None


def checked_device(device: str | torch.device | None) -> torch.device | None:
    """``device`` as torch knows it. Raises ValueError when torch knows no such device, or has none here."""
    if device is None:
        return None
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"unknown device {device!r}: expected cpu, cuda, cuda:1, mps or xpu") from error
    if place.type == "meta":
        raise ValueError("device 'meta' holds no weights: nothing can be computed there")
    if place.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            built = f"torch {torch.__version__} finds no CUDA device here"
            raise ValueError(f"device {device!r}: {built}")
        if place.index is not None and place.index >= count:
            raise ValueError(f"device {device!r}: there are {count} CUDA devices, cuda:0 to cuda:{count - 1}")
    elif place.type != "cpu":
        try:
            torch.zeros(1, device=place)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ValueError(f"device {device!r} cannot be used: {reason}") from error
    return place


def _from_zoo(
    name: str, dtype: Any, variant: str | None, revision: str | None, kwargs: dict[str, Any]
) -> tuple[Any, Loading]:
    from . import zoo

    zoo.folder(name.removeprefix("zoo:"))  # an unknown name comes first
    for option, value in (("variant", variant), ("revision", revision)):
        if value is not None:
            raise ValueError(f"{name} comes with cad_fast in one version: it has no {option} {value!r}")
    chosen = torch.float32 if dtype == "auto" else as_dtype(dtype)
    pipeline = zoo.load(name.removeprefix("zoo:"), **dtype_keyword(chosen), **kwargs)
    reason = "the zoo's figures are of float32" if dtype == "auto" else "as asked for"
    return pipeline, Loading(name, str(dtype_name(chosen)), "float32", reason)


def _from_files(
    name: str,
    dtype: Any,
    variant: str | None,
    revision: str | None,
    device: torch.device | None,
    offload: Offload | None,
    kwargs: dict[str, Any],
) -> tuple[Any, Loading]:
    from diffusers import DiffusionPipeline

    path = _local(name)
    if path is None:
        from .edits.files.hub import hub_repository

        name = hub_repository(name)
        path = _downloaded(name, variant, revision, kwargs)
    elif revision is not None:
        raise ValueError(
            f"{name} is a local folder and has no revisions: revision {revision!r} is for Hub repositories"
        )
    stored = StoredModel.of(path, name, skip=frozenset(kwargs))
    stored.require_weights(variant)
    stored.require_quantisers()
    where = device or (_accelerator() if offload in ("model", "sequential") else None) or torch.device("cpu")
    chosen, reason = choose_dtype(dtype, stored.dtype(variant), where)
    absent = absent_components(path / "model_index.json")
    passed = {key: value for key, value in kwargs.items() if key not in ("cache_dir", "token", "revision")}
    try:
        pipeline = DiffusionPipeline.from_pretrained(
            str(path), **{"use_safetensors": True, "variant": variant, **dtype_keyword(chosen), **absent, **passed}
        )
    except OSError as error:
        raise FileNotFoundError(f"{name} cannot be loaded: {error}") from error
    pipeline.register_to_config(_name_or_path=name)
    loading = Loading(
        name, str(dtype_name(chosen)), stored.dtype(variant), reason, variant, revision, quantised=stored.quantised()
    )
    return pipeline, loading


def _local(name: str) -> Path | None:
    """The folder that ``name`` is, None for a name on the Hub. Raises FileNotFoundError or ValueError."""
    path = Path(name).expanduser()
    if path.is_file():
        raise ValueError(
            f"{name} is one file: expected a folder written by a pipeline's save_pretrained. A checkpoint of a whole "
            "model in one file becomes one with diffusers: StableDiffusionPipeline.from_single_file(FILE)"
            ".save_pretrained(FOLDER), or the class of its kind"
        )
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise FileNotFoundError(
                f"{name} holds no model_index.json: expected a folder written by a pipeline's save_pretrained"
            )
        return path
    if name.startswith((".", "/", "~")) or name.count("/") != 1 or name.endswith((".safetensors", ".ckpt", ".bin")):
        embedded = ", ".join(f"zoo:{model}" for model in (*MODELS, *VARIANTS))
        raise FileNotFoundError(
            f"{name} does not exist: expected {embedded}, a folder written by a pipeline's save_pretrained, or a Hub "
            "repository hub:OWNER/NAME"
        )
    return None


def _downloaded(name: str, variant: str | None, revision: str | None, kwargs: dict[str, Any]) -> Path:
    """The folder of a Hub repository in the cache, with what the pipeline needs of it."""
    from diffusers import DiffusionPipeline

    unreached = _check_listing(name, variant, revision, kwargs)
    arguments = {key: value for key, value in kwargs.items() if key in _HUB_ARGUMENTS}
    if unreached is not None:  # what was fetched before may do
        arguments["local_files_only"] = True
    try:
        found = DiffusionPipeline.download(name, use_safetensors=True, variant=variant, revision=revision, **arguments)
    except OSError as error:
        raise _not_found(name, revision, unreached or error) from error
    return Path(found)


def _check_listing(name: str, variant: str | None, revision: str | None, kwargs: dict[str, Any]) -> Exception | None:
    """Look at a Hub repository's list of files before gigabytes are fetched; returns why the Hub cannot be reached.

    Raises FileNotFoundError when there is no such repository, or it holds no weights that can be read.
    """
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if kwargs.get("local_files_only"):
        return None
    where: dict[str, Any] = {"revision": revision, "token": kwargs.get("token")}
    try:
        files = HfApi().list_repo_files(name, **where)
        index = "model_index.json"
        here = hf_hub_download(name, index, cache_dir=kwargs.get("cache_dir"), **where) if index in files else None
    except (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise _not_found(name, revision, error) from error
    except ValueError:  # a name that no repository can have
        raise
    except Exception as error:  # of the network: which ones they are depends on the version of huggingface_hub
        return error
    if here is None:
        raise FileNotFoundError(f"the Hub repository {name} holds no model_index.json: it is no diffusers pipeline")
    StoredModel.listed(name, files, Path(here), skip=frozenset(kwargs)).require_weights(variant)
    return None


def _not_found(name: str, revision: str | None, error: Exception) -> FileNotFoundError:
    where = "" if revision is None else f" at revision {revision!r}"
    reason = " ".join(str(error).split())
    return FileNotFoundError(
        f"{name!r} is neither a local folder nor a Hub repository that can be read{where}: {reason}"
    )


def _put(pipeline: Any, loading: Loading, device: torch.device | None, offload: Offload | None) -> Loading:
    """Move the pipeline to where it is to run."""
    if offload in (None, "none"):
        if device is not None:
            pipeline.to(device)
        return replace(loading, device=str(device or "cpu"))
    place = device or _accelerator()
    enable = pipeline.enable_model_cpu_offload if offload == "model" else pipeline.enable_sequential_cpu_offload
    enable(device=place)
    return replace(loading, device=str(place), offload=offload)
