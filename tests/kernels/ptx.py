"""Computes the few PTX instructions of our kernels in numpy, as the PTX ISA defines them, for the interpreter."""

import re

import numpy as np


def run(text: str, operands: list[np.ndarray]) -> np.ndarray:
    """What `$0` holds after a block of PTX with operands `$1` on, all uint32."""
    registers = {f"${number}": values for number, values in enumerate(operands, 1)}
    for line in re.findall(r"[^;{}\n]+", text):
        name, *rest = line.strip().split(None, 1)
        if name == ".reg":
            continue
        to, *sources = (part.strip() for part in rest[0].split(","))
        registers[to] = INSTRUCTIONS[name](*(_value(registers, source) for source in sources))
    return registers["$0"]


def _value(registers: dict[str, np.ndarray], source: str) -> np.ndarray:
    return registers[source] if source in registers else np.uint32(int(source, 0))


def _shl(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.where(b < 32, a << (b & 31), 0).astype(np.uint32)


def _prmt(a: np.ndarray, b: np.ndarray, selectors: np.ndarray) -> np.ndarray:
    """Each byte is one of the eight of a and b, by three bits of its selector; or that byte's sign, by the fourth."""
    both = a.astype(np.uint64) | (b.astype(np.uint64) << np.uint64(32))
    result = np.zeros_like(a)
    for byte in range(4):
        selector = int(selectors) >> 4 * byte & 15
        chosen = both >> np.uint64(8 * (selector & 7)) & np.uint64(255)
        if selector & 8:
            chosen = np.where(chosen & np.uint64(128), 255, 0)
        result |= (chosen.astype(np.uint64) << np.uint64(8 * byte)).astype(np.uint32)
    return result


def _lop3(a: np.ndarray, b: np.ndarray, c: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Bit by bit, the bit of the table that those of a, b and c number."""
    result = np.zeros_like(a)
    for number in range(8):
        if int(table) >> number & 1:
            chosen = [x if number >> place & 1 else ~x for x, place in ((a, 2), (b, 1), (c, 0))]
            result |= chosen[0] & chosen[1] & chosen[2]
    return result


INSTRUCTIONS = {
    "shl.b32": _shl,
    "prmt.b32": _prmt,
    "lop3.b32": _lop3,
    "not.b32": lambda a: ~a,
    "and.b32": lambda a, b: a & b,
}
