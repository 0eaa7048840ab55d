"""Which method is taken, and what each refuses."""

from __future__ import annotations

import pytest

from cad_fast.attribution import Attributor
from cad_fast.attribution.methods.registry import default_method
from cad_fast.attribution.regression.draws import parts_of


@pytest.mark.parametrize(
    ("kind", "method"), [("weight", "gradient"), ("neuron", "ablated_gradient"), ("filter", "ablated_gradient")]
)
def test_the_method_is_chosen_by_the_kind_of_component(pipeline, kind, method) -> None:
    attributor = Attributor(pipeline, kind=kind)
    assert attributor.method == method
    assert Attributor(pipeline, components=attributor.space).method == method
    assert Attributor(pipeline, components=attributor.space, method="regression").method == "regression"


def test_few_components_are_ablated_alone(pipeline) -> None:
    heads = Attributor(pipeline, kind="head")
    assert heads.space.n < 20 and heads.method == "exact"
    assert (default_method("head", 19), default_method("head", 20)) == ("exact", "ablated_gradient")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"method": "svm"}, ValueError, "unknown method 'svm': expected one of gradient, ablated_gradient"),
        ({"method": "exact", "solver": "ols"}, TypeError, "method 'exact' has no option 'solver'; it has: none"),
        ({"method": "gradient", "fraction": 0.1}, TypeError, "no option 'fraction'; it has: via"),
        ({"method": "regression", "solver": "svm"}, ValueError, "unknown solver 'svm'"),
        ({"method": "regression", "draw": "dice"}, ValueError, "unknown draw 'dice'"),
        ({"method": "regression", "ablations": 1}, ValueError, "ablations is 1, expected at least 3"),
    ],
)
def test_wrong_settings(pipeline, arguments, error, message: str) -> None:
    with pytest.raises(error, match=message):
        Attributor(pipeline, **arguments)


def test_wrong_fractions(pipeline, recording, monkeypatch) -> None:
    with pytest.raises(ValueError, match=r"fraction is 0\.7, expected more than 0 and at most 0\.5"):
        parts_of(0.7, 100)
    assert parts_of(0.05, 10) == 10, "no ablation is empty"
    assert parts_of(0.05, 100) == 20
    with pytest.raises(ValueError, match="one component only"):
        parts_of(0.5, 1)
    monkeypatch.setattr("cad_fast.attribution.methods.exact.MOST_EXACT", 10)
    with pytest.raises(ValueError, match="exact takes one ablation per component"):
        Attributor(pipeline, method="exact").run(recording, progress=False)
