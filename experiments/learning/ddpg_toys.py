"""Toy pruning problems on the real environment whose optimum is known, for proofs of learning.

Both are walked through `PruningEnv` over networks that `dissect` traced; only the evaluation is a table.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor, nn

from agents.searcher import Plan, Searcher, Trajectory, keyed_generator
from amc.search.loop import play
from amc.search.rollout import Outcome, Rollout, Round
from envs.parallel import single_threaded
from envs.reward import Evaluation, accuracy
from envs.space.assignment import Assignment
from envs.space.constraint import Budget, Constraint, Costing
from envs.space.policy import LayerPolicy, Policy, UnitPolicy
from envs.space.rules import Rules
from envs.units.anatomy import Anatomy, dissect
from envs.units.slicing import slice_network
from hw_profiles.cost import Macs
from hw_profiles.layers import IntArray

FloatArray = NDArray[np.float64]
WIDTHS, STRIDES = (6, 8, 8, 8, 8, 10), (1, 1, 2, 1, 1, 2)


@dataclass(frozen=True, eq=False, kw_only=True)
class Toy:
    """A pruning task whose best policy is known.

    Attributes:
        constraint: Sites and the budget on MACs.
        rewards: [K, S] kept channels -> [K] rewards without noise.
        optimum: [S] the best kept channels within the budget.
        start: [S] a solution of a misjudged knapsack, 2-5 % worse; None where there is none.
        anatomy: The traced network.
    """

    constraint: Constraint
    rewards: Callable[[IntArray], FloatArray]
    optimum: IntArray
    anatomy: Anatomy
    start: IntArray | None = None

    def reward(self, kept: IntArray) -> float:
        """The reward of one [S] assignment."""
        return float(self.rewards(kept[None, :])[0])

    @property
    def steps(self) -> int:
        """S, the steps of an episode."""
        return len(self.constraint.costing.sites)

    @property
    def shares(self) -> list[float]:
        """[S] fall of the cost per unit of each action, at the dense network."""
        costing, light = self.constraint.costing, self.constraint.costing.lightest()
        rows = np.repeat(costing.dense()[None, :], self.steps, axis=0)
        np.fill_diagonal(rows, light)
        fall = costing.one(Macs(), costing.dense()) - costing.many(Macs(), rows)
        shares: list[float] = (fall / (1 - light / costing.dense())).tolist()
        return shares

    @property
    def starts(self) -> list[tuple[str, list[float]]]:
        """The start as a searcher takes it."""
        return [] if self.start is None else [("start", (self.start / self.constraint.costing.dense()).tolist())]

    def random_median(self) -> float:
        """Median reward of 200 random policies."""
        draw = np.random.default_rng(0)
        kept = [self.constraint.project(draw.random(self.steps).tolist()) for _ in range(200)]
        return float(np.median(self.rewards(np.array(kept))))

    def rollout(self, noise: float = 0.0, seed: int = 0) -> Rollout:
        """The environment that a search plays; rewards carry keyed normal noise of that deviation."""
        return Rollout(self.constraint, _Noisy(self, noise, seed), accuracy)

    def search(
        self, searcher: Searcher, episodes: int, noise: float = 0.0, seed: int = 0, round_size: int = 4
    ) -> tuple[FloatArray, FloatArray]:
        """Plays [N] episodes; returns their rewards without noise, and as the searcher was told them."""
        rollout = self.rollout(noise, seed)
        round_ = Round(known={})
        true, told = np.zeros(0), np.zeros(0)
        while len(told) < episodes:
            plans = searcher.propose(min(round_size, episodes - len(told)))
            finished = [play(rollout, round_, plan) for plan in plans]
            searcher.tell([_trajectory(plan, outcome) for plan, outcome in zip(plans, finished, strict=True)])
            true = np.append(true, self.rewards(np.array([outcome.assignment.key for outcome in finished])))
            told = np.append(told, [outcome.reward for outcome in finished])
        return true, told


class _Noisy:
    """Looks a toy's reward up and adds noise, keyed by the number of the evaluation."""

    def __init__(self, toy: Toy, noise: float, seed: int) -> None:
        self._toy, self._noise, self._seed, self._count = toy, noise, seed, itertools.count()

    def __call__(self, assignment: Assignment) -> Evaluation:
        reward = self._toy.reward(assignment.values)
        reward += self._noise * keyed_generator(self._seed, "reward noise", next(self._count)).normal()
        return Evaluation(metric=reward, loss=None, images=1, image_forwards=1)

    def policy(self, assignment: Assignment) -> Policy:
        """Keeps the first channels of every unit."""
        kept = assignment.decisions.kept
        units = [
            UnitPolicy(unit=unit, indices=tuple(range(kept.get(unit.name, unit.channels))))
            for unit in self._toy.anatomy.units
        ]
        return Policy(structure="toy", weights="toy", units=tuple(units), layers=(LayerPolicy(name="toy"),))

    def against(self, bar: Evaluation | None) -> _Noisy:
        """Itself: a look-up spares nothing."""
        return self


def _trajectory(plan: Plan, outcome: Outcome) -> Trajectory:
    return Trajectory(
        observations=outcome.observations, actions=outcome.actions, reward=outcome.reward, label=plan.label
    )


def confirmed(true: FloatArray, told: FloatArray, candidates: int = 5) -> float:
    """The true reward of the best of those that looked best, as a search confirms its winner."""
    return float(true[np.argsort(-told, kind="stable")[:candidates]].max())


@cache
def measured_toy(fraction: float = 0.5) -> Toy:
    """Six convolutions trained on digits; the reward is 1 - the relative output error after plain slicing.

    All 245,760 assignments are measured on 32 images: prefixes are shared, so that it takes seconds.
    """
    single_threaded()
    network, inputs = _trained_chain()
    anatomy = dissect(network, inputs[:1])
    costing = Costing(anatomy.family, tuple(Rules().sites(anatomy.units)[0]))
    constraint = Constraint.create(costing, [Budget(Macs(), fraction * costing.one(Macs(), costing.dense()))])
    with torch.no_grad():
        dense = network(inputs)
        table = _measure(network, inputs, dense, level=0).reshape(WIDTHS).double().numpy()

    def rewards(kept: IntArray) -> FloatArray:
        values: FloatArray = table[tuple((np.asarray(kept) - 1).T)]
        return values

    grid = np.stack(np.meshgrid(*[site.values() for site in costing.sites], indexing="ij"), axis=-1)
    every = grid.reshape(-1, len(WIDTHS))
    legal = every[np.concatenate([constraint.keeps(part) for part in np.array_split(every, 32)])]
    optimum = legal[int(rewards(legal).argmax())]
    toy = Toy(constraint=constraint, rewards=rewards, optimum=optimum, anatomy=anatomy)
    small = slice_network(network, anatomy.units, _first(toy, optimum))
    with torch.no_grad():
        assert abs(float(_fidelity(small(inputs), dense)) - toy.reward(optimum)) < 1e-4, "the table is not the network"
    return toy


@cache
def separable_toy(blocks: tuple[int, ...] = (6, 6, 6), fraction: float = 0.5) -> Toy:
    """Inner channels of residual blocks; damage is a sum of convex curves, the optimum a knapsack's."""
    single_threaded()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = _residual_network(blocks, channels=(8, 12, 16))
        example = torch.zeros(1, 3, 8, 8)
    anatomy = dissect(network, example)
    skipped = tuple(unit.name for unit in anatomy.units if not unit.name.endswith("first.0"))
    costing = Costing(anatomy.family, tuple(Rules(skip=skipped).sites(anatomy.units)[0]))
    constraint = Constraint.create(costing, [Budget(Macs(), fraction * costing.one(Macs(), costing.dense()))])
    draw = np.random.default_rng(100)
    steps = len(costing.sites)
    channels = costing.dense()
    gains, powers = np.exp(draw.normal(0, 1, steps)), draw.uniform(1.5, 4, steps)
    gains /= gains.sum()

    def knapsack(gains: FloatArray) -> IntArray:
        curves = zip(costing.sites, gains, powers, strict=True)
        return _knapsack(constraint, [gain * (1 - site.values() / site.size) ** power for site, gain, power in curves])

    def rewards(kept: IntArray) -> FloatArray:
        values: FloatArray = 1 - ((1 - np.asarray(kept) / channels) ** powers * gains).sum(axis=1)
        return values

    toy = Toy(constraint=constraint, rewards=rewards, optimum=knapsack(gains), anatomy=anatomy)
    best = toy.reward(toy.optimum)
    while True:  # misjudge the gains until the knapsack is 2-5 % worse
        start = knapsack(gains * np.exp(draw.normal(0, 0.8, steps)))
        if 0.02 <= 1 - toy.reward(start) / best <= 0.05:
            return Toy(constraint=constraint, rewards=rewards, optimum=toy.optimum, anatomy=anatomy, start=start)


def _knapsack(constraint: Constraint, damages: Sequence[FloatArray]) -> IntArray:
    """[S] kept channels of least summed damage, by dynamic programming over a separable cost."""
    costing, limit = constraint.costing, constraint.budgets[0].limit
    light = costing.lightest()
    base = costing.one(Macs(), light)
    extras = []
    for step, site in enumerate(costing.sites):
        rows = np.repeat(light[None, :], len(site.choices), axis=0)
        rows[:, step] = site.values()
        extras.append(np.rint(costing.many(Macs(), rows) - base).astype(np.int64))
    grain = int(np.gcd.reduce(np.concatenate(extras)))
    room = int((limit - base) // grain)
    least = np.zeros(room + 1)
    chosen = []
    for extra, damage in zip(extras, damages, strict=True):
        ways = np.full((len(extra), room + 1), np.inf)
        for way, used in enumerate(extra // grain):
            ways[way, used:] = least[: max(room + 1 - used, 0)] + damage[way]
        chosen.append(ways.argmin(axis=0))
        least = ways.min(axis=0)
    kept = light.copy()
    for step in reversed(range(len(extras))):
        way = int(chosen[step][room])
        kept[step] = costing.sites[step].values()[way]
        room -= int(extras[step][way]) // grain
    assert constraint.keeps(kept).all()
    return kept


def _conv_norm(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs))


class _Block(nn.Module):
    """A residual block whose inner channels are free."""

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = _conv_norm(inputs, inner, stride), _conv_norm(inner, outputs)
        self.shortcut = nn.Identity() if inputs == outputs else _conv_norm(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x))) + self.shortcut(x))


def _residual_network(blocks: tuple[int, ...], channels: tuple[int, ...]) -> nn.Module:
    layers: list[nn.Module] = [_conv_norm(3, channels[0]), nn.ReLU()]
    width = channels[0]
    for stage, (count, outputs) in enumerate(zip(blocks, channels, strict=True)):
        for block in range(count):
            layers.append(_Block(width, 16, outputs, 2 if stage and not block else 1))
            width = outputs
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5)
    return nn.Sequential(*layers, *head).eval()


def _trained_chain() -> tuple[nn.Sequential, Tensor]:
    """A small network trained with random widths, so that slicing off its last channels is survivable."""
    images, classes = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16 - 0.5).float().reshape(-1, 1, 8, 8), torch.tensor(classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for inputs, outputs, stride in zip((1, *WIDTHS), WIDTHS, STRIDES, strict=False):
            layers += [_conv_norm(inputs, outputs, stride), nn.ReLU()]
        network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTHS[-1], 10))
        optimizer = torch.optim.Adam(network.parameters(), 1e-2)
        for batch in [part for _ in range(20) for part in torch.tensor_split(torch.randperm(1500), 15)]:
            values = x[batch]
            for level, width in enumerate(WIDTHS):
                kept = (torch.arange(width) <= torch.randint(width, ())).float()
                values = network[2 * level : 2 * level + 2](values) * kept[:, None, None]
            loss = F.cross_entropy(network[2 * len(WIDTHS) :](values), y[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own
            optimizer.step()
    return network.eval(), x[1500:1532]


def _measure(network: nn.Sequential, values: Tensor, dense: Tensor, level: int) -> Tensor:
    """Fidelity of every width from ``level`` on, given the values of several prefixes: flat, in width order."""
    images = len(dense)
    if level == len(WIDTHS):
        return _fidelity(network[2 * level :](values).reshape(-1, images, 10), dense)
    outputs = network[2 * level : 2 * level + 2](values).unflatten(0, (-1, images))
    kept = torch.ones(WIDTHS[level], WIDTHS[level]).tril()[:, None, :, None, None]
    variants = (outputs[:, None] * kept).flatten(0, 2)
    parts = torch.tensor_split(variants, max(1, len(variants) // (256 * images)))
    return torch.cat([_measure(network, part, dense, level + 1) for part in parts])


def _fidelity(outputs: Tensor, dense: Tensor) -> Tensor:
    """1 - squared error of [..., B, K] class scores, centred, relative to the dense ones' variance."""
    return 1 - (outputs - dense).var(dim=-1).mean(dim=-1) / dense.var(dim=-1).mean()


def _first(toy: Toy, kept: IntArray) -> dict[str, range]:
    return {site.name: range(int(count)) for site, count in zip(toy.constraint.costing.sites, kept, strict=True)}
