"""The command line: the run itself, and the processes that it starts."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from . import __doc__ as description
from .run import SECTIONS, Run


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m bench.gpu", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--output", type=Path, required=True, help="folder for gpu.md, gpu.jsonl and log.txt")
    made.add_argument("--budget", type=float, default=600, help="seconds for everything (default 600)")
    made.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="default: all of them")
    made.add_argument("--tests", nargs="+", default=None, help="paths of tests marked gpu (default: all of them)")
    made.add_argument(
        "--only", default="", help="checks of these alone: text in OPERATOR,BACKEND,DTYPE, such as masked_linear,cuda"
    )
    made.add_argument("--dry-run", action="store_true", help="the same code on the CPU, with tiny sizes")
    made.add_argument(
        "--plant",
        choices=("crash", "hang", "lost", "wrong"),
        help="what one case of each check does, to see it reported",
    )
    worker = made.add_argument_group("processes", "What the run starts; of no use by hand.")
    worker.add_argument("--worker", help="a section")
    worker.add_argument("--group", default="", help="operators, backend and dtype of a check")
    worker.add_argument("--seconds", type=float, default=60)
    worker.add_argument("--skip", type=int, default=0, help="begin with this case")
    worker.add_argument("--wait", type=Path, help="import, then wait for this file, which says for how long to run")
    worker.add_argument("--warm", default="", help="i/n: run every nth case, from the ith, once and untimed")
    return made


def main() -> int:
    """Returns 0 when all that was reached is right, 1 when something is wrong, 2 when there is no device."""
    arguments = parser().parse_args()
    if arguments.worker:
        from .worker import work

        return work(arguments)
    return Run(arguments).run()


if __name__ == "__main__":
    sys.exit(main())
