"""``cad-fast audit``: how much of an erased concept comes back."""

from __future__ import annotations

import argparse
from typing import Any

from .common import (
    add_model,
    add_sampling,
    evaluation_prompts,
    generation_of,
    is_zoo,
    load,
    model_of,
    original_of,
    say,
    target_modules,
)
from .judges import one_judge_of

HELP = "look for a concept that was erased: by amplifying, by other prompts, by noise of real pictures"
EXAMPLE = "cad-fast audit zoo:emoji car --denoiser-weights erased/car.safetensors --original zoo:emoji -o audits/car"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the model, the concept, what shows it, and in how many ways it is looked for."""
    add_model(parser)
    parser.add_argument("concept", help="what it is called, a label of the scorer")
    parser.add_argument("--original", metavar="MODEL", help="the model before the concept was taken out of it")
    parser.add_argument("--images", metavar="FOLDER", help="pictures of the concept (default: the zoo's own)")
    parser.add_argument(
        "--prompt",
        action="append",
        help="a prompt that should no longer draw it (repeat for more; default as for erase)",
    )
    parser.add_argument(
        "--other-prompt", action="append", help="a synonym, or a prompt made to get around (repeat for more)"
    )
    parser.add_argument(
        "--concepts", help="JSON file with the concepts that the scorer tells apart (default: those of the zoo model)"
    )
    parser.add_argument(
        "--scorer", help="clip:MODEL, zero-shot scoring of the concepts (default: the zoo's classifier)"
    )
    parser.add_argument(
        "--ratios", type=float, nargs="+", metavar="RATIO", help="budgets of weights to amplify with, as shares"
    )
    parser.add_argument("--target-modules", default="cross-attention-kv", help="default cross-attention-kv")
    parser.add_argument("--keep", nargs="+", metavar="NAME", help="concepts to spare when amplifying")
    parser.add_argument("--per-probe", type=int, default=24, help="pictures per way (default 24)")
    parser.add_argument("--soft-steps", type=int, default=200, help="steps for the soft prompt (default 200)")
    parser.add_argument("-o", "--output", required=True, help="folder for audit.json, audit.html and the probes")
    add_sampling(parser)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Audit, and write the result and the report. An audit that was stopped goes on."""
    from ..auditing import audit
    from ..auditing.audit import RATIOS
    from ..auditing.report import write_audit_report
    from ..files import require_writable_folder, write_json

    output = require_writable_folder(arguments.output)
    zoo_judges = is_zoo(arguments) and arguments.scorer is None
    scorer = None if zoo_judges else one_judge_of(arguments, evaluation_prompts(arguments))
    pipeline = load(arguments)
    result = audit(
        pipeline,
        arguments.concept,
        images=arguments.images,
        original=original_of(arguments),
        prompts=arguments.prompt,
        other_prompts=arguments.other_prompt,
        scorer=scorer,
        keep=arguments.keep,
        ratios=arguments.ratios or RATIOS,
        target_modules=target_modules(arguments.target_modules) or "cross-attention-kv",
        per_probe=arguments.per_probe,
        soft_steps=arguments.soft_steps,
        seed=arguments.seed,
        output_dir=output,
        progress=not arguments.quiet,
        **generation_of(arguments).to_kwargs(),
    )
    found = {**model_of(arguments), **result.to_dict()}
    write_json(output / "audit.json", found)
    write_audit_report(output / "audit.html", result)
    say(arguments, f"{result.table()}\n{result.summary()}\nwritten to {output}")
    return found
