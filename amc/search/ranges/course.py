"""Which problem every episode is: always the same one, or one of a range of budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from agents.searcher import Plan, Searcher
from amc.pool.pool import Pool
from amc.problem.prepare import Prepared
from amc.search.episode import Episode, Line
from amc.search.ranges.baseline import Baseline
from amc.search.ranges.budgets import GRID, BudgetRange
from amc.search.ranges.environment import answer_of
from amc.search.ranges.guides import KNAPSACK, Guides
from amc.search.ranges.pose import Pose, Posed
from amc.search.starts import guides_of, middle_of
from amc.search.tools import Tools
from envs.space.assignment import Key


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

    Args:
        prepared: Whose setup has a range; its constraint is that of the middle.
        guides: The knapsack for any budgets.
        dense: Reward of the dense network.
    """

    def __init__(self, prepared: Prepared, guides: Guides, dense: float) -> None:
        self._prepared, self.guides, self._dense = prepared, guides, dense
        self._range = budget_range(prepared)
        self._baseline: Baseline | None = None

    def next(self, played: int, wanted: int) -> int:
        """The knapsack's solutions are rounds of their own, as later rewards are compared with theirs."""
        return min(wanted, GRID - played) if played < GRID else wanted

    def posed(self, plans: Sequence[Plan], lines: Sequence[Line]) -> Sequence[Plan]:
        """Each with its episode's budgets."""
        return [Posed(plan, self._pose(episode, lines)) for episode, plan in enumerate(plans, start=len(lines))]

    def ended(self, searcher: Searcher, episodes: Sequence[Episode]) -> Sequence[Episode]:
        """At the middle of the range: the knapsack and the agent's answer, evaluated; charged."""
        prepared = self._prepared
        guide = self.guides.at(middle_of(prepared))
        solution, answer = prepared.setup.assignment(guide.solution), answer_of(searcher, guide)
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

    def _pose(self, episode: int, lines: Sequence[Line]) -> Pose:
        limits = self._range.of_episode(episode)
        level = self._level(lines).at(limits) if episode >= GRID else None
        return Pose.of(limits, self.guides.at(limits), level)

    def _level(self, lines: Sequence[Line]) -> Baseline:
        if self._baseline is None:
            reward = self._prepared.setup.reward
            played = [(k, line) for k, line in enumerate(lines[:GRID]) if isinstance(line, Episode)]
            points = [(self._range.of_episode(k), float(reward(line.evaluation))) for k, line in played]
            self._baseline = Baseline.of(self._dense, points)
        return self._baseline


def course_of(prepared: Prepared, pool: Pool, tools: Tools, starts: Mapping[str, Key]) -> Course:
    """The problems of a search; a range's curves and the dense network's reward are charged."""
    if prepared.setup.ends is None:
        return OneBudget()
    dense = prepared.evaluate(prepared.setup.dense())
    guides = guides_of(prepared, pool, tools, starts[KNAPSACK], middle_of(prepared), prepared.setup.ends)
    return ManyBudgets(prepared, guides, float(prepared.setup.reward(dense)))


def budget_range(prepared: Prepared) -> BudgetRange:
    """The range of a search.

    Raises:
        ValueError: If it has none.
    """
    ends = prepared.setup.ends
    if ends is None:
        raise ValueError("a range of budgets is needed, but the search has one budget: write macs=0.25:0.75")
    low, high = (tuple(one.limits().values()) for one in ends)
    return BudgetRange(low=low, high=high, seed=prepared.config.seed)
