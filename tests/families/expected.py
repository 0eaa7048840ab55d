"""What comes of each check of each family: right, unless it is listed here."""

from __future__ import annotations

from collections.abc import Iterator

RECORDED = "record rows weights neurons heads"
"""The checks that begin with a recording."""

_ROWS = "was called with an input of shape .* while the denoiser has . rows"
PATTERNS = {
    "three": "guidance with three terms|three terms, or several images",
    "changed model": "guidance that changes the model",
    "views": "this is not classifier-free guidance",
    "views per prompt": "edits were given for 2 prompts",
    "several denoisers": "has several denoisers .*PipelinePart|runs the denoiser .* beside .*PipelinePart",
    "no timestep": "expected the sample first, and a timestep named",
    "lists": "models that take a list of tensors are not supported",
    "rows in parts": f"{_ROWS}|edits were given for 2 prompts",
    "experts": f"{_ROWS}|no multiple of the 3 variants",
    "one row": f"{_ROWS}|was called with 1 rows, which is no multiple of",
    "no feed-forward": "no linear or convolution of .* is in the preset 'feed-forward'",
}
"""Of what errors say, by the name of the reason."""
REASONS = {
    "three": "Guidance with three terms: the denoiser is evaluated more than twice in a step.",
    "changed model": "Guidance by a changed model: the same inputs are evaluated with another attention.",
    "views": "The denoiser is given parts of the picture, not the picture.",
    "views per prompt": "The rows of the denoiser are parts of the picture, not prompts.",
    "several denoisers": "The pipeline has several denoisers: say which one is meant, with `PipelinePart`.",
    "no timestep": "The denoiser takes no timestep: it unmasks tokens.",
    "lists": "The denoiser takes a list of tensors, not one tensor with a row for each sample.",
    "rows in parts": "Perturbed attention runs a part of the rows through layers of its own.",
    "experts": "Experts are given tokens, whichever row these are of.",
    "one row": "The timestep is one row for all samples, and its embedding has no row for each edit.",
    "no feed-forward": "The model has no feed-forward layers.",
}


_PAG = "pag-sd pag-sdxl pag-controlnet-sd pag-sd3 pag-pixart-sigma pag-sana pag-hunyuan-dit pag-animatediff"

# (families, checks, name of the reason): refused, and that is as it has to be.
_REFUSED = [
    ("stable-cascade", f"{RECORDED} edit manager file served preset", "several denoisers"),
    ("wan-2.2", RECORDED, "several denoisers"),
    ("amused", f"{RECORDED} manager served", "no timestep"),
    ("z-image z-image-turbo", f"{RECORDED} manager served", "lists"),
    (f"{_PAG} sag sd3-skip-layers", RECORDED, "three"),
    ("pag-sd-alone", RECORDED, "changed model"),
    (f"{_PAG} pag-sd-alone", "manager served", "rows in parts"),
    ("panorama", RECORDED, "views"),
    ("panorama", "manager", "views per prompt"),
    ("deepfloyd-if kandinsky-2.2", "neurons preset", "no feed-forward"),
    ("hidream", "manager served rows", "experts"),
    ("prx stable-audio", "rows manager", "one row"),
]

_JOINT = "sd3 sd3-t5 sd3.5 qwen-image qwen-image-unguided auraflow mochi easyanimate hunyuan-video-1.5"
_PARTS = "stable-cascade-decoder stable-cascade-prior"

# (families, checks, what is wrong): not yet as it has to be. A result that is wrong in silence says so.
_KNOWN_WRONG = [
    ("cosmos-2", "record", "in silence: conditional and unconditional are exchanged, as the scheduler is given a "
     "velocity that has the latents in it"),
    ("hunyuan-dit", "manager rows served", "in silence: the pooling of the text reads the weights of its linears "
     "without calling them, and edits of these do not act"),
    ("kandinsky-2.2", "served", "in silence: the pipeline inside the pipeline runs the denoiser that is not edited"),
    ("hidream", "record", "in silence: text of shape [layers, rows, ...] is cut by layers where they are as many"),
]  # fmt: skip


def _cells(table: list[tuple[str, str, str]]) -> Iterator[tuple[tuple[str, str], str]]:
    for families, checks, text in table:
        for family in families.split():
            for check in checks.split():
                yield (family, check), text


KNOWN_WRONG: dict[tuple[str, str], str] = {}
for _cell, _text in _cells(_KNOWN_WRONG):
    KNOWN_WRONG.setdefault(_cell, _text)
REFUSED: dict[tuple[str, str], str] = dict(_cells(_REFUSED))
