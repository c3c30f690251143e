"""Malformed files of every kind that is read, given to what reads them: how many end in anything but one line of ours.

Command: nice python -m experiments.faults.documents --files 5000 [--seed 0] [--kinds policy recipe ...] [--keep FOLDER]

Files are made from valid ones (`mutations.py`) and given to the functions behind the commands, in this process, under
limits of time and memory. Each ends in one of these:

same       accepted, and means what it meant (or, of a recipe or profile, whatever it now says)
refused    one line of ours: law, value, cure
changed    accepted, but a policy that means something else
traceback  any other exception, a library's own `ValueError` included
hang       more than 20 s
memory     more than 2 GB
executed   code that the file names was imported

The file of the first of each finding is kept in FOLDER, with what was raised.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
from numpy.typing import NDArray
from rich.console import Console

from amc.cli.commands import run_apply, run_resume
from amc.config.search import SearchConfig, recipe_config
from amc.export.applied import load_applied, read_policy
from amc.export.check import check_file
from amc.problem.setup import set_up
from amc.profiling.importing import read_measured
from amc.profiling.show import kernels_table, summary
from amc.profiling.store import read_profile
from amc.runs.result_file import read_result
from amc.runs.runner import NoScreen, new_run
from amc.runs.studies.compare import TRACE, read_run
from amc.tasks.checkpoint import load_checkpoint
from amc.tasks.cifar10 import load_cifar10
from amc.tasks.models.digits import WEIGHTS, DigitsNet
from envs.space.policy_file import digest_of
from experiments.faults import mutations
from experiments.faults.mutations import Random
from hw_profiles.shape_rules import FOLDER as RULES
from hw_profiles.shape_rules import load_rules

ROOT = Path(__file__).resolve().parents[2]
PROFILE = ROOT / "hw_profiles" / "data" / "amd-epyc-onnxruntime-t1-b1.json"
SECONDS, BYTES = 20, 2e9
FINDINGS = ("changed", "traceback", "hang", "memory", "executed")

SETTINGS: dict[str, Any] = {
    "task": "digits",
    "constraint": {"macs": 0.3},
    "reward_images": 64,
    "round_size": 2,
    "episodes": 4,
    "warmup": 2,
    "confirm": 1,
    "compression": {"images": 32, "positions": 4, "quick_images": 16},
    "knapsack": {"images": 16, "widths": 2, "damages": ["kl"]},
}


class Hang(BaseException):
    """The time is over; no `except Exception` may catch it."""


def quiet() -> Console:
    """A console that nobody reads."""
    return Console(file=io.StringIO(), width=120)


@dataclass(frozen=True, slots=True)
class Originals:
    """Valid files, made once.

    Attributes:
        home: Their folder: `ended` and `stopped` are runs, `work` is emptied for each malformed file.
    """

    home: Path

    @classmethod
    def made(cls, home: Path) -> Originals:
        """Makes all of them in an empty folder; a search of the digits takes seconds."""
        run = new_run(SearchConfig(**SETTINGS), home / "ended", NoScreen())
        (home / "ended" / TRACE).write_text(
            json.dumps([[100, 0.9], [200, run.result.reports["found"].accuracy["test"]]])
        )
        shutil.copytree(home / "ended", home / "stopped")
        for name in ("result.json", "policy.json", "network.safetensors", "report.html"):
            (home / "stopped" / name).unlink()
        return cls(home)

    def fresh(self, name: str) -> Path:
        """A copy of a run, to be damaged."""
        work = self.home / "work"
        shutil.rmtree(work, ignore_errors=True)
        return Path(shutil.copytree(self.home / name, work))


Case = tuple[Path, Callable[[], Any]]
"""A malformed file, and what reads it; a true answer says that it means something else."""


def policy_case(rng: Random, originals: Originals) -> Case:
    """A policy, or a forged one, whose digest fits."""
    folder = originals.fresh("ended")
    path = folder / "policy.json"
    content, forged = path.read_bytes(), rng.random() < 0.3
    before = read_policy(path)
    path.write_bytes(mutations.changed_json(rng, content))
    if forged:
        data = mutations.changed_tree(rng, json.loads(content))
        if isinstance(data, dict):
            data["digest"] = digest_of(data)
        path.write_bytes(json.dumps(data).encode("utf-8", "surrogatepass"))
    whole = rng.random() < 0.2 or not forged

    def read() -> bool:
        check_file(folder)
        load_applied(DigitsNet(), folder)
        if whole:
            run_apply(path, {}, folder / "small", quiet())
        return not forged and read_policy(path) != before

    return path, read


def recipe_case(rng: Random, originals: Originals) -> Case:
    """A recipe."""
    path = originals.fresh("ended") / "config.toml"
    path.write_bytes(mutations.changed_toml(rng, path.read_bytes()))

    def read() -> None:
        config = recipe_config(path, {})
        if rng.random() < 0.2:
            set_up(config)

    return path, read


def profile_case(rng: Random, originals: Originals) -> Case:
    """A profile of a few kernels."""
    data = json.loads(PROFILE.read_text())
    data["kernels"] = rng.sample(data["kernels"], 3)
    path = originals.fresh("ended") / "profile.json"
    path.write_bytes(mutations.changed_json(rng, json.dumps(data).encode()))

    def read() -> None:
        profile = read_profile(path)
        summary(profile)
        quiet().print(kernels_table(profile))

    return path, read


def measured_case(rng: Random, originals: Originals) -> Case:
    """What a device brings back."""
    data = json.loads(PROFILE.read_text())
    session = data["sessions"][0]
    kernels = [one for one in data["kernels"] if one["kernel"]["op"] in ("linear", "add")][:2]
    entries = [
        {name: entry[name] for name in ("inputs", "outputs", "n", "median_ms", "mean_ms", "variance", "p95_ms")}
        | {"kernel": one["kernel"], "overhead_ms": 0.001, "yardstick_ms": entry["yardstick_ms"]}
        for one in kernels
        for entry in one["entries"]
    ]
    kept = ("runtime", "dtype", "batch", "threads", "formats")
    brought = {name: data[name] for name in kept} | {"schema_version": 1, "entries": entries}
    brought |= {name: session[name] for name in ("device", "date", "runtime_version", "yardstick_ms", "overhead_ms")}
    path = originals.fresh("ended") / "measured.json"
    path.write_bytes(mutations.changed_json(rng, json.dumps(brought).encode()))
    return path, lambda: summary(read_measured(path)) and None


def rules_case(rng: Random, originals: Originals) -> Case:
    """Shape rules."""
    path = originals.fresh("ended") / "rules.json"
    path.write_bytes(mutations.changed_json(rng, Path(str(RULES), "cutlass-float16.json").read_bytes()))
    return path, lambda: load_rules(str(path)) and None


def ended_case(rng: Random, originals: Originals) -> Case:
    """A run that has ended: shown, or compared with others."""
    folder = originals.fresh("ended")
    name = rng.choice(("result.json", "result.json", "config.toml", TRACE, "scores.safetensors"))
    path = folder / name
    path.write_bytes(CHANGED[path.suffix](rng, path.read_bytes()))

    def read() -> None:
        read_result(folder / "result.json")
        read_run(folder, "ddpg", 0)
        run_resume(folder, 0, quiet())

    return path, read


def stopped_case(rng: Random, originals: Originals) -> Case:
    """A run that was stopped: resumed."""
    folder = originals.fresh("stopped")
    path = folder / rng.choice(("config.toml", "snapshot.safetensors", "episodes.jsonl", "timings.jsonl"))
    path.write_bytes(CHANGED[path.suffix](rng, path.read_bytes()))
    return path, lambda: run_resume(folder, 0, quiet())


def checkpoint_case(rng: Random, originals: Originals) -> Case:
    """A checkpoint, of safetensors or torch."""
    path = originals.fresh("ended") / "weights"
    if rng.random() < 0.5:
        path.write_bytes(mutations.changed_safetensors(rng, WEIGHTS.read_bytes()))
    else:
        path.write_bytes(mutations.changed_state(rng, safetensors.torch.load_file(WEIGHTS)))
    return path, lambda: load_checkpoint(DigitsNet(), path)


def applied_case(rng: Random, originals: Originals) -> Case:
    """Weights of an applied policy."""
    folder = originals.fresh("ended")
    path = folder / "network.safetensors"
    path.write_bytes(mutations.changed_safetensors(rng, path.read_bytes()))

    def read() -> None:
        check_file(path)
        load_applied(DigitsNet(), folder)

    return path, read


def images_case(rng: Random, originals: Originals) -> Case:
    """The files of CIFAR-10."""
    folder = originals.fresh("ended")
    arrays: dict[str, NDArray[Any]] = {"x": np.zeros((8, 32, 32, 3), np.uint8), "y": np.zeros(8, np.int64)}
    np.savez(folder / "cifar10_test.npz", **arrays)  # type: ignore[arg-type]  # its stub names a keyword
    path = folder / "cifar10_train.npz"
    path.write_bytes(mutations.changed_npz(rng, arrays))
    return path, lambda: load_cifar10(folder) and None


CHANGED: dict[str, Callable[[Random, bytes], bytes]] = {
    ".json": mutations.changed_json,
    ".toml": mutations.changed_toml,
    ".jsonl": mutations.changed_lines,
    ".safetensors": mutations.changed_safetensors,
}
KINDS: dict[str, Callable[[Random, Originals], Case]] = {
    "policy": policy_case,
    "recipe": recipe_case,
    "profile": profile_case,
    "measured": measured_case,
    "rules": rules_case,
    "ended": ended_case,
    "stopped": stopped_case,
    "checkpoint": checkpoint_case,
    "applied": applied_case,
    "images": images_case,
}
QUICK = tuple(kind for kind in KINDS if kind != "stopped")
"""Kinds that take milliseconds."""


@dataclass(slots=True)
class Tally:
    """How files ended.

    Attributes:
        counts: (kind, end) -> files.
        findings: What was raised by files that ended as none may.
        lines: A refusal's first words -> one whole refusal.
    """

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    lines: dict[str, str] = field(default_factory=dict)


def campaign(originals: Originals, count: int, seed: int, kinds: tuple[str, ...], keep: Path | None = None) -> Tally:
    """Makes and reads malformed files, kind by kind in turn; the seed decides them all.

    Args:
        originals: Valid files.
        count: How many malformed ones.
        seed: Of every mutation.
        kinds: Names of `KINDS`.
        keep: Folder for files that ended as none may.
    """
    tally = Tally()
    for number in range(count):
        kind = kinds[number % len(kinds)]
        path, read = KINDS[kind](random.Random(f"{seed}-{kind}-{number}"), originals)
        content = path.read_bytes()
        end, told = ending(read)
        tally.counts[kind, end] += 1
        if end == "refused":
            tally.lines.setdefault(f"{kind}: {' '.join(told.split()[:6])}", told)
        if end in FINDINGS:
            tally.findings.append(f"{kind} {number} {path.name} {end}: {told}")
            if keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                (keep / f"{kind}-{number}-{path.name}").write_bytes(content)
                (keep / f"{kind}-{number}.txt").write_text(told)
    return tally


def ending(read: Callable[[], Any]) -> tuple[str, str]:
    """How reading ends, and what was said or raised."""
    sys.modules.pop("amc_canary", None)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    end, told = "same", ""
    try:
        with limited(SECONDS):
            end = "changed" if read() else "same"
    except Hang:
        end, told = "hang", traceback.format_exc()
    except (ValueError, OSError) as error:
        end, told = ("refused", str(error)) if is_ours(error) else ("traceback", traceback.format_exc())
    except Exception:
        end, told = "traceback", traceback.format_exc()
    if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before > BYTES / 1024:
        end = "memory"
    return ("executed" if "amc_canary" in sys.modules else end), told


def is_ours(error: BaseException) -> bool:
    """Whether an error was raised by the project's own code, or says which file the system refused."""
    frames = traceback.extract_tb(error.__traceback__)
    named = isinstance(error, OSError) and error.filename is not None
    return named or (Path(frames[-1].filename).is_relative_to(ROOT) and len(str(error)) < 20_000)


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raises `Hang` when the time is over."""

    def stop(*_: object) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def main() -> None:
    """Runs the campaign and prints what every kind of file ended in."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--show", action="store_true", help="print one refusal of each form")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.environ["AMC_CACHE"] = str(Path(home) / "cache")
        (Path(home) / "amc_canary.py").write_text("def called(*_):\n    return 0.0\n")
        sys.path.insert(0, home)
        began = time.monotonic()
        tally = campaign(Originals.made(Path(home)), options.files, options.seed, tuple(options.kinds), options.keep)
    ends = ("same", "refused", *FINDINGS)
    print("| kind | " + " | ".join(ends) + " |\n|" + "---|" * (1 + len(ends)))
    for kind in options.kinds:
        print(f"| {kind} | " + " | ".join(str(tally.counts[kind, end]) for end in ends) + " |")
    print(f"\n{options.files} files in {time.monotonic() - began:.0f} s")
    print("\n".join(tally.findings))
    if options.show:
        print("\n".join(f"{key} => {line[:400]}" for key, line in sorted(tally.lines.items())))


if __name__ == "__main__":
    main()
