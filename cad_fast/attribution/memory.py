"""How many rows one backward pass takes: as many as a method wants, or as few as a large model leaves room for."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ..components.space import ComponentSpace
from ..diffusion.context import only_gradients_of
from ..objectives import Objective
from ..recording.data import Recording

# A denoiser with fewer bytes of weights is not looked at: what it keeps for a few rows is small.
LARGE = 2**28
# For what the rows of one pass keep for the way back. A fixed number, not what happens to be free, so that the same
# run divides its rows in the same way when it goes on.
CPU_BUDGET = 2**31
ACCELERATOR_BUDGET = 2**33


def fitting_rows(
    denoiser: nn.Module, recording: Recording, objective: Objective, space: ComponentSpace, most: int
) -> int:
    """At most ``most`` rows, at least 1, whose activations fit into the budget.

    Of a large denoiser one row runs once, without a backward pass, to see what it keeps.
    """
    weights = sum(parameter.numel() * parameter.element_size() for parameter in denoiser.parameters())
    call = next((each for each in recording.calls if objective.active(each)), None)
    if weights < LARGE or most <= 1 or call is None:
        return most
    wanted = [module.weight for module in space.modules(denoiser).values()]
    kept = _Kept(denoiser)
    with only_gradients_of(denoiser, wanted), torch.enable_grad(), kept:
        output = call.select_rows([0]).run(denoiser)
    budget = CPU_BUDGET if output.device.type == "cpu" else ACCELERATOR_BUDGET
    return min(most, max(1, budget // max(1, kept.bytes)))


def require_room(needed: int, device: torch.device, space: ComponentSpace) -> None:
    """Require so many bytes of free memory, before the work.

    Raises:
        ValueError: There are fewer. The message says how many are needed, and what needs less.
    """
    free = free_bytes(device)
    if free is not None and needed > free:
        raise ValueError(
            f"second_order of {space.n:,} weights needs {needed:,} bytes of memory beside the model, and {device} has "
            f"{free:,} free: score fewer modules (target_modules), lower share or directions, or use "
            "method='ablated_gradient', which predicts nearly as well and needs 8 bytes a weight"
        )


def free_bytes(device: torch.device) -> int | None:
    """Return the free memory of a device; None where it cannot be told."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError, IndexError):
        return None


class _Kept(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes of what autograd keeps for the backward pass, other than parameters; each storage once."""

    def __init__(self, denoiser: nn.Module) -> None:
        self.bytes = 0
        self._seen = {parameter.untyped_storage().data_ptr() for parameter in denoiser.parameters()}
        self._alive: list[Tensor] = []  # so that no address is used twice
        super().__init__(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self._alive.append(tensor)
            self.bytes += storage.nbytes()
        return tensor

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._alive.clear()
