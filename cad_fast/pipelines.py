"""Get a diffusers pipeline by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import zoo


def load_pipeline(name: str, *, denoiser_weights: str | Path | None = None, **kwargs: Any) -> Any:
    """The pipeline that ``name`` stands for: ``zoo:emoji``, a local diffusers folder, or a repository of the Hub.

    ``kwargs`` go to ``DiffusionPipeline.from_pretrained``; weights are read from safetensors only.
    ``denoiser_weights``: a safetensors file or a folder with weights of the denoiser, all or some of them, to put over
    its own, such as a checkpoint that another method of erasing has pruned or trained.
    Raises ValueError for an unknown zoo model or weights that do not fit, FileNotFoundError when there is nothing of
    that name.
    """
    pipeline = _load(name, **kwargs)
    if denoiser_weights is not None:
        from .edits.files.denoiser_weights import put_denoiser_weights

        put_denoiser_weights(pipeline, denoiser_weights)
    return pipeline


def _load(name: str, **kwargs: Any) -> Any:
    if name.startswith("zoo:"):
        return zoo.load(name.removeprefix("zoo:"), **kwargs)
    from diffusers import DiffusionPipeline

    path = Path(name)
    if path.exists() and not (path / "model_index.json").is_file():
        raise FileNotFoundError(
            f"{name} holds no model_index.json: expected a folder written by a pipeline's save_pretrained"
        )
    if not path.exists() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise FileNotFoundError(f"the folder {name} does not exist")
    try:
        return DiffusionPipeline.from_pretrained(name, **{"use_safetensors": True, **kwargs})
    except OSError as error:
        raise FileNotFoundError(
            f"{name!r} is neither a local folder nor a repository that can be read: {error}"
        ) from error
