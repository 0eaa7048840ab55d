"""The command line: ``cad-fast attribute | edit | generate | dial | budget | evaluate | serve | demo | env``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from .version import __version__

EXIT_CODES = "exit codes: 0 done, 1 a run failed, 2 wrong input or arguments, 130 interrupted"
# Imported here, since the commands' modules import torch: `cad-fast --help` should answer at once.
KINDS = ("weight", "neuron", "filter", "head")
METHODS = ("gradient", "ablated_gradient", "second_order", "regression", "exact", "sensitivity")
SOLVERS = ("ols", "ridge", "lasso", "lsmr")
DRAWS = ("partitions", "bernoulli")
EXECUTORS = ("local", "ray")
MODEL_HELP = "zoo:emoji, a local diffusers folder, or a Hub repository"


def _add_command(commands: Any, name: str, help_text: str, example: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=help_text,
        description=help_text,
        epilog=f"example:\n  {example}\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON on standard output")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser


def _add_sampling(parser: argparse.ArgumentParser, steps: int) -> None:
    parser.add_argument("--seed", type=int, default=0, help="seed of the first image, the others count on (default 0)")
    parser.add_argument("--steps", type=int, default=steps, help=f"denoising steps (default {steps})")
    parser.add_argument("--guidance-scale", type=float, default=3.0, help="classifier-free guidance (default 3)")
    parser.add_argument("--device", default="cpu", help="where the pipeline runs (default cpu)")


def _add_attribute(commands: Any) -> None:
    parser = _add_command(
        commands,
        "attribute",
        "score every component for a concept",
        "cad-fast attribute zoo:emoji --concept cat --target-modules cross-attention-kv -o runs/cat",
    )
    parser.add_argument("model", help=MODEL_HELP)
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--concept",
        nargs="+",
        action="extend",
        help="a concept of a zoo model, in all its prompts; scores of several are then read as OUTPUT/CONCEPT",
    )
    what.add_argument("--prompt", action="append", help="a prompt that expresses the concept (repeat for more)")
    parser.add_argument(
        "--concepts",
        metavar="FILE",
        help="JSON file with concepts and their prompts, as for `cad-fast evaluate`; all, or those of --concept",
    )
    parser.add_argument("--samples", type=int, default=6, help="images to sample, spread over the prompts (default 6)")
    parser.add_argument("--target-modules", help="preset, regular expression or comma-separated names of modules")
    parser.add_argument("--kind", choices=KINDS, default="weight", help="what a component is (default weight)")
    parser.add_argument(
        "--objective",
        choices=("erasure", "denoising"),
        default="erasure",
        help="distance from the unconditional output, or minus the denoising loss (default erasure)",
    )
    parser.add_argument("--base-prompt", help="erasure: compare with this prompt instead of the unconditional output")
    parser.add_argument("--images", help="denoising: a folder of real pictures, or `zoo` (default: own samples)")
    parser.add_argument("--timesteps", type=float, nargs=2, metavar=("LOW", "HIGH"), help="use these timesteps only")
    parser.add_argument(
        "--method",
        choices=METHODS,
        help="how to estimate (default: gradient for single weights, ablated_gradient for other kinds)",
    )
    parser.add_argument("--partitions", type=int, help="ablated_gradient: at most so many partitions (default 1)")
    parser.add_argument(
        "--fraction",
        type=float,
        help="ablated_gradient, second_order, regression: share of the components ablated (default 0.05)",
    )
    parser.add_argument("--ablations", type=int, help="regression: at most so many ablations (default 1000)")
    parser.add_argument("--solver", choices=SOLVERS, help="regression: how to fit (default ridge)")
    parser.add_argument("--draw", choices=DRAWS, help="regression: how ablations are drawn (default partitions)")
    parser.add_argument("--stop-at-r", type=float, help="ablated_gradient, regression: stop when r reaches this")
    parser.add_argument("--stop-after", type=float, metavar="SECONDS", help="stop when so long was spent")
    parser.add_argument(
        "--compare", action="store_true", help="no scores, but all estimators side by side: r against cost, and a plot"
    )
    parser.add_argument("--holdout", type=int, default=0, help="ablations to check the scores on (default 0)")
    parser.add_argument("--rows-per-pass", type=int, help="rows per pass of the denoiser (default: the method's)")
    parser.add_argument(
        "--executor", choices=EXECUTORS, help="regression, exact: who measures the ablations (default local)"
    )
    parser.add_argument("--workers", type=int, help="ray: how many workers (default: all CPUs or GPUs of the cluster)")
    parser.add_argument("--resume", action="store_true", help="go on with the unfinished run in the output folder")
    parser.add_argument("-o", "--output", required=True, help="folder for scores.safetensors")
    _add_sampling(parser, steps=20)


def _add_edit(commands: Any) -> None:
    parser = _add_command(
        commands,
        "edit",
        "make an edit from scores: erase or amplify a concept",
        "cad-fast edit runs/cat --erase --ratio 0.03 --keep runs/dog runs/face -o edits/no-cat",
    )
    parser.add_argument("scores", help="what `cad-fast attribute` wrote")
    verb = parser.add_mutually_exclusive_group(required=True)
    verb.add_argument("--erase", dest="verb", action="store_const", const="erase", help="remove positive components")
    verb.add_argument(
        "--amplify", dest="verb", action="store_const", const="amplify", help="remove negative components"
    )
    amount = parser.add_mutually_exclusive_group(required=True)
    amount.add_argument("--ratio", type=float, help="share of the components (of each row or tensor, by scope)")
    amount.add_argument("--count", type=int, help="number of components")
    parser.add_argument("--scope", choices=("global", "tensor", "row"), default="global", help="default global")
    parser.add_argument("--keep", nargs="+", default=[], metavar="SCORES", help="scores of concepts to keep")
    parser.add_argument("--keep-weight", type=float, default=0.5, help="how much they count (default 0.5)")
    parser.add_argument(
        "--sensitivity",
        nargs="+",
        default=[],
        metavar="SCORES",
        help="of concepts to keep (attribute --method sensitivity): rank by gain against damage; with --refine they "
        "are made for those of --keep",
    )
    parser.add_argument("--exponent", type=float, default=0.5, help="how much the damage counts (default 0.5; 0: not)")
    parser.add_argument("--refine", metavar="MODEL", help="refine the scores for this edit on the model they are of")
    parser.add_argument("--samples", type=int, default=12, help="refining: images to sample (default 12)")
    parser.add_argument("--rounds", type=int, default=12, help="refining: rounds (default 12)")
    parser.add_argument(
        "--negative-guidance", type=float, default=1.0, help="refining: aim this far beyond the base (default 1)"
    )
    parser.add_argument(
        "--predict", nargs="+", default=[], metavar="SCORES", help="print what the edit will do to these concepts"
    )
    parser.add_argument("--compat", choices=("paper",), help="the selection rule that was published with the paper")
    parser.add_argument("--name", help="the edit's name (default: concept and verb)")
    parser.add_argument("-o", "--output", required=True, help="folder for the edit")


# `cad-fast edit inspect` is a command of its own beside `cad-fast edit SCORES`; a folder of scores with such a name is
# written ./inspect.
EDIT_ACTIONS = ("inspect", "diff", "verify", "export")


def _add_edit_actions(commands: Any) -> None:
    parser = _add_command(commands, "edit inspect", "say what is in edits", "cad-fast edit inspect edits/no-cat")
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="folder or Hub repository of an edit")
    parser = _add_command(
        commands, "edit diff", "compare the components of two edits", "cad-fast edit diff edits/no-cat edits/no-dog"
    )
    parser.add_argument("folders", nargs=2, metavar="FOLDER", help="folder or Hub repository of an edit")
    parser = _add_command(
        commands,
        "edit verify",
        "check edits: whole, unchanged, and made for this model; exit code 1 when one fails",
        "cad-fast edit verify edits/* --model zoo:emoji",
    )
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="folder or Hub repository of an edit")
    parser.add_argument("--model", help=f"check that they fit it: {MODEL_HELP}")
    parser.add_argument(
        "--evaluate", action="store_true", help="repeat the evaluation in the edit on --model and compare the figures"
    )
    parser.add_argument("--concepts", help="with --evaluate: as for `cad-fast evaluate`")
    parser.add_argument("--scorer", help="with --evaluate: as for `cad-fast evaluate`")
    parser.add_argument("--device", default="cpu", help="where the pipeline runs (default cpu)")
    parser = _add_command(
        commands,
        "edit export",
        "write an edit as a PEFT adapter (SHiRA) or as a checkpoint of the edited model",
        "cad-fast edit export edits/no-cat --model zoo:emoji --to peft -o adapters/no-cat",
    )
    parser.add_argument("folder", metavar="FOLDER", help="folder or Hub repository of an edit")
    parser.add_argument("--model", required=True, help=MODEL_HELP)
    parser.add_argument("--to", choices=("peft", "checkpoint"), required=True)
    parser.add_argument("--strength", type=float, default=1.0, help="default 1")
    parser.add_argument("--whole-pipeline", action="store_true", help="checkpoint: write all of the pipeline")
    parser.add_argument("-o", "--output", required=True, help="folder for it")


def _add_generate(commands: Any) -> None:
    parser = _add_command(
        commands,
        "generate",
        "draw prompts, with and without an edit",
        'cad-fast generate zoo:emoji --prompt "a cat in noto style" --edit edits/no-cat --strength 0 0.5 1 -o pictures',
    )
    parser.add_argument("model", help=MODEL_HELP)
    parser.add_argument("--prompt", action="append", required=True, help="repeat for more")
    parser.add_argument("--images-per-prompt", type=int, default=4, help="default 4")
    parser.add_argument("--edit", help="folder of an edit")
    parser.add_argument(
        "--strength", type=float, nargs="+", default=None, help="0 off, 1 the edit; several make a strip"
    )
    parser.add_argument("-o", "--output", required=True, help="folder for the pictures and the contact sheet")
    _add_sampling(parser, steps=20)


def _add_dial(commands: Any) -> None:
    parser = _add_command(
        commands,
        "dial",
        "draw a strip over strengths of edits, from erasing to amplifying, in one batch",
        'cad-fast dial zoo:emoji --edit edits/no-car --prompt "a car in noto style" -o strip.png',
    )
    parser.add_argument("model", help=MODEL_HELP)
    parser.add_argument("--edit", nargs="+", required=True, help="folder of an edit; several all have the strength")
    parser.add_argument("--prompt", action="append", required=True, help="repeat for more rows")
    parser.add_argument("--strength", type=float, nargs="+", help="0 off, 1 the edit (default 1.5 1 0.5 0 -0.5 -1)")
    parser.add_argument("--timesteps", type=float, nargs=2, metavar=("LOW", "HIGH"), help="act in these timesteps only")
    parser.add_argument("--branch", choices=("both", "conditional"), default="both", help="default both")
    parser.add_argument("-o", "--output", required=True, help="the picture to write, PNG")
    _add_sampling(parser, steps=20)


def _add_budget(commands: Any) -> None:
    parser = _add_command(
        commands,
        "budget",
        "search for the edit that erases a concept and leaves so much of the others",
        "cad-fast budget zoo:emoji --erase car --keep face=95 style=90 --timesteps 850 1000 -o edits/no-car",
    )
    parser.add_argument("model", help=MODEL_HELP)
    parser.add_argument("--erase", required=True, metavar="CONCEPT", help="the concept to erase")
    parser.add_argument("--at-most", type=float, default=5.0, help="percent of its pictures still recognised (5)")
    parser.add_argument(
        "--keep",
        nargs="+",
        required=True,
        metavar="NAME=PERCENT",
        help="percent of the accuracy before, of a concept, of `others` or of another axis such as `style`",
    )
    parser.add_argument("--target-modules", default="cross-attention-kv", help="default cross-attention-kv")
    parser.add_argument("--timesteps", type=float, nargs=2, metavar=("LOW", "HIGH"), help="score these timesteps only")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.01, 0.02, 0.03, 0.06], help="1, 2, 3 and 6%%")
    parser.add_argument("--strengths", type=float, nargs="+", default=[1.0], help="default 1")
    parser.add_argument("--samples", type=int, default=6, help="trajectories per concept to score (default 6)")
    parser.add_argument("--per-concept", type=int, default=8, help="pictures per concept for choosing (default 8)")
    parser.add_argument("--confirming", type=int, default=16, help="pictures per concept afterwards (default 16)")
    parser.add_argument("--concepts", help="JSON file with concepts and their prompts (default: the zoo model's)")
    parser.add_argument("--scorer", help="clip:MODEL (default: the zoo's classifier)")
    parser.add_argument("--predict-only", action="store_true", help="say what each edit would do, and stop there")
    parser.add_argument("-o", "--output", required=True, help="folder for the edit, its card and sheet")
    _add_sampling(parser, steps=20)


def _add_evaluate(commands: Any) -> None:
    parser = _add_command(
        commands,
        "evaluate",
        "measure what an edit does to its target and to everything else, on the same seeds",
        "cad-fast evaluate zoo:emoji --edit edits/no-cat --target cat -o evaluation",
    )
    parser.add_argument("model", help=MODEL_HELP)
    parser.add_argument("--edit", help="folder of an edit (without: the model as it is)")
    parser.add_argument("--strength", type=float, default=1.0, help="default 1")
    parser.add_argument("--target", help="the concept that the edit is about")
    parser.add_argument(
        "--concepts", help="JSON file with concepts and their prompts (default: those of the zoo model)"
    )
    parser.add_argument(
        "--scorer", help="clip:MODEL, zero-shot scoring of the concepts (default: the zoo's classifier)"
    )
    parser.add_argument("--per-concept", type=int, default=16, help="images per concept (default 16)")
    parser.add_argument(
        "--card", action="store_true", help="write the figures into the edit's folder, with a model card and the sheet"
    )
    parser.add_argument("-o", "--output", help="folder for evaluation.json and the before/after sheet")
    _add_sampling(parser, steps=20)
    parser.set_defaults(seed=1000)


def _add_serve(commands: Any) -> None:
    from .serving.command import add_arguments

    parser = _add_command(
        commands,
        "serve",
        "serve pictures over HTTP, every request with its own edits",
        "cad-fast serve zoo:emoji --edit-dir edits --port 8000",
    )
    parser.add_argument("model", help=MODEL_HELP)
    add_arguments(parser)


def _add_demo(commands: Any) -> None:
    parser = _add_command(
        commands,
        "demo",
        "erase and amplify concepts of the embedded model, with a report",
        "cad-fast demo --output demo-output",
    )
    parser.add_argument("-o", "--output", default="demo-output", help="folder for report.html (default demo-output)")
    parser.add_argument("--per-concept", type=int, default=None, help="images per concept in the evaluations")


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="cad-fast", description="Component attribution in diffusion models.", epilog=EXIT_CODES
    )
    parser.add_argument("--version", action="version", version=f"cad-fast {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    for add in (
        _add_attribute,
        _add_edit,
        _add_edit_actions,
        _add_generate,
        _add_dial,
        _add_budget,
        _add_evaluate,
        _add_serve,
        _add_demo,
    ):
        add(commands)
    _add_command(commands, "env", "what is installed, built and used on this machine", "cad-fast env --json")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    if given[:1] == ["edit"] and given[1:2] and given[1] in EDIT_ACTIONS:
        given[:2] = [f"edit {given[1]}"]
    arguments = build_parser().parse_args(given)
    from . import commands

    run: Callable[[argparse.Namespace], dict[str, Any]] = getattr(
        commands, f"run_{arguments.command.replace(' ', '_')}"
    )
    try:
        result = run(arguments)
    except KeyboardInterrupt as interrupt:
        print(str(interrupt) or "interrupted", file=sys.stderr)
        return 130
    except (
        ValueError,
        TypeError,
        FileNotFoundError,
        FileExistsError,
        NotADirectoryError,
        PermissionError,
        ImportError,
    ) as error:
        print(f"cad-fast {arguments.command}: error: {error}", file=sys.stderr)
        return 2
    except (RuntimeError, OSError, MemoryError) as error:
        print(f"cad-fast {arguments.command}: failed: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        print(json.dumps(result, indent=2))
    return int(result.get("failed", 0) > 0)


if __name__ == "__main__":
    sys.exit(main())
