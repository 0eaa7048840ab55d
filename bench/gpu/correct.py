"""The check of operators on one backend in one dtype: every case against the same in float64."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from cad_fast.ops.dispatch import BACKENDS
from cad_fast.ops.registry import OPS

from . import correct_linear, correct_others
from .inputs import Random
from .judging import Case, Verdict, judge
from .worker import NOT_ON_GPUS, CaseError, Worker, planted

DTYPES = ("bfloat16", "float16", "float32")
PRODUCTS = {
    "masked_linear": correct_linear.masked_linear,
    "edited_linear": correct_linear.edited_linear,
    "masked_conv2d": correct_others.masked_conv2d,
    "edited_conv2d": correct_others.edited_conv2d,
    "masked_linear_scores": correct_linear.masked_linear_scores,
    "gated_linear": correct_linear.gated_linear,
    "gated_conv2d": correct_others.gated_conv2d,
}
"""Operators that multiply, each with its cases."""
BITS = {
    "pack_bits": correct_others.pack_bits_cases,
    "unpack_bits": correct_others.unpack_bits_cases,
    "count_bits": correct_others.count_bits_cases,
    "seeded_mask": correct_others.seeded_mask_cases,
    "gram_bits": correct_others.gram_bits_cases,
    "bits_linear": correct_others.bits_linear_cases,
}
"""Operators on bits, which have no dtype."""
AUTO = "auto"
REFUSED = "cannot run on the"


def groups(dry: bool) -> list[str]:
    """What runs in a process of its own each: "operator,backend,dtype", and all operators on bits as one.

    The backends are those that the registry knows, and the automatic choice.
    """
    missing = OPS.keys() - PRODUCTS.keys() - BITS.keys()
    if missing:
        raise RuntimeError(f"there are no cases for {', '.join(sorted(missing))}: add them to bench/gpu")
    backends = [name for name in BACKENDS if (name in NOT_ON_GPUS) == dry]
    pairs = [(backend, dtype) for dtype in DTYPES for backend in (*backends, AUTO)]
    # In half precision the reference, which is what a CPU has for float16, rounds on its way.
    pairs = [(backend, dtype) for backend, dtype in pairs if not (backend == "reference" and dtype != "float32")]
    pairs = [pair for pair in pairs if not (dry and pair == (AUTO, "float16"))]
    found = [
        f"{op},{backend},{dtype}" for backend, dtype in pairs for op in PRODUCTS if backend in OPS[op].implementations
    ]
    found += [f"products,{AUTO},{dtype}" for backend, dtype in pairs if backend == AUTO]
    bits = [backend for backend in backends if any(backend in OPS[op].implementations for op in BITS)]
    return found + [f"bits,{backend},-" for backend in (*bits, AUTO)]


def cases(worker: Worker) -> Iterator[tuple[str, Callable[[], None]]]:
    """The cases of a group."""
    which, backend, dtype = worker.group.split(",")
    tables = {"bits": BITS, "products": PRODUCTS}.get(which) or {which: PRODUCTS[which]}
    _poison_allocations()
    number = 0
    for op, make in tables.items():
        if backend != AUTO and backend not in OPS[op].implementations:
            continue
        random = Random(worker.device, torch.float32 if dtype == "-" else getattr(torch, dtype))
        for case in make(random, worker.dry):
            number += 1
            plant = worker.plant if number == 2 else None
            yield f"{op}: {case.name}", functools.partial(_check, worker, op, backend, dtype, case, plant)


def _check(worker: Worker, op: str, backend: str, dtype: str, case: Case, plant: str | None) -> None:
    facts: dict[str, Any] = {"op": op, "backend": backend, "dtype": dtype}
    begin = time.monotonic()
    try:
        if plant is not None:
            planted(plant, worker)
        arguments = case.arguments()
        worker.synchronize()
        results = case.run(op, arguments, None if backend == AUTO else backend)
        worker.synchronize()
        if plant == "wrong":
            results = [result + 1 for result in results]
        expected = case.exact(*arguments)
        verdict = _worst([judge(*pair) for pair in zip(results, _listed(expected), strict=False)])
    except RuntimeError as error:
        if REFUSED not in str(error) or backend == AUTO:
            raise CaseError(error, **facts) from error
        worker.put(case=case.name, refused=str(error)[:300], **facts)
        return
    except Exception as error:
        raise CaseError(error, **facts) from error
    facts |= {"case": case.name}
    numbers = {"error_norm": verdict.error, "excess": verdict.excess, "seconds": round(time.monotonic() - begin, 2)}
    if verdict.right:
        worker.put(right=True, **numbers, **facts)
    else:
        worker.put(right=False, error=f"WRONG: {verdict.message}", **numbers, **facts)


def _listed(expected: Any) -> list[Any]:
    return list(expected) if isinstance(expected, tuple) else [expected]


def _worst(verdicts: list[Verdict]) -> Verdict:
    return max(verdicts, key=lambda verdict: (not verdict.right, verdict.excess or 0.0))


def _poison_allocations() -> None:
    """torch.empty gives NaN from here on, so that what a kernel leaves unwritten shows."""

    def poisoned(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @functools.wraps(allocate)
        def wrapper(*args: Any, **kwargs: Any) -> Tensor:
            tensor = allocate(*args, **kwargs)
            if tensor.is_floating_point():
                return tensor.fill_(float("nan"))
            return tensor.fill_(True if tensor.dtype == torch.bool else 0x5A)

        return wrapper

    torch.empty, torch.empty_like = poisoned(torch.empty), poisoned(torch.empty_like)
