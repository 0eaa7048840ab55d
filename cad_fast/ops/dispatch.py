"""Which backend runs an operator: an explicit choice runs or raises, an automatic one may fall back and says so."""

import contextlib
import contextvars
import platform
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

from cad_fast import __version__, envs, remembered
from cad_fast.ops import backends, crossover
from cad_fast.ops.registry import OPS


def _reference_why_not(op: str, args: tuple[Any, ...]) -> str | None:
    return None


PREDICATES: dict[str, Callable[[str, tuple[Any, ...]], str | None]] = {
    "hopper": backends.hopper.why_not,
    "cuda": backends.cuda.why_not,
    "triton": backends.triton.why_not,
    "vendor": backends.vendor.why_not,
    "native": backends.native.why_not_run,
    "reference": _reference_why_not,
}
"""All backends, and what says why one of them cannot run an operator on arguments (None: it can)."""

BACKENDS = tuple(PREDICATES)

_chosen: contextvars.ContextVar[str | None] = contextvars.ContextVar("cad_fast_backend", default=None)


def check_backend(backend: str) -> str:
    """The same name, if it is "auto" or a backend; otherwise ValueError."""
    if backend not in ("auto", *BACKENDS):
        raise ValueError(f"unknown backend {backend!r}: expected auto, {', '.join(BACKENDS[:-1])} or {BACKENDS[-1]}")
    return backend


def get_backend() -> str:
    """The backend in force: that of the innermost `use_backend`, else CAD_FAST_BACKEND, else "auto"."""
    chosen = _chosen.get()
    return chosen if chosen is not None else check_backend(envs.get("CAD_FAST_BACKEND"))


def backend_for_later() -> str | None:
    """The backend in force, for the calls on the way back that belong to one on the way there.

    On a GPU autograd makes them in threads of its own, which no `use_backend` reaches. None where torch traces: a
    compiled graph obeys the choice in force when it runs.
    """
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return None
    return get_backend()


@contextlib.contextmanager
def use_backend(backend: str) -> Iterator[None]:
    """Run the operators called inside on this backend: "auto" or one of `BACKENDS`.

    Their gradients are computed on the same one, wherever the way back is called.
    """
    token = _chosen.set(check_backend(backend))
    try:
        yield
    finally:
        _chosen.reset(token)


def why_not(op: str, backend: str, *args: Any) -> str | None:
    """Why this backend cannot run this operator on these arguments; None if it can."""
    if backend not in OPS[op].implementations:
        return f"there is no {backend} implementation of {op}"
    return PREDICATES[backend](op, args)


def can_run(op: str, backend: str, *args: Any, raise_error: bool = False) -> bool:
    """Whether this backend can run this operator on these arguments.

    Raises:
        RuntimeError: if it cannot and `raise_error` is set; the message says why.
    """
    reason = why_not(op, backend, *args)
    if reason is not None and raise_error:
        raise RuntimeError(f"{op} cannot run on the {backend} backend: {reason}")
    return reason is None


def run(op: str, backend: str | None, *args: Any) -> Any:
    """Run an operator on checked arguments: None means the backend in force, "auto" the first that can.

    Called from inside the custom ops, so that a compiled graph obeys the choice in force when it runs.
    """
    entry = OPS[op]
    backend = get_backend() if backend is None else check_backend(backend)
    if backend == "auto":
        backend = _first_that_can_run(op, *args)
    else:
        can_run(op, backend, *args, raise_error=True)
    entry.runs[backend] += 1
    return entry.implementations[backend](*args)


def untraced(*tensors: torch.Tensor | None) -> bool:
    """Whether a call needs nothing of torch's dispatcher, as nothing records, traces or transforms it.

    Passing through a custom op takes some 40 microseconds, as long as a small layer itself.
    """
    if (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._functorch.peek_interpreter_stack() is not None
    ):
        return False
    records = torch.is_grad_enabled()
    for tensor in tensors:
        if tensor is not None and (type(tensor) not in _PLAIN or (records and tensor.requires_grad)):
            return False
    return True


_PLAIN = (torch.Tensor, torch.nn.Parameter)


def _first_that_can_run(op: str, *args: Any) -> str:
    reasons: dict[str, str] = {}
    for backend in crossover.order(op, args):
        if backend not in BACKENDS:
            continue
        reason = why_not(op, backend, *args)
        if reason is None:
            if backend == "reference":
                _warn_once("; ".join(reasons.values()))
            return backend
        OPS[op].reasons[backend] = reasons[backend] = reason
    raise RuntimeError(f"no backend can run {op}: {reasons}")


warned: set[str] = set()


def _warn_once(reason: str) -> None:
    if reason and reason not in warned:
        warned.add(reason)
        message = f"{reason}; the slow reference operators run instead (cad_fast.ops.backend_report() tells more)"
        warnings.warn(message, RuntimeWarning, stacklevel=2)


def backend_report() -> dict[str, Any]:
    """What was built, what this CPU offers, what is in use, and which backend ran each operator (JSON-able).

    Never raises: an unusable CAD_FAST_BACKEND or CAD_FAST_CPU_CAPABILITY is reported under "error".
    """
    error = None
    try:
        get_backend()
        module, reason = backends.native.load(), backends.native.why_not()
    except (ValueError, backends.native.NativeUnavailableError) as raised:
        module, reason = None, str(raised)
        error = reason
    _, serial_because = backends.native.thread_pool()
    parallel = module is not None and module.has_thread_pool()
    return {
        "version": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda_devices": torch.cuda.device_count(),
        "backend": envs.get("CAD_FAST_BACKEND") if error else get_backend(),
        "error": error,
        "native": {
            "available": module is not None,
            "why_not": reason,
            "build": module.build_info() if module else None,
        },
        "cuda": backends.cuda.report(),
        "triton": backends.triton.report(),
        "cpu": {
            "features": module.cpu_features() if module else None,
            "capabilities": module.capabilities() if module else None,
            "in_use": module.capability() if module else None,
            "bfloat16_products": module.bfloat16_capability() if module else None,
            "crossover": crossover.cpu_table().report() if module else None,
            "forced": envs.get("CAD_FAST_CPU_CAPABILITY") or None,
        },
        "threads": {
            "pool": "torch" if parallel else "serial",
            "why_serial": None if parallel else reason or serial_because,
            "count": module.num_threads() if module else 1,
            "torch": torch.get_num_threads(),
        },
        "remembered": remembered.report(),
        "ops": {
            name: {
                "backends": list(op.implementations),
                "ran": dict(op.runs),
                "ways": dict(op.ways),
                "passed_over": dict(op.reasons),
            }
            for name, op in sorted(OPS.items())
        },
    }
