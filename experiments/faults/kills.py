"""Searches killed, interrupted and raced at random moments, all of which must end as one left alone, without litter.

Command: python -m experiments.faults.kills --minutes M [--seed S] [--only NAME ...]
A process that has imported everything is forked for each command, so that a trial takes a second or two and the
moments fall into the work. Networks are not timed (three seconds each). What Ray takes part in is in tests/runs.
Prints, for each kind of trial, how many there were and what each failure was; exit code 1 if there was one.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from amc.cli.interrupts import interrupt_between_imports
from amc.cli.main import main as amc_main
from amc.runs import runner
from amc.runs.folder import EPISODES, REPORT, RESULT, SCORES
from amc.tasks.task import load_task
from envs.parallel import single_threaded

NEEDED = ("amc.cli.commands", "torch._dynamo", "onnx", "onnxruntime", "tensorboardX", "matplotlib.backends.backend_svg")
"""What the forked processes find imported."""
SAME = ("config.toml", EPISODES, "policy.json", "network.safetensors", SCORES)
SETTINGS = (
    *("--task", "digits", "--constraint", "macs=0.3", "--agent", "ddpg", "--episodes", "12", "--warmup", "4"),
    *("--set", "reward_images=100", "--set", "confirm=1", "--set", "compression.images=48"),
    *("--set", "compression.positions=4", "--set", "knapsack.images=32", "--set", "knapsack.widths=2"),
    *("--set", 'knapsack.damages=["kl"]', "--set", 'backend.name="fp32"', "--set", "compression.repair=none"),
    *("--set", "compression.importance=l1"),
)


class Place:
    """A folder with a run that was left alone, and a cache; commands are started beside it."""

    def __init__(self, home: Path, draws: random.Random) -> None:
        """Makes the run."""
        self.home, self.draws = home, draws
        self.cache = home / "cache"
        began = time.perf_counter()
        done = self.ended(self.started("search", *SETTINGS, "--out", "alone"))
        if done != 0:
            raise ValueError(f"the run that is left alone must end, but exits with {done}: see {home}/said")
        self.seconds = time.perf_counter() - began
        began = time.perf_counter()
        self.ended(self.started("export", "alone/policy.json", "--out", "alone.onnx"))
        self.export_seconds = time.perf_counter() - began

    def started(self, *arguments: str, said: str = "said") -> int:
        """Forks a process that runs a command; its process id."""
        child = os.fork()
        if child:
            return child
        try:
            os.chdir(self.home)
            os.environ["AMC_CACHE"] = str(self.cache)
            screen = os.open(said, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
            os.dup2(screen, 1)
            os.dup2(screen, 2)
            interrupt_between_imports()
            vars(runner)["latency_ms"] = lambda *_, **__: {}
            sys.argv = ["amc", *arguments]
            amc_main()
            os._exit(0)
        except SystemExit as stop:
            sys.stdout.flush()
            os._exit(int(stop.code or 0))
        finally:
            os._exit(99)

    def ended(self, process: int) -> int:
        """Waits for a process: its exit code, negative for a signal."""
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])

    def stopped(self, process: int, seconds: float, number: int) -> int:
        """Sends a signal after a while, and waits: the exit code."""
        time.sleep(seconds)
        os.kill(process, number)
        return self.ended(process)

    def moment(self) -> float:
        """Seconds after which a search is stopped."""
        return self.draws.uniform(0, 1.1 * self.seconds)

    def said(self, name: str = "said") -> str:
        """What a command printed."""
        return (self.home / name).read_text(encoding="utf-8", errors="replace")

    def resumed(self, run: str) -> str:
        """Goes on with a run to its end; "" if it is then as the one left alone, else what is not."""
        command = ["resume", run] if (self.home / run / "config.toml").exists() else ["search", *SETTINGS, "--out", run]
        code = self.ended(self.started(*command))
        return f"exit code {code}: {self.said()[-300:]}" if code else self.different(run)

    def different(self, run: str) -> str:
        """What differs between a run and the one left alone."""
        there, alone = self.home / run, self.home / "alone"
        wrong = [name for name in SAME if (there / name).read_bytes() != (alone / name).read_bytes()]
        names = {path.name for path in there.iterdir()} ^ {path.name for path in alone.iterdir()}
        litter = [path.name for path in self.cache.iterdir() if path.name.startswith(".") or path.suffix == ".lock"]
        return "; ".join(str(found) for found in (wrong, sorted(names), litter) if found)


def killed(place: Place, run: str) -> str:
    """One SIGKILL anywhere."""
    place.stopped(place.started("search", *SETTINGS, "--out", run), place.moment(), signal.SIGKILL)
    return place.resumed(run)


def killed_twice(place: Place, run: str) -> str:
    """Two SIGKILLs in a row."""
    place.stopped(place.started("search", *SETTINGS, "--out", run), place.moment(), signal.SIGKILL)
    if (place.home / run / "config.toml").exists():
        place.stopped(place.started("resume", run), place.moment(), signal.SIGKILL)
    return place.resumed(run)


def killed_at_the_end(place: Place, run: str) -> str:
    """SIGKILL while policy, weights, scores, result and report are computed and written."""
    shutil.copytree(place.home / "alone", place.home / run)
    names = ["policy.json", "network.safetensors", SCORES, RESULT, REPORT]
    for name in names[place.draws.randrange(len(names)) :]:
        (place.home / run / name).unlink()
    place.stopped(place.started("resume", run), place.draws.uniform(0, place.seconds / 2), signal.SIGKILL)
    return place.resumed(run)


def killed_with_an_empty_cache(place: Place, run: str) -> str:
    """SIGKILL while results are put into the cache."""
    shutil.rmtree(place.cache)
    return killed(place, run)


def killed_in_export(place: Place, run: str) -> str:
    """SIGKILL during an export, which is then repeated."""
    folder = place.home / run
    folder.mkdir()
    export = ["export", "alone/policy.json", "--out", f"{run}/network.onnx"]
    moment = place.draws.uniform(0, 1.1 * place.export_seconds)
    place.stopped(place.started(*export), moment, signal.SIGKILL)
    if code := place.ended(place.started(*export)):
        return f"exit code {code}: {place.said()[-300:]}"
    same = (folder / "network.onnx").read_bytes() == (place.home / "alone.onnx").read_bytes()
    litter = [path.name for path in folder.iterdir() if path.name != "network.onnx"]
    return "; ".join(str(found) for found in ([] if same else ["another model"], litter) if found)


def interrupted(place: Place, run: str) -> str:
    """SIGINT anywhere: one line, exit code 130, and it goes on."""
    code = place.stopped(place.started("search", *SETTINGS, "--out", run), place.moment(), signal.SIGINT)
    last = place.said().strip().splitlines()[-1:]
    told = code == 130 and bool(last) and last[0].startswith("stopped: ")
    if not (told or code == 0) or "Traceback" in place.said():
        return f"exit code {code}: {place.said()[-500:]}"
    leftover = [path.name for path in (place.home / run).glob(".*")]
    return str(leftover) if leftover else place.resumed(run)


def raced(place: Place, commands: Sequence[Sequence[str]]) -> list[tuple[int, str]]:
    """Runs commands at once: their exit codes, and what they said."""
    names = [f"said-{index}" for index in range(len(commands))]
    processes = [place.started(*command, said=name) for command, name in zip(commands, names, strict=True)]
    return [(place.ended(process), place.said(name)) for process, name in zip(processes, names, strict=True)]


def race_for_a_folder(place: Place, run: str) -> str:
    """Two searches with one --out: exactly one wins, and the other says why in one line."""
    found = raced(place, [["search", *SETTINGS, "--out", run]] * 2)
    losers = [said for code, said in found if code]
    if len(losers) != 1 or sum(line.startswith("error: ") for line in losers[0].splitlines()) != 1:
        return str(found)
    return place.different(run) if "Traceback" not in losers[0] else losers[0]


def race_for_a_run(place: Place, run: str) -> str:
    """Two resumes of one run: one goes on, the other is refused, or finds that it has ended."""
    place.stopped(place.started("search", *SETTINGS, "--out", run), place.seconds / 2, signal.SIGKILL)
    if not (place.home / run / "config.toml").exists():
        return ""
    found = raced(place, [["resume", run]] * 2)
    refused = [said for code, said in found if code]
    fine = len(refused) < 2 and all("in use by process" in said for said in refused)
    return place.different(run) if fine else str(found)


def race_for_a_cache(place: Place, run: str) -> str:
    """Two searches with one empty cache: both work."""
    shutil.rmtree(place.cache)
    found = raced(place, [["search", *SETTINGS, "--out", f"{run}{letter}"] for letter in "ab"])
    if any(code for code, _ in found):
        return str(found)
    return place.different(f"{run}a") or place.different(f"{run}b")


TRIALS: tuple[Callable[[Place, str], str], ...] = (
    killed,
    killed_twice,
    killed_at_the_end,
    killed_with_an_empty_cache,
    killed_in_export,
    interrupted,
    race_for_a_folder,
    race_for_a_run,
    race_for_a_cache,
)


def campaign(minutes: float, seed: int, only: Sequence[str]) -> dict[str, list[str]]:
    """Kind of trial -> what went wrong in each; the kinds take turns until the time is up."""
    wanted = [trial for trial in TRIALS if not only or trial.__name__ in only]
    found: dict[str, list[str]] = {trial.__name__: [] for trial in wanted}
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder), random.Random(seed))
        print(f"left alone a search takes {place.seconds:.1f} s, an export {place.export_seconds:.1f} s", flush=True)
        until, number = time.monotonic() + 60 * minutes, 0
        while time.monotonic() < until:
            trial = wanted[number % len(wanted)]
            run = f"run-{number}"
            found[trial.__name__].append(trial(place, run))
            if found[trial.__name__][-1]:
                print(f"{trial.__name__}: {found[trial.__name__][-1]}", flush=True)
            for path in place.home.glob(f"{run}*"):
                shutil.rmtree(path)
            number += 1
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[])
    given = parser.parse_args()
    single_threaded()
    for module in NEEDED:
        import_module(module)
    load_task("digits")
    found = campaign(given.minutes, given.seed, given.only)
    failures = Counter({name: sum(map(bool, outcomes)) for name, outcomes in found.items()})
    for name, outcomes in found.items():
        print(f"{name}: {len(outcomes)} trials, {failures[name]} failed")
    sys.exit(bool(failures.total()))
