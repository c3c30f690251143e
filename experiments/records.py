"""Whether a change of the code changed what it computes: fixed searches by the command line, and a digest of each.

Command: python -m experiments.records OUT [--data DIR] [--only TEXT] [--against OTHER]
OUT/records.json holds, for each search, SHA-256 of episodes.jsonl, of policy.json without the configuration in its
provenance and the digest, and of the found network's weights, with its accuracies.
DIR holds cifar10_*.npz and the weights of
ResNet-20 and ResNet-56; without it only the digits are searched. OTHER is the records.json of another commit, made on
the same machine: bytes depend on the CPU. Finished searches are not repeated.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PROFILE = "amd-epyc-onnxruntime-t1-b1"
LEARN = ("--episodes", "16", "--warmup", "4")

SEARCHES: dict[str, tuple[str, ...]] = {
    "digits-ddpg": ("--task", "digits", "--agent", "ddpg", "--constraint", "macs=0.3", *LEARN),
    "digits-cmaes": ("--task", "digits", "--agent", "cmaes", "--constraint", "macs=0.3", *LEARN),
    "digits-knapsack": ("--task", "digits", "--agent", "knapsack", "--constraint", "macs=0.3"),
    "digits-layerwise": (
        "--task",
        "digits",
        "--agent",
        "knapsack",
        "--constraint",
        "macs=0.5",
        "--set",
        "compression.repair=layerwise",
        "--set",
        "compression.importance=l1",
    ),
    "digits-patterns": (
        "--task",
        "digits",
        "--agent",
        "ddpg",
        "--choose",
        "patterns",
        "--constraint",
        "params=0.7",
        "--set",
        'patterns=["2:4","1:4"]',
        *LEARN,
    ),
    "digits-mixed": (
        "--task",
        "digits",
        "--agent",
        "ddpg",
        "--choose",
        "mixed",
        "--constraint",
        "macs=0.6",
        "--constraint",
        "params=0.4",
        *LEARN,
    ),
    "digits-latency": (
        "--task",
        "digits",
        "--agent",
        "ddpg",
        "--constraint",
        "latency=0.7",
        "--profile",
        PROFILE,
        *LEARN,
    ),
    "resnet20-knapsack": ("--task", "cifar10-resnet20", "--agent", "knapsack", "--set", "compression.images=1000"),
    "resnet56-knapsack": ("--task", "cifar10-resnet56", "--agent", "knapsack", "--set", "compression.images=500"),
}


def search(name: str, out: Path, data: Path | None) -> None:
    """One search of the table in OUT/name, with an empty cache."""
    options = list(SEARCHES[name])
    if not name.startswith("digits"):
        assert data is not None
        weights = data / f"{name.partition('-')[0]}_cifar10.safetensors"
        options += ["--data", str(data), "--checkpoint", str(weights)]
    command = [sys.executable, "-m", "amc.cli", "search", *options, "--seed", "0", "--out", str(out / name), "--fresh"]
    with tempfile.TemporaryDirectory() as cache:
        subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "AMC_CACHE": cache}, stdout=sys.stderr)


def record(folder: Path) -> dict[str, Any]:
    """Digests and accuracies of one run folder."""
    policy = json.loads((folder / "policy.json").read_text())
    policy["provenance"].pop("config", None)
    policy.pop("digest", None)  # covers the configuration
    result = json.loads((folder / "result.json").read_text())
    return {
        "episodes": digest((folder / "episodes.jsonl").read_bytes()),
        "policy": digest(json.dumps(policy, sort_keys=True).encode()),
        "weights": digest((folder / "network.safetensors").read_bytes()),
        "accuracy": {name: result[name]["accuracy"] for name in ("dense", "uniform", "found")},
        "image_forwards": result["image_forwards"],
    }


def digest(data: bytes) -> str:
    """SHA-256, the first 16 digits."""
    return hashlib.sha256(data).hexdigest()[:16]


def main() -> None:
    """Runs what is missing, writes records.json and says what differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--only", default="")
    parser.add_argument("--against", type=Path)
    options = parser.parse_args()
    out = options.out.resolve()
    records: dict[str, Any] = {}
    for name in SEARCHES:
        if options.only not in name or (options.data is None and not name.startswith("digits")):
            continue
        if not (out / name / "result.json").exists():
            search(name, out, options.data and options.data.resolve())
        records[name] = record(out / name)
        (out / "records.json").write_text(json.dumps(records, indent=2) + "\n")
    if options.against is None:
        print(json.dumps(records, indent=2))
        return
    other = json.loads(options.against.read_text())
    differing = [
        f"{name}: {key} {other[name][key]} -> {records[name][key]}"
        for name in records
        for key in records[name]
        if records[name][key] != other.get(name, {}).get(key)
    ]
    print("\n".join(differing) or f"the same in {len(records)} searches")
    sys.exit(bool(differing))


if __name__ == "__main__":
    main()
