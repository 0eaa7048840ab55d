"""Scores and how J bends besides, from gradients of single rows at randomly ablated networks.

Under a random ablation the denoiser's output moves by d from its mean o, and J, a squared distance, by
c . d + d^T A d / 2. Scores predict the first part. The second is what they leave unexplained, the more so the fewer
rows J is concerned with: it varies from ablation to ablation, and no sum over components says how.

Every recorded row is run forward and backward at some networks under random ablations. What their outputs o_j have in
common with d is told by their gradients: dJ/do at o_j is c + A (o_j - o), so that the differences of the gradients
predict q_j = d^T A (o_j - o) for any ablation. With M_jk = (o_j - o)^T A (o_k - o), the part of d in their span gives

    d^T A d / 2  ~  q^T (M + ridge)^-1 M (M + ridge)^-1 q / 2

(Nystroem's approximation of the curvature). A single row moves in few directions, which is why rows are kept apart, and
rows of large J, whose J varies most, are run at more networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ...components.ablation import Ablation
from ...components.space import ComponentSpace
from ...diffusion.context import only_gradients_of
from ...objectives import Objective
from ...recording.call import DenoiserCall
from ...recording.data import Recording
from ..curvature import Curvature, strongest
from ..measuring.passes import gather
from ..regression.draws import Drawn, parts_of
from ..store import RunState
from .row_gradients import row_gradients

# Directions whose size is below the mean count less: they are mostly noise of the gradients.
RIDGE = 0.3
FEWEST_NETWORKS = 3
# Networks beyond those that every row gets are shared out by J to this power: on three concepts of the embedded model
# 1.5 did better than 1 and 2.
POWER_OF_J = 1.5
# No row gets more than so many times the mean number of networks.
MOST_OF_MEAN = 5
# How much further J bends than the found directions say, as J of the passes shows it: kept within these.
STRETCH = (0.0, 3.0)
# Directions are thinned out when there are so many times more than are to be kept.
_THIN_AT = 3


@dataclass(frozen=True)
class SecondOrderPlan:
    """Which rows are run at how many networks: ``places`` (call, row), how many ``networks`` each has, and the passes.

    Places go picture by picture. ``passes`` hold (number of the place, of its network), place by place.
    """

    places: list[tuple[int, int]]
    networks: list[int]
    passes: list[list[tuple[int, int]]]

    @property
    def rows(self) -> int:
        """Rows through the denoiser, forward."""
        return sum(self.networks)

    @classmethod
    def of(cls, recording: Recording, objective: Objective, mean: int, rows_per_pass: int) -> SecondOrderPlan:
        """``mean`` networks per row: a fifth as many for each, and the rest shared out by J of the row's call.

        Raises ValueError when mean or rows_per_pass is too small, or the recording lacks what the objective needs.
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


def _size(call: DenoiserCall, objective: Objective) -> float:
    """How many networks the rows of a call need, relative to those of others."""
    if call.output is None:
        return 1.0
    return float(objective(call.output, call).double().abs().mean()) ** POWER_OF_J


@dataclass(frozen=True)
class SecondOrder:
    """``values`` float32 [n], the mean gradients; the curvature; its stretch, to fit the passes; which these were."""

    values: Tensor
    curvature: Curvature
    stretch: float
    plan: SecondOrderPlan


def second_order_scores(
    denoiser: nn.Module,
    recording: Recording,
    objective: Objective,
    space: ComponentSpace,
    *,
    fraction: float = 0.05,
    networks: int = 20,
    directions: int = 128,
    seed: int = 0,
    rows_per_pass: int = 32,
    state: RunState | None = None,
    progress: bool = True,
) -> SecondOrder:
    """Scores of single weights and ``directions`` of curvature, from ``networks`` ablated networks per row on average.

    Cost: forward and backward passes of at most ``networks`` times the recording's rows. Memory: the gradients of one
    row's networks, and up to three times the directions, float32 [n] each.
    Raises ValueError for other kinds than weights, objectives that move both branches, or options out of range.
    """
    if space.kind != "weight":
        raise ValueError(f"second_order is for kind 'weight', not {space.kind!r}: use method='ablated_gradient'")
    if directions < 1:
        raise ValueError(f"directions is {directions}, expected at least 1")
    plan = SecondOrderPlan.of(recording, objective, networks, rows_per_pass)
    parts = parts_of(fraction, space.n)
    drawn: dict[int, Sequence[Ablation]] = {}
    state = state or RunState(None, {}, resume=False)
    sums = _RowSums(space.n, 1 / parts, directions, next(iter(space.modules(denoiser).values())).weight, state.sums)
    bar = tqdm(total=len(plan.passes), initial=state.done, desc="second order", unit="pass", disable=not progress)
    with bar, only_gradients_of(denoiser, []):
        for number in range(state.done, len(plan.passes)):
            pairs = plan.passes[number]
            pictures = {plan.places[place][1] for place, _ in pairs}
            drawn = {row: drawn.get(row) or networks_of(plan, row, space.n, fraction, seed) for row in pictures}
            group = [drawn[plan.places[place][1]][which] for place, which in pairs]
            call = gather(recording, _pieces(plan, pairs))
            found = row_gradients(denoiser, objective, space, call, group)
            for at, end in _runs(pairs):
                place, last = pairs[end - 1]
                sums.add(*(part[at:end] for part in found))
                if last == plan.networks[place] - 1:
                    sums.close(drawn[plan.places[place][1]][: last + 1])
            state.update(number + 1, sums.tensors())
            bar.update()
    return sums.result(plan)


def networks_of(plan: SecondOrderPlan, row: int, n: int, fraction: float, seed: int) -> list[Ablation]:
    """The ablations that the rows of a picture are run under, the first so many of them; every picture has others."""
    most = max(plan.networks)
    partitions = -(-most // parts_of(fraction, n))
    return list(Drawn("partitions", n, fraction, seed + row * partitions, most))


def _runs(pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Where the pairs of one place begin and end, place by place."""
    starts = [at for at, (place, _) in enumerate(pairs) if at == 0 or pairs[at - 1][0] != place]
    return list(zip(starts, [*starts[1:], len(pairs)], strict=True))


def _pieces(plan: SecondOrderPlan, pairs: Sequence[tuple[int, int]]) -> list[tuple[int, list[int]]]:
    pieces = []
    for at, end in _runs(pairs):
        call, row = plan.places[pairs[at][0]]
        pieces.append((call, [row] * (end - at)))
    return pieces


class _RowSums:
    """What is known after so many passes: of finished rows, and of the row at hand.

    Tensors float32: ``alpha`` [n]; ``calibration`` [2], the covariance of predicted with measured bending and the
    variance of the predicted; ``found``, a list of directions [k, n], with ``signs``, a list of [k]; ``of_row``, the
    gradients [m, n], outputs and cotangents [m, elements] and J [m] of the row at hand, in parts, per pass.
    """

    OF_ROW = ("gradients", "outputs", "cotangents", "j")

    def __init__(self, n: int, fraction: float, keep: int, like: Tensor, before: dict[str, Tensor]) -> None:
        self.fraction, self.keep = fraction, keep
        before = {name: tensor.to(like.device) for name, tensor in before.items()}
        self.alpha = before.get("alpha", torch.zeros(n, device=like.device))
        self.calibration = before.get("calibration", torch.zeros(2, device=like.device))
        self.found = _listed(before, "found")
        self.signs = _listed(before, "signs")
        self.of_row = {name: _listed(before, name) for name in self.OF_ROW}

    def tensors(self) -> dict[str, Tensor]:
        """All of it, for ``RunState``."""
        lists = {"found": self.found, "signs": self.signs, **self.of_row}
        named = {f"{name} {number}": part for name, parts in lists.items() for number, part in enumerate(parts)}
        return {"alpha": self.alpha, "calibration": self.calibration, **named}

    def add(self, *found: Tensor) -> None:
        """Gradients, outputs, cotangents and J of further networks of the row at hand."""
        for name, part in zip(self.OF_ROW, found, strict=True):
            self.of_row[name].append(part.clone())

    def close(self, networks: Sequence[Ablation]) -> None:
        """The row at hand has seen these networks, all of its own."""
        gradients, outputs, cotangents, j = (torch.cat(self.of_row[name]) for name in self.OF_ROW)
        mean = gradients.mean(0)
        self.alpha += mean
        gradients -= mean
        self.calibration += self._calibration(networks, gradients, mean, outputs, cotangents, j)
        vectors, weights = bending(outputs, cotangents)
        self.found.append((weights.abs().sqrt()[:, None] * vectors.T) @ gradients)
        self.signs.append(weights.sign())
        self.of_row = {name: [] for name in self.OF_ROW}
        if sum(map(len, self.signs)) > _THIN_AT * self.keep:
            directions, weights = self._strongest()
            self.found, self.signs = [weights.abs().sqrt()[:, None] * directions], [weights.sign()]

    def _strongest(self) -> tuple[Tensor, Tensor]:
        return strongest(torch.cat(self.found), torch.cat(self.signs), self.keep)

    def _calibration(
        self,
        networks: Sequence[Ablation],
        gradients: Tensor,
        mean: Tensor,
        outputs: Tensor,
        cotangents: Tensor,
        j: Tensor,
    ) -> Tensor:
        """What the others' gradients leave of every network's J, on how they say it bends: covariance and variance.

        ``gradients`` [m, n] are less their ``mean`` [n].
        """
        removed = torch.stack([own.mask for own in networks]).to(gradients.device).float()
        along = gradients @ removed.T - self.fraction * gradients.sum(1, keepdim=True)
        shared = removed @ mean - self.fraction * mean.sum()
        predicted, measured = [], []
        for number in range(len(j)):
            others = torch.arange(len(j), device=j.device) != number
            vectors, weights = bending(outputs[others], cotangents[others])
            own = along[others, number]
            predicted.append((weights * (vectors.T @ (own - own.mean())).square()).sum())
            measured.append(j[number] - j[others].mean() + own.mean() + shared[number])
        of_predicted, of_measured = torch.stack(predicted), torch.stack(measured)
        of_predicted, of_measured = of_predicted - of_predicted.mean(), of_measured - of_measured.mean()
        return torch.stack([of_predicted @ of_measured, of_predicted @ of_predicted])

    def result(self, plan: SecondOrderPlan) -> SecondOrder:
        """What the rows say, all of them finished."""
        rows = len(plan.places)
        covariance, variance = self.calibration.double().tolist()
        low, high = STRETCH
        stretch = min(high, max(low, covariance / variance)) if variance > 0 else low
        directions, weights = self._strongest()
        curvature = Curvature.of(directions, weights * stretch / rows, self.fraction)
        return SecondOrder((self.alpha / rows).cpu(), curvature, stretch, plan)


def _listed(tensors: dict[str, Tensor], name: str) -> list[Tensor]:
    """What was saved as "name 0", "name 1" and on."""
    count = sum(key.rpartition(" ")[0] == name for key in tensors)
    return [tensors[f"{name} {number}"] for number in range(count)]


def bending(outputs: Tensor, cotangents: Tensor) -> tuple[Tensor, Tensor]:
    """(vectors [m, m], weights [m]) such that J of a row bends by sum_k weights_k (vectors_k^T q)^2.

    ``outputs`` and ``cotangents`` dJ / d(output), float32 [m, elements], of one row at m networks; q [m] is what the
    gradients there, less their mean, predict for an ablation, less their own mean. Nothing bends where J is linear in
    the output: the weights are 0.
    """
    moved, turned = (outputs - outputs.mean(0)).double(), (cotangents - cotangents.mean(0)).double()
    products = moved @ turned.T
    sizes, vectors = torch.linalg.eigh((products + products.T) / 2)
    mean = sizes.abs().mean()
    weights = torch.zeros_like(sizes) if float(mean) == 0 else sizes / (2 * (sizes.abs() + RIDGE * mean).square())
    return vectors.float(), weights.float()
