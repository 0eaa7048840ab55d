"""Makes an operator of one signature: torch's custom op and its fake, dispatch, and the way past torch's dispatcher."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from cad_fast.ops import dispatch
from cad_fast.ops.registry import OPS, Op

Arguments = tuple[Any, ...]


class Operator:
    """Called with the arguments of the op and the backend: checks the arguments, and runs the op.

    Passing through a custom op takes some 40 microseconds, as long as a small layer itself. A `direct` op does without
    where nothing records, traces or transforms the call.
    """

    def __init__(
        self,
        name: str,
        check: Callable[..., Arguments | None],
        empty: Callable[..., Any],
        direct: bool,
        mutates: Sequence[str],
    ) -> None:
        self.name, self.check, self.direct = name, check, direct
        parameters = list(inspect.signature(check).parameters.values())
        self.tensors = [i for i, each in enumerate(parameters) if each.annotation in (Tensor, Tensor | None)]

        def run(*arguments: Any) -> Any:
            *given, backend = arguments
            return dispatch.run(name, backend, *self.checked(tuple(given)))

        def fake(*arguments: Any) -> Any:
            return empty(*self.checked(arguments[:-1]))

        backend = inspect.Parameter("backend", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=str | None)
        of_result = inspect.signature(empty).return_annotation
        run.__signature__ = inspect.Signature([*parameters, backend], return_annotation=of_result)  # type: ignore[attr-defined]
        self.custom_op = torch.library.custom_op(f"cad_fast::{name}", run, mutates_args=mutates)
        self.custom_op.register_fake(fake)

    def __call__(self, *arguments: Any) -> Any:
        given, backend = arguments[:-1], arguments[-1]
        changed = self.check(*given)
        if changed is not None:
            given = changed
        if self.direct and dispatch.untraced(*[given[i] for i in self.tensors]):
            return dispatch.run(self.name, backend, *given)
        return self.custom_op(*given, dispatch.backend_for_later() if backend is None else backend)

    def checked(self, arguments: Arguments) -> Arguments:
        """The arguments as the implementations take them."""
        changed = self.check(*arguments)
        return arguments if changed is None else changed

    def implement(self, kernels: Sequence[str] | None = None, **implementations: Callable[..., Any]) -> None:
        """Put the operator into the table of all, with its implementations by backend.

        `kernels` are those that the native one calls, by their names in csrc; None means one of the operator's name.
        """
        if self.name in OPS:
            raise ValueError(f"operator {self.name} is registered twice")
        if kernels is None:
            kernels = (self.name,) if "native" in implementations else ()
        OPS[self.name] = Op(self.name, self.custom_op, implementations, tuple(kernels))


def define(
    name: str, empty: Callable[..., Any], *, direct: bool = False, mutates: Sequence[str] = ()
) -> Callable[[Callable[..., Arguments | None]], Operator]:
    """Make an operator of the function that checks its arguments.

    The parameters of that function are those of the op, their types its schema. It raises an error that names the
    argument, and returns None, or the arguments as the implementations take them where these may be given in other
    ways. What it returns it accepts and leaves as it is.

    Args:
        name: of the operator: the custom op is cad_fast::<name>.
        empty: a tensor like the result, of checked arguments, with nothing in it; its return type is that of the op.
        direct: whether calls that nothing records, traces or transforms pass by torch's dispatcher.
        mutates: the parameters that are written to.

    Returns:
        A decorator.
    """
    return lambda check: Operator(name, check, empty, direct, mutates)
