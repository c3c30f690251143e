"""A sweep of one search per agent and seed: over the range of all budgets, and then asked for each of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from amc.config.parts import WorkersConfig
from amc.config.search import SearchConfig
from amc.problem.given.objects import Objects
from amc.runs.studies.competition import NOTHING
from amc.runs.studies.findings import Sweep
from amc.runs.studies.sweep import RUNS, Grid, Say, Trial, claim, drawn, name_of, run_missing, standing, varied
from amc.runs.studies.teaching import asked_of, taught_by
from amc.storage.locks import held


def run_shared(
    config: SearchConfig,
    grid: Grid,
    out: Path,
    say: Say,
    workers: WorkersConfig,
    objects: Mapping[str, Objects] = NOTHING,
) -> Sweep:
    """Runs what is missing of the searches over the range, asks their agents for every budget, writes the front.

    Args:
        config: As for `run_sweep`; its episodes are those of the search over the range.
        grid: What is varied: at least two budgets.
        out: Folder of the run folders and of the front.
        say: Is told how far it is.
        workers: Of each search.
        objects: Agent -> what its configuration names in parentheses.

    Raises:
        ValueError: As `run_sweep`, or if an agent cannot learn for a range.
    """
    if len(set(grid.budgets)) < 2:
        raise ValueError(f"a shared sweep needs at least two budgets, but got {grid.budgets}: write --budgets 0.3 0.7")
    span = min(grid.budgets), max(grid.budgets)
    ranged = {
        (agent, seed): Trial(name=f"{agent}-range-{seed}", config=varied(config, agent, span, seed))
        for seed in range(grid.seeds)
        for agent in grid.agents
    }
    cost = next(iter(config.constraint))
    with held(out), standing(out, list(ranged.values())):
        claim(out, config)
        run_missing(list(ranged.values()), out, say, workers, objects)
        trials = {}
        for (agent, seed), trial in ranged.items():
            path = out / RUNS / trial.name
            taught = taught_by(path)
            for budget in dict.fromkeys(grid.budgets):
                asked = asked_of(taught, path, {cost: budget}, refine=0)
                trials[agent, budget, seed] = Trial(name=name_of(agent, budget, seed), config=asked)
        run_missing(list(trials.values()), out, say, workers, objects)
        return drawn(config, grid, trials, out)
