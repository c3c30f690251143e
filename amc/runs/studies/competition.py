"""A comparison of agents: every agent with every seed at the same effort, and what they say together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from amc.config.search import MOST_EPISODES, SearchConfig, load_config
from amc.problem.given.objects import NO_OBJECTS, Objects
from amc.runs.runner import Screen, run_on
from amc.runs.studies.compare import TRACE, read_run, trace, write_comparison, write_trace
from amc.runs.studies.findings import Comparison
from amc.storage.locks import held

NOTHING: Mapping[str, Objects] = MappingProxyType({})
"""No agent was passed in as an object."""


def run_compare(
    config: SearchConfig,
    agents: Sequence[str],
    seeds: int,
    out: Path,
    screen: Screen,
    say: Callable[[str], None],
    objects: Mapping[str, Objects] = NOTHING,
) -> Comparison:
    """Runs every agent with every seed at the same effort, or goes on where that stopped; writes the comparison.

    Args:
        config: Task, budgets, effort and settings; the agents' own limits are lifted.
        agents: The agents to compare.
        seeds: Runs per agent, with seeds 0, 1, ...
        out: Folder of the run folders and of the comparison.
        screen: Is told how far each run is.
        say: Is told which run begins.
        objects: Agent -> what its configuration names in parentheses.
    """
    planned = [(agent, seed) for seed in range(seeds) for agent in dict.fromkeys(agents)]
    configs = {pair: _competitor(config, *pair) for pair in planned}  # a wrong agent is refused before any work
    with held(out), _standing(out, planned):
        return _compared(config, configs, out, screen, say, objects)


def _compared(
    config: SearchConfig,
    configs: Mapping[tuple[str, int], SearchConfig],
    out: Path,
    screen: Screen,
    say: Callable[[str], None],
    objects: Mapping[str, Objects],
) -> Comparison:
    planned, agents = list(configs), {agent for agent, _ in configs}
    runs = []
    for number, (agent, seed) in enumerate(planned, start=1):
        folder = out / f"{agent}-{seed}"
        if (run := read_run(folder, agent, seed)) is None:
            say(f"{agent}, seed {seed} ({number} of {len(planned)})")
            _compete(configs[agent, seed], folder, screen, objects.get(agent, NO_OBJECTS))
            run = read_run(folder, agent, seed)
        if run is None:
            raise ValueError(f"a run that has ended must be readable, but {str(folder)!r} is not: remove it, repeat")
        runs.append(run)
        if number % len(agents):
            continue  # pairs need the same seeds: the comparison is written after every seed
        budgets = ", ".join(f"{name} = {value:g}" for name, value in config.constraint.items())
        found = write_comparison(out, runs, f"{config.task}, {budgets}, {config.effort:,} image-forwards each")
    return found


@contextmanager
def _standing(out: Path, planned: Sequence[tuple[str, int]]) -> Iterator[None]:
    """Adds to what ends a comparison early how far it is, and how to go on."""
    try:
        yield
    except (KeyboardInterrupt, OSError) as error:
        count = sum((out / f"{agent}-{seed}" / TRACE).exists() for agent, seed in planned)
        error.add_note(f"{count} of {len(planned)} runs have ended in {out}: the same command goes on")
        raise


def _competitor(config: SearchConfig, agent: str, seed: int) -> SearchConfig:
    values = config.model_dump(mode="json", exclude_none=True)
    return load_config(None, {**values, "agent": agent, "seed": seed, "episodes": MOST_EPISODES})


def _compete(config: SearchConfig, path: Path, screen: Screen, objects: Objects) -> None:
    """One run and its curve, from where an earlier process stopped."""
    run = run_on(config, path, screen, objects=objects)
    write_trace(path, trace(run.prepared, run.snapshot))
