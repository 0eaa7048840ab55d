"""A soft prompt: the text embedding under which a denoiser draws given pictures best, found by gradient."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from ..diffusion.context import only_gradients_of
from ..diffusion.denoisers import denoiser_of
from ..objectives import DenoisingLoss
from ..recording.data import Recording

TEXT = "encoder_hidden_states"
ROWS = 8
# Of the embedding's root mean square per step of Adam.
STEP = 0.05


def refusal(pipeline: Any, recording: Recording) -> str | None:
    """Why no soft prompt can be found for this pipeline; None where one can."""
    call = recording.calls[0]
    texts = [name for name in call.row_paths or () if name not in (call.sample_key, call.timestep_key)]
    if texts != [TEXT]:
        named = ", ".join(sorted(texts)) or "none"
        return f"the denoiser takes its text as {named}, expected {TEXT} alone"
    if "prompt_embeds" not in inspect.signature(type(pipeline).__call__).parameters:
        return f"a {type(pipeline).__name__} takes no prompt_embeds"
    return None


def soft_prompt(pipeline: Any, recording: Recording, *, steps: int, seed: int) -> Tensor:
    """The embedding that lowers the denoising loss, from that of the first row's prompt on.

    As textual inversion (arXiv 2208.01618), but over all tokens, not one.

    Args:
        pipeline: whose denoiser draws.
        recording: pictures with targets, as ``record_images`` makes them.
        steps: of Adam, each on up to 8 rows at one timestep.
        seed: of what is drawn from the recording.

    Returns:
        float32 [1, tokens, width].

    Raises:
        ValueError: ``refusal`` says why.
    """
    reason = refusal(pipeline, recording)
    if reason is not None:
        raise ValueError(reason)
    denoiser, loss = denoiser_of(pipeline), DenoisingLoss()
    start = recording.calls[0].inputs[TEXT][:1].detach().float()
    embedding = start.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([embedding], lr=STEP * float(start.square().mean().sqrt()))
    generator = torch.Generator().manual_seed(seed)
    with only_gradients_of(denoiser, []), torch.enable_grad():
        for _ in range(steps):
            step = int(torch.randint(recording.n_steps, (), generator=generator))
            rows = torch.randperm(recording.n_rows, generator=generator)[:ROWS]
            call = recording.calls[step].select_rows(rows)
            text = embedding.to(call.inputs[TEXT].dtype).expand(call.rows, -1, -1)
            optimizer.zero_grad()
            (-loss(call.run(denoiser, **{TEXT: text}), call).mean()).backward()
            optimizer.step()
    return embedding.detach()
