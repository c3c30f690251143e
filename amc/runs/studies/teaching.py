"""What another run has learned, read from its folder; and the configuration that asks it for a policy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amc.config.search import SearchConfig, load_config
from amc.runs.folder import RunFolder
from amc.search.ranges.guides import KNAPSACK
from amc.search.ranges.taught import Taught
from amc.search.starts import PLAIN

STARTS = "knapsack", "uniform"
"""What the agent's answers are compared with, beside the knapsack on curves that are not corrected."""


def taught_by(path: Path) -> Taught:
    """The agent of a search over a range.

    Raises:
        ValueError: If there is none, or a file of it is damaged or altered.
    """
    folder = RunFolder.reopen(path)
    config, snapshot = folder.config(), folder.snapshot()
    if config.budget_range is None:
        raise ValueError(
            f"only a search over a range has an agent for other budgets, but {str(path)!r} has one budget: "
            "search with --constraint macs=0.25:0.75"
        )
    if snapshot is None:
        raise ValueError(f"an agent must have learned a round, but {str(path)!r} has none yet: `amc resume` it first")
    return Taught(config=config, state=snapshot.searcher, best=snapshot.starts[KNAPSACK], lines=snapshot.lines)


def asking(path: Path, constraint: Mapping[str, Any], refine: int, profile: str | None = None) -> SearchConfig:
    """The configuration of a search that begins, and without refinement ends, with an agent's answer for one budget.

    Args:
        path: Run folder of a search over a range.
        constraint: Cost -> budget within it.
        refine: Episodes to spend on improving the answer.
        profile: Which of the devices is meant, where the agent has learned for several; None: the first.

    Raises:
        ValueError: If the folder has no such agent, or its range does not hold the budget.
    """
    return asked_of(taught_by(path), path, constraint, refine, profile)


def asked_of(
    taught: Taught, path: Path, constraint: Mapping[str, Any], refine: int, profile: str | None = None
) -> SearchConfig:
    """`asking`, of an agent that was read from that folder.

    Raises:
        ValueError: If its range does not hold the budget, or it has not learned for the device.
    """
    values = taught.config.model_dump(mode="json", exclude_none=True, exclude={"budget_range", "effort", "max_minutes"})
    first = (*taught.labels, *STARTS, PLAIN)
    own = {
        "constraint": {**taught.config.constraint, **constraint},
        "agent": "swap",
        "starts": STARTS,
        "agent_from": str(path),
        "episodes": len(first) + refine,
        **({} if profile is None else {"profile": profile}),
    }
    config = load_config(None, {**values, **own})
    if config.profile not in (taught.config.profile, *taught.config.profiles):
        known = taught.config.profiles or (taught.config.profile or "none",)
        raise ValueError(
            f"an agent answers for the profiles that it has learned ({', '.join(known)}), but was asked for "
            f"{config.profile}: name one of these, or start a search on that device with agent_from={path}"
        )
    taught.check(config)
    return config
