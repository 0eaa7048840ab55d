"""bfloat16 throughout, on both embedded models: load, record, attribute, edit and serve, against float32."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import cad_fast
from cad_fast import ConceptErasure, Edit, EditManager, Selection, zoo
from cad_fast.attribution import Attributor
from cad_fast.diffusion.denoisers import denoiser_of
from cad_fast.recording.data import Recording
from cad_fast.serving.engine.batcher import Batcher
from cad_fast.serving.engine.edited_passes import RowWise
from cad_fast.serving.engine.jobs import PictureJob, RequestedEdit

FULL, HALF = torch.float32, torch.bfloat16
KV = "cross-attention-kv"
COSINE = 0.99
# Root mean square over a picture, of 255: the mean under the same edit, and under edits made in either dtype, whose
# weights differ; and the largest of any picture.
MEAN, LARGEST = {FULL: 4.0, HALF: 8.0}, 12.0
PROMPTS, SEEDS = ["a car in noto style", "a cat in fluent style"] * 2, [3, 4, 3, 4]
# (method, kind, modules, options)
METHODS = (
    ("gradient", "weight", KV, {}),
    ("gradient", "weight", "feed-forward", {}),
    ("ablated_gradient", "neuron", None, {"fraction": 0.2}),
    ("ablated_gradient", "head", None, {"fraction": 0.2}),
    ("second_order", "weight", KV, {"networks": 3, "directions": 8}),
    ("sensitivity", "weight", KV, {}),
    ("regression", "head", None, {"ablations": 60}),
)


@pytest.fixture(scope="module", params=zoo.MODELS)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def generation(name) -> cad_fast.Generation:
    return cad_fast.Generation.of(zoo.generation(name), num_inference_steps=4)


@pytest.fixture(scope="module")
def pipelines(name):
    return {dtype: zoo.load(name, dtype=dtype) for dtype in (FULL, HALF)}


@pytest.fixture(scope="module")
def recordings(pipelines, generation) -> dict[torch.dtype, Recording]:
    return {
        dtype: cad_fast.record(pipeline, zoo.prompts("car")[:2], seeds=0, progress=False, **generation.to_kwargs())
        for dtype, pipeline in pipelines.items()
    }


@pytest.fixture(scope="module")
def edits(pipelines, recordings) -> dict[torch.dtype, Edit]:
    made = {}
    for dtype, pipeline in pipelines.items():
        scores = Attributor(pipeline, target_modules=KV).run(recordings[dtype], progress=False)
        selection = Selection(0.06)
        refined = cad_fast.refine(pipeline, recordings[dtype], scores, selection, rounds=2, progress=False)
        made[dtype] = Edit.from_scores(refined, selection, name="edit")
    return made


def apart(first, second) -> list[float]:
    """Root mean square over each picture, of 255."""
    pairs = zip(first, second, strict=True)
    return [float(np.sqrt(np.square(np.asarray(a, dtype=float) - np.asarray(b, dtype=float)).mean())) for a, b in pairs]


def drawn(pipeline, generation, rows: slice = slice(None), manager: EditManager | None = None, names=None):
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS[rows]]
    if manager is not None:
        return manager(PROMPTS[rows], edit_names=names, generator=generators, **generation.to_kwargs())[0]
    return pipeline(PROMPTS[rows], generator=generators, **generation.to_kwargs())[0]


def test_everything_is_loaded_and_recorded_in_bfloat16(pipelines, recordings) -> None:
    modules = [part for part in pipelines[HALF].components.values() if isinstance(part, torch.nn.Module)]
    assert {parameter.dtype for part in modules for parameter in part.parameters()} == {HALF}
    call = recordings[HALF].calls[0]
    assert {call.sample.dtype, call.output.dtype, call.unconditional_output.dtype} == {HALF}
    recordings[HALF].check(denoiser_of(pipelines[HALF]))
    full, half = recordings[FULL].latents, recordings[HALF].latents.float()
    assert float((full - half).norm() / full.norm()) < 0.05


@pytest.mark.parametrize(("method", "kind", "modules", "options"), METHODS)
def test_scores_are_summed_in_float32_and_agree(pipelines, recordings, method, kind, modules, options) -> None:
    full, half = (
        Attributor(pipeline, kind=kind, target_modules=modules, method=method, **options)
        .run(recordings[dtype], progress=False)
        .values
        for dtype, pipeline in pipelines.items()
    )
    assert half.dtype == FULL and float(full.norm()) > 0
    assert float(torch.nn.functional.cosine_similarity(full.double(), half.double(), dim=0)) >= COSINE
    assert len(half.unique()) > 0.9 * len(half.bfloat16().float().unique())  # not rounded to 8 bits on the way
    assert not torch.equal(half, half.bfloat16().float())


def test_early_scores_agree_too(pipelines, recordings) -> None:
    """In the first steps the outputs with and without the prompt are nearly the same, so that rounding weighs most."""
    objective = ConceptErasure(timesteps=(max(recordings[FULL].timesteps),) * 2)
    full, half = (
        Attributor(pipeline, objective, target_modules=KV).run(recordings[dtype], progress=False).values.double()
        for dtype, pipeline in pipelines.items()
    )
    assert float(torch.nn.functional.cosine_similarity(full, half, dim=0)) >= COSINE


def test_edits_take_the_same_weights_and_are_undone_to_the_bit(pipelines, edits) -> None:
    full, half = edits[FULL].components, edits[HALF].components
    both = sum(len(np.intersect1d(full[name].numpy(), half[name].numpy())) for name in full.keys() & half.keys())
    assert both > 0.95 * edits[FULL].n_weights
    denoiser = denoiser_of(pipelines[HALF])
    before = {key: value.clone() for key, value in denoiser.state_dict().items()}
    with edits[FULL].applied(pipelines[HALF]):  # made in one dtype, it fits the other
        changed = [key for key, value in denoiser.state_dict().items() if not torch.equal(value, before[key])]
        assert changed
    assert all(torch.equal(value, before[key]) for key, value in denoiser.state_dict().items())


@pytest.mark.parametrize("made_in", [FULL, HALF], ids=["made in float32", "made in bfloat16"])
def test_pictures_of_edits_are_near_those_of_float32(pipelines, edits, generation, made_in) -> None:
    with edits[FULL].applied(pipelines[FULL]):
        expected = drawn(pipelines[FULL], generation)
    with edits[made_in].applied(pipelines[HALF]):
        found = drawn(pipelines[HALF], generation)
    distances = apart(expected, found)
    assert np.mean(distances) < MEAN[made_in] and max(distances) < LARGEST
    edited = apart(expected, drawn(pipelines[FULL], generation))
    assert max(edited) > 2 * max(distances)  # the edit itself does far more


def test_served_in_bfloat16(pipelines, edits, generation) -> None:
    """Mixed rows of the manager and of the server's engine are those of the edit in the weights."""
    pipeline, edit = pipelines[HALF], edits[HALF]
    with edit.applied(pipeline):
        expected = drawn(pipeline, generation, slice(0, 2))
    expected += drawn(pipeline, generation, slice(2, None))
    assert min(apart(expected[:2], expected[2:])) > 1  # each is of the same seed, with the edit and without
    manager = EditManager(pipeline)
    manager.load_edit(edit)
    mixed = drawn(pipeline, generation, manager=manager, names=["edit", "edit", "__base__", "__base__"])
    use = RequestedEdit(edit)
    batcher = Batcher(pipeline, RowWise(pipeline), batch_timeout=0.5).start()
    try:
        jobs = [
            PictureJob(str(number), text, SEEDS[number], 1, generation.to_kwargs(), (use,) if number < 2 else ())
            for number, text in enumerate(PROMPTS)
        ]
        served = [ticket.future.result(60)[0] for ticket in [batcher.submit(job) for job in jobs]]
    finally:
        batcher.close()
    for found in (mixed, served):
        assert max(apart(expected, found)) < 2  # a batch of another size rounds otherwise
