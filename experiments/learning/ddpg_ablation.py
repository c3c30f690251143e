"""What each deviation of our DDPG from He et al. is worth: the defaults with one undone, on two toy problems.

Command: python -m experiments.learning.ddpg_ablation [--seeds N] [--only TEXT]
Writes experiments/results/ddpg_ablation.md.
Single-threaded; about 15 minutes on a quiet core with 8 seeds.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np

from agents.cma_es import CMAES
from agents.ddpg import DDPGSearcher
from agents.noise import truncated_normal
from agents.random_search import RandomSearch
from agents.searcher import FixedPlan, Plan, Searcher, Trajectory, keyed_generator
from agents.settings import PAPER_SETTINGS, DDPGSettings
from envs.observation import FEATURES
from experiments.learning.ddpg_toys import Toy, confirmed, measured_toy, separable_toy

TABLE = Path(__file__).resolve().parents[1] / "results" / "ddpg_ablation.md"
MakeSearcher: TypeAlias = Callable[[Toy, int], Searcher]


class Perturbed(RandomSearch):
    """The yardstick given a start: independent truncated-normal noise around it, and no learning."""

    def __init__(self, toy: Toy, seed: int, sigma: float) -> None:
        """Explores around the toy's start."""
        super().__init__(toy.steps, seed, toy.starts)
        self._centre, self._key, self._sigma, self._played = toy.starts[0][1], seed, sigma, 0

    def propose(self, count: int) -> list[Plan]:
        """The start, then noise around it."""
        plans: list[Plan] = list(super().propose(count))
        for place, episode in enumerate(range(self._played, self._played + count)):
            if episode > 0:
                draws = keyed_generator(self._key, "perturbed", episode).random(len(self._centre)).tolist()
                pairs = zip(self._centre, draws, strict=True)
                actions = [truncated_normal(mean, self._sigma, draw) for mean, draw in pairs]
                plans[place] = FixedPlan(tuple(actions), "perturbed")
        return plans

    def tell(self, trajectories: Sequence[Trajectory | None]) -> None:
        """Counts."""
        super().tell(trajectories)
        self._played += len(trajectories)


class Trial(NamedTuple):
    """One toy as it is searched."""

    name: str
    toy: Callable[[], Toy]
    episodes: int
    noise: float = 0.0


class Line(NamedTuple):
    """One line of the table; ``trials`` are the columns it has a value in."""

    label: str
    make: MakeSearcher
    trials: tuple[str, ...] = ("nothing", "start")


TRIALS = (
    Trial("nothing", lambda: measured_toy(0.35), 200),
    Trial("start", separable_toy, 100, 0.004),
    Trial("start, 25 steps", lambda: separable_toy((9, 9, 9)), 100, 0.004),
)
EVERY = tuple(trial.name for trial in TRIALS)
GIVEN_START = EVERY[1:]
UNDONE: dict[str, dict[str, object]] = {
    "rank_rewards": {},
    "whole_critic": {},
    "step_code": {},
    "critic_first": {},
    "noiseless_first": {},
    "imitation_steps": {},
    "sigma_floor": {},
    "gamma": {},
    "tau": {},
    "replay_episodes": {},
    "hidden": {},
    "sigma and its decay": {"sigma": 0.5, "sigma_decay": 0.95},
    "clone_start": {},
    "along_budget": {},
}
"""Deviation -> what undoing it means, where that is more than the paper's value of the field."""
NEED_START = ("whole_critic", "clone_start", "along_budget")
"""Deviations that are none without a start."""


def ddpg(settings: DDPGSettings) -> MakeSearcher:
    """A searcher with these settings, given a start if the toy has one."""
    return lambda toy, seed: DDPGSearcher(len(FEATURES), toy.steps, settings, seed, toy.starts, shares=toy.shares)


def perturbed(sigma: float) -> MakeSearcher:
    """Noise of this width around the toy's start."""
    return lambda toy, seed: Perturbed(toy, seed, sigma)


def lines() -> list[Line]:
    """The table's lines."""
    defaults = DDPGSettings()
    found = [Line("**defaults**", ddpg(defaults), EVERY)]
    for name, values in UNDONE.items():
        changed = values or {name: getattr(PAPER_SETTINGS, name)}
        shown = ", ".join(f"{key}={value}" for key, value in changed.items())
        trials = GIVEN_START[: 1 + (name == "whole_critic")] if name in NEED_START else EVERY[:2]
        found.append(Line(f"without {name} ({shown})", ddpg(defaults.changed(**changed)), trials))
    found.append(Line("all undone: PAPER_SETTINGS", ddpg(PAPER_SETTINGS), EVERY[:2]))
    found += [Line(f"algorithm={name}", ddpg(defaults.changed(algorithm=name)), EVERY) for name in ("td3", "sac")]
    found.append(Line("CMA-ES, sigma 0.1", lambda toy, seed: CMAES(toy.steps, seed, toy.starts), EVERY))
    found.append(Line("random search", lambda toy, seed: RandomSearch(toy.steps, seed), EVERY[:1]))
    found += [Line(f"perturbing the start, sigma {sigma}", perturbed(sigma), GIVEN_START) for sigma in (0.05, 0.1)]
    return found


def gaps(trial: Trial, make: MakeSearcher, seeds: int) -> list[float]:
    """Per seed the gap of the confirmed best to the optimum, in % of the optimal reward."""
    toy = trial.toy()
    best = toy.reward(toy.optimum)
    searches = (toy.search(make(toy, seed), trial.episodes, trial.noise, seed) for seed in range(seeds))
    return [100 * (best - confirmed(true, told)) / best for true, told in searches]


def row(line: Line, seeds: int) -> str:
    """One line of the table."""
    cells = [line.label]
    for trial in TRIALS:
        if trial.name not in line.trials:
            cells.append("")
            continue
        found = np.array(gaps(trial, line.make, seeds))
        cells.append(f"{found.mean():.2f} +- {found.std(ddof=1) / np.sqrt(seeds):.2f} (worst {found.max():.2f})")
    return f"| {' | '.join(cells)} |"


def header(seeds: int) -> list[str]:
    """What the table says, and how it was made."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True)
    words = []
    for trial in TRIALS:
        toy = trial.toy()
        best = toy.reward(toy.optimum)
        start = "none" if toy.start is None else f"{toy.reward(toy.start):.4f}"
        words.append(
            f"- **{trial.name}**: {toy.steps} steps, {trial.episodes} episodes, reward noise {trial.noise}; optimum "
            f"{best:.4f}, start {start}, median random policy {toy.random_median():.4f}"
        )
    return [
        "# What each deviation of our DDPG from He et al. is worth",
        "",
        f"`{' '.join(['python -m', __spec__.name, *sys.argv[1:]])}`, commit {commit.stdout.strip()}, {seeds} seeds.",
        "Mean gap of the confirmed best policy to the known optimum, in % of the optimal reward, +- standard error.",
        "Confirmed: the best true reward among the five episodes that looked best.",
        "",
        *words,
        "",
        f"| | {' | '.join(EVERY)} |",
        f"|{'---|' * (1 + len(EVERY))}",
    ]


def tabulate(
    page: Path,
    about: str | None,
    seeds: int,
    header: Callable[[int], list[str]],
    rows: Sequence[tuple[str, Callable[[int], str]]],
) -> None:
    """A table's command line: prints it row by row, and writes the page unless only some rows were asked for.

    Args:
        page: The committed page.
        about: What `--help` says.
        seeds: Seeds by default.
        header: Lines above the rows, given the number of seeds.
        rows: Label, and the row given the number of seeds.
    """
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--only", default="", help="lines whose label contains this; prints instead of writing")
    arguments = parser.parse_args()
    written = header(arguments.seeds)
    print("\n".join(written), flush=True)
    for label, row_of in rows:
        if arguments.only in label:
            written.append(row_of(arguments.seeds))
            print(written[-1], flush=True)
    if not arguments.only:
        page.write_text("\n".join(written) + "\n")


if __name__ == "__main__":
    tabulate(TABLE, __doc__, 8, header, [(line.label, partial(row, line)) for line in lines()])
