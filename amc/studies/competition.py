"""A comparison of agents: every agent with every seed at the same effort, and what they say together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from amc.config.search import SearchConfig, load_config
from amc.runs.folder import RunFolder
from amc.runs.runner import run_on
from amc.studies.compare import PAGE, read_run, trace, write_comparison, write_trace

MOST_EPISODES = 1_000_000
"""Of a run that only its effort ends."""


def run_compare(config: SearchConfig, agents: Sequence[str], seeds: int, out: Path, console: Console) -> str:
    """Runs every agent with every seed at the same effort, or goes on where that stopped; writes the comparison.

    Args:
        config: Task, budgets, effort and settings; the agents' own limits are lifted.
        agents: Who competes.
        seeds: Runs per agent, with seeds 0, 1, ...
        out: Folder of the run folders and of the comparison.
        console: Where to print.

    Returns:
        The verdict.
    """
    planned = [(agent, seed) for seed in range(seeds) for agent in dict.fromkeys(agents)]
    configs = {pair: _competitor(config, *pair) for pair in planned}  # a wrong agent is refused before any work
    runs = []
    for number, (agent, seed) in enumerate(planned, start=1):
        folder = out / f"{agent}-{seed}"
        if (run := read_run(folder, agent, seed)) is None:
            console.print(f"[bold]{agent}, seed {seed}[/] ({number} of {len(planned)})")
            _compete(configs[agent, seed], folder, console)
            run = read_run(folder, agent, seed)
            assert run is not None
        runs.append(run)
        if number % len(set(agents)):
            continue  # pairs need the same seeds: the comparison is written after every seed
        budgets = ", ".join(f"{name} = {value:g}" for name, value in config.constraint.items())
        said = write_comparison(out, runs, f"{config.task}, {budgets}, {config.effort:,} image-forwards each")
    console.print(said, highlight=False)
    console.print(f"wrote {out / PAGE}", highlight=False, soft_wrap=True)
    return said


def _competitor(config: SearchConfig, agent: str, seed: int) -> SearchConfig:
    values = config.model_dump(mode="json", exclude_none=True)
    return load_config(None, {**values, "agent": agent, "seed": seed, "episodes": MOST_EPISODES})


def _compete(config: SearchConfig, path: Path, console: Console) -> None:
    """One run and its curve, from where an earlier process stopped."""
    problem = run_on(config, path, console)
    last = RunFolder.reopen(path).snapshot()
    assert last is not None
    write_trace(path, trace(problem, last))
