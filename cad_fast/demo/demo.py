"""The demonstration: record, attribute, erase, bring back and evaluate on an embedded model, with a report."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..diffusion.context import generators, plain_tensors, silent
from ..diffusion.generation import Generation
from ..edits.edit import Edit
from ..evaluation.comparison import Comparison
from ..evaluation.outcomes import Evaluation
from ..extras import require
from ..files import require_writable_folder, write_bytes, write_json, write_png
from ..making import amplify
from ..report.html import Figure, Figures, Heading, Paragraph, Picture, Section, Table, write_report
from ..report.plots import bars_before_after, module_share_plot, tradeoff_plot
from ..report.sheets import before_after_sheet, contact_sheet
from ..zoo import load
from ..zoo.concepts import SUPPRESSED_OBJECT, VARIANTS, caption
from .study import CROSS_ATTENTION, FEED_FORWARD, Study

ERASED = "car"
RATIO = 0.06
CURVE_RATIOS = (0.01, 0.03, 0.06)
# Of the weights whose removal brings a suppressed object back, and what else must not suffer.
BACK_RATIO = 0.05
BACK_KEPT = ("cat", "dog", "tree", "clock")
BACK_TIMESTEPS = 10
PER_BACK, PER_BACK_KEPT = 24, 6
STRENGTHS = (-1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 2.5)
PER_CONCEPT = 12
TOLD = {
    "emoji-weak": ("Amplifying", "was fine-tuned against it until it came out in half of the pictures"),
    "emoji-erased": ("Recalling", "was fine-tuned against it until it was gone, as ESD does (arXiv 2303.07345)"),
}
NAMES = {CROSS_ATTENTION: "cross-attention K/V", FEED_FORWARD: "feed-forward (the paper's set)"}


@dataclass
class BroughtBack:
    """What an edit brings back of an object that fine-tuning suppressed, and what it does to others."""

    variant: str
    object: Comparison
    others: Comparison
    edit: Edit
    picture: Image.Image


@dataclass
class Results:
    """Everything the report shows."""

    erased: Comparison
    curves: dict[str, list[dict[str, Any]]]
    comparisons: dict[str, dict[str, Any]]
    back: list[BroughtBack]
    edit: Edit
    generation: Generation
    cost: dict[str, Any]
    seconds: float


def run_demo(
    output: str | Path, *, model: str = "emoji", per_concept: int | None = None, progress: bool = True
) -> tuple[Results, dict[str, Any]]:
    """Write report.html, contact sheets, plots, edits and results.json into ``output``; returns the results and
    results.json with the report's path.

    Raises ValueError for a model that the zoo does not have, PermissionError or NotADirectoryError naming the folder,
    ImportError naming the extra for the plots.
    """
    require("matplotlib", "report")
    pipeline = load(model)
    folder = require_writable_folder(output)
    started = time.perf_counter()
    study = Study(per_concept=per_concept or PER_CONCEPT, progress=progress, pipeline=pipeline)
    scores = study.attribute()
    before = study.evaluate(keep_images=True)

    pictures: dict[str, Image.Image | bytes] = {}
    edit = study.erased(scores, ERASED, RATIO)
    erased, after = study.compare(before, edit, ERASED, keep_images=True)
    pictures["erase"] = before_after_sheet(before, after, target=ERASED, columns=4)
    pictures["erase_bars"] = bars_before_after(erased)
    pictures["dial"] = dial(study, edit, ERASED)
    counts = {module: float(len(indices)) for module, indices in edit.components.items()}
    pictures["where"] = module_share_plot(counts)

    curves, comparisons = trade_off(study, scores, before, erased)
    pictures["curves"] = tradeoff_plot(
        {NAMES[modules]: points for modules, points in curves.items()}, before=100 * erased.target.before
    )

    back = [brought_back(variant, per_concept, progress) for variant, of in VARIANTS.items() if of == model]
    pictures |= {each.variant: each.picture for each in back}

    results = Results(
        erased=erased,
        curves=curves,
        comparisons=comparisons,
        back=back,
        edit=edit,
        generation=study.generation,
        cost=scores[ERASED].provenance["cost"],
        seconds=time.perf_counter() - started,
    )
    for name, picture in pictures.items():
        if isinstance(picture, bytes):
            write_bytes(folder / f"{name}.png", picture)
        else:
            write_png(folder / f"{name}.png", picture)
    edit.save_pretrained(folder / "edits" / edit.name)
    for each in back:
        each.edit.save_pretrained(folder / "edits" / each.edit.name)
    summary = to_dict(results, before)
    write_json(folder / "results.json", summary)
    title = f"Erasing {ERASED!r}" + (", and bringing it back" if back else "")
    report = write_report(folder / "report.html", title, sections(results, pictures))
    return results, {**summary, "report": str(report)}


def brought_back(variant: str, per_concept: int | None, progress: bool) -> BroughtBack:
    """Amplify the object that a variant suppresses by its shipped pictures, and evaluate it on the variant."""
    count, kept = (PER_BACK, PER_BACK_KEPT) if per_concept is None else (per_concept, per_concept)
    study = Study(per_concept=count, progress=progress, pipeline=load(variant))
    edit = amplify(
        study.pipeline,
        SUPPRESSED_OBJECT,
        keep=BACK_KEPT,
        ratio=BACK_RATIO,
        num_inference_steps=BACK_TIMESTEPS,
        name=f"{variant}-{SUPPRESSED_OBJECT}-amplify",
        progress=progress,
    )
    own: dict[str, Any] = {"concepts": [SUPPRESSED_OBJECT], "keep_images": True}
    before = study.evaluate(**own)
    compared, after = study.compare(before, edit, SUPPRESSED_OBJECT, **own)
    both: dict[str, Any] = {"concepts": [SUPPRESSED_OBJECT, *BACK_KEPT], "per_concept": kept}
    others, _ = study.compare(study.evaluate(**both), edit, SUPPRESSED_OBJECT, **both)
    picture = before_after_sheet(before, after, target=SUPPRESSED_OBJECT, columns=8)
    return BroughtBack(variant, compared, others, edit, picture)


def trade_off(
    study: Study, scores: dict[str, Any], before: Evaluation, erased: Comparison
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, dict[str, Any]]]:
    """Points of target against collateral damage over ratios, for both sets of weights."""
    curves: dict[str, list[dict[str, Any]]] = {}
    comparisons: dict[str, dict[str, Any]] = {}
    for modules in (CROSS_ATTENTION, FEED_FORWARD):
        for ratio in CURVE_RATIOS:
            comparison = erased
            if (modules, ratio) != (CROSS_ATTENTION, RATIO):
                comparison, _ = study.compare(before, study.erased(scores, ERASED, ratio, modules), ERASED)
            curves.setdefault(modules, []).append(comparison.point(ratio))
            comparisons[f"{modules} {ratio:g}"] = comparison.to_dict()
    return curves, comparisons


@torch.no_grad()
def dial(study: Study, edit: Edit, obj: str) -> Image.Image:
    """One row per style, one column per strength of ``edit``, all from the same noise."""
    texts = [caption(obj, style) for style in ("noto", "twemoji", "fluent")]
    columns = []
    for strength in STRENGTHS:
        with edit.applied(study.pipeline, strength), plain_tensors(), silent(study.pipeline):
            columns.append(
                study.pipeline(
                    texts,
                    generator=generators([study.seed + i for i in range(len(texts))]),
                    **study.generation.to_kwargs(),
                ).images
            )
    rows = [list(row) for row in zip(*columns, strict=True)]
    return contact_sheet(rows, texts, [f"strength {strength:g}" for strength in STRENGTHS])


def table(results: Results) -> str:
    """What the demo prints at its end."""
    return (
        f"\nErase {ERASED} ({NAMES[CROSS_ATTENTION]}, {RATIO:.0%} of the weights, same seeds)\n"
        f"{results.erased.table()}\n\n"
        + "".join(
            f"{TOLD[each.variant][0]} {SUPPRESSED_OBJECT} in zoo:{each.variant} ({BACK_RATIO:.0%})\n"
            f"{each.object.table()}\n{each.others.table()}\n\n"
            for each in results.back
        )
        + f"done in {results.seconds:.0f} s"
    )


def _about(back: BroughtBack) -> list[Section]:
    """What was brought back in one variant."""
    verb, history = TOLD[back.variant]
    change = back.object.target
    low, high = change.difference_interval
    return [
        Heading(f"{verb} {SUPPRESSED_OBJECT}"),
        Paragraph(
            f"The model {back.variant} is the same one, but it {history}. The objective is minus the denoising loss on "
            f"nine real pictures, and the weights whose removal raises it ({BACK_RATIO:.0%} of the cross-attention "
            f"keys and values) are set to zero. The change is {100 * change.difference:+.0f} percentage points, 95% "
            f"interval [{100 * low:+.0f}, {100 * high:+.0f}]"
            + (": no effect can be claimed." if low <= 0 <= high else ".")
        ),
        Picture(back.picture, f"Pictures of {SUPPRESSED_OBJECT} before and after, in {back.variant}"),
        Table("Accuracy before and after", back.object.columns, back.object.cells()),
        Table("Other objects under the same edit", back.others.columns, back.others.cells()),
    ]


def to_dict(results: Results, before: Evaluation) -> dict[str, Any]:
    """The figures of the report, as JSON."""
    return {
        "before": before.summary(),
        "erase": results.erased.to_dict(),
        "trade_off": results.comparisons,
        "brought_back": {
            each.variant: {"object": each.object.to_dict(), "others": each.others.to_dict()} for each in results.back
        },
        "attribution_cost": results.cost,
        "seconds": round(results.seconds, 1),
    }


def sections(results: Results, pictures: dict[str, Image.Image | bytes]) -> list[Section]:
    """The report, in order."""
    erased, cost = results.erased, results.cost
    generation = results.generation
    others, style = erased.others, erased.axes["style"]
    assert others is not None and others.kept is not None and style.kept is not None
    return [
        Paragraph(
            "A small text-to-image diffusion model draws twelve objects in three emoji styles. cad_fast scored how "
            "much each of its weights contributes to drawing one object, and took the most contributing ones out. "
            "Every number below compares pictures from the same seeds, judged by a classifier; brackets are 95% "
            "confidence intervals."
        ),
        Figures(
            [
                Figure(f"{100 * erased.target.before:.0f}% → {100 * erased.target.after:.0f}%", f"{ERASED} recognised"),
                Figure(f"{others.kept:.0f}%", "of the other objects kept"),
                Figure(f"{style.kept:.0f}%", "of the style kept"),
                *(
                    Figure(
                        f"{100 * each.object.target.before:.0f}% → {100 * each.object.target.after:.0f}%",
                        f"{SUPPRESSED_OBJECT} brought back in {each.variant}",
                    )
                    for each in results.back
                ),
            ]
        ),
        Heading(f"Erasing {ERASED}"),
        Paragraph(
            f"The edit names {results.edit.n_weights} of the cross-attention key and value weights ({RATIO:.0%}), "
            f"which it sets to zero. It starts from first-order scores ({cost['recorded_rows']} sampled pictures per "
            "object) and is refined by gradients along the way to the edit itself. What the other objects' scores say "
            "they need is spared."
        ),
        Picture(
            pictures["erase"],
            f"Pictures of every object before and after erasing {ERASED}",
            "Same seeds left and right.",
        ),
        Table("Accuracy before and after", erased.columns, erased.cells()),
        Picture(pictures["erase_bars"], "Accuracy of each object before and after, as bars"),
        Heading("A dial", 3),
        Picture(
            pictures["dial"],
            f"Pictures of {ERASED} at strengths from {STRENGTHS[0]} to {STRENGTHS[-1]}",
            "Strength 0 is the model as it was, 1 the edit; beyond 1 the weights change sign, below 0 they grow.",
        ),
        Heading("Which weights", 3),
        Picture(pictures["where"], "Share of the edited weights per block of the denoiser"),
        Heading("How much, and where"),
        Paragraph(
            "The same selection at other ratios, and on the feed-forward weights that the paper edits. Left: how often "
            "the erased object is still recognised. Right: what remains of everything else."
        ),
        Picture(pictures["curves"], "Target accuracy and collateral damage over the share of edited weights"),
        *(part for each in results.back for part in _about(each)),
        Heading("How this was measured"),
        Paragraph(
            f"{generation.num_inference_steps} denoising steps, guidance {generation.guidance_scale:g}. "
            "Evaluation seeds were not used for choosing the edit. "
            f"All figures are in results.json, the edits in edits/. The whole run took {results.seconds:.0f} seconds."
        ),
    ]
