"""How accuracy grows with calibration images: uniform widths, several repairs, three networks.

Command: python -m experiments.compression.calibration_images
    --data DIR --weights DIR [--photos DIR] [--only TEXT] [--scored N]
Each cell (network, images, repair, seed) is a process's work of a minute and stands in runs/calibration_images once it
is done; `--only` names some (resnet20, -250-, fixed), so that several processes can share the work. The page is written
from what is there. `--scored` bounds the images of each split that are scored.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from amc.config.search import load_config
from amc.problem.prepare import calibrate, calibration_plan
from amc.problem.setup import set_up
from amc.scoring.paired import paired_difference
from amc.storage.files import write_json
from experiments.chain import ROOT, commit, processor

RUNS, PAGE = ROOT / "runs" / "calibration_images", ROOT / "experiments" / "results" / "calibration_images.md"
NETWORKS = {"resnet20": 0.5, "resnet56": 0.5, "lite0": 0.75}
"""Name -> share of the MACs."""
IMAGES = (32, 64, 128, 250, 1000, 5000)
REPAIRS: dict[str, dict[str, Any]] = {
    "none": {"repair": "none"},
    "fixed": {"ridge": 0.03, "positions": 16},
    "chosen": {},
}
"""No repair; one ridge for all fits and 16 positions per image, the defaults until 827de27; the defaults of now."""


class Cell(NamedTuple):
    """One line's entry."""

    network: str
    images: int
    repair: str
    seed: int

    @property
    def label(self) -> str:
        """Name of the file."""
        return f"{self.network}-{self.images}-{self.repair}-{self.seed}"


def cells() -> Iterator[Cell]:
    """All of them, the cheap ones first."""
    for network in NETWORKS:
        for images in IMAGES if network != "lite0" else IMAGES[:4]:
            for repair in REPAIRS:
                for seed in range(3 if network == "resnet20" and repair != "none" else 1):
                    yield Cell(network, images, repair, seed)


def play(cell: Cell, options: argparse.Namespace) -> dict[str, Any]:
    """Uniform widths of one network, repaired and scored."""
    cifar = cell.network.startswith("resnet")
    weights = options.weights / f"{cell.network}_cifar10.safetensors"
    config = load_config(
        None,
        {
            "task": f"cifar10-{cell.network}" if cifar else "experiments.vision.photos:lite0",
            "agent": "uniform",
            "data": options.data if cifar else options.photos,
            "checkpoint": weights if cifar else None,
            "constraint": {"macs": NETWORKS[cell.network]},
            "rules.round_to": 1,
            "seed": cell.seed,
            "compression": {"images": cell.images, "memory_gb": 4.0, **REPAIRS[cell.repair]},
        },
    )
    setup = set_up(config)
    compressor = calibrate(setup)
    decided = setup.uniform().decisions
    small = compressor.compress(compressor.policy(decided.kept, decided.patterns)).network
    found: dict[str, Any] = {"commit": commit(), "processor": processor(), "plan": list(calibration_plan(setup))}
    for name, split in {"validation": setup.task.validation, "test": setup.task.test}.items():
        indices = range(min(len(split), options.scored))
        dense = setup.scorer.outputs(setup.task.network, split, indices)
        score = setup.scorer(small, split, indices, dense)
        if score.errors is None:
            raise ValueError(f"outputs of {cell.network} must be comparable with the dense network's, but are not")
        found[name] = {"each": [int(value) for value in score.each], "error": float(score.errors.mean())}
    return found


def main() -> None:
    """Plays what is missing and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--photos", type=Path, help="folder of photos.npz (experiments.vision.photos)")
    parser.add_argument("--only", default="")
    parser.add_argument("--scored", type=int, default=5000)
    options = parser.parse_args()
    RUNS.mkdir(parents=True, exist_ok=True)
    for cell in cells():
        path = RUNS / f"{cell.label}.json"
        if options.only in f"{cell.label}-" and not path.exists() and (options.photos or cell.network != "lite0"):
            write_json(path, play(cell, options))
            print(cell.label, flush=True)
    if found := {
        cell: json.loads((RUNS / f"{cell.label}.json").read_text())
        for cell in cells()
        if (RUNS / f"{cell.label}.json").exists()
    }:
        PAGE.write_text(page(found))


def page(found: dict[Cell, dict[str, Any]]) -> str:
    """The committed page."""
    some = next(iter(found.values()))
    scored = {
        network: len(next(v for k, v in found.items() if k.network == network)["validation"]["each"])
        for network in dict.fromkeys(cell.network for cell in found)
    }
    sizes = ", ".join(f"{network} {count:,}" for network, count in scored.items())
    text = f"""# Accuracy and calibration images: uniform widths, no fine-tuning

`python -m experiments.compression.calibration_images --data DIR --weights DIR --photos DIR --scored N`
at {some["commit"]} on
{some["processor"]}. Per cent, validation and test together (scored of each: {sizes}); output error is
the mean squared difference from the dense network's outputs. *fixed*: one ridge of 0.03 for every fit and 16 output
positions per image, the defaults until 827de27. *chosen*: the ridge of each fit by cross-validation over folds of
images, positions so that there are 32,000 rows. Mean over seeds where there are several (resnet20: 3), paired 95 %
intervals.

| network, MACs | images | no repair | fixed | chosen | chosen - fixed, points | output error fixed -> chosen |
|---|---|---|---|---|---|---|
"""
    rows = [row(network, images, found) for network in NETWORKS for images in IMAGES]
    return text + "\n".join(line for line in rows if line) + "\n"


def row(network: str, images: int, found: dict[Cell, dict[str, Any]]) -> str:
    """One line of the table, '' where nothing is known of it."""
    known = {
        repair: [value for cell, value in found.items() if cell[:3] == (network, images, repair)] for repair in REPAIRS
    }
    if not known["fixed"] or not known["chosen"]:
        return ""
    each = {repair: [scores(one) for one in values] for repair, values in known.items()}
    count = min(len(each["fixed"]), len(each["chosen"]))
    difference = paired_difference(each["chosen"][:count], each["fixed"][:count])
    errors = [
        np.mean([one[split]["error"] for one in known[repair] for split in ("validation", "test")])
        for repair in ("fixed", "chosen")
    ]
    cells = [f"{100 * np.mean(values):.1f}" if values else "-" for values in each.values()]
    share = f"{network}, {NETWORKS[network]:.0%}"
    return (
        "| " + " | ".join([share, str(images), *cells, str(difference), f"{errors[0]:.3f} -> {errors[1]:.3f}"]) + " |"
    )


def scores(one: dict[str, Any]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """[N] metric of every image scored."""
    parts: Sequence[float] = [*one["validation"]["each"], *one["test"]["each"]]
    return np.asarray(parts, dtype=np.float32)


if __name__ == "__main__":
    main()
