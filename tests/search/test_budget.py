"""Budgets: what they check, how far an edit misses them, and which candidate is drawn next."""

import itertools
import random
from types import SimpleNamespace

import pytest

from cad_fast.evaluation import PromptSet
from cad_fast.search.budget import Budget, order_to_try, shortfall_text
from cad_fast.zoo.prompt_set import emoji_prompts


def change(before: float, after: float) -> SimpleNamespace:
    return SimpleNamespace(before=before, after=after, kept=100 * after / before if before else None)


def comparison(target: float, concepts: dict, others: SimpleNamespace, style: SimpleNamespace) -> SimpleNamespace:
    return SimpleNamespace(target=change(1.0, target), concepts=concepts, others=others, axes={"style": style})


def test_shortfalls_are_in_points_of_what_was_asked():
    budget = Budget("car", {"face": 95, "others": 90, "style": 80}, at_most=5)
    found = comparison(0.25, {"face": change(0.8, 0.6)}, change(1.0, 0.92), change(0.9, 0.63))
    assert budget.shortfalls(found) == pytest.approx({"car": 20, "face": 20, "style": 10})
    assert "car is 20 points too often recognised" in shortfall_text(budget.shortfalls(found), "car")
    found = comparison(0.05, {"face": change(0.8, 0.8)}, change(1.0, 0.90), change(0.9, 0.72))
    assert budget.shortfalls(found) == {}
    # What was never recognised cannot be lost.
    found.concepts["face"] = change(0.0, 0.0)
    assert budget.shortfalls(found) == {}


def test_what_was_not_evaluated_is_not_within_the_budget():
    found = comparison(0.0, {"face": change(0.8, 0.8)}, None, change(0.9, 0.9))
    for keep in ({"cat": 90}, {"others": 90}, {"colour": 90}):
        with pytest.raises(ValueError, match=rf"keeps '{next(iter(keep))}', which was not evaluated"):
            Budget("car", keep).shortfalls(found)


def test_something_must_be_there_to_be_kept():
    cars = PromptSet([prompt for prompt in emoji_prompts() if prompt.labels["object"] == "car"])
    with pytest.raises(ValueError, match="no object but 'car'"):
        Budget("car", {"others": 90}).concepts(cars)


def test_only_what_the_budget_needs_is_drawn():
    prompts = emoji_prompts()
    assert Budget("car", {"face": 95, "cat": 90}).concepts(prompts) == ("car", "cat", "face")
    assert len(Budget("car", {"style": 90}).concepts(prompts)) == 12
    assert len(Budget("car", {"others": 90}).concepts(prompts)) == 12


@pytest.mark.parametrize(
    ("erase", "keep", "message"),
    [
        ("car", {}, "nothing to keep"),
        ("car", {"car": 95}, "to erase 'car' and to keep it"),
        ("car", {"face": 120}, "budget of 'face' is 120"),
        ("car", {"face": float("nan")}, "budget of 'face' is nan"),
    ],
)
def test_contradictory_budgets(erase, keep, message):
    with pytest.raises(ValueError, match=message):
        Budget(erase, keep)


def test_unknown_names_are_named():
    with pytest.raises(ValueError, match="unknown concept or axis 'facee'; did you mean 'face'"):
        Budget("car", {"facee": 95}).concepts(emoji_prompts())
    with pytest.raises(ValueError, match="unknown concept or axis 'style'"):
        Budget("style", {"face": 95}).concepts(emoji_prompts())


def test_texts():
    assert Budget.parse("car", ["face=95", "a=b=90.5"]).keep == {"face": 95, "a=b": 90.5}
    for text in ("face", "face=", "=95", "face=many"):
        with pytest.raises(ValueError, match="expected NAME=PERCENT"):
            Budget.parse("car", [text])
    with pytest.raises(ValueError, match="kept twice"):
        Budget.parse("car", ["face=95", "face=90"])


def test_bisection_finds_the_least_damaging_edit_within_the_budget():
    """Against trying them all, for every pair of thresholds at which edits erase enough and damage too much."""
    for n, enough, too_much in itertools.product(range(1, 8), range(9), range(9)):
        truth = [{**({"car": 1.0} if i < enough else {}), **({"face": 1.0} if i >= too_much else {})} for i in range(n)]
        missed = [None] * n
        drawn = 0
        while (number := order_to_try(missed, "car")) is not None:
            assert missed[number] is None
            missed[number] = truth[number]
            drawn += 1
        within = [i for i in range(n) if not truth[i]]
        assert [i for i in range(n) if missed[i] == {}][:1] == within[:1]
        assert drawn <= n.bit_length()


def test_the_search_ends_when_edits_do_not_behave():
    generator = random.Random(0)
    for _ in range(200):
        missed = [None] * 6
        for _ in range(7):
            number = order_to_try(missed, "car")
            if number is None:
                break
            missed[number] = {name: 1.0 for name in ("car", "face") if generator.random() < 0.5}
        assert number is None
