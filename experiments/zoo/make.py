"""The zoo: searches policies of known networks, and writes them with the figures of their runs.

Command: nice -n 10 python -m experiments.zoo.make --data DIR [--only TEXT] [--runs DIR]
DIR is as for `experiments.chain`, with the folders of ResNet-8 and KWT-1 in it. A search that has ended is not
repeated, one that was stopped goes on. Every entry writes NETWORK/DEVICE/BUDGET.json (a policy, no weights) and its row
of figures.csv, the last one docs/measured/zoo.md; with a text that no name holds the page alone is written again.
"""

from __future__ import annotations

import argparse
import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import amc
from amc.export.zoo import FIGURES, read_figures
from amc.runs.found import Result
from amc.storage.files import write_json, write_text
from envs.space.policy import Policy
from experiments.chain import commit, processor

ZOO = Path(__file__).resolve().parent
PAGE = ZOO.parent.parent / "docs" / "measured" / "zoo.md"
SEED = 0
PROFILE = "amd-epyc-onnxruntime-t1-b1"


class Network(NamedTuple):
    """A network of the zoo: its task, where its data lies within --data, and its weights there."""

    task: str
    data: str = "."
    weights: str | None = None


NETWORKS = {
    "resnet8": Network("experiments.vision.resnet8:resnet8"),
    "resnet20": Network("cifar10-resnet20", weights="resnet20_cifar10.safetensors"),
    "resnet56": Network("cifar10-resnet56", weights="resnet56_cifar10.safetensors"),
    "kwt1": Network("experiments.transformers.speech:kwt1", data="kwt1-speech-commands"),
}


class Entry(NamedTuple):
    """One policy: `device` is "any" for counted costs, else the profile by which latency is counted."""

    network: str
    device: str
    cost: str
    budget: float

    @property
    def name(self) -> str:
        """NETWORK/DEVICE/BUDGET."""
        return f"{self.network}/{self.device}/{self.cost}-{self.budget:g}"


ENTRIES = [
    Entry("resnet20", "any", "macs", 0.5),
    Entry("resnet8", "any", "macs", 0.5),
    Entry("kwt1", "any", "macs", 0.5),
    Entry("resnet20", "any", "macs", 0.3),
    Entry("resnet56", "any", "macs", 0.5),
    Entry("resnet56", "any", "macs", 0.3),
    Entry("resnet8", "any", "macs", 0.7),
    Entry("kwt1", "any", "macs", 0.3),
    Entry("resnet20", PROFILE, "latency", 0.7),
    Entry("resnet56", PROFILE, "latency", 0.7),
]


def search(entry: Entry, data: Path, runs: Path) -> Result:
    """The entry's run, from where it stands."""
    network = NETWORKS[entry.network]
    settings: dict[str, Any] = {"data": str(data / network.data)}
    if network.weights is not None:
        settings["checkpoint"] = str(data / network.weights)
    if entry.device != "any":
        settings["profile"] = entry.device
    budgets = {entry.cost: entry.budget}
    out = runs / entry.name
    return amc.search(network.task, budgets, searcher="knapsack", seed=SEED, out=out, progress=False, **settings)


def without_places(policy: Policy) -> Policy:
    """The policy without the paths of the machine that it was searched on: `amc zoo apply` is given others."""
    config = {key: value for key, value in policy.provenance["config"].items() if key not in ("data", "checkpoint")}
    return replace(policy, provenance={"config": config})


def row(entry: Entry, result: Result) -> dict[str, str]:
    """Figures of an entry, as they stand in figures.csv."""
    dense, uniform, found = (result.reports[name] for name in ("dense", "uniform", "found"))
    shares = {cost: found.costs[cost] / value for cost, value in dense.costs.items()}
    return {
        "name": entry.name,
        "task": NETWORKS[entry.network].task,
        "dense": f"{dense.metric['test']:.4f}",
        "uniform": f"{uniform.metric['test']:.4f}",
        "found": f"{found.metric['test']:.4f}",
        "macs": f"{shares['macs']:.4f}",
        "params": f"{shares['params']:.4f}",
        "latency": f"{shares['latency_ms']:.4f}" if "latency_ms" in shares else "",
        "agent": "knapsack",
        "seeds": str(SEED),
        "commit": commit(),
        "machine": processor(),
    }


def write_figures(new: dict[str, str]) -> None:
    """Adds a row, or replaces that of the same name."""
    rows = {one["name"]: one for one in [*read_figures(ZOO), new]}
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(new), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows.values())
    write_text(ZOO / FIGURES, text.getvalue())


def page() -> str:
    """docs/measured/zoo.md."""
    lines = [
        f"| {one['name']} | {float(one['dense']):.2%} | {float(one['uniform']):.2%} | {float(one['found']):.2%} | "
        f"{float(one['macs']):.1%} | {float(one['params']):.1%} | "
        f"{'' if not one['latency'] else format(float(one['latency']), '.1%')} | {one['commit']} |"
        for one in sorted(read_figures(ZOO), key=lambda one: one["name"])
    ]
    head = """# The zoo, measured

Test accuracy without fine-tuning, on the networks' own test samples, looked at once; costs in per cent of dense.
Policies of the knapsack, one seed each (0); machine and seed of every row stand in `experiments/zoo/figures.csv`.
Written by `python -m experiments.zoo.make --data DIR`; how to use an entry: [the guide](../guides/zoo.md).

| entry | dense | uniform | found | MACs | parameters | latency | commit |
|---|---|---|---|---|---|---|---|
"""
    return head + "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", default="", help="names that hold this text")
    parser.add_argument("--runs", type=Path, default=Path("runs/zoo"))
    options = parser.parse_args()
    for entry in (entry for entry in ENTRIES if options.only in entry.name):
        result = search(entry, options.data.resolve(), options.runs)
        path = ZOO / f"{entry.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, without_places(result.policy).to_json())
        write_figures(row(entry, result))
        print(entry.name, result.reports["found"].metric, flush=True)
    write_text(PAGE, page())


if __name__ == "__main__":
    main()
