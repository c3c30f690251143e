"""Which problem every episode is: always the same one, or one of a range of budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from agents.searcher import FixedPlan, Plan, Searcher
from amc.pool.pool import Pool
from amc.problem.bounds import Ends
from amc.problem.prepare import Prepared
from amc.search.episode import Episode, Line
from amc.search.ranges.baseline import Baseline
from amc.search.ranges.budgets import GRID, BudgetRange
from amc.search.ranges.environment import answer_of
from amc.search.ranges.guides import KNAPSACK, Guide, Guides
from amc.search.ranges.pose import Pose, Posed
from amc.search.ranges.surrogate import Surrogate, learned_by
from amc.search.starts import guides_of, middle_of
from amc.search.tools import Tools
from envs.space.assignment import Key

OWN = 8
"""Of so many episodes after the warm-up one is the agent's own; the others are what the surrogate expects most of."""
DARING = 0.0, 1.0
"""How many standard deviations better than expected an assignment may be, in turn: finding out what it is like pays."""
SURROGATE = "surrogate"


class Course(Protocol):
    """The problems of a search's episodes."""

    def next(self, played: int, wanted: int) -> int:
        """How many of the wanted episodes can be proposed now, after so many."""
        ...

    def posed(self, plans: Sequence[Plan], lines: Sequence[Line]) -> Sequence[Plan]:
        """The plans of a round with their problems, after the lines of all earlier rounds."""
        ...

    def ended(self, searcher: Searcher, episodes: Sequence[Episode]) -> Sequence[Episode]:
        """The episodes among which confirmation chooses."""
        ...


class OneBudget:
    """Every episode has the constraint of the setup."""

    def next(self, played: int, wanted: int) -> int:
        """All of them."""
        return wanted

    def posed(self, plans: Sequence[Plan], lines: Sequence[Line]) -> Sequence[Plan]:
        """As they are."""
        return plans

    def ended(self, searcher: Searcher, episodes: Sequence[Episode]) -> Sequence[Episode]:
        """As they are."""
        return episodes


class ManyBudgets:
    """Every episode draws its budgets; the first ones are the knapsack's own solutions over the range.

    After the warm-up a learner that sees whole assignments is helped by a surrogate of them: what that one prefers is
    written in the agent's actions, and the agent learns from it as from its own episodes.

    Several devices take turns, one episode each: every one has its own range, knapsack solutions and baseline.

    Args:
        prepared: Whose setup has a range; its constraint is that of the middle.
        guides: The knapsack for any budgets.
        dense: Reward of the dense network.
    """

    def __init__(self, prepared: Prepared, guides: Guides, dense: float) -> None:
        self._prepared, self.guides, self._dense = prepared, guides, dense
        devices, seed = prepared.setup.devices, prepared.config.seed
        ranges = [range_between(ends, seed) for ends in devices] or [budget_range(prepared)]
        own = [guides.under(lowest) for lowest, _ in devices] or [guides]
        self._devices = list(zip(ranges, own, strict=True))
        self._baselines: dict[int, Baseline] = {}

    def next(self, played: int, wanted: int) -> int:
        """The knapsack's solutions are rounds of their own, as later rewards are compared with theirs."""
        first = GRID * len(self._devices)
        return min(wanted, first - played) if played < first else wanted

    def posed(self, plans: Sequence[Plan], lines: Sequence[Line]) -> Sequence[Plan]:
        """Each with its episode's budgets."""
        warm = len(lines) >= GRID * len(self._devices) + self._prepared.config.warmup
        learned = self._learned(lines) if warm else None
        posed = []
        for episode, plan in enumerate(plans, start=len(lines)):
            guide, pose = self._problem(episode, lines)
            turn = episode // len(self._devices)
            if learned is not None and turn % OWN:
                wanted = learned.best(guide, DARING[turn % len(DARING)])
                plan = FixedPlan(guide.actions_for(wanted), SURROGATE)
                if guide.assignment(plan.actions).key != tuple(wanted.tolist()):
                    pose = replace(pose, wanted=wanted)
            posed.append(Posed(plan, pose))
        return posed

    def ended(self, searcher: Searcher, episodes: Sequence[Episode]) -> Sequence[Episode]:
        """At the middle of the range: the knapsack and the agent's answer, evaluated; charged."""
        prepared = self._prepared
        guide = self.guides.at(middle_of(prepared))
        solution = prepared.setup.assignment(guide.solution)
        answer = answer_of(searcher, guide, self._learned(episodes))
        found = []
        for label, assignment in ((KNAPSACK, solution), (prepared.config.agent, answer)):
            evaluation = prepared.evaluate(assignment)
            found.append(
                Episode(
                    searcher=label,
                    actions=tuple(round(action, 6) for action in assignment.actions),
                    key=assignment.key,
                    reward=float(prepared.setup.reward(evaluation)),
                    evaluation=evaluation,
                )
            )
        return found

    def _learned(self, lines: Sequence[Line]) -> Surrogate | None:
        return learned_by(self._prepared.config, self._prepared.setup, self.guides.curves, self._dense, lines)

    def _problem(self, episode: int, lines: Sequence[Line]) -> tuple[Guide, Pose]:
        turn, device = divmod(episode, len(self._devices))
        budgets, guides = self._devices[device]
        limits = budgets.of_episode(turn)
        level = self._level(device, lines).at(limits) if turn >= GRID else None
        guide = guides.at(limits)
        return guide, Pose.of(limits, guide, level, device)

    def _level(self, device: int, lines: Sequence[Line]) -> Baseline:
        if device not in self._baselines:
            budgets, reward, count = self._devices[device][0], self._prepared.setup.reward, len(self._devices)
            own = lines[device : GRID * count : count]
            played = [(turn, line) for turn, line in enumerate(own) if isinstance(line, Episode)]
            points = [(budgets.of_episode(turn), float(reward(line.evaluation))) for turn, line in played]
            self._baselines[device] = Baseline.of(self._dense, points)
        return self._baselines[device]


def course_of(prepared: Prepared, pool: Pool, tools: Tools, starts: Mapping[str, Key]) -> Course:
    """The problems of a search; a range's curves and the dense network's reward are charged."""
    if prepared.setup.ends is None:
        return OneBudget()
    dense = prepared.evaluate(prepared.setup.dense())
    guides = guides_of(prepared, pool, tools, starts[KNAPSACK], prepared.setup.constraint, prepared.setup.ends)
    return ManyBudgets(prepared, guides, float(prepared.setup.reward(dense)))


def budget_range(prepared: Prepared) -> BudgetRange:
    """The range of a search.

    Raises:
        ValueError: If it has none.
    """
    ends = prepared.setup.ends
    if ends is None:
        raise ValueError("a range of budgets is needed, but the search has one budget: write macs=0.25:0.75")
    return range_between(ends, prepared.config.seed)


def range_between(ends: Ends, seed: int) -> BudgetRange:
    """All budgets between two."""
    low, high = (tuple(one.limits().values()) for one in ends)
    return BudgetRange(low=low, high=high, seed=seed)
