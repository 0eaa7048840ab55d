"""Weights of judges that are not a folder of transformers: one safetensors file, converted from what was published."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..files import check_tensor_header

CONVERT = (
    "from safetensors.torch import save_file; import torch; "
    "save_file(torch.load('FILE.pth', weights_only=True, map_location='cpu'), 'FILE.safetensors')"
)


def read_weights(path: str | Path, published: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Args:
        path: the file.
        published: what it is made of, for the error.

    Raises:
        FileNotFoundError: there is none; the message says what to download, and how to convert it.
        ValueError: it is not a safetensors file, or holds NaN or infinity.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(
            f"{path} is not a .safetensors file, and no other weights are loaded. Convert {published}: {CONVERT}"
        )
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist. Download {published} and convert it: {CONVERT}")
    check_tensor_header(path)
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is truncated or not a safetensors file: {error}") from error
    for name, tensor in state.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{path} has NaN or infinite weights in {name!r}")
    return state
