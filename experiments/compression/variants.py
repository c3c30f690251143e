"""Variants of one search side by side: the same task, budget and seeds, other options; paired differences."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from amc.scoring.paired import paired_difference
from experiments.learning.agents import amc

Variants = Mapping[str, Sequence[str]]
"""Name of a variant -> its options of `amc search`; the first one is what the others are compared with."""


def play(folder: Path, common: Sequence[str], variants: Variants, seeds: int) -> None:
    """Runs what is missing; stopped runs go on."""
    for seed in range(seeds):
        for name, options in variants.items():
            run = folder / f"{name}-{seed}"
            if (run / "result.json").exists():
                continue
            if (run / "config.toml").exists():
                amc("resume", str(run))
            else:
                amc("search", *common, *options, "--seed", str(seed), "--out", str(run))


def table(folder: Path, variants: Variants, seeds: int) -> str:
    """Markdown of the seeds that all variants have finished."""
    runs = [{name: folder / f"{name}-{seed}" for name in variants} for seed in range(seeds)]
    done = [paths for paths in runs if all((path / "result.json").exists() for path in paths.values())]
    first = next(iter(variants))
    reference = [_each(paths[first]) for paths in done]
    lines = [
        f"{len(done)} seeds. Difference: found networks, paired over all images and seeds, 95 % interval.",
        "",
        f"| | validation | test | image-forwards | images scored | seconds | difference to {first} |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in variants:
        results = [json.loads((paths[name] / "result.json").read_text()) for paths in done]
        difference = "" if name == first else str(paired_difference([_each(p[name]) for p in done], reference))
        lines.append(f"| {' | '.join([name, *_cells(results), difference])} |")
    return "\n".join(lines)


def _cells(results: Sequence[dict[str, Any]]) -> list[str]:
    accuracies = [
        f"{100 * np.mean([r['found']['accuracy'][split] for r in results]):.2f}" for split in ("validation", "test")
    ]
    scored = np.mean([r["images"]["scored"] / r["images"]["plain"] for r in results])
    forwards = np.mean([r["image_forwards"] for r in results])
    seconds = np.mean([r["measured"]["seconds"] for r in results])
    return [*accuracies, f"{forwards:,.0f}", f"{scored:.0%}", f"{seconds:.0f}"]


def _each(run: Path) -> NDArray[np.float32]:
    scores = safetensors.numpy.load_file(run / "scores.safetensors")
    return np.concatenate([scores["found|validation"], scores["found|test"]])
