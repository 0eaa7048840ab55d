"""Predicted damage and shared components, against loops over components."""

import pytest
import torch

from cad_fast.attribution import Scores
from cad_fast.edits import Edit, Selection, damage_table, overlap, predicted_damage, select
from tests.edits.test_selection import make_scores

SHAPES = [(5, 37), (11, 8)]


def test_damage_is_the_sum_of_the_edits_scores() -> None:
    target, other = make_scores(SHAPES, seed=1), make_scores(SHAPES, seed=2, provenance={"intact_j": 4.0})
    other = Scores(other.values, other.space, other.provenance, torch.rand(len(other)))
    edit = Edit.from_scores(target, Selection(0.1), factor=0.25)
    found = predicted_damage(edit, {"target": target, "other": other}, strength=0.5)
    chosen = select(target, Selection(0.1)).tolist()
    change = -0.5 * 0.75 * sum(float(other.values[i]) for i in chosen)
    error = 0.5 * 0.75 * sum(float(other.standard_error[i]) ** 2 for i in chosen) ** 0.5
    assert found["other"].change == pytest.approx(change) and found["other"].relative == pytest.approx(change / 4)
    assert found["other"].standard_error == pytest.approx(error, rel=1e-5)
    assert found["target"].relative is None and found["target"].standard_error is None
    assert found["target"].change < 0 and next(iter(found)) == "target"
    by_numbers = predicted_damage(torch.tensor(chosen), {"other": other}, strength=0.5, factor=0.25)
    assert by_numbers["other"].change == pytest.approx(change)


def test_an_edit_of_some_modules_finds_its_components() -> None:
    scores = make_scores(SHAPES, seed=3)
    first, second = (entry.module for entry in scores.space)
    edit = Edit("part", scores.space.restrict([second]), {second: torch.tensor([0, 87])})
    found = predicted_damage(edit, {"all": scores})["all"]
    assert found.change == pytest.approx(-float(scores.values[185] + scores.values[272]))
    with pytest.raises(ValueError, match=f"the scores of 'part' have no module '{second}'"):
        predicted_damage(edit, {"part": scores.of_modules([first])})


def test_an_edit_of_neurons_is_judged_by_scores_of_weights() -> None:
    weights, neurons = make_scores(SHAPES), make_scores(SHAPES, kind="neuron")
    name = neurons.space.entries[0].module if hasattr(neurons.space, "entries") else next(iter(neurons.space)).module
    edit = Edit("column", neurons.space, {name: torch.tensor([3])})
    found = predicted_damage(edit, {"weights": weights})["weights"]
    assert found.change == pytest.approx(-float(weights.values[:185].view(5, 37)[:, 3].sum()), rel=1e-5)
    with pytest.raises(ValueError, match="the edit is of kind weight, the scores of 'n' of kind neuron"):
        predicted_damage(edit.to_weights(), {"n": neurons})


def test_wrong_input() -> None:
    scores = make_scores(SHAPES)
    with pytest.raises(ValueError, match=r"component 273 is outside 0\.\.272"):
        predicted_damage(torch.tensor([273]), {"a": scores})
    with pytest.raises(ValueError, match=r"component -1 is outside 0\.\.272"):
        predicted_damage(torch.tensor([3, -1]), {"a": scores})
    with pytest.raises(ValueError, match="at least one concept"):
        predicted_damage(torch.tensor([1]), {})


def test_the_table_names_every_concept() -> None:
    known = make_scores(SHAPES, provenance={"intact_j": 2.0})
    damages = predicted_damage(torch.tensor([5]), {"cat": known, "a dog": make_scores(SHAPES)})
    lines = damage_table(damages).splitlines()
    assert len(lines) == 2
    percent = f"{-50 * float(known.values[5]):+.1f}% of J"
    assert any(line.startswith("cat ") and percent in line for line in lines)


def test_overlap_counts_shared_components() -> None:
    scores = [make_scores(SHAPES, seed=seed) for seed in range(3)]
    scores.append(Scores(scores[0].values + 0.5 * scores[1].values, scores[0].space))
    found = overlap(scores, 0.2)
    sets = [set(select(own, Selection(0.2)).tolist()) for own in scores]
    for i, one in enumerate(sets):
        for j, other in enumerate(sets):
            assert float(found[i, j]) == pytest.approx(len(one & other) / min(len(one), len(other)))
    assert float(found[0, 3]) > float(found[0, 1])
    with pytest.raises(ValueError, match="no component has a negative score"):
        overlap([Scores(torch.ones(273), scores[0].space)], 0.2, "negative")
    with pytest.raises(ValueError, match="the scores of"):
        overlap([scores[0], make_scores([(5, 37)])], 0.2)
