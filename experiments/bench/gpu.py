"""All that a GPU is asked, in one script of at most eight minutes and one JSON file.

Command: python -m experiments.bench.gpu --data DIR --checkpoint FILE --out gpu.json [--minutes 8]
Four parts, the most important first, each in a process of its own with a share of the time: the tests marked cuda; a
search on ResNet-56 (knapsack, half the MACs) there and on this machine's CPU; 2:4 beside dense, layer by layer; a
float16 profile of that network and its error. A part that fails or runs out of time leaves what it had found, and why.
DIR holds cifar10_*.npz (a part of the images will do), FILE is resnet56_cifar10.safetensors.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from experiments.bench.gpu_parts import PARTS
from experiments.chain import commit
from hw_profiles.device import cpu_model

SHARES = {"tests": 0.35, "search": 0.7, "2:4": 0.6, "profile": 0.95}
"""Of the time that is left when a part begins."""


def options_of(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="cifar10-resnet56", help="what is searched and profiled")
    parser.add_argument("--data", type=Path, help="folder of cifar10_*.npz")
    parser.add_argument("--checkpoint", type=Path, help="weights of ResNet-56")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything together")
    parser.add_argument("--device", default="cuda", help="cuda; cpu for a trial")
    parser.add_argument("--seed", type=int, default=0, help="of the search")
    parser.add_argument("--quick", action="store_true", help="few images and shapes, for a trial")
    parser.add_argument("--commit", help="what is measured, where the files came without their history")
    parser.add_argument("--only", help="parts, separated by commas")
    parser.add_argument("--part", choices=list(PARTS), help="run this one here (what the script calls itself with)")
    return parser.parse_args(arguments)


def about(options: argparse.Namespace) -> dict[str, Any]:
    """Where and what is measured."""
    cuda = options.device == "cuda" and torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else "no CUDA device",
        "driver": _driver(),
        "processor": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "python": sys.version.split()[0],
        "torch": str(torch.__version__),
        "commit": options.commit or _commit(),
        "seed": options.seed,
        "quick": options.quick,
        "minutes": options.minutes,
    }


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _commit() -> str:
    try:
        return commit()
    except (OSError, subprocess.SubprocessError):
        return "unknown"  # a copy of the files without their history


def play(name: str, options: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """What a part finds within some seconds, in a process that cannot take others with it."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        found, log = Path(folder) / "found.json", Path(folder) / "log"
        command = [sys.executable, "-m", "experiments.bench.gpu", *sys.argv[1:], "--part", name, "--out", str(found)]
        reason = run(command, log, seconds)
        result: dict[str, Any] = json.loads(found.read_text()) if found.exists() else {}
    return result | ({"failed": reason} if reason else {}) | {"seconds": time.perf_counter() - began}


def run(command: Sequence[str], log: Path, seconds: float) -> str:
    """Runs a command and all that it starts for some seconds at most; '', or one line that says why it failed."""
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
        try:
            status = process.wait(max(seconds, 1.0))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return f"out of time after {seconds:.0f} s"
    lines = log.read_text(errors="replace").strip().splitlines()
    return f"exit status {status}: {lines[-1][:300] if lines else ''}" if status else ""


def notebook(path: Path) -> Callable[[dict[str, Any]], None]:
    """Adds to what a part has found, so that nothing is lost if it ends early."""
    found: dict[str, Any] = {}

    def note(more: dict[str, Any]) -> None:
        found.update(more)
        beside = path.with_suffix(".tmp")
        beside.write_text(json.dumps(found, indent=1))
        beside.replace(path)

    return note


def summary(found: dict[str, Any]) -> str:
    """A short table."""
    lines = [f"{found['device']}, driver {found['driver']}, torch {found['torch']}, commit {found['commit']}"]
    for name, part in found["parts"].items():
        lines.append(f"\n{name} ({part['seconds']:.0f} s){': ' + part['failed'] if 'failed' in part else ''}")
        lines += [f"  {line}" for line in PARTS[name].lines(part)]
    return "\n".join(lines)


def main() -> None:
    """Runs one part here, or all of them after one another."""
    options = options_of()
    if options.part:
        PARTS[options.part].play(options, notebook(options.out))
        return
    ends = time.monotonic() + 60 * options.minutes
    found = {**about(options), "parts": {}}
    note = notebook(options.out)
    for name in options.only.split(",") if options.only else PARTS:
        found["parts"][name] = play(name, options, SHARES[name] * (ends - time.monotonic()))
        note(found)
    print(summary(found))


if __name__ == "__main__":
    main()
