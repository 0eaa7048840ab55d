"""What the pictures of a request are, drawn alone, under each content that its edits may have had."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cad_fast import Edit
from cad_fast.serving.engine.jobs import PictureJob, RequestedEdit
from tests.serving.common import ROUNDING, Alone, distance

STEPS, GUIDANCE = 1, 3.0


class Truth:
    """Pictures drawn alone, each once.

    Args:
        pipeline: the pipeline that is served.
        contents: per edit what it may be, by version.
    """

    def __init__(self, pipeline: Any, contents: Mapping[str, Sequence[Edit]]) -> None:
        self.alone, self.contents = Alone(pipeline), contents
        self._drawn: dict[tuple[Any, ...], np.ndarray] = {}

    def nearest(self, body: Mapping[str, Any], number: int, allowed: Sequence[Sequence[int]], picture: Any) -> int:
        """How far the picture is from the nearest that it may be, of 255.

        Args:
            body: the request.
            number: which of its pictures.
            allowed: per edit of the request, the versions that may have been in use.
            picture: uint8 [H, W, 3].
        """
        return min(distance(self.drawn(body, number, versions), picture) for versions in itertools.product(*allowed))

    def drawn(self, body: Mapping[str, Any], number: int, versions: Sequence[int]) -> np.ndarray:
        """Picture ``number`` of a request under these versions of its edits; uint8 [H, W, 3]."""
        key = (str(body), number, tuple(versions))
        if key not in self._drawn:
            uses = [
                RequestedEdit(self.contents[use["name"]][version], use.get("strength", 1.0), use.get("window"))
                for use, version in zip(body.get("edits", ()), versions, strict=True)
            ]
            arguments = {
                "num_inference_steps": body.get("num_inference_steps", STEPS),
                "guidance_scale": body.get("guidance_scale", GUIDANCE),
                **({"negative_prompt": body["negative_prompt"]} if "negative_prompt" in body else {}),
            }
            job = PictureJob("alone", body["prompt"], body["seed"], body.get("n", 1), arguments, tuple(uses))
            self._drawn[key] = np.asarray(self.alone.draw(job, number))
        return self._drawn[key]

    def told_apart(self) -> tuple[int, int]:
        """Count the pairs of a picture under two versions of its edits: those beyond rounding, and all."""
        groups: dict[tuple[Any, ...], list[np.ndarray]] = {}
        for (body, number, _), picture in self._drawn.items():
            groups.setdefault((body, number), []).append(picture)
        pairs = [pair for pictures in groups.values() for pair in itertools.combinations(pictures, 2)]
        return sum(distance(*pair) > ROUNDING for pair in pairs), len(pairs)
