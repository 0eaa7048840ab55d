"""Packages that only some features need, imported where they are used."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(module: str, extra: str) -> ModuleType:
    """Import ``module``, which comes with the optional extra ``extra`` of cad-fast.

    Raises ImportError naming the extra when the package is not installed; errors inside of it stay as they are.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name != package:
            raise
        raise ImportError(f"this needs {package}: pip install 'cad-fast[{extra}]'", name=package) from error
