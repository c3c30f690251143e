"""An agent of an earlier search over a range: its answer for one budget, or where an agent of another range starts."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

from agents.searcher import Searcher, SearcherState, Teachable
from amc.config.search import SearchConfig
from amc.problem.bounds import Ends, bind_ends
from amc.problem.setup import Setup
from amc.search.episode import Line
from amc.search.ranges.budgets import STRATA
from amc.search.ranges.environment import answer_of
from amc.search.ranges.guides import Guide
from amc.search.ranges.surrogate import learned_by
from amc.search.searchers import ranged_searcher, sees_whole
from envs.space.assignment import Assignment, Key
from envs.space.constraint import InfeasibleBudget

CURVES = (
    *("task", "data", "checkpoint", "choose", "patterns", "densities", "rules", "compression", "knapsack"),
    *("reward_split", "reward_images", "seed", "device"),
)
"""Keys of a configuration that damage curves depend on."""
ANSWERS = "answer", "answer of half", "answer of other half"
"""Labels of the answers: candidates, but none that found is measured by."""
DIVIDED = 64
"""Episodes from which on each half of them answers, too. Answers that are nearly as good as each other differ by chance
where images decide; with one alone it is chance that decides whether it may be found."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Taught:
    """What an earlier run has learned.

    Attributes:
        config: Its configuration.
        state: Of its searcher.
        best: The knapsack's best solution at the middle of its range.
        lines: Its episodes.
    """

    config: SearchConfig
    state: SearcherState
    best: Key
    lines: tuple[Line, ...]

    def learned_with(self, config: SearchConfig) -> bool:
        """Whether a search's damage curves are those that it has learned with."""
        profiles = {self.config.profile, *self.config.profiles}
        return config.profile in profiles and all(getattr(self.config, one) == getattr(config, one) for one in CURVES)

    def ends(self, setup: Setup) -> Ends | None:
        """The lowest and the highest budgets of its range for a setup's network, None where that cannot keep them.

        They count by the profile that it has learned with, where the setup has it, else by the setup's own.
        """
        table = setup.tables.get(str(self.config.profile), setup.table)
        try:
            return bind_ends(self.config, setup.constraint.costing, table, setup.objects)
        except InfeasibleBudget:
            return None

    @property
    def labels(self) -> tuple[str, ...]:
        """Of the answers on the network that it has learned on."""
        return ANSWERS if sees_whole(self.config) and len(self.lines) >= DIVIDED else ANSWERS[:1]

    def answers(self, setup: Setup, guide: Guide, dense: float | None = None) -> dict[str, Assignment]:
        """The agent's answers for the setup's own budget by label, the best guess first; some can be the same.

        Args:
            setup: What is asked about; its network may be another one than the agent has seen.
            guide: Of its budget.
            dense: Reward of the dense network that the agent has learned with; None: it is another one.

        Raises:
            ValueError: If the budgets are of other costs, or outside of the agent's range.
        """
        self.check(setup.config)
        searcher = ranged_searcher(self.config, setup)
        if isinstance(searcher, Teachable):
            searcher.learn_from(self.state)
        else:  # it has the same sites, or refuses
            searcher.load(self.state)
        if dense is None:
            return {ANSWERS[0]: answer_of(searcher, guide)}
        blocks = [self.lines[start : start + STRATA] for start in range(0, len(self.lines), STRATA)]
        parts = (self.lines, tuple(chain(*blocks[::2])), tuple(chain(*blocks[1::2])))
        learned = {
            label: learned_by(self.config, setup, guide.curves, dense, lines)
            for label, lines in zip(self.labels, parts, strict=False)
        }
        return {label: answer_of(searcher, guide, one) for label, one in learned.items()}

    def teach(self, searcher: Searcher) -> None:
        """Lets a searcher that has not begun go on with what was learned.

        Raises:
            ValueError: If it cannot.
        """
        if not isinstance(searcher, Teachable):
            raise ValueError("only an agent that walks by observations can go on from another run's: use ddpg")
        searcher.learn_from(self.state)

    def check(self, config: SearchConfig) -> None:
        """Refuses budgets that the agent has not learned.

        Raises:
            ValueError: If a cost or a budget is outside.
        """
        known = {name: (value, value) for name, value in self.config.constraint.items()}
        known |= self.config.budget_range or {}
        if list(config.constraint) != list(known):
            raise ValueError(
                f"an agent answers for the costs that it has learned ({', '.join(known)}), but was asked for "
                f"{', '.join(config.constraint)}: name the same ones"
            )
        if config.budget_range is not None:
            return
        for name, value in config.constraint.items():
            low, high = known[name]
            if not low <= value <= high:
                raise ValueError(
                    f"an agent answers for budgets within its range {name}={low:g}:{high:g}, but was asked for "
                    f"{value:g}: search with a wider range"
                )
