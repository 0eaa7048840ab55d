"""Run one check of one family, and say what came of it."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cad_fast

from .checks import CHECKS, Mismatch, recording_of
from .family import Family, built

PACKAGE = Path(cad_fast.__file__).parent
Verdict = Literal["right", "refused", "wrong", "crashed"]


@dataclass(frozen=True)
class Outcome:
    """``refused`` is an error of this package that says why; ``crashed`` one of somebody else's."""

    verdict: Verdict
    message: str = ""


def outcome(family: Family, check: str) -> Outcome:
    """The outcome of a check. What goes wrong may leave the pipeline in any state: the next check builds it anew."""
    result = _outcome(family, check)
    if result.verdict != "right":
        built.cache_clear()
        recording_of.cache_clear()
    return result


def _outcome(family: Family, check: str) -> Outcome:
    try:
        CHECKS[check](family)
    except Mismatch as error:
        return Outcome("wrong", str(error))
    except Exception as error:
        raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        refused = isinstance(error, (ValueError, TypeError, RuntimeError)) and raised_in.is_relative_to(PACKAGE)
        # Python's own errors, not ours.
        refused = refused and not isinstance(error, RecursionError)
        refused = refused and "unexpected keyword argument" not in str(error)
        return Outcome("refused" if refused else "crashed", f"{type(error).__name__}: {error}")
    return Outcome("right")
