"""All methods by name, and which one is used where none is asked for."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from ...components.space import Kind
from .ablated_gradient import AblatedGradient
from .base import Estimator, Method
from .exact import Exact
from .gradient import Gradient
from .regression import Regression
from .second_order import SecondOrder
from .sensitivity import Sensitivity

_ALL: tuple[type[Estimator], ...] = (Gradient, AblatedGradient, SecondOrder, Regression, Exact, Sensitivity)
ESTIMATORS: dict[str, type[Estimator]] = {cls.name: cls for cls in _ALL}


def default_method(kind: Kind, n: int | None = None) -> Method:
    """Return the method for n components of a kind where none is asked for. docs/attribution.md has the figures.

    Single weights: the gradient, whose edits erase as well as those of the ablated gradient at a twentieth of its cost.
    Neurons, filters and heads, along which J bends: the ablated gradient. Where there are too few to be cut into
    partitions, each is ablated alone, which is cheaper still.
    """
    if kind == "weight":
        return "gradient"
    return "ablated_gradient" if n is None or n >= round(1 / AblatedGradient.fraction) else "exact"


def make_estimator(method: str, options: dict[str, Any]) -> Estimator:
    """Make the estimator of this name with these options.

    Raises:
        TypeError: The method has no such option. The message names it.
        ValueError: The method is unknown, or an option is out of range.
    """
    if method not in ESTIMATORS:
        raise ValueError(f"unknown method {method!r}: expected one of {', '.join(ESTIMATORS)}")
    kind = ESTIMATORS[method]
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    unknown = [key for key in options if key not in known]
    if unknown:
        raise TypeError(f"method {method!r} has no option {unknown[0]!r}; it has: {', '.join(known) or 'none'}")
    return kind(**options)
