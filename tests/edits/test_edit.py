"""Edits in a real pipeline: what they change, that undo is exact, and that files survive nothing but a round trip."""

import copy
import json
import threading

import pytest
import torch

import cad_fast
from cad_fast.attribution import Scores
from cad_fast.components.space import KINDS, ComponentSpace
from cad_fast.diffusion.denoisers import denoiser_of
from cad_fast.edits import Edit, Selection, active_edits, compose
from tests.pipelines import PIPELINES, stable_diffusion, stable_diffusion_xl


@pytest.fixture(scope="module")
def pipeline():
    return stable_diffusion()


def random_scores(pipeline, kind="weight", target=None, seed=0, concept="a cat"):
    space = ComponentSpace.of(pipeline, kind, target)
    values = torch.randn(space.n, generator=torch.Generator().manual_seed(seed))
    return Scores(values, space, {"concept": concept, "method": "random"})


def snapshot(pipeline):
    return {name: value.clone() for name, value in denoiser_of(pipeline).state_dict().items()}


def assert_same(pipeline, state):
    now = denoiser_of(pipeline).state_dict()
    for name, value in state.items():
        # As bytes, so that -0.0 is not 0.0 and NaN is itself.
        mine, theirs = (t.contiguous().flatten().view(torch.uint8) for t in (now[name], value))
        assert torch.equal(mine, theirs), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, 1.5, -0.5])
def test_weights_are_scaled_and_restored_bit_for_bit(pipeline, kind, strength):
    edit = Edit.from_scores(random_scores(pipeline, kind), Selection(0.1))
    before = snapshot(pipeline)
    masks = {name: torch.zeros(before[f"{name}.weight"].numel(), dtype=torch.bool) for name in edit.components}
    for name, indices in edit.weight_indices().items():
        masks[name][indices] = True
    with edit.applied(pipeline, strength):
        now = snapshot(pipeline)
        for name, value in now.items():
            module = name.removesuffix(".weight")
            expected = before[name].clone()
            if module in masks and name.endswith(".weight"):
                expected.view(-1)[masks[module]] *= 1 - strength
            assert torch.equal(value, expected), name
    assert_same(pipeline, before)
    assert active_edits(pipeline) == []


def test_removed_weights_are_exactly_zero(pipeline):
    edit = Edit.from_scores(random_scores(pipeline), Selection(0.1))
    name, indices = next(iter(edit.weight_indices().items()))
    weight = pipeline.unet.get_submodule(name).weight
    original = weight.detach().clone()
    weight.data.view(-1)[indices[0]] = float("inf")
    try:
        with edit.applied(pipeline):
            assert torch.equal(weight.view(-1)[indices], torch.zeros(len(indices)))
            assert not torch.signbit(weight.view(-1)[indices]).any()
        assert weight.view(-1)[indices[0]] == float("inf")
    finally:
        weight.data.copy_(original)


def test_an_exception_restores_the_weights(pipeline):
    before = snapshot(pipeline)
    with pytest.raises(ZeroDivisionError), Edit.from_scores(random_scores(pipeline), Selection(0.1)).applied(pipeline):
        1 / 0  # noqa: B018
    assert_same(pipeline, before)


def test_half_precision_and_channels_last(pipeline):

    edited = copy.copy(pipeline)
    edited.unet = copy.deepcopy(pipeline.unet).half().to(memory_format=torch.channels_last)
    edit = Edit.from_scores(random_scores(pipeline, target="all"), Selection(0.1))
    before = snapshot(edited)
    with edit.applied(edited, 0.7):
        changed = sum(int((before[name] != value).sum()) for name, value in edited.unet.state_dict().items())
    # A weight of zero stays zero.
    assert 0.95 * edit.n_weights <= changed <= edit.n_weights
    assert_same(edited, before)


def test_edits_on_top_of_each_other(pipeline):
    before = snapshot(pipeline)
    first, second = (
        Edit.from_scores(random_scores(pipeline, seed=seed), Selection(0.3), name=f"e{seed}") for seed in (1, 2)
    )
    handle = first.fuse(pipeline)
    with second.applied(pipeline):
        assert [entry.edit.name for entry in active_edits(pipeline)] == ["e1", "e2"]
        with pytest.raises(RuntimeError, match="'e2' was applied over 'e1'"):
            handle.undo()
    handle.undo()
    handle.undo()
    assert_same(pipeline, before)


def test_what_else_has_changed_weights_is_not_undone(pipeline):
    """As where a LoRA is fused while an edit is applied: to write the old weights would take it out again."""
    edited = copy.copy(pipeline)
    edited.unet = copy.deepcopy(pipeline.unet)
    edit = Edit.from_scores(random_scores(edited), Selection(0.1), name="e")
    before = snapshot(edited)
    module, indices = next(iter(edit.weight_indices().items()))
    weight = edited.unet.get_submodule(module).weight
    other = (
        f"4 weights of {module} have changed since edit 'e' was applied.*the other {edit.n_weights - 4} were restored"
    )
    with pytest.raises(RuntimeError, match=other), edit.applied(edited):
        weight.data.view(-1)[indices[:4]] += 1
    expected = before[f"{module}.weight"].clone()
    expected.view(-1)[indices[:4]] = 1  # removed, then one more
    assert_same(edited, before | {f"{module}.weight": expected})
    assert active_edits(edited) == []
    with edit.applied(edited):  # the model can be edited as ever
        assert len(active_edits(edited)) == 1


@pytest.mark.parametrize("strength", [1.0, 0.3])
def test_weights_that_are_cast_meanwhile_are_restored(pipeline, strength):
    for dtype in (torch.bfloat16, torch.float64):
        edited = copy.copy(pipeline)
        edited.unet = copy.deepcopy(pipeline.unet)
        handle = Edit.from_scores(random_scores(edited), Selection(0.1)).fuse(edited, strength)
        edited.unet.to(dtype)
        handle.undo()
        expected = copy.deepcopy(pipeline.unet).to(dtype)
        assert_same(edited, expected.state_dict())


def test_fused_edits_of_a_manager_end_though_weights_have_changed(pipeline):
    unet = copy.deepcopy(pipeline.unet)
    edit = Edit.from_scores(random_scores(pipeline), Selection(0.1), name="e")
    manager = cad_fast.EditManager(unet)
    manager.load_edit(edit)
    manager.set_edits("e")
    manager.fuse_edits()
    module, indices = next(iter(edit.weight_indices().items()))
    unet.get_submodule(module).weight.data.view(-1)[indices[:1]] += 1
    with pytest.raises(RuntimeError, match="have changed since"):
        manager.unfuse_edits()
    manager.unfuse_edits()
    assert active_edits(unet) == []


def test_one_thread_at_a_time_has_edits_in_the_weights(pipeline):
    before = snapshot(pipeline)
    edits = [Edit.from_scores(random_scores(pipeline, seed=s), Selection(0.3), name=f"e{s}") for s in (1, 2)]
    inside, done, refused = threading.Event(), threading.Event(), []

    def hold() -> None:
        with edits[0].applied(pipeline):
            inside.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait(60)
    try:
        with pytest.raises(RuntimeError, match="another thread has edit 'e1' in the weights"):
            edits[1].fuse(pipeline)
    finally:
        done.set()
        thread.join()
    assert_same(pipeline, before)

    def often(edit: Edit) -> None:
        for _ in range(40):
            try:
                with edit.applied(pipeline):
                    pass
            except RuntimeError as error:
                refused.append(str(error))

    threads = [threading.Thread(target=often, args=(edit,)) for edit in edits * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all("another thread has edit" in message for message in refused)
    assert_same(pipeline, before)
    assert active_edits(pipeline) == []


def test_composition_is_a_union_in_any_order(pipeline):
    edits = [
        Edit.from_scores(random_scores(pipeline, seed=seed), Selection(0.2), name=f"e{seed}") for seed in (1, 2, 3)
    ]
    both, again = compose(edits), compose(edits[::-1])
    assert both.digest() == again.digest() and both.name == "e1.e2.e3"
    expected = {}
    for edit in edits:
        for name, indices in edit.weight_indices().items():
            expected[name] = expected.get(name, set()) | set(indices.tolist())
    assert {name: set(indices.tolist()) for name, indices in both.weight_indices().items()} == expected
    assert (edits[0] | edits[1]).n_weights < edits[0].n_weights + edits[1].n_weights
    assert [part["name"] for part in both.provenance["composed_of"]] == ["e1", "e2", "e3"]


def test_kinds_mix_as_weights(pipeline):
    neurons, weights = (
        Edit.from_scores(random_scores(pipeline, kind), Selection(0.1), name=kind) for kind in ("neuron", "weight")
    )
    both = neurons | weights
    assert both.space.kind == "weight"
    mine = both.weight_indices()
    for edit in (neurons, weights):
        assert all(torch.isin(indices, mine[name]).all() for name, indices in edit.weight_indices().items())
    with pytest.raises(ValueError, match="apply them one by one"):
        compose([weights, Edit.from_scores(random_scores(pipeline), Selection(0.1), factor=0.5, name="half")])


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(pipeline, kind, tmp_path):
    edit = Edit.from_scores(random_scores(pipeline, kind), Selection(0.2), sign="negative", name="cat-amplify")
    edit.save_pretrained(tmp_path / "edit")
    assert {path.name for path in (tmp_path / "edit").iterdir()} == {"edit_config.json", "edit_model.safetensors"}
    again = Edit.from_pretrained(tmp_path / "edit", pipeline)
    assert again.digest() == edit.digest() and again.name == "cat-amplify" and again.provenance == edit.provenance
    assert again.provenance["selection"]["sign"] == "negative"
    before = snapshot(pipeline)
    with again.applied(pipeline):
        one = snapshot(pipeline)
    with edit.applied(pipeline):
        assert_same(pipeline, one)
    assert_same(pipeline, before)


def test_another_model_is_refused(pipeline, tmp_path):
    edit = Edit.from_scores(random_scores(pipeline), Selection(0.2))
    edit.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="edit 'a-cat-erase' was made for another model: their parameters"):
        Edit.from_pretrained(tmp_path, stable_diffusion_xl())
    other = stable_diffusion.__wrapped__()
    with torch.no_grad():
        for parameter in other.unet.parameters():
            parameter.mul_(1.02)
    with pytest.raises(ValueError, match="another model: their weights differ by"):
        edit.fuse(other)


def test_half_precision_is_the_same_model(pipeline, tmp_path):

    edit = Edit.from_scores(random_scores(pipeline), Selection(0.2))
    for dtype in (torch.float16, torch.bfloat16):
        half = copy.deepcopy(pipeline.unet).to(dtype)
        with edit.applied(half):
            pass


def break_config(folder, **changes):
    path = folder / "edit_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "edit_config.json").write_text("{"), "not valid JSON"),
        (lambda f: (f / "edit_config.json").write_text("[]"), "expected an object"),
        (lambda f: (f / "edit_config.json").unlink(), "holds no edit_config.json"),
        (lambda f: (f / "edit_model.safetensors").unlink(), "holds no edit_model.safetensors"),
        (
            lambda f: (f / "edit_model.safetensors").write_bytes((f / "edit_model.safetensors").read_bytes()[:-9]),
            "truncated",
        ),
        (lambda f: break_config(f, format_version=99), "format_version 99"),
        (lambda f: break_config(f, name="../../evil"), "edit name"),
        (lambda f: break_config(f, factor="much"), "damaged"),
        (lambda f: break_config(f, factor=0.5), "do not belong together"),
        (lambda f: break_config(f, modules={}), "damaged"),
        (lambda f: break_config(f, modules=[1, 2]), "damaged"),
        (lambda f: break_config(f, model={}), "damaged"),
        (lambda f: break_config(f, digest="0"), "do not belong together"),
    ],
)
def test_damaged_files(pipeline, tmp_path, damage, message):
    Edit.from_scores(random_scores(pipeline), Selection(0.2)).save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        Edit.from_pretrained(tmp_path)


def test_indices_out_of_range_are_refused(pipeline):
    edit = Edit.from_scores(random_scores(pipeline), Selection(0.2))
    name = next(iter(edit.components))
    for bad, message in [
        ([0, 0], "repetitions"),
        ([3, 1], "not sorted"),
        ([0, 10**7], "outside"),
        ([-1, 2], "outside"),
        ([], "k > 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            Edit("bad", edit.space, {name: torch.tensor(bad, dtype=torch.int64)})
    with pytest.raises(ValueError, match="not among its modules"):
        Edit("bad", edit.space, {"nowhere": torch.tensor([0])})


def test_names_are_names_and_never_paths(pipeline):
    for name in ("", "../up", "a/b", ".hidden", "a b", "x" * 65, "naïve", 3):
        with pytest.raises(ValueError, match="edit name"):
            Edit.from_scores(random_scores(pipeline), Selection(0.2), name=name or "/")
    assert Edit.from_scores(random_scores(pipeline, concept="Van Gogh!"), Selection(0.1)).name == "van-gogh-erase"


def test_nothing_to_select_and_bad_strength(pipeline):
    scores = random_scores(pipeline)
    scores.values.fill_(-1)
    with pytest.raises(ValueError, match="no component has a positive score"):
        Edit.from_scores(scores, Selection(0.1))
    with pytest.raises(ValueError, match="strength is nan"):
        Edit.from_scores(scores, Selection(0.1), sign="negative").fuse(pipeline, float("nan"))


@pytest.mark.parametrize("name", PIPELINES)
def test_every_architecture(name):
    pipeline = PIPELINES[name][0]()
    before = snapshot(pipeline)
    for kind, target in (("weight", "attention"), ("neuron", None), ("head", None)):
        with Edit.from_scores(random_scores(pipeline, kind, target), Selection(0.5)).applied(pipeline):
            pass
    assert_same(pipeline, before)


def test_lora_may_lie_beside(pipeline):
    """An edit finds its modules under an adapter's wrapper, and the fingerprint disregards the adapter."""
    peft = pytest.importorskip("peft")

    edit = Edit.from_scores(random_scores(pipeline, target="cross-attention-kv"), Selection(0.2))
    unet = copy.deepcopy(pipeline.unet)
    unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_k", "to_v"]))
    with edit.applied(unet):
        name = next(iter(edit.components))
        assert (unet.get_submodule(name).base_layer.weight == 0).sum() >= len(edit.components[name])


def test_a_compiled_denoiser_is_edited_as_what_it_wraps(pipeline, tmp_path):
    edit = Edit.from_scores(random_scores(pipeline), Selection(0.1))
    compiled = torch.compile(pipeline.unet)  # compiles nothing until it is called
    before = snapshot(pipeline)
    name, indices = next(iter(edit.weight_indices().items()))
    with edit.applied(compiled):
        assert [applied.edit for applied in active_edits(compiled)] == [edit]
        assert [applied.edit for applied in active_edits(pipeline)] == [edit]
        assert bool((pipeline.unet.get_submodule(name).weight.flatten()[indices] == 0).all())
    assert_same(pipeline, before)
    edit.save_pretrained(tmp_path)
    assert Edit.from_pretrained(tmp_path, compiled).digest() == edit.digest()


def test_public_names():
    for name in cad_fast.__all__:
        assert getattr(cad_fast, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        cad_fast.nonsense  # noqa: B018


def test_a_factor_given_as_an_integer_is_the_same_edit(pipeline, tmp_path):
    scores = random_scores(pipeline)
    whole, point = (Edit.from_scores(scores, Selection(0.01), factor=factor) for factor in (0, 0.0))
    assert whole.digest() == point.digest()
    whole.save_pretrained(tmp_path)
    assert Edit.from_pretrained(tmp_path, pipeline).digest() == point.digest()


@pytest.mark.parametrize("provenance", [{"r": float("nan")}, {"scores": torch.zeros(1)}, {"note": "x" * 2**22}])
def test_what_cannot_be_saved_leaves_the_folder_as_it_was(pipeline, tmp_path, provenance):
    scores = random_scores(pipeline)
    before = Edit.from_scores(scores, Selection(0.01))
    before.save_pretrained(tmp_path)
    other = Edit.from_scores(scores, Selection(0.02))
    other.provenance |= provenance
    with pytest.raises(ValueError, match=r"edit 'a-cat-erase': its (provenance|config)"):
        other.save_pretrained(tmp_path)
    assert Edit.from_pretrained(tmp_path).digest() == before.digest()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["edit_config.json", "edit_model.safetensors"]


def test_modules_that_share_a_weight_are_restored_too():
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = torch.nn.Linear(6, 6), torch.nn.Linear(6, 6)
            self.second.weight = self.first.weight

    model = Tied()
    before = model.first.weight.detach().clone()
    edit = Edit.from_indices("tied", ComponentSpace.of(model, target_modules="all"), torch.tensor([1, 3, 37, 40]))
    with edit.applied(model):
        assert not torch.equal(model.first.weight, before)
    assert torch.equal(model.first.weight, before)
