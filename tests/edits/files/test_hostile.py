"""Files of edits from outside: whatever is in them, they load as what was saved or raise what the loader documents."""

import json
import os
import random
import struct
import tracemalloc

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from cad_fast.components.fingerprint import Fingerprint
from cad_fast.components.module_components import ModuleComponents, numbered
from cad_fast.components.space import ComponentSpace
from cad_fast.edits import Edit, active_edits
from cad_fast.edits.files.config import MAX_COMPONENTS, MAX_CONFIG, MAX_MODULES
from tests.mutations import strange_bytes, strange_json, strange_tensors

DOCUMENTED = (ValueError, FileNotFoundError, PermissionError)
CONFIG, MODEL = "edit_config.json", "edit_model.safetensors"


class Tiny(nn.Module):
    """Enough of a denoiser to be edited: two linears and a convolution."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.conv = nn.Linear(12, 20), nn.Linear(20, 7), nn.Conv2d(3, 5, 3)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Tiny()


@pytest.fixture
def edit(model):
    space = ComponentSpace.of(model, "weight", "all")
    chosen = torch.arange(space.n)[torch.rand(space.n) < 0.2]
    return Edit.from_indices("small", space, chosen, 0.5, {"concept": "a cat", "trust": []})


def state(model):
    return [tensor.clone() for tensor in model.state_dict().values()]


def change_config(folder, change):
    path = folder / CONFIG
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("gap", "message"),
    [(-1, "a gap is -1"), (240, r"lead to component \d+, outside 0\.\.239"), (2**31 - 1, "outside 0..239")],
)
def test_bad_gaps(edit, tmp_path, gap, message):
    edit.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / MODEL)
    tensors["first"] = tensors["first"].to(torch.int32)
    tensors["first"][1] = gap
    save_file(tensors, tmp_path / MODEL, metadata={"cad_fast": json.dumps({"digest": edit.digest()})})
    with pytest.raises(ValueError, match=rf"edit_model\.safetensors is damaged.*first.*{message}"):
        Edit.from_pretrained(tmp_path)


# One kind of damage at a time


def set_entry(*keys, to):
    def change(config):
        for key in keys[:-1]:
            config = config[key]
        config[keys[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_entry("name", to="a/../b"), "edit name"),
        (set_entry("name", to=7), "'name' is 7, expected a text"),
        (lambda c: c.pop("name"), "'name' is missing"),
        (lambda c: c.pop("digest"), "'digest' is missing"),
        (set_entry("factor", to=float("nan")), "NaN is not a JSON number"),
        (set_entry("factor", to=float("inf")), "Infinity is not a JSON number"),
        (set_entry("factor", to=10**400), "not valid JSON: an integer has 401 digits"),
        (set_entry("factor", to=True), "'factor' is True"),
        (set_entry("kind", to="soul"), "'kind' is 'soul'"),
        (set_entry("n_components", to=3), "'n_components' is 3, but the modules have"),
        (set_entry("modules", to=[]), "expected an object"),
        (lambda c: c["modules"].update({"../../etc": c["modules"]["first"]}), "not the name of a module"),
        (set_entry("modules", "first", to=1), "module 'first' is 1, expected an object"),
        (set_entry("modules", "first", "n", to=-1), "module 'first': 'n' is -1"),
        (set_entry("modules", "first", "n", to=241), "module 'first': 'n' is 241, expected 1 to 240"),
        (set_entry("modules", "first", "weight_shape", to=[20, 12, 1]), "2 or 4 positive integers"),
        (set_entry("modules", "first", "weight_shape", to=[20.0, 12]), "2 or 4 positive integers"),
        (set_entry("modules", "first", "weight_shape", to=[0, 12]), "2 or 4 positive integers"),
        (set_entry("modules", "first", "weight_shape", to=[2**40, 2**40]), "has more than 2147483647 weights"),
        (set_entry("modules", "first", "block", to=5), "'block' is 5, which does not divide"),
        (set_entry("model", "samples", to=["x"]), "'samples' is 'x', expected a finite number"),
        (set_entry("model", "samples", to=[0.0] * 5000), "'samples' has 5000 entries"),
        (set_entry("provenance", to=[]), "'provenance' is \\[\\], expected an object"),
        (set_entry("format_version", to=True), "format_version True, expected 1"),
        (set_entry("format_version", to=2), "format_version 2, expected 1"),
        (set_entry("format_version", to="9" * 100_000), "format_version '999"),
    ],
)
def test_a_damaged_config_is_named(edit, tmp_path, change, message):
    edit.save_pretrained(tmp_path)
    change_config(tmp_path, change)
    with pytest.raises(ValueError, match=message) as caught:
        Edit.from_pretrained(tmp_path)
    assert CONFIG in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("first"), "the module 'first' is in only one of them"),
        (lambda t: t.update(stranger=t["first"].clone()), "the module 'stranger' is in only one"),
        (lambda t: t.update(first=t["first"].float()), "'first' is F32 of shape"),
        (lambda t: t.update(first=t["first"][None]), "'first' is U16 of shape \\[1, "),
        (lambda t: t.update(first=t["first"].to(torch.int32).repeat(99)), "'first' is I32 of shape .*, expected"),
        (lambda t: t.update(first=torch.full((len(t["first"]),), 65535, dtype=torch.uint16)), "outside 0..239"),
    ],
)
def test_damaged_tensors_are_named(edit, tmp_path, change, message):
    edit.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / MODEL)
    change(tensors)
    save_file(tensors, tmp_path / MODEL, metadata={"cad_fast": json.dumps({"digest": edit.digest()})})
    with pytest.raises(ValueError, match=message) as caught:
        Edit.from_pretrained(tmp_path)
    assert MODEL in str(caught.value)


def test_deep_nesting_and_huge_files(edit, tmp_path):
    edit.save_pretrained(tmp_path)
    whole = (tmp_path / CONFIG).read_text()
    for text, message in [
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "nested too deeply"),
        (whole.replace('"concept"', f'"x": "{"y" * MAX_CONFIG}", "concept"'), "larger than"),
        (whole.replace('"small"', '"\\ud800"'), "edit name"),
        (whole.replace('"factor": 0.5', f'"factor": {"9" * 5000}'), "not valid JSON"),
        (
            json.dumps({**json.loads(whole), "modules": dict.fromkeys(map(str, range(MAX_MODULES + 1)))}),
            "'modules' has",
        ),
    ]:
        (tmp_path / CONFIG).write_text(text)
        with pytest.raises(ValueError, match=message):
            Edit.from_pretrained(tmp_path)


def test_absurd_sizes_are_refused_before_memory_is_taken(edit, tmp_path):
    edit.save_pretrained(tmp_path)
    config, data = (tmp_path / CONFIG).read_bytes(), (tmp_path / MODEL).read_bytes()

    def huge(n):
        side = 2**15

        def change(c):
            c["modules"] = {f"m{i}": {"weight_shape": [side, side], "block": 1, "n": n} for i in range(4)}
            c["n_components"] = 4 * n

        return change

    def whole(change):
        change_config(tmp_path, change)

    def sparse_file():
        os.truncate(tmp_path / MODEL, 2**40)  # a hole: it takes no room

    damages = [
        (lambda: whole(huge(2**30 - 1)), f"expected at most {MAX_COMPONENTS}"),
        (lambda: whole(huge(2**24)), "in only one"),
        (sparse_file, "bytes, expected at most"),
        (lambda: (tmp_path / MODEL).write_bytes(struct.pack("<Q", 2**62) + data[8:]), "truncated"),
        (lambda: (tmp_path / MODEL).write_bytes(struct.pack("<Q", len(data) * 3) + data[8:]), "truncated"),
    ]
    for damage, message in damages:
        (tmp_path / CONFIG).write_bytes(config)
        (tmp_path / MODEL).write_bytes(data)
        damage()
        tracemalloc.start()
        try:
            with pytest.raises(ValueError, match=message):
                Edit.from_pretrained(tmp_path)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 2**20, (message, peak)


def test_links_out_of_the_folder_are_refused(edit, tmp_path):
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    edit.save_pretrained(outside)
    for name in (CONFIG, MODEL):
        edit.save_pretrained(inside)
        (inside / name).unlink()
        (inside / name).symlink_to(outside / name)
        with pytest.raises(PermissionError, match=f"{name} is a link that leads out"):
            Edit.from_pretrained(inside)
        (inside / name).unlink()
        (inside / "renamed").write_bytes((outside / name).read_bytes())
        (inside / name).symlink_to("renamed")
        assert Edit.from_pretrained(inside).digest() == edit.digest()
        (inside / name).unlink()
        (inside / name).symlink_to(name)
        with pytest.raises(FileNotFoundError, match=name):
            Edit.from_pretrained(inside)


def test_the_cache_of_the_hub_is_read_through_its_links(edit, tmp_path):
    snapshot, blobs = tmp_path / "snapshots" / "abc", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    edit.save_pretrained(blobs)
    for name in (CONFIG, MODEL):
        (snapshot / name).symlink_to(blobs / name)
    assert Edit.from_pretrained(snapshot).digest() == edit.digest()


def test_pipes_are_not_waited_for(edit, tmp_path):
    edit.save_pretrained(tmp_path)
    (tmp_path / CONFIG).unlink()
    os.mkfifo(tmp_path / CONFIG)
    with pytest.raises(FileNotFoundError, match="holds no edit_config"):
        Edit.from_pretrained(tmp_path)


# Anything at all


def fuzz(model, edit, folder, n, seed):
    rng = random.Random(seed)
    edit.save_pretrained(folder / "whole")
    whole = [(folder / "whole" / name).read_bytes() for name in (CONFIG, MODEL)]
    target = folder / "fuzzed"
    target.mkdir()
    before, loaded, outcomes = state(model), 0, {}
    for _ in range(n):
        config, tensors = whole
        what = rng.randrange(5)
        config = (strange_json, strange_bytes)[what](rng, config) if what < 2 else config
        tensors = (strange_tensors, strange_bytes, strange_bytes)[what - 2](rng, tensors) if what >= 2 else tensors
        (target / CONFIG).write_bytes(config)
        (target / MODEL).write_bytes(tensors)
        try:
            found = Edit.from_pretrained(target)
        except DOCUMENTED as error:
            text = str(error)
            assert CONFIG in text or MODEL in text, text
            assert len(text) < 3000, text
            outcomes[type(error).__name__] = outcomes.get(type(error).__name__, 0) + 1
            continue
        loaded += 1
        # What loads is the edit that was saved, or one whose model it says is another.
        assert found.digest() == edit.digest()
        try:
            found.fuse(model).undo()
        except ValueError:
            pass
        assert active_edits(model) == []
    assert {path.name for path in target.iterdir()} == {CONFIG, MODEL}
    for mine, theirs in zip(before, state(model), strict=True):
        assert torch.equal(mine, theirs)
    assert 0 < loaded < n / 2 and outcomes["ValueError"] > n / 2, (loaded, outcomes)
    return loaded, outcomes


def test_mutated_files(model, edit, tmp_path):
    fuzz(model, edit, tmp_path, 2_000, seed=0)


@pytest.mark.slow
def test_ten_thousand_mutated_files(model, edit, tmp_path):
    print(fuzz(model, edit, tmp_path, 10_000, seed=1))


@pytest.mark.parametrize("place", ["model_class", "architecture"])
@pytest.mark.parametrize("text", ["\x1b[2J", "a\nerror: b", "\u202e", "x" * 201])
def test_a_fingerprint_that_a_terminal_would_obey(edit, tmp_path, place, text) -> None:
    edit.save_pretrained(tmp_path)
    change_config(tmp_path, set_entry("model", place, to=text))
    with pytest.raises(ValueError, match=f"'{place}' is .*expected at most 200 printable") as caught:
        Edit.from_pretrained(tmp_path)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500


def memory(entry: str) -> int:
    """Bytes of this process: VmRSS, or the highest since the last reset, VmHWM."""
    with open("/proc/self/status") as status:
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith(entry))


@pytest.mark.parametrize(("modules", "each"), [(1000, 1), (1, 500_000)])
def test_loading_takes_less_than_a_hundred_times_the_bytes_of_the_files(tmp_path, modules, each) -> None:
    space = ComponentSpace(
        numbered([ModuleComponents(f"m{i}.to_k", "weight", (each, 8), 1, 0) for i in range(modules)], {}),
        Fingerprint("Net", "abc", (0.5,)),
    )
    chosen = {entry.module: torch.arange(each) for entry in space}
    Edit("many", space, chosen).save_pretrained(tmp_path)
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pytest.skip("the peak of this process cannot be reset here")
    before = memory("VmRSS")
    assert Edit.from_pretrained(tmp_path).n_components == modules * each
    assert memory("VmHWM") - before < 100 * size
