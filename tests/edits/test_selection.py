"""Selection against straightforward loops, and the published rule with what it leaves untouched."""

import pytest
import torch

from cad_fast.attribution import Scores
from cad_fast.components.fingerprint import Fingerprint
from cad_fast.components.module_components import ModuleComponents
from cad_fast.components.space import ComponentSpace
from cad_fast.edits import Selection, retention_aware, select
from tests.pipelines import stable_diffusion


def make_scores(shapes, kind="weight", seed=0, names=None, provenance=None):
    entries, offset = [], 0
    for i, shape in enumerate(shapes):
        name = names[i] if names else f"blocks.{i}.ff.net.2"
        entries.append(
            ModuleComponents(name, kind, shape, 1, offset, presets=("feed-forward",) if ".ff." in name else ())
        )
        offset += entries[-1].count
    space = ComponentSpace(entries, Fingerprint("Toy", "0", ()))
    values = torch.randn(space.n, generator=torch.Generator().manual_seed(seed))
    return Scores(values, space, provenance or {})


@pytest.mark.parametrize("sign", ["positive", "negative"])
@pytest.mark.parametrize("scope", ["global", "tensor", "row"])
@pytest.mark.parametrize("ratio", [0.01, 0.1, 0.7])
def test_against_loops(sign, scope, ratio):
    scores = make_scores([(5, 37), (11, 8)])
    values = scores.values.tolist()
    if scope == "global":
        groups = [list(range(len(values)))]
    elif scope == "tensor":
        groups = [list(range(185)), list(range(185, 273))]
    else:
        groups = [list(range(r * 37, r * 37 + 37)) for r in range(5)] + [
            list(range(185 + r * 8, 193 + r * 8)) for r in range(11)
        ]
    expected = []
    for group in groups:
        k = round(ratio * len(group))
        k = max(1, k) if scope == "row" else k
        ordered = sorted(group, key=lambda i: values[i], reverse=sign == "positive")
        expected += [i for i in ordered[:k] if (values[i] > 0) == (sign == "positive")]
    assert select(scores, Selection(ratio, scope=scope), sign=sign).tolist() == sorted(expected)


def test_count_and_ties():
    scores = make_scores([(4, 4)])
    scores.values[:] = torch.tensor([1.0, 2.0] * 8)
    assert select(scores, Selection(count=3)).tolist() == [1, 3, 5]
    assert select(scores, Selection(count=100)).tolist() == list(range(16))
    scores.values[:] = -1
    assert select(scores, Selection(count=3)).tolist() == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "either ratio or count"),
        ({"ratio": 0.1, "count": 3}, "either ratio or count"),
        ({"ratio": 0.0}, "more than 0"),
        ({"ratio": 1.5}, "at most 1"),
        ({"count": 0}, "at least 1"),
        ({"ratio": 0.1, "scope": "column"}, "unknown scope"),
        ({"ratio": 0.1, "compat": "draft"}, "unknown compat"),
        ({"count": 3, "compat": "paper"}, "takes a ratio"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        Selection(**settings)


def test_an_unknown_sign_is_named():
    with pytest.raises(ValueError, match="unknown sign 'up'"):
        select(make_scores([(4, 4)]), Selection(0.1), sign="up")


def test_rows_need_single_weights():
    with pytest.raises(ValueError, match="kind neuron"):
        select(make_scores([(4, 4)], kind="neuron"), Selection(0.1, scope="row"))


def test_what_others_need_is_left_alone():
    scores, other = make_scores([(8, 8)], seed=1), make_scores([(8, 8)], seed=2)
    best = int(scores.values.argmax())
    other.values[best] = 100.0
    assert best in select(scores, Selection(count=3)).tolist()
    assert best not in select(scores, Selection(count=3, keep=[other])).tolist()
    assert best in select(scores, Selection(count=3, keep=[other], keep_weight=0.0)).tolist()
    # What is negative for a concept to keep does not count in favour.
    other.values[:] = -1.0
    rms = scores.values.square().mean().sqrt()
    assert torch.allclose(retention_aware(scores, [other], 5.0), scores.values / rms)


def test_amplifying_leaves_alone_what_is_negative_for_others_too():
    scores, other = make_scores([(8, 8)], seed=1), make_scores([(8, 8)], seed=2)
    lowest = int(scores.values.argmin())
    other.values[lowest] = -100.0
    assert lowest in select(scores, Selection(count=3), sign="negative").tolist()
    assert lowest not in select(scores, Selection(count=3, keep=[other]), sign="negative").tolist()
    assert lowest in select(scores, Selection(count=3, keep=[other], keep_weight=0.0), sign="negative").tolist()
    # What is positive for a concept to keep does not count in favour of its removal.
    other.values[:] = 1.0
    plain = select(scores, Selection(count=20), sign="negative")
    assert torch.equal(select(scores, Selection(count=20, keep=[other], keep_weight=5.0), sign="negative"), plain)


def test_both_signs_are_mirrored():
    scores, others = make_scores([(8, 8)], seed=1), [make_scores([(8, 8)], seed=seed) for seed in (2, 3)]
    mirrored = [Scores(-each.values, each.space) for each in (scores, *others)]
    amplified = select(scores, Selection(count=9, keep=others, keep_weight=0.7), sign="negative")
    assert torch.equal(amplified, select(mirrored[0], Selection(count=9, keep=mirrored[1:], keep_weight=0.7)))


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_weight_of_what_is_kept_out_of_range(weight):
    scores = make_scores([(8, 8)])
    with pytest.raises(ValueError, match=rf"keep_weight is {weight}, expected at least 0"):
        select(scores, Selection(count=3, keep=[scores], keep_weight=weight))


@pytest.mark.parametrize("scope", ["global", "tensor"])
def test_a_ratio_of_less_than_one_component_is_named(scope):
    scores = make_scores([(3, 4), (2, 5)])
    with pytest.raises(ValueError, match=r"ratio 0\.01 of \d+ components is less than one: take"):
        select(scores, Selection(0.01, scope=scope))
    assert len(select(scores, Selection(0.045, scope="tensor"))) <= 1, (
        "one tensor has a component for it, the other none"
    )


def test_concepts_to_keep_must_have_the_same_components():
    with pytest.raises(ValueError, match="are over"):
        select(make_scores([(8, 8)]), Selection(count=3, keep=[make_scores([(4, 16)])]))


def test_the_published_rule():
    names = ["a.ff.net.0.proj", "b.ff.net.2", "c.attn2.to_k"]
    scores = make_scores([(3, 20), (2, 200), (2, 300)], names=names)
    with pytest.warns(UserWarning, match=r"1 modules.*a\.ff\.net\.0\.proj \(rows of 20\)"):
        chosen = select(scores, Selection(0.01, compat="paper")).tolist()
    expected = []
    for row in range(2):
        offset = 60 + row * 200
        values = scores.values[offset : offset + 200]
        expected += [offset + i for i in sorted(range(200), key=lambda i: -values[i])[:2]]
    assert chosen == sorted(expected)
    with pytest.raises(ValueError, match="edits nothing"), pytest.warns(UserWarning, match="2 modules"):
        select(scores, Selection(0.001, compat="paper"))


def test_the_published_rule_keeps_the_other_sign():
    """Half of a row is asked for, and a quarter of it is positive: the published script ablates that quarter alone."""
    values = -torch.rand(2, 40) - 0.1
    values[:, ::4] *= -1
    space = make_scores([(2, 40)], names=["a.ff.net.2"]).space
    scores = Scores(values.flatten(), space)
    assert select(scores, Selection(0.5, compat="paper")).tolist() == list(range(0, 80, 4))
    assert len(select(scores, Selection(0.5, compat="paper"), sign="negative")) == 40
    with pytest.raises(ValueError, match="no score is positive"):
        select(Scores(-values.flatten().abs(), space), Selection(0.5, compat="paper"))


def test_the_published_rule_leaves_short_rows_of_stable_diffusion_untouched():
    """At ratio 0.001, int(0.001 * 320) = int(0.001 * 640) = 0: only rows of 1280 and more are edited."""
    names = [f"blocks.{width}.ff.net.2" for width in (320, 640, 1280)]
    scores = make_scores([(2, 320), (2, 640), (2, 1280)], names=names)
    with pytest.warns(UserWarning, match="2 modules"):
        chosen = select(scores, Selection(0.001, compat="paper"))
    assert len(chosen) == 2 and chosen.min() >= 2 * 320 + 2 * 640


def test_the_published_sign_for_the_denoising_loss():
    """The published script takes the other end for amplifying with the denoising loss; without compat we do not."""
    scores = make_scores([(1, 100)], provenance={"objective": {"name": "denoising_loss"}})
    top, bottom = int(scores.values.argmax()), int(scores.values.argmin())
    assert select(scores, Selection(0.01, compat="paper"), sign="negative").tolist() == [top]
    assert select(scores, Selection(0.01, scope="row"), sign="negative").tolist() == [bottom]


def test_the_real_feed_forward_layers():
    space = ComponentSpace.of(stable_diffusion(), "weight", "all")
    scores = Scores(torch.randn(space.n), space)
    with pytest.warns(UserWarning, match="leaves them untouched"):
        chosen = select(scores, Selection(0.02, compat="paper"))
    modules = set(space.split_indices(chosen))
    assert modules and all(".ff." in name for name in modules)


def sensitivity_of(scores, values):
    return Scores(values, scores.space, {"concept": "kept", "method": "sensitivity"})


def test_gain_against_damage_is_the_score_over_a_power_of_what_it_moves():
    scores = make_scores([(8, 9), (3, 5)], seed=4)
    kept = [torch.rand(87).square() * 10**power for power in (-6, 3)]
    h = sum(values.double() / values.double().mean() for values in kept) / 2
    median = sorted(h.tolist())[43]
    for exponent in (0.0, 0.35, 0.5, 1.0):
        sensitivity = [sensitivity_of(scores, values) for values in kept]
        ranks = [float(s) / (float(x) + median) ** exponent for s, x in zip(scores.values, h, strict=True)]
        expected = sorted(sorted(range(87), key=lambda i: -ranks[i])[:7])
        assert select(scores, Selection(count=7, sensitivity=sensitivity, exponent=exponent)).tolist() == expected
    assert expected != select(scores, Selection(count=7)).tolist()


def test_a_sensitivity_must_be_one_and_of_these_components():
    scores = make_scores([(8, 8)])
    with pytest.raises(ValueError, match="expected method 'sensitivity'"):
        select(scores, Selection(count=3, sensitivity=[make_scores([(8, 8)])]))
    with pytest.raises(ValueError, match="are over"):
        other = make_scores([(4, 16)])
        select(scores, Selection(count=3, sensitivity=[sensitivity_of(other, other.values.abs())]))
    with pytest.raises(ValueError, match=r"exponent is -0\.5"):
        select(scores, Selection(count=3, sensitivity=[sensitivity_of(scores, scores.values.abs())], exponent=-0.5))
