"""What several commands share: the model and how it is loaded, how pictures are sampled, and what is printed."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..choices import DTYPES, OFFLOADS
from ..diffusion.generation import Generation
from ..texts import printable
from ..zoo.concepts import MODELS, VARIANTS, generation

if TYPE_CHECKING:
    from ..evaluation import PromptSet

EXIT_CODES = "exit codes: 0 done, 1 a run or a check failed, 2 wrong input or arguments, 130 interrupted"
MODEL_HELP = (
    f"{', '.join(f'zoo:{name}' for name in (*MODELS, *VARIANTS))}, a local diffusers folder, or a Hub repository"
)
LOADING = ("dtype", "variant", "revision", "device", "offload", "denoiser_weights", "part")


def add_command(commands: Any, name: str, module: ModuleType, *, within: str = "", known: bool = True) -> None:
    """Add the parser of a command's module: HELP, EXAMPLE, and ``add_arguments`` with ``run``, or its own COMMANDS.

    ``known`` False: by name alone.
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=module.HELP,
        description=module.HELP,
        epilog=f"example:\n  {module.EXAMPLE}\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if not known:
        return
    if hasattr(module, "COMMANDS"):
        nested = parser.add_subparsers(dest="action", required=True, metavar="COMMAND")
        for action, its_module in module.COMMANDS.items():
            add_command(nested, action, its_module, within=f"{name} ")
        return
    parser.add_argument("--json", action="store_true", help="print the result as JSON on standard output")
    parser.add_argument("--quiet", action="store_true", help="no progress bars, no word on how the model was loaded")
    module.add_arguments(parser)
    parser.set_defaults(run=module.run, full_name=f"{within}{name}")


def add_loading(parser: argparse.ArgumentParser) -> None:
    """The options of how the model is loaded, for every command that loads one."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--dtype",
        choices=DTYPES,
        help="one dtype for all parts (default auto: float32 as stored; half precision as stored on a GPU, bfloat16 on "
        "a CPU that is fast in it, else float32)",
    )
    group.add_argument("--variant", help="which files of weights, such as fp16 for *.fp16.safetensors")
    group.add_argument("--revision", help="branch, tag or commit of a Hub repository")
    group.add_argument("--device", help="where the pipeline runs: cpu, cuda, cuda:1, mps (default cpu)")
    group.add_argument(
        "--offload",
        choices=OFFLOADS,
        help="keep the parts on the CPU and move each to the accelerator as it is needed (default none)",
    )
    group.add_argument(
        "--denoiser-weights", metavar="PATH", help="safetensors file or folder to put over the denoiser's own weights"
    )
    group.add_argument("--part", help="which denoiser, of a pipeline with several, such as transformer_2")


def add_model(parser: argparse.ArgumentParser) -> None:
    """The model as first argument, with the options of loading it."""
    parser.add_argument("model", help=MODEL_HELP)
    add_loading(parser)


def refuse_loading(arguments: argparse.Namespace, option: str) -> None:
    """Raises ValueError naming the option of loading that is given although no model is, for want of ``option``."""
    for name in LOADING:
        if getattr(arguments, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')} goes with {option}")


def load(arguments: argparse.Namespace, name: str | None = None) -> Any:
    """The pipeline that the arguments name; says once, on standard error, what was chosen."""
    from ..diffusion.loaded import loading_of
    from ..loading import load_pipeline

    options = {key: getattr(arguments, key) for key in LOADING}
    options["dtype"] = options["dtype"] or "auto"
    with _bars(not arguments.quiet):
        pipeline = load_pipeline(name or arguments.model, **options)
    arguments.loading = loading_of(pipeline)
    if not arguments.quiet and not arguments.json:
        print(f"model {arguments.loading}", file=sys.stderr)
    return pipeline


def original_of(arguments: argparse.Namespace) -> Any:
    """The pipeline that ``--original`` names, loaded in the same way but without ``--denoiser-weights``, or None."""
    if arguments.original is None:
        return None
    from ..loading import load_pipeline

    options = {key: getattr(arguments, key) for key in LOADING if key not in ("denoiser_weights", "revision")}
    options["dtype"] = options["dtype"] or "auto"
    with _bars(not arguments.quiet):
        return load_pipeline(arguments.original, **options)


def model_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """How the model was loaded, as the part ``model`` of a command's result."""
    return {"model": arguments.loading.to_dict()}


@contextlib.contextmanager
def _bars(shown: bool) -> Iterator[None]:
    """Within, the progress bars of loading are shown or not."""
    if shown:
        yield
        return
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    loggers = (diffusers_logging, transformers_logging)
    for logger in loggers:
        logger.disable_progress_bar()
    try:
        yield
    finally:
        for logger in loggers:
            logger.enable_progress_bar()


def add_sampling(parser: argparse.ArgumentParser, seed: int = 0) -> None:
    """The options of how pictures are sampled."""
    parser.add_argument(
        "--seed", type=int, default=seed, help=f"seed of the first image, the others count on (default {seed})"
    )
    of_zoo = {f"zoo:{name}": generation(name) for name in MODELS}
    steps = ", ".join(f"{each.num_inference_steps} for {name}" for name, each in of_zoo.items())
    guidance = ", ".join(f"{each.guidance_scale:g} for {name}" for name, each in of_zoo.items())
    parser.add_argument("--steps", type=int, help=f"denoising steps (default: {steps}, else the pipeline's own)")
    parser.add_argument(
        "--guidance-scale",
        type=float,
        help=f"classifier-free guidance (default: {guidance}, else the pipeline's own)",
    )


def generation_of(arguments: argparse.Namespace) -> Generation:
    """Steps, guidance and size as given, else the zoo's for its models, else the pipeline's own.

    Raises ValueError when ``--size`` is of another form, or the zoo has no such model.
    """
    given = {"num_inference_steps": arguments.steps, "guidance_scale": arguments.guidance_scale}
    chosen = {name: value for name, value in given.items() if value is not None}
    return Generation.of(zoo_generation(str(arguments.model)), **chosen, **_size(arguments))


def zoo_generation(model: str) -> Generation:
    """How the zoo's model of this name generates; for any other model nothing is set.

    Raises ValueError when the zoo has no such model.
    """
    return generation(model.removeprefix("zoo:")) if model.startswith("zoo:") else Generation()


def is_zoo(arguments: argparse.Namespace) -> bool:
    return str(arguments.model).startswith("zoo:")


def add_size(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--size", metavar="WIDTHxHEIGHT", help="of the pictures, in pixels (default: the pipeline's own)"
    )


def _size(arguments: argparse.Namespace) -> dict[str, int]:
    if getattr(arguments, "size", None) is None:
        return {}
    parts = arguments.size.split("x")
    if len(parts) != 2 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise ValueError(f"--size is {arguments.size}, expected WIDTHxHEIGHT in pixels, such as 512x512")
    return {"width": int(parts[0]), "height": int(parts[1])}


def add_timesteps(parser: argparse.ArgumentParser, help_text: str) -> None:
    parser.add_argument("--timesteps", type=float, nargs=2, metavar=("LOW", "HIGH"), help=help_text)


def window(arguments: argparse.Namespace) -> tuple[float, float] | None:
    """The window of ``--timesteps``."""
    return (arguments.timesteps[0], arguments.timesteps[1]) if arguments.timesteps else None


def target_modules(value: str | None) -> str | list[str] | None:
    """What ``--target-modules`` names: a preset or pattern, or a list where there are commas."""
    return value.split(",") if value is not None and "," in value else value


def say(arguments: argparse.Namespace, text: str) -> None:
    """Print ``text`` unless the result is printed as JSON. Control characters from files are written out."""
    if not arguments.json:
        print(printable(text), flush=True)


def evaluation_prompts(arguments: argparse.Namespace) -> PromptSet:
    """Those of ``--concepts``, or of the zoo's model."""
    from ..zoo.prompt_set import emoji_prompts

    if arguments.concepts is not None:
        return prompts_of(arguments.concepts)
    if is_zoo(arguments):
        return emoji_prompts()
    raise ValueError("--concepts is needed: a JSON or CSV file with the concepts of this model and their prompts")


def prompts_of(text: str, labels: dict[str, str] | None = None) -> PromptSet:
    """The prompts of FILE, or of FORM:FILE of a published set, with ?COLUMN=VALUE for some of its rows.

    ``labels`` are those of published prompts. Raises ValueError for a query of another form.
    """
    from ..evaluation.prompt_files import FORMS, PUBLISHED, read_prompts

    form, _, rest = text.partition(":")
    if form not in FORMS:
        return read_prompts(text)
    path, _, query = rest.partition("?")
    where = {}
    for pair in query.split("&") if query else ():
        column, equals, value = pair.partition("=")
        if not equals or not column:
            raise ValueError(f"{text}: {pair!r} is not COLUMN=VALUE")
        where[column] = value
    return read_prompts(path, form, labels=labels if form in PUBLISHED else None, where=where)
