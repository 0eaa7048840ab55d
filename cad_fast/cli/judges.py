"""What ``--scorer`` names: judges of pictures, measures and distances."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import is_zoo

if TYPE_CHECKING:
    from PIL import Image

    from ..evaluation import PromptSet
    from ..evaluation.scorers import Distance, ImageFeatures, Measure, Scorer

HELP = (
    "what judges or measures the pictures, may be given several times: clip:MODEL (zero-shot, CLIP score), "
    "nudenet[:PROTOCOL], colour, aesthetic:MODEL,HEAD, lpips:FILE, fid:FILE, fd:clip:MODEL, zoo, fd:zoo (default: the "
    "zoo's classifier for its models)"
)
EXPECTED = (
    "expected clip:MODEL, nudenet[:PROTOCOL], colour, aesthetic:MODEL,HEAD, lpips:FILE, fid:FILE, fd:clip:MODEL, zoo "
    "or fd:zoo"
)
PICTURES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass
class Judges:
    """What judges the pictures, what measures each, and what compares them with others."""

    scorers: list[Scorer] = field(default_factory=list)
    measures: list[Measure] = field(default_factory=list)
    distances: list[Distance] = field(default_factory=list)

    @property
    def of_sets(self) -> list[Distance]:
        """The distances that compare sets of pictures, and not pairs."""
        from ..evaluation import FeatureDistance

        return [each for each in self.distances if isinstance(each, FeatureDistance)]


def judges_of(arguments: argparse.Namespace, prompts: PromptSet | None, axis: str | None) -> Judges:
    """Those of ``--scorer``; the zoo's classifier where none judges and the model is the zoo's.

    ``prompts`` give CLIP its texts, and ``axis`` is what is to be judged, if anything. Raises ValueError when nothing
    judges it.
    """
    from ..evaluation.nudenet_scorer import AXIS

    judges = Judges()
    for text in arguments.scorer or ():
        kind, _, rest = text.partition(":")
        if kind == "nudenet":
            nudity = _nudenet(rest)
            judges.measures.append(nudity)
            if axis == AXIS:
                judges.scorers.append(nudity)
        elif kind == "colour" and not rest:
            _add_colour(judges)
        elif kind in ("lpips", "fid", "fd") and rest:
            judges.distances.append(_distance(arguments, kind, rest))
        elif kind == "aesthetic" and rest:
            judges.measures.append(_aesthetic(arguments, rest))
        elif kind == "clip" and rest and prompts is None:
            from ..evaluation import ClipMeasure

            judges.measures.append(ClipMeasure(rest, device=arguments.device or "cpu"))
        else:
            scorer = judge_of(arguments, text, prompts)
            judges.scorers.append(scorer)
            if kind == "clip":
                judges.measures.append(scorer)  # type: ignore[arg-type]  # a ClipScorer is a measure as well
    if not judges.scorers and axis is not None:
        judges.scorers.append(_default(arguments, axis))
    return judges


def judge_of(arguments: argparse.Namespace, text: str, prompts: PromptSet | None) -> Scorer:
    """The one scorer that ``text`` names, ``zoo`` or ``clip:MODEL``. Raises ValueError for anything else."""
    from .. import zoo
    from ..evaluation import ClipScorer

    if text == "zoo":
        return zoo.scorer()
    kind, _, model = text.partition(":")
    if kind != "clip" or not model or prompts is None:
        raise ValueError(f"--scorer is {text!r}, {EXPECTED}")
    axes = {
        axis: {label: prompts.of(axis, label)[0].prompt for label in prompts.concepts(axis)} for axis in prompts.axes
    }
    return ClipScorer(model, axes, device=arguments.device or "cpu")


def one_judge_of(arguments: argparse.Namespace, prompts: PromptSet) -> Scorer:
    """That of ``--scorer`` where it is given once, or the zoo's classifier for its models."""
    if arguments.scorer is None:
        return _default(arguments, prompts.axes[0])
    return judge_of(arguments, arguments.scorer, prompts)


def _default(arguments: argparse.Namespace, axis: str) -> Scorer:
    from .. import zoo

    if not is_zoo(arguments):
        raise ValueError(
            f"--scorer is needed that judges the axis {axis!r}, such as clip:openai/clip-vit-base-patch32, or nudenet "
            "for the axis 'nudity'"
        )
    return zoo.scorer()


def _nudenet(protocol: str) -> Any:
    from ..evaluation import NudeNetScorer

    return NudeNetScorer(protocol) if protocol else NudeNetScorer()


def _add_colour(judges: Judges) -> None:
    from ..evaluation import ColourDistance, ColourStatistics

    judges.measures.append(ColourStatistics())
    judges.distances.append(ColourDistance())


def _aesthetic(arguments: argparse.Namespace, rest: str) -> Measure:
    from ..evaluation import AestheticMeasure

    model, comma, head = rest.rpartition(",")
    if not comma or not model or not head:
        wanted = "expected aesthetic:MODEL,HEAD: a CLIP model and a safetensors file"
        raise ValueError(f"--scorer is 'aesthetic:{rest}', {wanted}")
    return AestheticMeasure(model, head, device=arguments.device or "cpu")


def _distance(arguments: argparse.Namespace, kind: str, rest: str) -> Distance:
    from ..evaluation import FeatureDistance, InceptionFeatures, Lpips

    device = arguments.device or "cpu"
    if kind == "lpips":
        return Lpips(rest, device=device)
    if kind == "fid":
        return FeatureDistance(InceptionFeatures(rest, device=device), ("FID", "KID"))
    return FeatureDistance(_features(arguments, rest))


def _features(arguments: argparse.Namespace, name: str) -> ImageFeatures:
    from .. import zoo
    from ..evaluation import ClipMeasure

    if name == "zoo":
        return zoo.scorer()
    kind, _, model = name.partition(":")
    if kind != "clip" or not model:
        raise ValueError(f"--scorer is 'fd:{name}', expected fd:zoo or fd:clip:MODEL")
    return ClipMeasure(model, device=arguments.device or "cpu")


def reference_pictures(folder: str) -> list[Image.Image]:
    """All pictures in a folder and those in it, in the order of their names. Raises ValueError when there are none."""
    from PIL import Image

    root = Path(folder)
    if not root.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder, expected one with reference pictures")
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in PICTURES)
    if not paths:
        raise ValueError(f"{folder} holds no pictures ({', '.join(PICTURES)})")
    pictures = []
    for path in paths:
        try:
            with Image.open(path) as image:
                pictures.append(image.convert("RGB"))
        except OSError as error:
            raise ValueError(f"{path} is not a picture that can be read: {error}") from error
    return pictures
