"""What the manager says is what acts: switching inside contexts, replaced denoisers, several threads."""

import copy
import pickle
import threading

import pytest
import torch

from cad_fast.edits import EditManager, RowEdits
from tests.edits.rows.test_row_edits import random_edit
from tests.edits.test_manager import draw, managed, own
from tests.row_truth import copy_of, distance, some_call

ONE = ["a cat"]


def in_thread(function):
    """What ``function`` returned or raised in a thread of its own."""
    results = []

    def run():
        try:
            results.append(function())
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    return results[0]


def test_no_switching_inside_per_prompt() -> None:
    manager, pipeline, _, _ = managed()
    manager.set_edits("b")
    after = draw(pipeline, ONE)
    with manager.per_prompt([["a"]]):
        inside = draw(pipeline, ONE)
        for method in (
            lambda: manager.set_edits("b"),
            manager.disable_edits,
            manager.enable_edits,
            lambda: manager.fuse_edits("b"),
            manager.close,
        ):
            with pytest.raises(ValueError, match="is not possible inside per_prompt: leave its context first"):
                method()
        assert manager.get_active_edits() == ["a"]
        assert torch.equal(draw(pipeline, ONE), inside)
        with manager.per_prompt([None]):
            assert manager.get_active_edits() == []
        assert torch.equal(draw(pipeline, ONE), inside)
        with pytest.raises(RuntimeError, match="cannot be set while a context of rows is open"):
            manager.row_edits.set_rows(None)
    assert manager.get_active_edits() == ["b"] and torch.equal(draw(pipeline, ONE), after)
    assert distance(inside, after) > 5e-3


def test_the_denoiser_is_not_replaced_under_edits() -> None:
    manager, pipeline, _, _ = managed()
    kind, other = type(pipeline), copy_of("sd")
    manager.set_edits("a")
    edited = draw(pipeline, ONE)
    with pytest.raises(RuntimeError, match=r"pipeline\.unet cannot be replaced while an EditManager has edits active"):
        pipeline.unet = other
    assert torch.equal(draw(pipeline, ONE), edited)
    pipeline.unet = pipeline.unet  # the same one
    pipeline.vae = pipeline.vae
    assert isinstance(pipeline, kind) and type(copy.copy(pipeline)) is kind
    reduced = pipeline.__reduce_ex__(4)
    assert type(pickle.loads(pickle.dumps(_Reduced((reduced[0], reduced[1]))))) is kind
    copied = copy.copy(pipeline)
    copied.unet = other  # a copy is another pipeline
    manager.disable_edits()
    assert type(pipeline) is kind
    pipeline.unet = other
    for method in (manager.enable_edits, lambda: manager.set_edits("a"), manager.get_active_edits):
        with pytest.raises(RuntimeError, match=r"denoiser \(UNet2DConditionModel\) was replaced after"):
            method()
    with pytest.raises(RuntimeError, match="make a new manager"):
        manager(ONE, edit_names=["a"])
    manager.close()


def test_two_guards_end_in_any_order() -> None:
    manager, pipeline, edits, _ = managed()
    kind, second = type(pipeline), EditManager(pipeline)
    second.load_edit(edits["b"], "b")
    manager.set_edits("a")
    second.fuse_edits("b")
    manager.set_edits([])
    with pytest.raises(RuntimeError, match="cannot be replaced"):
        pipeline.unet = copy_of("sd")
    second.unfuse_edits()
    assert type(pipeline) is kind
    pipeline.unet = copy_of("sd")


def test_one_thread_at_a_time_has_rows() -> None:
    manager, pipeline, edits, _ = managed()
    second = EditManager(pipeline)
    second.load_edit(edits["b"], "b")
    alone = draw(manager, ONE, edit_names=["a"])
    with manager.per_prompt(["a"]):
        for intruder in (manager, second):
            error = in_thread(lambda who=intruder: draw(who, ONE, edit_names=["b"]))
            assert isinstance(error, RuntimeError) and "another thread has rows under edits" in str(error)
        error = in_thread(lambda: draw(pipeline, ONE))
        assert isinstance(error, RuntimeError) and "a call of this denoiser cannot be run" in str(error)
        assert torch.equal(draw(pipeline, ONE), alone)
    assert torch.equal(in_thread(lambda: draw(manager, ONE, edit_names=["a"])), alone)
    manager.set_edits("a")  # holds for all threads
    assert torch.equal(in_thread(lambda: draw(pipeline, ONE)), alone)


def test_calls_that_overlap_do_not_take_each_other_s_edits() -> None:
    """The second thread's call begins while the first is halfway through the denoiser."""
    unet = copy_of("sd")
    runner = RowEdits(unet)
    runner.add(random_edit(unet, "a", 1))
    runner.set_rows([(("a",),)] * 2)
    call, inputs = some_call("sd", 2)
    errors = []
    with torch.no_grad():
        expected = call.run(unet, **inputs)

        def halfway(*_):
            handle.remove()
            errors.append(in_thread(lambda: call.run(unet, **inputs)))

        handle = unet.mid_block.register_forward_pre_hook(halfway)
        assert torch.equal(call.run(unet, **inputs), expected)
    assert isinstance(errors[0], RuntimeError) and "one call of the denoiser at a time" in str(errors[0])

    # A plain call in another thread that meets a module under edits.
    hidden = torch.randn(1, 4, 8, 8)

    def plain(*_):
        handle.remove()
        errors.append(in_thread(lambda: unet.conv_in(hidden)))

    handle = unet.mid_block.register_forward_pre_hook(plain)
    with torch.no_grad():
        assert torch.equal(call.run(unet, **inputs), expected)
    assert isinstance(errors[1], RuntimeError) and "a call in another thread" in str(errors[1])


def test_own_pipeline_is_as_it_was() -> None:
    pipeline, _ = own("sd")
    kind = type(pipeline)
    manager = EditManager(pipeline)
    manager.load_edit(random_edit(pipeline.unet, "a", 1), "a")
    with manager.per_prompt(["a"]):
        assert type(pipeline).__name__ == kind.__name__ and type(pipeline) is not kind
    assert type(pipeline) is kind


class _Reduced:
    """Pickled as what it is given."""

    def __init__(self, reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced
