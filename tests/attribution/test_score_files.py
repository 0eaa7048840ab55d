"""Scores saved in half precision or only the largest: what they answer is what all answer, or they refuse."""

import itertools

import pytest
import torch

from cad_fast.attribution import Scores
from cad_fast.attribution.score_files import largest
from cad_fast.attribution.scores import TopScores
from cad_fast.components.space import ComponentSpace
from cad_fast.edits import Edit, Selection, predicted_damage, select
from tests.pipelines import stable_diffusion


@pytest.fixture(scope="module")
def space():
    return ComponentSpace.of(stable_diffusion(), "weight", "cross-attention-kv")


def scores_of(space, seed=0, spread=3.0, **more) -> Scores:
    """Of both signs, over many orders of magnitude, with ties and zeros."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(space.n, generator=generator)
    values = values.sign() * 10 ** (spread * torch.randn(space.n, generator=generator)) * 1e-6
    values[::7] = 0
    values[3::50] = values[3]
    return Scores(values, space, {"concept": f"c{seed}", "method": "gradient"}, **more)


@pytest.mark.parametrize("spread", [0.3, 3.0])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_half_precision(space, tmp_path, spread, scale) -> None:
    scores = scores_of(space, spread=spread)
    scores.values *= scale / scores.values.abs().max()
    scores.standard_error = scores.values.abs() / 3
    path = scores.save(tmp_path, dtype="float16")
    loaded = Scores.load(tmp_path)
    assert loaded.provenance["stored"]["dtype"] == "float16" and type(loaded) is Scores
    torch.testing.assert_close(loaded.standard_error, loaded.values.abs() / 3, rtol=2e-3, atol=scale * 1e-12)
    for entry, (module, mine) in zip(space, scores.by_module().items(), strict=True):
        theirs = loaded.by_module()[module]
        close = mine.abs() >= mine.abs().max() * 2.0**-28
        assert ((theirs - mine).abs()[close] <= 2.0**-11 * mine.abs()[close]).all(), entry
        assert torch.equal(theirs.sign(), mine.sign()), "no score becomes zero, infinite or of the other sign"
    whole = scores.save(tmp_path / "whole").stat().st_size
    assert path.stat().st_size < 0.62 * whole
    assert "stored" not in Scores.load(tmp_path / "whole").provenance


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_largest_choose_as_all_do(space, tmp_path, dtype) -> None:
    scores = scores_of(space, spread=0.5)
    scores.save(tmp_path / "all", dtype=dtype)
    scores.save(tmp_path / "top", dtype=dtype, top=300)
    whole, some = Scores.load(tmp_path / "all"), Scores.load(tmp_path / "top")
    assert isinstance(some, TopScores) and some.provenance["stored"] == {"dtype": dtype, "top": 300, "dropped": []}
    assert len(some) == space.n and some.top(20) == whole.top(20)
    assert some.top(20, negative=True) == whole.top(20, negative=True)
    selections = (Selection(count=90), Selection(60 / space.n), Selection(count=4, scope="tensor"))
    for selection, sign in itertools.product(selections, ("positive", "negative")):
        assert torch.equal(select(some, selection, sign=sign), select(whole, selection, sign=sign))
    part = [entry.module for entry in space][:2]
    parts = [select(scores.of_modules(part), Selection(count=5)) for scores in (some, whole)]
    assert torch.equal(*parts)
    assert (tmp_path / "top" / "scores.safetensors").stat().st_size < (
        tmp_path / "all" / "scores.safetensors"
    ).stat().st_size


def test_what_the_largest_do_not_tell_is_refused(space, tmp_path) -> None:
    scores, other = scores_of(space), scores_of(space, 1)
    scores.standard_error = scores.values.abs()
    scores.save(tmp_path, top=50)
    some = Scores.load(tmp_path)
    assert some.provenance["stored"]["dropped"] == ["standard_error"]
    positive = int((some.kept > 0).sum())
    Edit.from_scores(some, Selection(count=positive))
    with pytest.raises(
        ValueError, match=rf"hold the 50 largest of {space.n}, {positive} of them positive: .*--save-top"
    ):
        Edit.from_scores(some, Selection(count=positive + 1))
    with pytest.raises(ValueError, match=f"negative: {space.n} cannot be chosen"):
        Edit.from_scores(some, Selection(1.0), sign="negative")
    everything = f"hold the 50 largest of {space.n}, and this needs all of them"
    sensitivity = Scores(other.values.abs(), space, {"concept": "s", "method": "sensitivity"})
    for refused in (
        lambda: some.values,
        lambda: some.by_module(),
        lambda: some.save(tmp_path / "again"),
        lambda: Edit.from_scores(other, Selection(0.1, keep=[some])),
        lambda: Edit.from_scores(some, Selection(0.01, keep=[other])),
        lambda: Edit.from_scores(some, Selection(0.01, sensitivity=[sensitivity])),
        lambda: Edit.from_scores(some, Selection(0.1, scope="row")),
        lambda: predicted_damage(Edit.from_scores(other, Selection(0.01)), {"c": some}),
    ):
        with pytest.raises(ValueError, match=everything):
            refused()
    assert type(Scores.load(scores.save(tmp_path / "more", top=10**9))) is Scores


def test_options(space, tmp_path) -> None:
    for options, message in (({"dtype": "int8"}, "one of float32, float16, got 'int8'"), ({"top": 0}, "top is 0")):
        with pytest.raises(ValueError, match=message):
            scores_of(space).save(tmp_path, **options)
    with pytest.raises(ValueError, match="not sorted within"):
        TopScores(torch.tensor([3, 2]), torch.ones(2), space, {})
    with pytest.raises(ValueError, match=r"the score of .*\[0, 3\] is nan"):
        TopScores(torch.tensor([3]), torch.tensor([float("nan")]), space, {})


@pytest.mark.parametrize("k", [0, 1, 7, 499, 500, 600])
def test_the_largest_are_those_of_a_stable_sort(k) -> None:
    values = torch.randn(500, generator=torch.Generator().manual_seed(1)).round(decimals=1)
    order = torch.sort(values, descending=True, stable=True).indices[:k].sort().values
    assert torch.equal(largest(values, k), order)
