"""What a bound on gradient steps per round costs in quality: gaps to known optima, at equal episodes.

Command: python -m experiments.learning.light_learning [--seeds 3] [--only TEXT]
Writes experiments/results/light_learning.md.
Toys and the meaning of the gap are those of `experiments.learning.ddpg_ablation`; driver's milliseconds are CPU time of
`propose` and `tell` per episode, on the last toy.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from agents.ddpg import DDPGSearcher
from agents.searcher import Plan, Trajectory
from agents.settings import DDPGSettings
from amc.config.search import LIGHT
from envs.observation import FEATURES
from experiments.chain import commit
from experiments.learning.ddpg_ablation import TRIALS as ALL
from experiments.learning.ddpg_ablation import Trial, tabulate
from experiments.learning.ddpg_toys import Toy, confirmed

TABLE = Path(__file__).resolve().parents[1] / "results" / "light_learning.md"
TRIALS, EPISODES = ALL[:2], 640


class Line(NamedTuple):
    """One line of the table."""

    label: str
    round_size: int
    settings: DDPGSettings


class Timed(DDPGSearcher):
    """The searcher, with a clock on what the driver does."""

    seconds, episodes = 0.0, 0

    def propose(self, count: int) -> list[Plan]:
        """As `DDPGSearcher`."""
        began = time.process_time()
        plans = super().propose(count)
        self.seconds += time.process_time() - began
        return plans

    def tell(self, trajectories: Sequence[Trajectory | None]) -> None:
        """As `DDPGSearcher`."""
        began = time.process_time()
        super().tell(trajectories)
        self.seconds += time.process_time() - began
        self.episodes += len(trajectories)


def lines() -> list[Line]:
    """The table's lines."""
    default = DDPGSettings()
    wide = default.changed(replay_episodes=LIGHT["replay_episodes"])
    found = []
    for steps, batch in ((64, 64), (128, 64), (64, 256), (128, 256)):
        found.append(Line(f"{steps} steps of {batch}", 64, wide.changed(most_steps=steps, batch_size=batch)))
    for steps, rate in ((64, 3e-4), (64, 1e-3), (128, 3e-4)):
        bold = wide.changed(most_steps=steps, batch_size=256, actor_lr=rate, critic_lr=2e-3, tau=0.1)
        found.append(Line(f"{steps} steps of 256, rates {rate:g} and 0.002, tau 0.1", 64, bold))
    imitated = wide.changed(most_steps=64, batch_size=256, imitation_steps=200, elite_episodes=16)
    found.append(Line("64 steps of 256, 200 steps of imitation", 64, imitated))
    found.append(Line("**light** (`--set learning=light`)", 64, default.changed(**LIGHT)))
    found.append(Line("one step, and imitation", 64, wide.changed(most_steps=1)))
    found.append(Line("one step per transition", 64, wide))
    found.append(Line("one step per transition (default)", 4, default))
    return found


def search(toy: Toy, trial: Trial, line: Line, seed: int) -> tuple[float, float]:
    """Gap of the confirmed best in % of the optimal reward, and the driver's CPU ms per episode."""
    searcher = Timed(len(FEATURES), toy.steps, line.settings, seed, toy.starts, shares=toy.shares)
    true, told = toy.search(searcher, EPISODES, trial.noise, seed, line.round_size)
    best = toy.reward(toy.optimum)
    return 100 * (best - confirmed(true, told)) / best, 1000 * searcher.seconds / searcher.episodes


def row(line: Line, seeds: int) -> str:
    """One line of the Markdown table."""
    cells = [line.label, str(line.round_size)]
    milliseconds = 0.0
    for trial in TRIALS:
        toy = trial.toy()
        gaps, costs = zip(*(search(toy, trial, line, seed) for seed in range(seeds)), strict=True)
        error = np.std(gaps, ddof=1) / np.sqrt(seeds) if seeds > 1 else 0.0
        cells.append(f"{np.mean(gaps):.2f} +- {error:.2f} (worst {max(gaps):.2f})")
        milliseconds = float(np.mean(costs))
    return f"| {' | '.join([*cells, f'{milliseconds:.1f}'])} |"


def header(seeds: int) -> list[str]:
    """What the table says, and how it was made."""
    names = " | ".join(trial.name for trial in TRIALS)
    return [
        "# What light learning costs in quality",
        "",
        f"`python -m experiments.learning.light_learning`, commit {commit()}, {seeds} seeds, {EPISODES}",
        "episodes each. Mean gap of the confirmed best policy to the known optimum in % of the optimal reward, +-",
        "standard error; the driver's CPU ms per episode for learning, on the last toy.",
        "",
        f"| learning per round | round | {names} | driver, ms |",
        f"|{'---|' * (3 + len(TRIALS))}",
    ]


if __name__ == "__main__":
    tabulate(TABLE, __doc__, 3, header, [(line.label, partial(row, line)) for line in lines()])
