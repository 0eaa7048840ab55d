"""Every environment variable that cad_fast knows, and the only module that reads them.

`VARIABLES` is the table that the documentation shows. Values are read when they are asked for, not at import.
"""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Variable:
    """One environment variable: its name, what holds when it is unset, and what it does."""

    name: str
    default: str
    meaning: str


VARIABLES = {
    variable.name: variable
    for variable in (
        Variable(
            "CAD_FAST_BACKEND",
            "auto",
            "Backend of the operators: auto (the first that can run), hopper, cuda, triton, vendor, native or "
            "reference. Explicit ones run or raise.",
        ),
        Variable(
            "CAD_FAST_CPU_CAPABILITY",
            "",
            "Instruction set of the native kernels: portable, avx2, avx512, avx512bf16 or amx. Unset: the best of this "
            "CPU. A set that is not built in or not supported raises an error.",
        ),
        Variable(
            "CAD_FAST_FLOAT32_PRECISION",
            "ieee",
            "How the Triton kernels multiply float32: ieee (fused multiply-add), tf32 (matrix instructions on 10 bits "
            "of the mantissa) or tf32x3 (three of these, nearly float32).",
        ),
        Variable(
            "CAD_FAST_REMEMBERED_BYTES",
            str(2 << 30),
            "How much memory may hold what is used again: what operators have prepared from sparse edits, and what "
            "edited layers made of prompts, the same in every step; 0 keeps nothing.",
        ),
        Variable(
            "CAD_FAST_BUILD_CUDA",
            "auto",
            "Read by setup.py alone: whether the CUDA kernels are built: auto (where there is an nvcc), on or off.",
        ),
        Variable(
            "CAD_FAST_ADMIN_TOKEN",
            "",
            "Token of the admin routes of `cad-fast serve`, at least 16 characters. Unset: there are no admin routes.",
        ),
        Variable(
            "CAD_FAST_SKIP_NATIVE",
            "0",
            "Read by setup.py alone: 1 installs the pure-Python package, without the native kernels.",
        ),
    )
}


def get(name: str) -> str:
    """Value of a variable of the table, or its default if it is unset or empty."""
    return os.environ.get(name) or VARIABLES[name].default
