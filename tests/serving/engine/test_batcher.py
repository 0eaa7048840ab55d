"""The batcher: pictures as if drawn alone, whatever shares their batch, and every way for a job to end."""

import copy
import threading
import time

import pytest
import torch
from diffusers import StableDiffusionPipeline

from cad_fast.diffusion.denoisers import denoiser_of
from cad_fast.serving.engine.batcher import Batcher, Silent
from cad_fast.serving.engine.edited_passes import RowWise, SwappedWeights
from cad_fast.serving.engine.jobs import (
    Cancelled,
    Closed,
    DeadlineExceeded,
    NotFinite,
    PictureJob,
    QueueFull,
    RequestedEdit,
)
from tests.pipelines import PIPELINES, UNGUIDED, stable_diffusion
from tests.serving.common import ROUNDING, Alone, distance, random_edit

WAIT = 60


class Seen(Silent):
    """Keeps the denoiser's passes as (pictures, rows, edits)."""

    def __init__(self) -> None:
        self.passes, self.parts = [], []

    def on_pass(self, part, pictures, rows, edits, seconds) -> None:
        self.parts.append((part, pictures))
        if part == "denoiser":
            self.passes.append((pictures, rows, edits))


class Gate(RowWise):
    """Passes that wait for the test to let them through."""

    def __init__(self, pipeline) -> None:
        super().__init__(pipeline)
        self.entered, self.open = threading.Semaphore(0), threading.Event()

    def run(self, inputs, per_row):
        self.entered.release()
        assert self.open.wait(WAIT)
        return super().run(inputs, per_row)


@pytest.fixture
def batcher_of():
    """Makes batchers that are closed after the test."""
    made = []

    def make(pipeline, passes=None, **settings):
        made.append(Batcher(pipeline, passes or RowWise(pipeline), **{"batch_timeout": 0.2, **settings}).start())
        return made[-1]

    yield make
    for batcher in made:
        batcher.close(timeout=WAIT)


def job(name="job", steps=3, edits=(), **more) -> PictureJob:
    arguments = {"num_inference_steps": steps, **more.pop("arguments", {})}
    return PictureJob(name, more.pop("prompt", "a cat"), arguments=arguments, edits=edits, **more)


def mixed_jobs(pipeline, arguments, guided) -> list[PictureJob]:
    """Prompts, seeds, steps, guidance and edits all differ; some have none, two share one."""
    first, second = random_edit(pipeline, "first", 1), random_edit(pipeline, "second", 2, factor=0.5)
    edits = [
        (),
        (RequestedEdit(first),),
        (RequestedEdit(second, -1.5),),
        (RequestedEdit(first, 0.7), RequestedEdit(second, 2.0)),
        (RequestedEdit(first, 1.0, (500, 1000)),),
        (RequestedEdit(first),),
    ]
    prompts = ["a cat", "a dog in noto style", "clock", "a red car", "two cats", "a cat"]
    scales = [3.0, 5.0, 0.0, 2.0, 7.5, 1.0] if guided else [3.5] * 6
    return [
        PictureJob(
            f"job{i}",
            prompts[i],
            seed=10 * i,
            n=1 + i % 2,
            arguments={"num_inference_steps": 2 + i % 3, "guidance_scale": scales[i], **arguments},
            edits=edits[i],
        )
        for i in range(6)
    ]


CASES = [(name, RowWise) for name in PIPELINES] + [(name, SwappedWeights) for name in ("sd", "flux")]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_pictures_are_as_if_drawn_alone(name, kind, batcher_of) -> None:
    factory, arguments = PIPELINES[name]
    pipeline = factory()
    seen = Seen()
    batcher = batcher_of(pipeline, kind(pipeline), max_batch_size=16, observer=seen)
    jobs = mixed_jobs(pipeline, arguments, guided=name not in UNGUIDED and "true_cfg_scale" not in arguments)
    alone = Alone(pipeline)
    drawn = [ticket.future.result(WAIT) for ticket in [batcher.submit(each) for each in jobs]]
    assert max(pictures for pictures, _, _ in seen.passes) >= 6, "they did not share their passes"
    for each, images in zip(jobs, drawn, strict=True):
        assert len(images) == each.n
        for number, image in enumerate(images):
            assert distance(image, alone.draw(each, number)) <= ROUNDING, each
    with_edit, without = jobs[1], job(prompt=jobs[1].prompt, seed=10, arguments=jobs[1].arguments)
    assert distance(alone.draw(with_edit), alone.draw(without)) > 5 * ROUNDING, "the edit does not show at all"


def test_the_pipeline_is_left_as_it_is(batcher_of) -> None:
    pipeline = copy.deepcopy(stable_diffusion())
    weights = {name: value.clone() for name, value in pipeline.unet.state_dict().items()}
    before = {id(part): dict(part.__dict__) for part in pipeline.components.values() if hasattr(part, "__dict__")}
    pipeline.scheduler.set_timesteps(7)
    scheduler, steps = pipeline.scheduler, pipeline.scheduler.num_inference_steps
    batcher = batcher_of(pipeline)
    edit = random_edit(pipeline, "edit", 1)
    batcher.submit(job(edits=(RequestedEdit(edit),))).future.result(WAIT)
    batcher.close()
    assert pipeline.scheduler is scheduler and scheduler.num_inference_steps == steps == 7
    assert all(torch.equal(value, weights[name]) for name, value in pipeline.unet.state_dict().items())
    for part in pipeline.components.values():
        if id(part) in before:
            assert part.__dict__.keys() == before[id(part)].keys(), type(part)
    assert torch.is_grad_enabled()
    assert pipeline("a cat", num_inference_steps=1).images


def test_pictures_join_at_the_next_step(batcher_of) -> None:
    pipeline, seen = stable_diffusion(), Seen()
    gate = Gate(pipeline)
    batcher = batcher_of(pipeline, gate, observer=seen, batch_timeout=0.0)
    first = batcher.submit(job("first", steps=4))
    assert gate.entered.acquire(timeout=WAIT)  # its first step is being made
    second = batcher.submit(job("second", steps=2, seed=5))
    gate.open.set()
    first.future.result(WAIT), second.future.result(WAIT)
    assert [pictures for pictures, _, _ in seen.passes] == [1, 2, 2, 1]


def test_encoders_and_decoders_are_batched_too(batcher_of) -> None:
    pipeline, seen = stable_diffusion(), Seen()
    batcher = batcher_of(pipeline, observer=seen, max_batch_size=4)
    for ticket in [batcher.submit(job(seed=i)) for i in range(4)]:
        ticket.future.result(WAIT)
    assert seen.parts == [("text_encoder", 4)] * 2 + [("denoiser", 4)] * 3 + [("vae", 4)]


def test_batches_are_bounded_and_guided_pictures_count_once(batcher_of) -> None:
    pipeline, seen = stable_diffusion(), Seen()
    batcher = batcher_of(pipeline, observer=seen, max_batch_size=2)
    for ticket in [batcher.submit(job(seed=i, steps=1)) for i in range(5)]:
        ticket.future.result(WAIT)
    assert [entry[:2] for entry in seen.passes] == [(2, 4), (2, 4), (1, 2)]


def test_a_pass_that_fails_fails_the_one_at_fault(batcher_of, caplog) -> None:
    pipeline = stable_diffusion()
    bad = random_edit(pipeline, "bad", 1)

    class Failing(RowWise):
        def run(self, inputs, per_row):
            if any(use.edit.name == "bad" for uses in per_row for use in uses):
                raise RuntimeError("a kernel failed")
            return super().run(inputs, per_row)

    alone = Alone(pipeline)
    batcher = batcher_of(pipeline, Failing(pipeline))
    tickets = [batcher.submit(job(f"job{i}", seed=i, edits=(RequestedEdit(bad),) * (i == 1))) for i in range(3)]
    with pytest.raises(RuntimeError, match="a kernel failed"):
        tickets[1].future.result(WAIT)
    for i in (0, 2):
        assert distance(tickets[i].future.result(WAIT)[0], alone.draw(tickets[i].job)) <= ROUNDING
    assert "job0, job2, job1" in caplog.text  # equal edits stand side by side, those without first
    assert "request job1 failed" in caplog.text
    batcher.submit(job()).future.result(WAIT)


def test_numbers_that_overflow_fail_their_request_alone(batcher_of) -> None:
    pipeline = stable_diffusion()
    edit, alone = random_edit(pipeline, "edit", 1), Alone(pipeline)
    batcher = batcher_of(pipeline)
    tickets = [
        batcher.submit(job(f"job{i}", seed=i, edits=(RequestedEdit(edit, (1.0, -1e38)[i % 2]),))) for i in range(4)
    ]
    for i, ticket in enumerate(tickets):
        if i % 2:
            with pytest.raises(NotFinite, match="the denoiser gave NaN or infinite numbers"):
                ticket.future.result(WAIT)
        else:
            assert distance(ticket.future.result(WAIT)[0], alone.draw(ticket.job)) <= ROUNDING


def test_an_error_of_a_run_is_its_own(batcher_of) -> None:
    batcher = batcher_of(stable_diffusion())
    good, bad = batcher.submit(job("good")), batcher.submit(job("bad", arguments={"height": 7, "width": 7}))
    with pytest.raises(ValueError, match="divisible by 8"):
        bad.future.result(WAIT)
    assert len(good.future.result(WAIT)) == 1


def test_full_queue_and_turns(batcher_of) -> None:
    pipeline = stable_diffusion()
    gate = Gate(pipeline)
    batcher = batcher_of(pipeline, gate, max_batch_size=1, max_queue=3, batch_timeout=0.0)
    ends = []

    def submit(name, **more):
        ticket = batcher.submit(job(name, steps=1, client=name[0], **more))
        ticket.future.add_done_callback(lambda _: ends.append(name))
        return ticket

    running = submit("a0")
    assert gate.entered.acquire(timeout=WAIT)
    tickets = [submit("a1"), submit("a2"), submit("b1")]
    with pytest.raises(QueueFull, match="3 pictures wait already") as error:
        submit("c1")
    assert error.value.retry_after >= 1
    tickets[0].cancel()
    with pytest.raises(QueueFull):
        submit("c2", n=2)
    tickets.append(submit("c3"))
    gate.open.set()
    for ticket in [running, *tickets[1:]]:
        ticket.future.result(WAIT)
    assert ends == ["a1", "a0", "a2", "b1", "c3"]
    assert isinstance(tickets[0].future.exception(), Cancelled)


def test_an_idle_hour_makes_nobody_wait_longer(batcher_of, monkeypatch) -> None:
    """The pace is of work, on a clock that jumps while nothing is to be done, and while a pass is made."""
    pipeline, idle = stable_diffusion(), [0.0]
    clock = time.monotonic
    monkeypatch.setattr("cad_fast.serving.engine.batcher.time.monotonic", lambda: clock() + idle[0])

    class Paced(Gate):
        def run(self, inputs, per_row):
            idle[0] += 10
            return super().run(inputs, per_row)

    class Idle(Silent):
        def on_start(self, waited) -> None:
            idle[0] += 3600

    passes = Paced(pipeline)
    settings = {"max_batch_size": 1, "max_queue": 1, "batch_timeout": 0.0, "observer": Idle()}
    batcher = batcher_of(pipeline, passes=passes, **settings)
    passes.open.set()
    for _ in range(3):
        batcher.submit(job(steps=2)).future.result(60)
    passes.open.clear()
    assert all(passes.entered.acquire(timeout=WAIT) for _ in range(6))
    running = batcher.submit(job())
    assert passes.entered.acquire(timeout=WAIT)
    waiting = batcher.submit(job())
    with pytest.raises(QueueFull) as error:
        batcher.submit(job())
    passes.open.set()
    # Each picture took two passes of 10 s, and two are accepted. (Steps of other parts take no jump.)
    assert 40 <= error.value.retry_after <= 60
    for ticket in (running, waiting):
        ticket.future.result(60)


def test_cancelling_what_runs(batcher_of) -> None:
    pipeline, seen = stable_diffusion(), Seen()
    gate = Gate(pipeline)
    batcher = batcher_of(pipeline, gate, observer=seen, max_batch_size=1, batch_timeout=0.0)
    ticket, other = batcher.submit(job("long", steps=50)), batcher.submit(job("short", steps=2))
    assert gate.entered.acquire(timeout=WAIT)
    ticket.cancel()
    gate.open.set()
    assert len(other.future.result(WAIT)) == 1
    assert len(seen.passes) == 3  # one of the long one, two of the short one
    assert isinstance(ticket.future.exception(), Cancelled)


@pytest.mark.parametrize("where", ["queue", "batch"])
def test_deadlines(where, batcher_of) -> None:
    pipeline = stable_diffusion()
    gate = Gate(pipeline)
    batcher = batcher_of(pipeline, gate, max_batch_size=1, batch_timeout=0.0)
    first = batcher.submit(job("first", steps=2, deadline=time.monotonic() + 1.0 if where == "batch" else None))
    assert gate.entered.acquire(timeout=WAIT)
    late = first if where == "batch" else batcher.submit(job("late", deadline=time.monotonic() + 1.0))
    time.sleep(1.05)
    gate.open.set()
    with pytest.raises(DeadlineExceeded, match=f"in the {where}"):
        late.future.result(WAIT)
    assert batcher.submit(job()).future.result(WAIT)
    assert batcher.load == (0, 0)


def test_closing_finishes_what_was_accepted(batcher_of) -> None:
    pipeline = stable_diffusion()
    gate = Gate(pipeline)
    batcher = batcher_of(pipeline, gate, max_batch_size=1, batch_timeout=0.0)
    tickets = [batcher.submit(job(seed=i)) for i in range(3)]
    assert gate.entered.acquire(timeout=WAIT)
    closing = threading.Thread(target=batcher.close, args=(WAIT,))
    closing.start()
    while batcher.accepting:
        time.sleep(0.01)
    with pytest.raises(Closed, match="shutting down"):
        batcher.submit(job())
    gate.open.set()
    closing.join(WAIT)
    assert all(len(ticket.future.result(0)) == 1 for ticket in tickets)
    assert not batcher.alive


def test_closing_gives_up_in_the_end(batcher_of) -> None:
    pipeline = stable_diffusion()
    gate = Gate(pipeline)
    batcher = batcher_of(pipeline, gate, max_batch_size=1, batch_timeout=0.0)
    tickets = [batcher.submit(job(steps=50)) for _ in range(2)]
    assert gate.entered.acquire(timeout=WAIT)
    threading.Timer(0.5, gate.open.set).start()
    batcher.close(timeout=0.1)
    for ticket in tickets:
        with pytest.raises(Closed, match="before the request was done"):
            ticket.future.result(0)


def test_edits_are_forgotten_when_nobody_needs_them(batcher_of) -> None:
    pipeline = copy.deepcopy(stable_diffusion())
    gate = Gate(pipeline)
    batcher = batcher_of(pipeline, gate, batch_timeout=0.0)
    edit, alone = random_edit(pipeline, "edit", 1), Alone(pipeline)
    ticket = batcher.submit(job(steps=3, edits=(RequestedEdit(edit),)))
    assert gate.entered.acquire(timeout=WAIT)
    batcher.forget(edit)  # while it is in use
    gate.open.set()
    assert distance(ticket.future.result(WAIT)[0], alone.draw(ticket.job)) <= ROUNDING
    for _ in range(100):
        if not gate.known:
            break
        time.sleep(0.02)
    assert gate.known == []
    assert all("forward" not in module.__dict__ for module in denoiser_of(pipeline).modules())


@pytest.mark.parametrize(
    ("settings", "message"), [({"max_batch_size": 0}, "max_batch_size is 0"), ({"batch_timeout": -1}, "batch_timeout")]
)
def test_settings(settings, message) -> None:
    pipeline = stable_diffusion()
    with pytest.raises(ValueError, match=message):
        Batcher(pipeline, RowWise(pipeline), **settings)


def test_other_sizes_get_passes_of_their_own(batcher_of) -> None:
    pipeline, seen = stable_diffusion(), Seen()
    alone, batcher = Alone(pipeline), batcher_of(pipeline, observer=seen, max_batch_size=4)
    sizes = [{"height": height, "width": 16} for height in (16, 32, 16, 32)]
    tickets = [batcher.submit(job(seed=i, arguments=size)) for i, size in enumerate(sizes)]
    for ticket in tickets:
        assert distance(ticket.future.result(WAIT)[0], alone.draw(ticket.job)) <= ROUNDING
    assert [pictures for pictures, _, _ in seen.passes] == [2] * 6


def test_when_the_thread_ends_nobody_waits_for_ever(batcher_of) -> None:
    class Ending(RowWise):
        def run(self, inputs, per_row):
            raise SystemExit("out of the loop")

    pipeline = stable_diffusion()
    batcher = batcher_of(pipeline, Ending(pipeline), max_batch_size=1)
    for ticket in [batcher.submit(job(seed=i)) for i in range(2)]:
        with pytest.raises(RuntimeError, match="thread ended: out of the loop"):
            ticket.future.result(WAIT)
    batcher._thread.join(WAIT)
    with pytest.raises(Closed):
        batcher.submit(job())
    assert not batcher.alive


def test_what_cannot_be_served() -> None:
    pipeline = copy.deepcopy(stable_diffusion())
    pipeline._all_hooks = [object()]
    with pytest.raises(ValueError, match="offloads its parts"):
        Batcher(pipeline, RowWise(pipeline))


def test_autocast_inside_a_pipeline_fails_the_request(batcher_of) -> None:
    class Cast(StableDiffusionPipeline):
        def __call__(self, *args, **kwargs):
            with torch.autocast("cpu", torch.bfloat16):
                return super().__call__(*args, **kwargs)

    pipeline = copy.deepcopy(stable_diffusion())
    pipeline.__class__ = Cast
    batcher = batcher_of(pipeline)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="under autocast"):
            batcher.submit(job()).future.result(WAIT)


def test_what_ends_the_thread_ends_all_that_was_to_begin_with_it(batcher_of) -> None:
    class Leaving(StableDiffusionPipeline):
        def check_inputs(self, prompt, *arguments, **more):
            if prompt == "leave":
                raise SystemExit
            super().check_inputs(prompt, *arguments, **more)

    pipeline = copy.copy(stable_diffusion())
    pipeline.__class__ = Leaving
    batcher = batcher_of(pipeline)
    first, second = batcher.submit(job("first", prompt="leave")), batcher.submit(job("second"))
    with pytest.raises(SystemExit):
        first.future.result(WAIT)
    with pytest.raises(RuntimeError, match="the batcher's thread ended"):
        second.future.result(5)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_an_edit_and_the_one_of_its_name_before_it_share_no_swap(memory_format: torch.memory_format) -> None:
    pipeline = copy.copy(stable_diffusion())
    pipeline.unet = copy.deepcopy(pipeline.unet).to(memory_format=memory_format)
    old, new = random_edit(pipeline, "same", 1), random_edit(pipeline, "same", 2)
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "sample": torch.randn(1, 4, 8, 8, generator=generator).expand(2, -1, -1, -1),
        "timestep": 10,
        "encoder_hidden_states": torch.randn(1, 5, 16, generator=generator).expand(2, -1, -1),
    }
    with torch.no_grad():
        (swapped,) = SwappedWeights(pipeline).run(inputs, [(RequestedEdit(old),), (RequestedEdit(new),)])
        for row, edit in enumerate((old, new)):
            with edit.applied(pipeline):
                expected = pipeline.unet(**inputs).sample[row]
            torch.testing.assert_close(swapped[row], expected, rtol=1e-4, atol=1e-5)
