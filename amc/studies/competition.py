"""A comparison of agents: every agent with every seed at the same effort, and what they say together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from amc.config.search import MOST_EPISODES, SearchConfig, load_config
from amc.runs.runner import Screen, run_on
from amc.studies.compare import read_run, trace, write_comparison, write_trace


def run_compare(
    config: SearchConfig, agents: Sequence[str], seeds: int, out: Path, screen: Screen, say: Callable[[str], None]
) -> str:
    """Runs every agent with every seed at the same effort, or goes on where that stopped; writes the comparison.

    Args:
        config: Task, budgets, effort and settings; the agents' own limits are lifted.
        agents: The agents to compare.
        seeds: Runs per agent, with seeds 0, 1, ...
        out: Folder of the run folders and of the comparison.
        screen: Is told how far each run is.
        say: Is told which run begins.

    Returns:
        The verdict.
    """
    planned = [(agent, seed) for seed in range(seeds) for agent in dict.fromkeys(agents)]
    configs = {pair: _competitor(config, *pair) for pair in planned}  # a wrong agent is refused before any work
    runs = []
    for number, (agent, seed) in enumerate(planned, start=1):
        folder = out / f"{agent}-{seed}"
        if (run := read_run(folder, agent, seed)) is None:
            say(f"{agent}, seed {seed} ({number} of {len(planned)})")
            _compete(configs[agent, seed], folder, screen)
            run = read_run(folder, agent, seed)
        if run is None:
            raise ValueError(f"a run that has ended must be readable, but {str(folder)!r} is not: remove it, repeat")
        runs.append(run)
        if number % len(set(agents)):
            continue  # pairs need the same seeds: the comparison is written after every seed
        budgets = ", ".join(f"{name} = {value:g}" for name, value in config.constraint.items())
        said = write_comparison(out, runs, f"{config.task}, {budgets}, {config.effort:,} image-forwards each")
    return said


def _competitor(config: SearchConfig, agent: str, seed: int) -> SearchConfig:
    values = config.model_dump(mode="json", exclude_none=True)
    return load_config(None, {**values, "agent": agent, "seed": seed, "episodes": MOST_EPISODES})


def _compete(config: SearchConfig, path: Path, screen: Screen) -> None:
    """One run and its curve, from where an earlier process stopped."""
    run = run_on(config, path, screen)
    write_trace(path, trace(run.prepared, run.snapshot))
