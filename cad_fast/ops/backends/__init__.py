"""Where operators run besides the reference: each backend says why it cannot run one."""

from cad_fast.ops.backends import cuda, hopper, native, triton, vendor

__all__ = ["cuda", "hopper", "native", "triton", "vendor"]
