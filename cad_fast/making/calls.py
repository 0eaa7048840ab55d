"""The main job in one call: erase or amplify a concept of a pipeline.

``erase`` and ``amplify`` record, score, spare, refine and choose the amount. Every step is there to be called by hand
too: ``record``, ``Attributor``, ``Selection``, ``refine``, ``Edit.from_scores``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from ..diffusion.generation import Generation
from ..diffusion.timesteps import Window
from ..edits.edit import Edit
from ..objectives import DenoisingLoss
from .candidates import LITTLE_MOVED, Candidate, choose
from .concepts import bases_of, concepts_to_keep, prompts_of
from .making import Making
from .ranking import REFINED_ROUNDS

PRESET = "cross-attention-kv"
RATIOS = (0.01, 0.02, 0.03, 0.06, 0.1)
ASKED = "the ratio was given"
ALL_ASKED = "every ratio was asked for"


def erase(
    pipeline: Any,
    concept: str,
    *,
    prompts: str | Sequence[str] | None = None,
    base_prompts: str | Sequence[str] | None = None,
    keep: Sequence[str] | Mapping[str, str | Sequence[str]] | None = None,
    ratio: float | None = None,
    target_modules: str | Sequence[str] = PRESET,
    timesteps: Window | None = None,
    samples: int = 12,
    seed: int = 0,
    name: str | None = None,
    progress: bool = True,
    **pipeline_kwargs: Any,
) -> Edit:
    """Make an edit that erases a concept and spares others (CAD-Erase, arXiv 2412.02542).

    The pipeline draws the concept and what is to be kept, and is left as it was. Components are scored to first order,
    ranked by gain against damage, and refined for the edit as a whole. Without ``ratio`` edits of growing size are made
    until one is enough, and one more, which is taken where it costs little. Enough means: replayed on the recordings it
    leaves nothing of the concept, the intact model sees none of it in twice ``samples`` pictures that the edit draws,
    and in pictures of what is kept it still sees that (see ``recognised``). No classifier is asked.

    Args:
        pipeline: any diffusers pipeline with one denoiser.
        concept: its name, such as "car".
        prompts: prompts that express it. None: for the embedded models those they were trained with, else a few
            sentences around the name.
        base_prompts: what is left of each of the prompts without the concept, one for all or one each: "a cat" of "a
            cat in noto style". The outputs for these are what the concept's are to become, which is right for what is
            only a part of a picture, such as a style. None: the unconditional outputs, but for the embedded models'
            styles the object alone.
        keep: concepts to spare: names, or {name: prompts}. None: a few everyday things, or for the embedded models the
            other objects or styles.
        ratio: share of the components to remove, in place of the choice.
        target_modules: the modules whose weights are edited: a preset, a regular expression or names.
        timesteps: the window in which the concept is settled. None: the first 15% of the noise schedule, and the first
            35% where no edit made for that is enough; with base prompts what follows the first 15%, down to 40%.
        samples: pictures of the concept to record, and to look at under each edit (twice as many where it is seen in
            none).
        seed: of the first picture, the others count on.
        name: of the edit.
        progress: whether to show a progress bar.
        **pipeline_kwargs: go to the pipeline, such as ``num_inference_steps`` and ``guidance_scale``. The embedded
            models have ``zoo.generation(name)`` where they are not given.

    Returns:
        The edit. ``edit.provenance["making"]`` says how it was made, and ``["predicted"]`` what it will do.

    Raises:
        ValueError: the modules do not match, a name is unknown to an embedded model, or an edit is in the weights.
        TypeError: the pipeline has no denoiser.
    """
    arguments: dict[str, Any] = {"prompts": prompts, "base_prompts": base_prompts, "keep": keep}
    arguments |= {"target_modules": target_modules, "timesteps": timesteps}
    arguments |= {"samples": samples, "seed": seed, "progress": progress}
    sizes = RATIOS if ratio is None else (ratio,)
    making, candidates = _erasing(pipeline, concept, sizes, ratio is None, **arguments, **pipeline_kwargs)
    chosen, reason = choose(candidates, "positive") if ratio is None else (candidates[0], ASKED)
    return making.finished(chosen, candidates, reason, "positive", name)


def erase_each(pipeline: Any, concept: str, ratios: Sequence[float], **arguments: Any) -> dict[float, Edit]:
    """Make the edits of several sizes that ``erase`` chooses from, for the price of one attribution.

    Args:
        pipeline: as for ``erase``.
        concept: as for ``erase``.
        ratios: shares of the components to remove.
        **arguments: as for ``erase``, without ``ratio`` and ``name``.

    Returns:
        One edit per ratio.

    Raises:
        ValueError, TypeError: as ``erase``. ValueError also without ratios.
    """
    making, candidates = _erasing(pipeline, concept, _some(ratios), False, **arguments)
    return {each.ratio: making.finished(each, candidates, ALL_ASKED, "positive", None) for each in candidates}


def _making(
    pipeline: Any,
    concept: str,
    *,
    target_modules: str | Sequence[str] = PRESET,
    timesteps: Window | None = None,
    samples: int = 12,
    seed: int = 0,
    progress: bool = True,
    **pipeline_kwargs: Any,
) -> Making:
    generation = Generation.of(**pipeline_kwargs)
    return Making(pipeline, concept, target_modules, timesteps, samples, seed, progress, generation)


def _erasing(
    pipeline: Any,
    concept: str,
    ratios: Sequence[float],
    until_enough: bool,
    *,
    prompts: str | Sequence[str] | None = None,
    base_prompts: str | Sequence[str] | None = None,
    keep: Sequence[str] | Mapping[str, str | Sequence[str]] | None = None,
    **settings: Any,
) -> tuple[Making, list[Candidate]]:
    """Candidates that erase, and what they were made with: of all sizes, or until one is enough."""
    making = _making(pipeline, concept, **settings)
    concepts = {concept: prompts_of(pipeline, concept, prompts), **concepts_to_keep(pipeline, concept, keep)}
    making.bases = bases_of(pipeline, concept, concepts, base_prompts)
    each_window = 2 * len(concepts) - 1 + len(ratios) * (REFINED_ROUNDS + 1)
    with making.bar(len(concepts) + each_window):
        recordings = {each: making.record(texts, of=each) for each, texts in concepts.items()}
        windows = making.windows(recordings[concept])
        candidates: list[Candidate] = []
        for window in windows if until_enough else windows[:1]:
            if candidates:
                making.more(each_window)
            objective = making.erasure(recordings[concept], window)
            ranking = making.ranking(recordings, objective, "positive")
            for ratio in ratios:
                one = making.candidate(ranking, ratio)
                if until_enough and one.damage > LITTLE_MOVED:
                    one = replace(one, kept=making.kept_in(one.edit, concepts))
                if until_enough and one.gentle:
                    one = replace(one, seen=making.seen(one.edit, concepts))
                candidates.append(one)
                if until_enough and (not one.gentle or any(each.enough for each in candidates[:-1])):
                    break  # a larger one moves more, or is not needed
            if any(each.enough for each in candidates):
                break
        return making, candidates


def amplify(
    pipeline: Any,
    concept: str,
    *,
    images: str | Path | Sequence[Image.Image] | None = None,
    original: Any = None,
    prompts: str | Sequence[str] | None = None,
    keep: Sequence[str] | Mapping[str, str | Sequence[str]] | None = None,
    ratio: float | None = None,
    target_modules: str | Sequence[str] = PRESET,
    timesteps: Window | None = None,
    samples: int = 12,
    seed: int = 0,
    name: str | None = None,
    progress: bool = True,
    **pipeline_kwargs: Any,
) -> Edit:
    """Make an edit that removes what suppresses a concept (CAD-Amplify, arXiv 2412.02542), and spares others.

    J is minus the denoising loss on pictures of the concept, at all timesteps; with ``original`` minus the distance
    from its outputs. It works where there is something to bring back, such as a concept that fine-tuning has hidden;
    it does not teach a model what it never learned.

    Args:
        pipeline: any diffusers pipeline with one denoiser.
        concept: its name.
        images: a folder of pictures of the concept, or PIL images. None: for the embedded models their own pictures,
            else the pipeline's own samples.
        original: the model before the concept was taken out of it, as another pipeline, in place of images. It samples
            the concept, and the edit brings the outputs back towards its own (see ``record_original``).
        prompts: captions of the pictures, one for all or one each; without pictures the prompts to sample. None: as
            for ``erase``.
        keep: as for ``erase``.
        ratio: share of the components to remove. None: of ``RATIOS`` the one that raises J most, among those that move
            little of what is kept.
        target_modules: as for ``erase``.
        timesteps: the window to look at. None: all timesteps.
        samples: pictures to sample where there are no images.
        seed: as for ``erase``.
        name: of the edit.
        progress: whether to show a progress bar.
        **pipeline_kwargs: go to the pipeline, such as ``num_inference_steps`` and ``guidance_scale``. The embedded
            models have ``zoo.generation(name)`` where they are not given.

    Returns:
        The edit, as ``erase`` does.

    Raises:
        ValueError, TypeError: as ``erase``. ValueError also for both images and an original, or one of another
            architecture. FileNotFoundError: the folder of images does not exist.
    """
    ratios = RATIOS if ratio is None else (ratio,)
    arguments = {"images": images, "original": original, "prompts": prompts, "keep": keep, "timesteps": timesteps}
    arguments |= {"target_modules": target_modules, "samples": samples, "seed": seed, "progress": progress}
    making, candidates = _amplifying(pipeline, concept, ratios, **arguments, **pipeline_kwargs)
    chosen, reason = choose(candidates, "negative") if ratio is None else (candidates[0], ASKED)
    return making.finished(chosen, candidates, reason, "negative", name)


def amplify_each(pipeline: Any, concept: str, ratios: Sequence[float], **arguments: Any) -> dict[float, Edit]:
    """Make the edits of several sizes that ``amplify`` chooses from, for the price of one attribution.

    Args:
        pipeline: as for ``amplify``.
        concept: as for ``amplify``.
        ratios: shares of the components to remove.
        **arguments: as for ``amplify``, without ``ratio`` and ``name``.

    Returns:
        One edit per ratio.

    Raises:
        ValueError, TypeError, FileNotFoundError: as ``amplify``. ValueError also without ratios.
    """
    making, candidates = _amplifying(pipeline, concept, _some(ratios), **arguments)
    return {each.ratio: making.finished(each, candidates, ALL_ASKED, "negative", None) for each in candidates}


def _some(ratios: Sequence[float]) -> Sequence[float]:
    if not ratios:
        raise ValueError("there are no ratios: give at least one share of the components")
    return ratios


def _amplifying(
    pipeline: Any,
    concept: str,
    ratios: Sequence[float],
    *,
    images: str | Path | Sequence[Image.Image] | None = None,
    original: Any = None,
    prompts: str | Sequence[str] | None = None,
    keep: Sequence[str] | Mapping[str, str | Sequence[str]] | None = None,
    **settings: Any,
) -> tuple[Making, list[Candidate]]:
    """Candidates of several sizes that amplify, and what they were made with."""
    if images is not None and original is not None:
        raise ValueError("images and original both say what to bring back: give one")
    making = _making(pipeline, concept, **settings)
    kept = concepts_to_keep(pipeline, concept, keep)
    with making.bar(3 * len(kept) + 2 + len(ratios) * (REFINED_ROUNDS + 1)):
        if original is not None:
            recordings = {concept: making.originals(original, prompts_of(pipeline, concept, prompts))}
        else:
            recordings = {concept: making.pictures(images, prompts)}
        recordings |= {each: making.record(texts, of=each) for each, texts in kept.items()}
        ranking = making.ranking(recordings, DenoisingLoss(timesteps=making.timesteps), "negative")
        return making, [making.candidate(ranking, ratio) for ratio in ratios]
