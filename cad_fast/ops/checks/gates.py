"""What the gated operators share: checks of the gates."""

from typing import Any

from torch import Tensor

from cad_fast.ops.checks import check


def check_gates(gates: Any, x: Tensor) -> None:
    """Require gates of the dtype, the device and the variants of x, in two dimensions."""
    check.tensor("gates", gates, (x.dtype,))
    if gates.dim() != 2 or gates.shape[0] != x.shape[0]:
        raise ValueError(f"gates must be [{x.shape[0]}, ...], one row per variant of x, got {check.shape(gates)}")
    check.same_device("gates", gates, "x", x)
