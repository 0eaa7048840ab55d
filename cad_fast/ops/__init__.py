"""Operators: one per file, each with a native and a slow reference version, registered with torch as cad_fast::<op>."""

from cad_fast.ops._backend import backend_report, can_run, get_backend, use_backend
from cad_fast.ops.count_bits import count_bits
from cad_fast.ops.pack_bits import pack_bits
from cad_fast.ops.unpack_bits import unpack_bits

__all__ = [
    "backend_report",
    "can_run",
    "get_backend",
    "use_backend",
    "count_bits",
    "pack_bits",
    "unpack_bits",
]
