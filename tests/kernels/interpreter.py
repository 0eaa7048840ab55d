"""Mends Triton's interpreter, which runs kernels on the CPU, where it would let wrong kernels pass.

Of bfloat16 it has the 16 bits as an integer: it multiplies, adds and compares these. Addresses it does not check at
all: here every pointer remembers the tensor it came from, and may be used for elements of that tensor alone. PTX it
refuses: here `tests.kernels.ptx` computes it.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from tests.kernels import ptx

ARITHMETIC = ["fadd", "fsub", "fmul", "fdiv", "minimumf", "maximumf", "minnumf", "maxnumf"]
COMPARISONS = [f"fcmp{order}{relation}" for order in "OU" for relation in ("LT", "GT", "LE", "GE", "EQ", "NE")]
RESHAPING = ["addptr", "broadcast", "expand_dims", "reshape", "splat", "trans", "unsplat"]
SPAN = "span"


class OutOfBoundsError(Exception):
    """A kernel loaded or stored outside of the tensor its pointer came from."""


def widen(bits: np.ndarray) -> np.ndarray:
    """bfloat16, as uint16, to float32."""
    return np.ascontiguousarray(bits.astype(np.uint32) << 16).view(np.float32)


def narrow(values: np.ndarray) -> np.ndarray:
    """float32 to bfloat16, as uint16, to nearest even."""
    values = np.ascontiguousarray(values, dtype=np.float32)
    bits = values.view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def why_not() -> str | None:
    """Why Triton's interpreter cannot run here; None if it can."""
    found, numpy_found = (tuple(map(int, m.__version__.split(".")[:2])) for m in (triton, np))
    if found < (3, 7) and numpy_found >= (2, 4):
        return f"the interpreter of triton {triton.__version__} needs numpy below 2.4, this is {np.__version__}"
    return None


def mend() -> None:
    """Patch the interpreter of this process.

    Raises:
        RuntimeError: the interpreter does not run with this numpy.
    """
    if reason := why_not():
        raise RuntimeError(reason)
    _mend_bfloat16()
    _check_bounds()
    InterpreterBuilder.create_inline_asm = _inline_asm


def _is_bfloat16(handle: TensorHandle) -> bool:
    return handle.dtype.scalar == tl.bfloat16


def _widened(handle: TensorHandle) -> TensorHandle:
    return TensorHandle(widen(handle.data), tl.float32) if _is_bfloat16(handle) else handle


def _mend_bfloat16() -> None:
    def mended_cast(original: Any) -> Any:
        def cast(self: Any, source: TensorHandle, target: Any, *rest: Any) -> TensorHandle:
            if target.scalar == tl.bfloat16 and not _is_bfloat16(source):
                return TensorHandle(narrow(source.data.astype(np.float32)), tl.bfloat16)
            if _is_bfloat16(source) and target.scalar != tl.bfloat16:
                return TensorHandle(widen(source.data).astype(interpreter._get_np_dtype(target)), target.scalar)
            return original(self, source, target, *rest)

        return cast

    def mended_operation(original: Any, compares: bool) -> Any:
        def operation(self: Any, left: TensorHandle, right: TensorHandle) -> TensorHandle:
            if not _is_bfloat16(left):
                return original(self, left, right)
            result = original(self, _widened(left), _widened(right))
            return result if compares else TensorHandle(narrow(result.data), tl.bfloat16)

        return operation

    for name in ("cast_impl", "create_fp_to_fp"):
        setattr(InterpreterBuilder, name, mended_cast(getattr(InterpreterBuilder, name)))
    for name in [*ARITHMETIC, *COMPARISONS]:
        original = getattr(InterpreterBuilder, f"create_{name}")
        setattr(InterpreterBuilder, f"create_{name}", mended_operation(original, name in COMPARISONS))
    dot, total = InterpreterBuilder.create_dot, interpreter.ReduceOps.sum

    def mended_dot(self: Any, a: TensorHandle, b: TensorHandle, *rest: Any) -> TensorHandle:
        return dot(self, _widened(a), _widened(b), *rest)

    def mended_sum(self: Any, operand: Any) -> Any:
        if operand.dtype != tl.bfloat16:
            return total(self, operand)
        sums = np.sum(widen(operand.handle.data), axis=self.axis, keepdims=self.keep_dims)
        return self.to_tensor(narrow(sums), tl.bfloat16)

    InterpreterBuilder.create_dot = mended_dot
    interpreter.ReduceOps.sum = mended_sum


def _inline_asm(
    self: Any, text: str, constraints: str, values: list[TensorHandle], types: list[Any], pure: bool, pack: int
) -> Any:
    """Of two elements at a time, side by side: those of 16 bits share a register, those of 32 have one each."""
    if pack != 2 or len(types) != 1 or values[0].data.itemsize != 2 or types[0].scalar != values[0].dtype.scalar:
        raise TypeError(
            "the PTX of these kernels takes pairs of 16-bit elements and gives such pairs, this one does not"
        )
    registers = []
    for value in values:
        data = np.ascontiguousarray(value.data)
        if data.itemsize == 2:
            registers.append(data.view(np.uint32))
        else:
            registers += [data.view(np.uint32)[..., 0::2], data.view(np.uint32)[..., 1::2]]
    result = np.ascontiguousarray(ptx.run(text, registers)).view(values[0].data.dtype)
    handle = TensorHandle(result, types[0].scalar)
    return SimpleNamespace(get_result=lambda number: handle)


def _check_bounds() -> None:
    convert = interpreter._implicit_cvt
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def remembering(argument: Any) -> Any:
        converted = convert(argument)
        if isinstance(argument, torch.Tensor):
            converted.handle.set_attr(SPAN, _span(argument))
        return converted

    def carrying(original: Any) -> Any:
        def operation(self: Any, first: Any, *rest: Any) -> TensorHandle:
            result = original(self, first, *rest)
            for handle in (first, *rest):  # splat takes the pointer second
                if isinstance(handle, TensorHandle) and SPAN in handle.attr:
                    result.set_attr(SPAN, handle.attr[SPAN])
            return result

        return operation

    def checked_load(self: Any, pointers: TensorHandle, mask: TensorHandle, *rest: Any) -> TensorHandle:
        _require_inside("load", pointers, mask)
        return load(self, pointers, mask, *rest)

    def checked_store(self: Any, pointers: TensorHandle, value: Any, mask: TensorHandle, *rest: Any) -> Any:
        _require_inside("store", pointers, mask)
        return store(self, pointers, value, mask, *rest)

    interpreter._implicit_cvt = remembering
    for name in RESHAPING:
        setattr(InterpreterBuilder, f"create_{name}", carrying(getattr(InterpreterBuilder, f"create_{name}")))
    InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store = checked_load, checked_store


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """The first address of a tensor and the one behind its last."""
    if tensor.numel() == 0:
        return (0, 0)
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def _require_inside(what: str, pointers: TensorHandle, mask: TensorHandle) -> None:
    if SPAN not in pointers.attr:
        raise OutOfBoundsError(f"{what} through a pointer of unknown origin")
    begin, end = pointers.attr[SPAN]
    size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
    addresses = pointers.data[np.broadcast_to(mask.data, pointers.data.shape)].astype(np.int64)
    outside = addresses[(addresses < begin) | (addresses > end - size)]
    if outside.size:
        first = (int(outside[0]) - begin) // size
        raise OutOfBoundsError(f"{what} of element {first} of a tensor that ends at {(end - begin) // size}")
