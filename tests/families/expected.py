"""What comes of each check of each family: right, unless it is listed here."""

from __future__ import annotations

from collections.abc import Iterator

RECORDED = "record rows weights neurons heads"
"""The checks that begin with a recording."""

_MIXED = "no multiple of the denoiser's|in another order|depends on the others or on its place"
_ROWS = "was called with an input of shape .* while the denoiser has . rows"
PATTERNS = {
    "three": "guidance with three terms|three terms, or several images",
    "changed model": "guidance that changes the model",
    "views": "this is not classifier-free guidance",
    "views per prompt": "edits were given for 2 prompts",
    "no denoiser": "no denoiser found: expected a pipeline with a `unet` or a `transformer`",
    "no timestep": "expected the sample first, and a timestep named",
    "lists": "models that take a list of tensors are not supported",
    "rows in parts": f"{_ROWS}|edits were given for 2 prompts|{_MIXED}",
    "experts": f"{_ROWS}|no multiple of the 3 variants|{_MIXED}",
    "one row": f"{_ROWS}|was called with 1 rows, which is no multiple of",
    "no feed-forward": "matches target_modules 'feed-forward'",
}
"""Of what errors say, by the name of the reason."""
REASONS = {
    "three": "Guidance with three terms: the denoiser is evaluated more than twice in a step.",
    "changed model": "Guidance by a changed model: the same inputs are evaluated with another attention.",
    "views": "The denoiser is given parts of the picture, not the picture.",
    "views per prompt": "The rows of the denoiser are parts of the picture, not prompts.",
    "no denoiser": "The pipeline has no `unet` or `transformer`. Give the denoiser itself.",
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
    ("stable-cascade", f"{RECORDED} edit manager file served preset", "no denoiser"),
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

_SINGLE = (
    "flux flux-schnell flux-true-cfg flux-controlnet flux2 flux2-klein flux2-klein-base chroma bria bria-fibo "
    "ovis-image longcat-image hunyuan-image hunyuan-image-distilled hunyuan-video"
)
_WAN = "wan-2.1 wan-2.2 wan-2.2-5b skyreels-v2 skyreels-v2-df"
_SANA = "sana sana-sprint sana-video"
_UNNAMED = "the preset feed-forward does not know the names of these layers"
_NO_NEURONS = "the output linear of these feed-forward layers is not told"

# (families, checks, what is wrong): not yet as it has to be. A result that is wrong in silence says so.
_KNOWN_WRONG = [
    ("wan-2.2", "record", "in silence: only the steps of the first of two transformers are recorded and edited"),
    ("cosmos-2", "record", "in silence: conditional and unconditional are exchanged, as the scheduler is given a "
     "velocity that has the latents in it"),
    ("hunyuan-dit", "manager rows served", "in silence: the pooling of the text reads the weights of its linears "
     "without calling them, and edits of these do not act"),
    ("kandinsky-2.2", "served", "in silence: the pipeline inside the pipeline runs the denoiser that is not edited"),
    ("hidream", "record", "in silence: text of shape [layers, rows, ...] is cut by layers where they are as many"),
    ("flux2 flux2-klein flux2-klein-base", "heads", "in silence: heads of the single blocks are left out"),
    (_SINGLE.replace("flux2 flux2-klein flux2-klein-base ", ""), "neurons heads",
     "in silence: hidden units and heads of the single blocks are left out"),
    ("longcat-audio z-image z-image-turbo", "preset", "in silence: embeddings of the time are taken for layers"),
    ("easyanimate", "preset", "in silence: the layers of the text are left out"),
    ("kandinsky-5-video kandinsky-5-image", "rows weights", "positions are taken for rows where they are as many"),
    ("kandinsky-2.2", "record rows weights heads", "pipelines inside the pipeline keep the progress bar's settings"),
    ("skyreels-v2-df", RECORDED, "the pipeline copies its scheduler, and with it the step that is being watched"),
    ("animatediff", RECORDED, "text repeated for every frame is not told apart: refused for a reason that is not so"),
    ("animatediff pag-animatediff", "manager served", "linears that are called by keyword are not"),
    ("sag", "served", "attention processors set by the pipeline do not reach the denoiser: no reason is given"),
    ("z-image z-image-turbo", "file", "a module's name with a hyphen is written, and refused when it is read"),
    (f"{_WAN} {_SANA} qwen-image qwen-image-unguided hidream prx prx-guided kandinsky-3", "preset weights neurons",
     _UNNAMED),
    ("pag-sana", "preset weights neurons", _UNNAMED),
    ("flux2 flux2-klein flux2-klein-base lumina lumina-2 krea-2 auraflow ace-step cogvideox easyanimate "
     "longcat-audio kandinsky-5-video kandinsky-5-image", "neurons", _NO_NEURONS),
    ("krea-2 hidream kandinsky-5-video kandinsky-5-image", "heads", "the output linear of attention is not told"),
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
