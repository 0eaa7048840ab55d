"""What comes of each check of each family: right, unless it is listed here."""

from __future__ import annotations

from collections.abc import Iterator

RECORDED = "record rows weights neurons heads"
"""The checks that begin with a recording."""

PATTERNS = {
    "three": "guidance with three terms|three terms, or several images",
    "changed model": "guidance that changes the model",
    "views": "this is not classifier-free guidance",
    "views per prompt": "edits were given for 2 prompts",
    "second dimension": "cannot be replayed.*encoder_hidden_states_llama3",
    "several denoisers": "(has several denoisers|draws with|runs the denoiser .* beside) .*PipelinePart",
    "no timestep": "expected the sample first, and a timestep named",
    "lists": "models that take a list of tensors are not supported",
    "rows in parts": "is not possible: a row of .* depends on the others",
    "experts": "is not possible: a row of .* depends on the others|an attention processor|tokens of an expert",
    "one row": "is not possible: .* (is|was) called with 1 rows",
    "frames": "does not have one entry for each of the . rows that the denoiser was called with",
    "uncalled": "ran without calling it. Something reads its weight",
    "no feed-forward": "no linear or convolution of .* is in the preset 'feed-forward'",
    "convolutions": "its feed-forwards are convolutions, whose hidden units are filters",
}
"""Of what errors say, by the name of the reason."""
REASONS = {
    "three": "Guidance with three terms: the denoiser is evaluated more than twice in a step.",
    "changed model": "Guidance by a changed model: the same inputs are evaluated with another attention.",
    "views": "The denoiser is given parts of the picture, not the picture.",
    "views per prompt": "The rows of the denoiser are parts of the picture, not prompts.",
    "second dimension": "The text of the language model has its rows in the second dimension.",
    "several denoisers": "The pipeline has several denoisers: say which one is meant, with `PipelinePart`.",
    "no timestep": "The denoiser takes no timestep: it unmasks tokens.",
    "lists": "The denoiser takes a list of tensors, not one tensor with a row for each sample.",
    "rows in parts": "Perturbed attention runs a part of the rows through layers of its own. One edit for all works.",
    "experts": "Experts are given tokens, whichever row these are of. One edit for all works.",
    "one row": "The timestep is one row for all samples, and its embedding has no row for each edit.",
    "frames": "The text has a row for every frame of a sample.",
    "uncalled": "The pooling of the text reads the weights of its linears without calling them. Leave them out.",
    "convolutions": 'The feed-forward layers are convolutions, whose hidden units are filters: `kind="filter"`.',
    "no feed-forward": "The model has no feed-forward layers.",
}


_PAG = "pag-sd pag-sdxl pag-controlnet-sd pag-sd3 pag-pixart-sigma pag-sana pag-hunyuan-dit pag-animatediff"

# (families, checks, name of the reason): refused, and that is as it has to be.
_REFUSED = [
    ("stable-cascade", f"{RECORDED} edit manager file served preset", "several denoisers"),
    ("wan-2.2", f"{RECORDED} edit manager file served", "several denoisers"),
    ("kandinsky-2.2", "record rows weights heads", "several denoisers"),
    ("amused", f"{RECORDED} manager served", "no timestep"),
    ("z-image z-image-turbo", f"{RECORDED} manager served", "lists"),
    (f"{_PAG} sag sd3-skip-layers", RECORDED, "three"),
    ("pag-sd-alone", RECORDED, "changed model"),
    (f"{_PAG} pag-sd-alone", "manager", "rows in parts"),
    ("panorama", RECORDED, "views"),
    ("panorama", "manager", "views per prompt"),
    ("hidream", RECORDED, "second dimension"),
    ("animatediff", RECORDED, "frames"),
    ("hunyuan-dit", "manager rows served", "uncalled"),
    ("pag-hunyuan-dit", "served", "uncalled"),
    ("deepfloyd-if kandinsky-2.2", "neurons preset", "no feed-forward"),
    ("sana sana-sprint sana-video kandinsky-3 pag-sana", "neurons", "convolutions"),
    ("hidream", "manager", "experts"),
    ("prx stable-audio", "rows manager", "one row"),
]


def _cells(table: list[tuple[str, str, str]]) -> Iterator[tuple[tuple[str, str], str]]:
    for families, checks, text in table:
        for family in families.split():
            for check in checks.split():
                yield (family, check), text


REFUSED: dict[tuple[str, str], str] = dict(_cells(_REFUSED))
