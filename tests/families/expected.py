"""What comes of each check of each family: right, unless it is listed here."""

from __future__ import annotations

import re
from collections.abc import Iterator

RECORDED = "record rows weights neurons heads"
"""The checks that begin with a recording."""

_THREE = "guidance with three terms|three terms, or several images"
_NO_DENOISER = "no denoiser found: expected a pipeline with a `unet` or a `transformer`"
_NO_TIMESTEP = "expected the sample first, and a timestep named"
_LISTS = "models that take a list of tensors are not supported"
_ROWS = "was called with an input of shape .* while the denoiser has . rows"
_ONE_ROW = "was called with 1 rows, which is no multiple of the 3 variants"
_NO_FEED_FORWARD = "matches target_modules 'feed-forward'"
_PAG = "pag-sd pag-sdxl pag-controlnet-sd pag-sd3 pag-pixart-sigma pag-sana pag-hunyuan-dit pag-animatediff"

# (families, checks, pattern of the reason): refused, and that is as it has to be.
_REFUSED = [
    ("stable-cascade", f"{RECORDED} edit manager file served", _NO_DENOISER),
    ("amused", f"{RECORDED} manager served", _NO_TIMESTEP),
    ("z-image z-image-turbo", f"{RECORDED} manager served", _LISTS),
    (_PAG, RECORDED, f"{_THREE}|{_NO_FEED_FORWARD}"),
    ("pag-sd-alone", RECORDED, "guidance that changes the model"),
    (f"{_PAG} pag-sd-alone", "manager served", f"{_ROWS}|edits were given for 2 prompts"),
    ("sag sd3-skip-layers", RECORDED, _THREE),
    ("panorama", RECORDED, "this is not classifier-free guidance"),
    ("panorama", "manager", "edits were given for 2 prompts"),
    ("deepfloyd-if", "neurons", _NO_FEED_FORWARD),
    ("hidream", "manager served", _ROWS),
    ("prx stable-audio", "rows", _ONE_ROW),
    ("prx stable-audio", "manager", _ROWS),
]

# (families, checks, what is wrong): not yet as it has to be.
_KNOWN_WRONG: list[tuple[str, str, str]] = []


def _cells(table: list[tuple[str, str, str]]) -> Iterator[tuple[tuple[str, str], str]]:
    for families, checks, text in table:
        for family in families.split():
            for check in checks.split():
                yield (family, check), text


KNOWN_WRONG: dict[tuple[str, str], str] = dict(_cells(_KNOWN_WRONG))
REFUSED: dict[tuple[str, str], re.Pattern[str]] = {
    cell: re.compile(pattern) for cell, pattern in _cells(_REFUSED) if cell not in KNOWN_WRONG
}
