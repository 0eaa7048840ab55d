"""Ablation: conversions between its forms, set algebra against Python's sets, and its errors."""

import copy
import operator
import pickle
import random

import numpy as np
import pytest
import torch

from cad_fast.components.ablation import Ablation, stacked_words
from cad_fast.ops import seeded_mask, unpack_bits

SIZES = [1, 2, 31, 32, 33, 64, 65, 100, 1000, 4099]


def members(ablation: Ablation) -> set[int]:
    return set(ablation.indices.tolist())


def factor_table(ablation: Ablation) -> dict[int, float]:
    return dict(zip(ablation.indices.tolist(), ablation.factors.tolist(), strict=True))


def some_set(n: int, share: float = 0.4) -> list[int]:
    generator = random.Random(n)
    return sorted(generator.sample(range(n), round(share * n)))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.4, 1.0])
@pytest.mark.parametrize("n", SIZES)
def test_all_forms_hold_the_same_set(n: int, share: float) -> None:
    chosen = some_set(n, share)
    mask = torch.zeros(n, dtype=torch.bool)
    mask[chosen] = True
    ablation = Ablation.from_indices(n, chosen)
    forms = [
        ablation,
        ablation.to_packed(),
        ablation.to_packed().to_indices(),
        Ablation.from_mask(mask),
        Ablation.from_packed(ablation.packed, n),
    ]
    assert [form.form for form in forms] == ["indices", "packed", "indices", "packed", "packed"]
    for form in forms:
        assert form == ablation and hash(form) == hash(ablation)
        assert (form.n, form.size, len(form), form.factor) == (n, len(chosen), len(chosen), 0.0)
        assert form.fraction == len(chosen) / n
        assert form.indices.dtype == torch.int64 and form.indices.tolist() == chosen
        assert form.mask.dtype == torch.bool and torch.equal(form.mask, mask)
        assert form.packed.dtype == torch.int32 and torch.equal(form.packed, ablation.packed)
        assert all((i in form) == bool(mask[i]) for i in range(n)) and n not in form and -1 not in form
        assert form.factors.tolist() == [0.0] * len(chosen)


@pytest.mark.parametrize(
    "indices",
    [
        torch.tensor([1, 5, 31, 32]),
        torch.tensor([1, 5, 31, 32], dtype=torch.int32),
        torch.tensor([1, 0, 5, 0, 31, 0, 32])[::2],
        np.array([1, 5, 31, 32], dtype=np.uint8),
        (1, 5, 31, 32),
        iter([1, 5, 31, 32]),
    ],
)
def test_any_integers_serve_as_indices(indices) -> None:
    assert Ablation.from_indices(40, indices).indices.tolist() == [1, 5, 31, 32]


OPERATIONS = [operator.or_, operator.and_, operator.sub, operator.xor]


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("n", SIZES)
def test_a_seed_is_the_set_it_draws(n: int, fraction: float) -> None:
    ablation = Ablation.seeded(n, fraction, seed=2**64 - 5, variant=7)
    words = seeded_mask(2**64 - 5, 7, 1, n, fraction)[0]
    mask = unpack_bits(words, n)
    assert ablation.form == "seed"
    forms = [ablation, ablation.to_packed(), ablation.to_indices(), ablation.to_packed().to_indices()]
    assert [form.form for form in forms] == ["seed", "packed", "indices", "indices"]
    for form in forms:
        assert form == ablation and ablation == form and hash(form) == hash(ablation)
        assert torch.equal(form.packed, words) and torch.equal(form.mask, mask)
        assert torch.equal(form.indices, mask.nonzero().squeeze(1))
        assert form.size == len(form) == int(mask.sum()) and form.fraction == form.size / n
        assert all((i in form) == bool(mask[i]) for i in {0, n // 2, n - 1})
    if fraction in (0.0, 1.0):
        assert ablation.size == fraction * n


def test_a_seed_in_set_algebra() -> None:
    seeded, other = Ablation.seeded(1000, 0.3, seed=1), Ablation.from_indices(1000, [3, 500])
    for rule in OPERATIONS:
        for left, right in ((seeded, other), (other, seeded), (seeded, seeded.to_packed())):
            result = rule(left, right)
            assert members(result) == rule(members(left), members(right)) and result.form == "packed"
    assert members(~seeded) == set(range(1000)) - members(seeded)


def test_seeds_and_variants_draw_differently() -> None:
    n = 100_000
    seeded = [Ablation.seeded(n, 0.2, seed, variant) for seed in (7, 8, 7 + 2**40) for variant in (0, 1, 2**32 - 1)]
    for ablation in seeded:
        assert abs(ablation.fraction - 0.2) < 5 * (0.2 * 0.8 / n) ** 0.5
    for i, ablation in enumerate(seeded):
        for other in seeded[:i]:
            assert ablation != other
            assert abs((ablation & other).fraction - 0.04) < 5 * (0.04 * 0.96 / n) ** 0.5


def test_factors_of_a_seed() -> None:
    ablation = Ablation.seeded(100, 0.3, seed=1, factor=0.5)
    assert ablation.with_factor(-1.0).form == "seed" and ablation.with_factor(-1.0).factor == -1.0
    assert ablation.with_strength(0.5).factor == 0.75
    each = torch.rand(len(ablation), dtype=torch.float64)
    assert factor_table(ablation.with_factor(each)) == dict(zip(ablation.indices.tolist(), each.tolist(), strict=True))
    assert ablation.with_factor(each) == ablation.to_packed().with_factor(each) != ablation


def test_stacked_words(monkeypatch: pytest.MonkeyPatch) -> None:
    n, calls = 1000, []
    variants = [Ablation.seeded(n, 0.3, seed=1, variant=v) for v in range(10)]
    others = [Ablation.random(n, 0.5, seed=1), None, Ablation.from_indices(n, [1, 999])]
    order = [*variants[2:6], *others, *variants[6:8], variants[3], Ablation.seeded(n, 0.3, seed=2, variant=4)]

    def counted(*args):
        calls.append(args[:3])
        return seeded_mask(*args)

    monkeypatch.setattr("cad_fast.components.ablation.seeded_mask", counted)
    stacked = stacked_words(order, n)
    assert calls == [(1, 2, 4), (1, 6, 2), (1, 3, 1), (2, 4, 1)]
    assert stacked.shape == (11, 32) and stacked.dtype == torch.int32
    for words, ablation in zip(stacked, order, strict=True):
        assert torch.equal(words, torch.zeros_like(words) if ablation is None else ablation.packed)


@pytest.mark.parametrize("n", SIZES)
def test_gates(n: int) -> None:
    gates = torch.where(torch.rand(n) < 0.4, torch.randn(n), 1.0).double()
    ablation = Ablation.from_gates(gates)
    assert torch.equal(ablation.gates, gates) and ablation.gates.dtype == torch.float64
    assert torch.equal(ablation.mask, gates != 1)
    for factor in (0.0, 0.3, -1.0):
        for form in (Ablation.random(n, 0.4, 1, factor), Ablation.seeded(n, 0.4, 1, 0, factor)):
            assert torch.equal(form.gates, torch.ones(n).double().masked_fill(form.mask, factor))
            assert Ablation.from_gates(form.gates) == Ablation.from_gates(form.to_indices().gates) == form
    half = torch.tensor([1.0, 0.3], dtype=torch.bfloat16)
    assert Ablation.from_gates(half).factor == half[1].item()


@pytest.mark.parametrize("form", ["indices", "packed", "mixed"])
@pytest.mark.parametrize("rule", OPERATIONS)
@pytest.mark.parametrize("n", SIZES)
def test_set_algebra(n: int, rule, form: str) -> None:
    left, right = Ablation.random(n, 0.4, seed=1), Ablation.random(n, 0.6, seed=2)
    if form == "indices":
        left = left.to_indices()
    if form != "packed":
        right = right.to_indices()
    result = rule(left, right)
    assert members(result) == rule(members(left), members(right))
    assert result.factor == 0.0
    assert result.form == ("indices" if form == "indices" else "packed")


@pytest.mark.parametrize("n", SIZES)
def test_complement(n: int) -> None:
    ablation = Ablation.random(n, 0.3, seed=4, factor=0.5)
    assert members(~ablation) == set(range(n)) - members(ablation)
    assert ~~ablation == ablation == ~~ablation.to_indices()
    assert (~ablation).factor == 0.5
    assert Ablation.from_packed((~ablation).packed, n, 0.5) == ~ablation  # the bits behind component n - 1 stay zero


@pytest.mark.parametrize("convert", [lambda a: a, Ablation.to_packed], ids=["indices", "packed"])
def test_factors_follow_their_components(convert) -> None:
    left = convert(Ablation.from_indices(100, [3, 40, 70], [0.1, 0.2, 0.3]))
    right = Ablation.from_indices(100, [2, 40, 99], [0.5, 0.2, 0.0])
    assert factor_table(left | right) == {2: 0.5, 3: 0.1, 40: 0.2, 70: 0.3, 99: 0.0}
    assert factor_table(left & right) == {40: 0.2}
    assert (left & right).factor == 0.2
    assert factor_table(left - right) == {3: 0.1, 70: 0.3}
    assert factor_table(left ^ right) == {2: 0.5, 3: 0.1, 70: 0.3, 99: 0.0}


def test_different_factors_of_one_component() -> None:
    left = Ablation.from_indices(100, [3, 40, 70], [0.1, 0.25, 0.5])
    right = Ablation.from_indices(100, [40, 70])
    message = r"2 components have different factors .* component 40 with 0.25 and 0.0"
    for rule in (operator.or_, operator.and_):
        with pytest.raises(ValueError, match=message):
            rule(left, right)
    assert factor_table(left - right) == {3: 0.1}
    assert members(left ^ right) == {3}
    disjoint = Ablation.from_mask(torch.tensor([True, False]), 0.5) | Ablation.from_indices(2, [1])
    assert factor_table(disjoint) == {0: 0.5, 1: 0.0}


def test_equality_is_about_the_effect() -> None:
    ablation = Ablation.from_indices(9, [1, 5])
    assert ablation != Ablation.from_indices(10, [1, 5])
    assert ablation != Ablation.from_indices(9, [1, 6])
    assert ablation != Ablation.from_indices(9, [1, 5], 0.5)
    assert ablation == Ablation.from_indices(9, [1, 5], [0.0, 0.0])
    assert Ablation.from_indices(9, [1, 5], [0.0, 1.0]) != Ablation.from_indices(9, [1, 5], [1.0, 0.0])
    assert Ablation.from_indices(9, [], 0.5) == Ablation.from_indices(9, [])
    assert ablation != {1, 5}
    assert len({ablation, ablation.to_packed(), ablation.with_factor(0.5)}) == 2


def test_strength() -> None:
    ablation = Ablation.from_indices(9, [1, 5], [0.0, 0.5])
    assert ablation.with_strength(1) is ablation
    assert ablation.with_strength(0).factor == 1.0
    assert ablation.with_strength(0.5).factors.tolist() == [0.5, 0.75]
    assert ablation.with_strength(2).factors.tolist() == [-1.0, 0.0]
    assert Ablation.from_indices(9, [1]).with_strength(0.25).factor == 0.75
    for strength in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="strength must be finite"):
            ablation.with_strength(strength)
    with pytest.raises(TypeError, match="strength must be a number, got str"):
        ablation.with_strength("1")


def test_what_goes_in_and_out_is_copied() -> None:
    indices, factors = torch.tensor([1, 5]), torch.tensor([0.25, 0.5])
    ablation = Ablation.from_indices(9, indices, factors)
    packed = Ablation.from_packed(words := ablation.packed, 9)
    for tensor in (indices, factors, words, ablation.indices, ablation.factor, packed.packed, packed.indices):
        tensor.zero_()
    assert factor_table(ablation) == {1: 0.25, 5: 0.5}
    assert members(packed) == {1, 5}
    with pytest.raises(AttributeError):
        ablation.n = 3
    with pytest.raises(AttributeError):
        ablation.extra = 3


@pytest.mark.parametrize("form", ["indices", "packed", "seed"])
def test_copy_and_pickle(form: str) -> None:
    ablation = Ablation.from_indices(70, [1, 69], [0.25, 0.5])
    forms = {"indices": ablation, "packed": ablation.to_packed(), "seed": Ablation.seeded(70, 0.5, 3)}
    ablation = forms[form]
    for twin in (copy.deepcopy(ablation), pickle.loads(pickle.dumps(ablation))):
        assert twin == ablation and twin.form == form


def test_random_is_bernoulli_and_reproducible() -> None:
    n = 3_000_001  # more than one block
    state = torch.get_rng_state()
    ablation = Ablation.random(n, 0.2, seed=7)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert Ablation.random(n, 0.2, seed=7) == ablation
    assert abs(ablation.fraction - 0.2) < 5 * (0.2 * 0.8 / n) ** 0.5
    other = Ablation.random(n, 0.2, seed=7 + 2**40)
    assert abs((ablation & other).fraction - 0.04) < 5 * (0.04 * 0.96 / n) ** 0.5
    assert Ablation.random(100, 0.2, seed=7, factor=0.5).factor == 0.5
    assert len(Ablation.random(100, 0.0, seed=7)) == 0
    assert len(Ablation.random(100, 1.0, seed=7)) == 100


# Drawn once and written down: scores refer to ablations by their seeds.
RANDOM_40 = [1, 6, 13, 18, 26, 29, 31, 34]
PARTITION_10 = [[3, 7, 8, 9], [4, 5, 6], [0, 1, 2]]


def test_random_is_the_same_everywhere() -> None:
    assert Ablation.random(40, 0.25, seed=3).indices.tolist() == RANDOM_40
    assert [part.indices.tolist() for part in Ablation.balanced_partition(10, 3, seed=3)] == PARTITION_10


@pytest.mark.parametrize(("n", "parts"), [(1, 1), (7, 7), (100, 3), (1001, 8)])
def test_balanced_partition(n: int, parts: int) -> None:
    partition = Ablation.balanced_partition(n, parts, seed=5, factor=0.5)
    assert len(partition) == parts
    assert sorted(i for part in partition for i in part.indices.tolist()) == list(range(n))
    assert max(map(len, partition)) - min(map(len, partition)) <= 1
    assert all(part.factor == 0.5 for part in partition)
    assert partition == Ablation.balanced_partition(n, parts, seed=5, factor=0.5)
    if n > 7:
        assert partition != Ablation.balanced_partition(n, parts, seed=6, factor=0.5)


WORDS = torch.tensor([-1], dtype=torch.int32)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Ablation.from_indices(0, []), ValueError, "n must be at least 1, got 0"),
        (lambda: Ablation.from_indices(3.0, []), TypeError, "n must be an int, got float"),
        (lambda: Ablation.from_indices(9, [1, 9]), ValueError, r"indices must be in \[0, 9\): indices\[1\] is 9"),
        (lambda: Ablation.from_indices(9, [-1, 2]), ValueError, r"indices\[0\] is -1"),
        (lambda: Ablation.from_indices(9, [1, 2, 2]), ValueError, r"at indices\[2\], 2 occurs twice"),
        (lambda: Ablation.from_indices(9, [1, 3, 2]), ValueError, r"at indices\[2\], 2 follows 3"),
        (lambda: Ablation.from_indices(9, [0.5]), TypeError, "indices must be integers, got torch.float32"),
        (lambda: Ablation.from_indices(9, torch.ones(9, dtype=torch.bool)), TypeError, "got torch.bool"),
        (lambda: Ablation.from_indices(9, torch.zeros(1, 1).long()), ValueError, r"one dimension, got shape \(1, 1\)"),
        (lambda: Ablation.from_indices(9, [1], "0"), TypeError, "factor must be a number or numbers, got str"),
        (lambda: Ablation.from_indices(9, [1], None), TypeError, "factor must be a number, got NoneType"),
        (lambda: Ablation.from_indices(9, [1], float("nan")), ValueError, "factor must be finite, got nan"),
        (lambda: Ablation.from_indices(9, [1], [float("inf")]), ValueError, "factor must be finite"),
        (lambda: Ablation.from_indices(9, [1, 2], [0.5]), ValueError, r"factor must be one number or 2, .* got \(1,\)"),
        (
            lambda: Ablation.from_mask(torch.ones(9)),
            TypeError,
            "mask must be a bool tensor, got a torch.float32 tensor",
        ),
        (lambda: Ablation.from_mask([True]), TypeError, "mask must be a bool tensor, got list"),
        (lambda: Ablation.from_mask(torch.ones(3, 3) > 0), ValueError, r"mask must have one dimension, .* \(3, 3\)"),
        (lambda: Ablation.from_packed(WORDS, 33), ValueError, r"words must have shape \(2,\) for n = 33, got \(1,\)"),
        (lambda: Ablation.from_packed(WORDS, 31), ValueError, "words has bits set behind component 30"),
        (lambda: Ablation.from_packed(WORDS.long(), 32), TypeError, "words must be an int32 tensor"),
        (lambda: Ablation.random(9, 1.5, 0), ValueError, r"fraction must be in \[0, 1\], got 1.5"),
        (lambda: Ablation.random(9, float("nan"), 0), ValueError, r"fraction must be in \[0, 1\], got nan"),
        (lambda: Ablation.random(9, 0.5, -1), ValueError, r"seed must be in \[0, 2\*\*64\), got -1"),
        (lambda: Ablation.random(9, 0.5, 0, [0.5]), TypeError, "factor must be a number, got list"),
        (lambda: Ablation.seeded(9, -0.1, 0), ValueError, r"fraction must be in \[0, 1\], got -0.1"),
        (lambda: Ablation.seeded(9, 0.1, 2**64), ValueError, r"seed must be in \[0, 2\*\*64\), got 184"),
        (lambda: Ablation.seeded(9, 0.1, 0, 2**32), ValueError, r"variant must be in \[0, 2\*\*32\), got 4294967296"),
        (lambda: Ablation.seeded(0, 0.1, 0), ValueError, "n must be at least 1"),
        (lambda: Ablation.from_gates([1.0]), TypeError, "gates must be a float tensor, got list"),
        (lambda: Ablation.from_gates(WORDS), TypeError, "gates must be a float tensor, got a torch.int32 tensor"),
        (lambda: Ablation.from_gates(torch.ones(2, 2)), ValueError, "gates must have one dimension"),
        (lambda: Ablation.from_gates(torch.tensor([float("nan")])), ValueError, "factor must be finite"),
        (lambda: Ablation.balanced_partition(9, 10, 0), ValueError, r"parts must be in \[1, 9\], got 10"),
        (lambda: ~Ablation.from_indices(9, [1, 2], [0.1, 0.2]), ValueError, "has no complement"),
        (lambda: Ablation.random(9, 0.5, 0) | Ablation.random(8, 0.5, 0), ValueError, "of 9 and 8 components"),
        (lambda: Ablation.random(9, 0.5, 0) | {1}, TypeError, "unsupported operand"),
        (lambda: "1" in Ablation.random(9, 0.5, 0), TypeError, "cannot be interpreted as an integer"),
    ],
)
def test_errors(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_repr() -> None:
    assert repr(Ablation.from_indices(9, [1, 5])) == "Ablation(n=9, size=2, factor=0.0, form='indices')"
    seeded = Ablation.seeded(9, 0.5, 3, 4)
    assert repr(seeded) == "Ablation(n=9, fraction=0.5, seed=3, variant=4, factor=0.0, form='seed')"
