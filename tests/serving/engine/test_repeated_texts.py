"""Texts of requests are read by edited layers once, not in every step."""

import copy

from cad_fast.row_engine import slots
from cad_fast.serving.engine.jobs import RequestedEdit
from tests.edits.rows.test_row_edits import random_edit
from tests.pipelines import stable_diffusion
from tests.serving.common import ROUNDING, Alone, distance
from tests.serving.engine.test_batcher import WAIT, Seen, batcher_of, job

__all__ = ["batcher_of"]

STEPS = 12


def test_requests_that_are_drawn_together_read_their_texts_once(batcher_of, monkeypatch) -> None:
    computed = []

    def counting(x, *args, **kwargs):
        computed.append(len(x))
        return edited_linear(x, *args, **kwargs)

    edited_linear = slots.edited_linear
    monkeypatch.setattr(slots, "edited_linear", counting)
    pipeline = copy.deepcopy(stable_diffusion())
    edits = [random_edit(pipeline.unet, f"edit{i}", i, target="cross-attention-kv") for i in range(2)]
    seen = Seen()
    batcher = batcher_of(pipeline, max_batch_size=2, observer=seen, batch_timeout=1.0)
    arguments = {"guidance_scale": 5.0, "height": 16, "width": 16, "num_inference_steps": STEPS}
    jobs = [job(f"job{i}", seed=i, arguments=arguments, edits=(RequestedEdit(edits[i]),)) for i in range(2)]
    drawn = [ticket.future.result(WAIT)[0] for ticket in [batcher.submit(each) for each in jobs]]
    layers = len({name for edit in edits for name in edit.components})
    passes = sum(1 for pictures, _, _ in seen.passes if pictures)
    assert passes >= STEPS
    # Requests may begin or end a step apart: what shares a pass is then another text three times at most.
    assert len(computed) <= 3 * 2 * layers < passes * layers
    alone = Alone(pipeline)
    for each, picture in zip(jobs, drawn, strict=True):
        assert distance(picture, alone.draw(each)) <= ROUNDING
