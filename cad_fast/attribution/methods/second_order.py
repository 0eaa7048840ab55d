"""Gradients of single rows at randomly ablated networks: scores of single weights, and how J bends.

The mathematics is in ``gradients.bending``. This file plans which rows are run at how many networks, and runs them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from tqdm.auto import tqdm

from ...components.ablation import Ablation
from ...components.space import ComponentSpace
from ...diffusion.context import only_gradients_of
from ...objectives import Objective
from ...recording.call import DenoiserCall
from ...recording.data import Recording
from ..curvature import Curvature
from ..gradients.bending import BendingSums, MovedWeights, Networks
from ..gradients.per_row import row_gradients
from ..measuring.passes import gather
from ..measuring.plans import Pass
from ..measuring.reached import require_differentiable, require_reached, silent_modules
from ..memory import require_room
from ..regression.draws import Drawn, parts_of
from ..store import RunState
from .base import Estimate, Estimator, Problem

FEWEST_NETWORKS = 3
# Networks beyond those that every row gets are shared out by J to this power: on three concepts of the embedded model
# 1.5 did better than 1 and 2.
POWER_OF_J = 1.5
# Ablations that show where J bends come from seeds that no other draw uses.
_LOOKING_SEED = 1 << 41
# No row gets more than so many times the mean number of networks.
MOST_OF_MEAN = 5


@dataclass(frozen=True)
class SecondOrder(Estimator):
    """Gradients of single rows at randomly ablated networks; see ``second_order_scores``.

    Args:
        fraction: The share of the weights that an ablation removes.
        networks: How many ablated networks a row is run at, in the mean, at least 3.
        directions: How many directions of curvature are kept.
        share: Of how many of the weights, those along which J bends most. Directions take ``directions + 8`` bytes of
            each of these, so that with the defaults they take 3.7 times as much as the scores.
        seed: Draws other ablations.
    """

    name = "second_order"
    rows_per_pass = 32
    fraction: float = 0.05
    networks: int = 20
    directions: int = 128
    share: float = 0.11
    seed: int = 0

    def run(self, problem: Problem) -> Estimate:
        denoiser, recording, objective, space = problem.arguments()
        scores = second_order_scores(denoiser, recording, objective, space, **self.config(), **problem.keywords())
        each = scores.plan.networks
        facts = {
            "rows": scores.plan.rows + scores.looked.rows,
            "networks": [min(each), max(each)],
            "stretch": scores.stretch,
            "curvature_bytes": scores.curvature.nbytes,
        }
        return Estimate(scores.values, None, facts, _cost(scores.plan, scores.looked), scores.curvature)

    def cost(self, problem: Problem) -> dict[str, int]:
        what = problem.recording, problem.objective
        plan = NetworksPlan.of(*what, self.networks, problem.rows_per_pass)
        return _cost(plan, NetworksPlan.looking(*what, problem.rows_per_pass))


@dataclass(frozen=True)
class NetworksPlan:
    """Which rows are run at how many ablated networks, and in which passes.

    Args:
        places: (call, row) of every row that is run, picture by picture.
        networks: Per place, at how many networks.
        passes: (number of the place, number of its network) of every row of a pass, place by place.
    """

    places: list[tuple[int, int]]
    networks: list[int]
    passes: list[list[tuple[int, int]]]

    @property
    def rows(self) -> int:
        """Rows through the denoiser, forward."""
        return sum(self.networks)

    @classmethod
    def of(cls, recording: Recording, objective: Objective, mean: int, rows_per_pass: int) -> NetworksPlan:
        """Plan ``mean`` networks per row: a fifth as many for each, and the rest shared out by J of the row's call.

        Raises:
            ValueError: ``mean`` or ``rows_per_pass`` is too small, the objective moves both branches, or the recording
                lacks what it needs.
        """
        if mean < FEWEST_NETWORKS:
            raise ValueError(f"networks is {mean}, expected at least {FEWEST_NETWORKS}")
        if rows_per_pass < 1:
            raise ValueError(f"rows_per_pass is {rows_per_pass}, expected at least 1")
        if objective.both_branches:
            raise ValueError(f"second_order: {objective.name} moves both branches; use method='ablated_gradient'")
        objective.check(recording)
        calls = [number for number, call in enumerate(recording.calls) if objective.active(call)]
        places = [(number, row) for row in range(recording.n_rows) for number in calls]
        size_of = {number: _size(recording.calls[number], objective) for number in calls}
        sizes = [size_of[number] for number, _ in places]
        least = max(FEWEST_NETWORKS, mean // 5)
        total = sum(sizes) or 1.0
        shared = (mean - least) * len(places)
        networks = [min(MOST_OF_MEAN * mean, least + int(shared * size / total)) for size in sizes]
        pairs = [(place, network) for place, count in enumerate(networks) for network in range(count)]
        return cls(places, networks, [pairs[at : at + rows_per_pass] for at in range(0, len(pairs), rows_per_pass)])

    @classmethod
    def looking(cls, recording: Recording, objective: Objective, rows_per_pass: int) -> NetworksPlan:
        """Plan the fewest networks for every row, those of a row in one pass, to see along which weights J bends."""
        whole = max(FEWEST_NETWORKS, rows_per_pass - rows_per_pass % FEWEST_NETWORKS)
        return cls.of(recording, objective, FEWEST_NETWORKS, whole)

    def ablations(self, row: int, n: int, fraction: float, seed: int) -> list[Ablation]:
        """Draw the ablations of n weights that a picture's rows are run under. Every picture has others."""
        most = max(self.networks)
        partitions = -(-most // parts_of(fraction, n))
        return list(Drawn("partitions", n, fraction, seed + row * partitions, most))

    def of_place(self, place: int) -> tuple[int, int]:
        """Return how many networks a place has, and the row that it is of."""
        return self.networks[place], self.places[place][1]

    def pieces(self, pairs: Sequence[tuple[int, int]]) -> Pass:
        """Return the rows of a pass as ``gather`` takes them."""
        pieces = []
        for at, end in stretches(pairs):
            call, row = self.places[pairs[at][0]]
            pieces.append((call, [row] * (end - at)))
        return pieces


def _size(call: DenoiserCall, objective: Objective) -> float:
    """How many networks the rows of a call need, relative to those of others."""
    if call.output is None:
        return 1.0
    return float(objective(call.output, call).double().abs().mean()) ** POWER_OF_J


def stretches(pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return where the pairs of one place begin and end, place by place."""
    starts = [at for at, (place, _) in enumerate(pairs) if at == 0 or pairs[at - 1][0] != place]
    return list(zip(starts, [*starts[1:], len(pairs)], strict=True))


def _cost(*plans: NetworksPlan) -> dict[str, int]:
    passes = sum(len(plan.passes) for plan in plans)
    return {"forward": passes, "backward": passes}


@dataclass(frozen=True)
class SecondOrderScores:
    """Scores and curvature from single rows.

    Args:
        values: float32 [n], the mean gradients.
        curvature: How J bends.
        stretch: By what the curvature was multiplied to fit J of the passes.
        plan: Which passes these were.
        looked: Which passes saw along which weights J bends.
    """

    values: Tensor
    curvature: Curvature
    stretch: float
    plan: NetworksPlan
    looked: NetworksPlan


def second_order_scores(
    denoiser: nn.Module,
    recording: Recording,
    objective: Objective,
    space: ComponentSpace,
    *,
    fraction: float = SecondOrder.fraction,
    networks: int = SecondOrder.networks,
    directions: int = SecondOrder.directions,
    share: float = SecondOrder.share,
    seed: int = SecondOrder.seed,
    rows_per_pass: int = SecondOrder.rows_per_pass,
    state: RunState | None = None,
    progress: bool = True,
) -> SecondOrderScores:
    """Score single weights, with directions of curvature, from ablated networks per row.

    Cost: forward and backward passes of at most ``networks`` times the recording's rows, and of 3 times these rows
    before, to see along which weights J bends. Memory: see ``memory_needed``.

    Args:
        denoiser: The module whose weights are scored.
        recording: Calls of this denoiser.
        objective: J.
        space: The weights.
        fraction: The share of the weights that an ablation removes.
        networks: How many ablated networks a row is run at, in the mean.
        directions: How many directions of curvature are kept.
        share: Of how many of the weights, those along which J bends most.
        seed: Draws other ablations.
        rows_per_pass: How many rows go through the denoiser at once, at most.
        state: Where the sums are kept. None for nowhere.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: The space is of another kind, the objective moves both branches, an option is out of range, or
            there is too little memory. The message says how much is needed, and what needs less.
    """
    if space.kind != "weight":
        raise ValueError(f"second_order is for kind 'weight', not {space.kind!r}: use method='ablated_gradient'")
    if directions < 1:
        raise ValueError(f"directions is {directions}, expected at least 1")
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}, expected more than 0 and at most 1")
    modules = space.modules(denoiser)
    require_differentiable(modules)
    plan = NetworksPlan.of(recording, objective, networks, rows_per_pass)
    looked = NetworksPlan.looking(recording, objective, rows_per_pass)
    parts = parts_of(fraction, space.n)
    like = next(iter(modules.values())).weight
    require_room(memory_needed(space, plan, fraction, directions, share), like.device, space)
    drawn: dict[int, Sequence[Ablation]] = {}
    networks_of: dict[int, Networks] = {}
    state = state or RunState(None, {}, resume=False)
    columns = state.sums.get("columns")
    if columns is None:
        columns = _bending_weights(denoiser, recording, objective, space, looked, fraction, share, seed, progress)
    sums = BendingSums(space, 1 / parts, directions, columns, like, state.sums)
    state.update(state.done, sums.tensors())
    bar = tqdm(total=len(plan.passes), initial=state.done, desc="second order", unit="pass", disable=not progress)
    with bar, only_gradients_of(denoiser, []):
        for number in range(state.done, len(plan.passes)):
            pairs = plan.passes[number]
            pictures = {plan.places[place][1] for place, _ in pairs}
            drawn = {row: drawn.get(row) or plan.ablations(row, space.n, fraction, seed) for row in pictures}
            networks_of = {
                row: networks_of.get(row) or Networks(space, columns.cpu(), ablations)
                for row, ablations in drawn.items()
            }
            group = [drawn[plan.places[place][1]][which] for place, which in pairs]
            call = gather(recording, plan.pieces(pairs))
            own = [(at, end, *plan.of_place(pairs[at][0])) for at, end in stretches(pairs)]
            sums.begin([(at, end, count, networks_of[row]) for at, end, count, row in own])
            of_rows = row_gradients(denoiser, objective, space, call, group, sums.take)
            for at, end, count, row in own:
                sums.add(at, end, count, *of_rows)
                if pairs[end - 1][1] == count - 1:
                    sums.close(networks_of[row])
            state.update(number + 1, sums.tensors())
            bar.update()
        silent = {name: modules[name] for name in silent_modules(space, sums.alpha)}
        if silent:
            require_reached(denoiser, gather(recording, plan.pieces(plan.passes[0])), silent)
    values, curvature, stretch = sums.result(len(plan.places))
    return SecondOrderScores(values, curvature, stretch, plan, looked)


def _bending_weights(
    denoiser: nn.Module,
    recording: Recording,
    objective: Objective,
    space: ComponentSpace,
    plan: NetworksPlan,
    fraction: float,
    share: float,
    seed: int,
    progress: bool,
) -> Tensor:
    """Which weights J bends along most, int64, ascending: a share of all."""
    moved = MovedWeights(space.n, next(iter(space.modules(denoiser).values())).weight)
    bar = tqdm(plan.passes, desc="where J bends", unit="pass", disable=not progress)
    with only_gradients_of(denoiser, []):
        for pairs in bar:
            pictures = {plan.places[place][1] for place, _ in pairs}
            drawn = {row: plan.ablations(row, space.n, fraction, _LOOKING_SEED + seed) for row in pictures}
            group = [drawn[plan.places[place][1]][which] for place, which in pairs]
            moved.begin(stretches(pairs))
            row_gradients(denoiser, objective, space, gather(recording, plan.pieces(pairs)), group, moved.take)
    return moved.most(max(1, round(share * space.n)))


def memory_needed(space: ComponentSpace, plan: NetworksPlan, fraction: float, directions: int, share: float) -> int:
    """Return how many bytes the sums take at their largest, beside the denoiser and its activations.

    These are two numbers per weight; of the weights that directions are kept of the directions while a row's are added
    and they are thinned out, the gradients of the row with the most networks, and those of a pass; those of a pass of
    the largest module, twice; and which weights the networks of a picture remove.
    """
    columns = max(1, round(share * space.n))
    most, variants = max(plan.networks), max(map(len, plan.passes))
    largest = max(entry.count for entry in space)
    buffers = round(1.25 * directions) + max(2 * most, directions + most) + most + variants
    removed = most * (4 * round(fraction * space.n) + space.n // 8)  # as numbers, and as bits
    return 4 * (2 * space.n + buffers * columns + 2 * variants * largest) + removed
