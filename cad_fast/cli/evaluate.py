"""``cad-fast evaluate``: measure what an edit does to its target and to everything else, on the same seeds."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import judges as judging
from .common import (
    add_model,
    add_sampling,
    evaluation_prompts,
    generation_of,
    is_zoo,
    load,
    model_of,
    prompts_of,
    say,
)

if TYPE_CHECKING:
    from ..evaluation import Comparison, Evaluation, PromptSet

HELP = "measure what an edit does to its target and to everything else, on the same seeds"
EXAMPLE = "cad-fast evaluate zoo:emoji --edit edits/no-cat --target cat -o evaluation"
PROMPTS = "FILE in the form of this package, or FORM:FILE[?COLUMN=VALUE] of a published set"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, the edit, and the concepts with what judges them."""
    add_model(parser)
    parser.add_argument("--edit", help="folder of an edit (without: the model as it is)")
    parser.add_argument("--strength", type=float, default=1.0, help="default 1")
    parser.add_argument("--target", help="the concept that the edit is about")
    parser.add_argument("--concepts", help=f"concepts with their prompts: {PROMPTS} (default: those of the zoo model)")
    parser.add_argument("--scorer", action="append", help=judging.HELP)
    parser.add_argument("--per-concept", type=int, default=16, help="images per concept (default 16)")
    parser.add_argument(
        "--adjacent", nargs="+", metavar="CONCEPT", help="the concepts near the target, for ERB (default: all others)"
    )
    for option, text in (
        ("--attack", "prompts that ask for the target all the same"),
        ("--captions", "prompts whose pictures are measured and not judged"),
    ):
        parser.add_argument(option, action="append", default=[], metavar="PROMPTS", help=f"{text}: {PROMPTS}")
    parser.add_argument("--limit", type=int, help="at most so many prompts of each attack and file of captions")
    parser.add_argument("--reference", metavar="FOLDER", help="pictures to compare with as sets, by fid and fd")
    parser.add_argument(
        "--card", action="store_true", help="write the figures into the edit's folder, with a model card and the sheet"
    )
    parser.add_argument("-o", "--output", help="folder for evaluation.json, evaluation.csv and the before/after sheet")
    add_sampling(parser, seed=1000)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Accuracy of every concept, before and, with an edit, after it; attacks and captions besides."""
    from ..edits import Edit
    from ..evaluation import write_csv
    from ..files import require_writable_folder, write_json

    output = require_writable_folder(arguments.output) if arguments.output is not None else None
    prompts, axis, further = _inputs(arguments)
    reference = judging.reference_pictures(arguments.reference) if arguments.reference is not None else None
    pipeline = load(arguments)
    judges = judging.judges_of(arguments, prompts, axis if prompts is not None or arguments.attack else None)
    if reference is not None and not judges.of_sets:
        raise ValueError("--reference needs a --scorer that compares sets, such as fid:FILE or fd:clip:MODEL")
    edit = Edit.from_pretrained(arguments.edit, pipeline) if arguments.edit is not None else None
    runs = _Runs(arguments, pipeline, judges, edit, reference)
    result: dict[str, Any] = {**model_of(arguments)}
    if prompts is not None:
        result |= runs.concepts(prompts, output)
    for name, texts in further["attack"].items():
        runs.attack(name, texts, axis)
    for name, texts in further["captions"].items():
        runs.captions(name, texts)
    result["rows"] = runs.rows
    if output is not None:
        write_json(output / "evaluation.json", result)
        write_csv(output / "evaluation.csv", runs.rows)
        say(arguments, f"written to {output}")
    return result


def _inputs(arguments: argparse.Namespace) -> tuple[PromptSet | None, str, dict[str, dict[str, PromptSet]]]:
    """The prompts of the concepts, if any, the axis that is judged, and the prompts of attacks and captions by name."""
    from ..evaluation.nudenet_scorer import AXIS

    if arguments.card and (arguments.edit is None or not Path(arguments.edit).is_dir()):
        raise ValueError("--card needs --edit with the folder of an edit, which it writes to")
    if arguments.edit is not None and arguments.target is None:
        raise ValueError("--edit needs --target, the concept that the edit is about")
    if arguments.attack and arguments.target is None:
        raise ValueError("--attack needs --target, the concept that it asks for")
    alone = (arguments.attack or arguments.captions) and arguments.concepts is None and not is_zoo(arguments)
    if alone and arguments.card:
        raise ValueError("--card needs --concepts: it has the figures of the target and of the others")
    prompts = None if alone else evaluation_prompts(arguments)
    axis = AXIS if prompts is None else prompts.axes[0]
    if prompts is not None and arguments.target is not None:
        prompts.of(axis, arguments.target)
    if arguments.limit is not None and arguments.limit < 1:
        raise ValueError(f"--limit is {arguments.limit}, expected at least 1")
    labels = {axis: arguments.target} if arguments.target is not None else None
    further: dict[str, dict[str, PromptSet]] = {"attack": {}, "captions": {}}
    for kind, found in further.items():
        for text in getattr(arguments, kind):
            name = _name(text)
            if name in found:
                raise ValueError(f"--{kind} {text}: there is another one of the name {name!r}")
            found[name] = _first(prompts_of(text, labels if kind == "attack" else None), arguments.limit)
    return prompts, axis, further


def _name(text: str) -> str:
    """What an attack or a file of captions is called: the published set's name, or the file's."""
    from ..evaluation.prompt_files import PUBLISHED

    form = text.partition(":")[0]
    return form if form in PUBLISHED else Path(text).stem


def _first(prompts: PromptSet, limit: int | None) -> PromptSet:
    from ..evaluation import PromptSet

    return prompts if limit is None else PromptSet(list(prompts)[:limit])


class _Runs:
    """One model before and after an edit: its evaluations, as results and as rows."""

    def __init__(
        self, arguments: argparse.Namespace, pipeline: Any, judges: judging.Judges, edit: Any, reference: Any
    ) -> None:
        self.arguments = arguments
        self.pipeline = pipeline
        self.judges = judges
        self.edit = edit
        self.reference = reference
        self.rows: list[dict[str, Any]] = []
        self.settings: dict[str, Any] = {
            "measures": judges.measures,
            "seed": arguments.seed,
            "generation": generation_of(arguments),
            "progress": not arguments.quiet,
        }

    def _evaluated(self, prompts: PromptSet, scorers: Any, **settings: Any) -> list[list[Evaluation]]:
        """For each scorer the evaluation before and, with an edit, that after."""
        from ..evaluation import evaluate_each

        settings = {**self.settings, **settings}
        found = [evaluate_each(self.pipeline, prompts, scorers, **settings)]
        if self.edit is not None:
            edited = {"edit": self.edit, "strength": self.arguments.strength}
            found.append(evaluate_each(self.pipeline, prompts, scorers, **edited, **settings))
        return [list(each) for each in zip(*found, strict=True)]

    def concepts(self, prompts: PromptSet, output: Path | None) -> dict[str, Any]:
        """Every concept, by each scorer; the first one's figures are those of the result."""
        kept = output is not None or self.arguments.card or bool(self.judges.distances)
        settings = {"per_concept": self.arguments.per_concept, "keep_images": kept}
        results = []
        for i, pair in enumerate(self._evaluated(prompts, self.judges.scorers, **settings)):
            results.append(self._of_scorer(pair, first=i == 0, output=output))
            if output is not None:
                mark = "" if i == 0 else f"-{i + 1}"
                for name, evaluation in zip(("before", "after"), pair, strict=False):
                    evaluation.save(output / f"{name}{mark}.json")
        return {**results[0], **({"further_scorers": results[1:]} if results[1:] else {})}

    def _of_scorer(self, pair: list[Evaluation], *, first: bool, output: Path | None) -> dict[str, Any]:
        from ..evaluation import compare, reference_rows

        arguments, before, distances = self.arguments, pair[0], self.judges.distances
        for evaluation in pair:
            # What measures and distances say does not depend on the scorer.
            self.rows += [each for each in evaluation.rows() if first or each["metric"] == "accuracy"]
            if first and self.reference is not None:
                without = [arguments.target] if arguments.target is not None else []
                self.rows += reference_rows(evaluation, self.reference, self.judges.of_sets, without=without)
        result: dict[str, Any] = {"scorer": before.settings.scorer, "before": before.summary()}
        if len(pair) == 1:
            say(arguments, "\n".join(_summary_lines(before)))
            return result
        comparison = compare(before, pair[1], arguments.target, distances=distances if first else ())
        published = ("UA", "IRA", "CRA", "ERB")
        self.rows += [each for each in comparison.rows(arguments.adjacent) if first or each["metric"] in published]
        say(arguments, comparison.table() if first else f"by {before.settings.scorer}:\n{comparison.table()}")
        if first and before.images is not None:
            self._picture(pair, comparison, output)
        return result | {"after": pair[1].summary(), "comparison": comparison.to_dict()}

    def _picture(self, pair: list[Evaluation], comparison: Comparison, output: Path | None) -> None:
        """The sheet of pictures, and with ``--card`` the edit's figures and model card."""
        from ..edits import CardInfo
        from ..files import write_png
        from ..report.sheets import before_after_sheet

        arguments = self.arguments
        if output is None and not arguments.card:
            return
        sheet = before_after_sheet(pair[0], pair[1], target=arguments.target)
        if output is not None:
            write_png(output / "before_after.png", sheet)
        if arguments.card:
            base = None if Path(arguments.model).exists() else arguments.model  # a folder here means nothing elsewhere
            edit = self.edit.evaluated(comparison, pair[1])
            edit.save_pretrained(arguments.edit)
            edit.save_card(arguments.edit, CardInfo(sheet=sheet, base_model=base))
            say(arguments, f"figures and model card written to {arguments.edit}")

    def attack(self, name: str, prompts: PromptSet, axis: str) -> None:
        """One picture of each prompt of an attack, by each scorer."""
        from ..evaluation import attack_rows

        concepts = prompts.concepts(axis)
        if concepts != (self.arguments.target,):
            labelled = f"the prompts of {name} are labelled {', '.join(concepts)}"
            raise ValueError(f"{labelled}, the target is {self.arguments.target!r}")
        for i, pair in enumerate(self._evaluated(prompts, self.judges.scorers, axis=axis, per_concept=len(prompts))):
            for evaluation in pair:
                rows = attack_rows(name, evaluation)
                self.rows += rows if i == 0 else rows[:1]
                low, high = 100 * rows[0]["lower"], 100 * rows[0]["upper"]
                share = f"{100 * rows[0]['value']:.1f}% [{low:.0f}, {high:.0f}]  n={rows[0]['n']}"
                say(self.arguments, f"{name}, {rows[0]['edit']}: the target is seen in {share} by {rows[0]['by']}")

    def captions(self, name: str, prompts: PromptSet) -> None:
        """One picture of each caption, measured and compared with those before the edit."""
        from ..evaluation.measured import far
        from ..evaluation.protocols import distance_rows, pictures_of

        if not self.judges.measures and not self.judges.distances:
            raise ValueError("--captions needs a --scorer that measures or compares, such as clip:MODEL or colour")
        (pair,) = self._evaluated(prompts, [None], per_concept=len(prompts), keep_images=bool(self.judges.distances))
        for evaluation in pair:
            self.rows += evaluation.rows(name)
        if len(pair) == 2 and self.judges.distances:
            images = [pictures_of(each, each.concepts) for each in pair]
            settings = pair[1].settings
            self.rows += distance_rows(far(self.judges.distances, *images), name, settings.edit, settings.strength)


def _summary_lines(evaluation: Evaluation) -> list[str]:
    lines = []
    for concept in evaluation.concepts:
        tally = evaluation.tally(concept)
        low, high = tally.interval
        lines.append(f"{concept:<12} {100 * tally.accuracy:5.1f}%  [{100 * low:.0f}, {100 * high:.0f}]  n={tally.n}")
    return lines
