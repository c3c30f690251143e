"""Light learning (few, large gradient steps after large rounds) against the default on ResNet-20, at equal episodes.

Command: python -m experiments.learning.light_resnet20 --data DIR --weights DIR [--episodes 320] [--seeds 3]
Finished runs under runs/light are kept. Writes experiments/results/light_resnet20.md. Toys with known optima:
`experiments.learning.light_learning`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from amc.storage.files import write_text
from experiments.chain import commit, processor
from experiments.compression.variants import play, table
from experiments.learning.agents import task

ROOT = Path(__file__).resolve().parents[2]
RUNS, TABLE = ROOT / "runs" / "light", ROOT / "experiments" / "results" / "light_resnet20.md"
VARIANTS = {
    "default, rounds of 4": [],
    "default, rounds of 64": ["--round-size", "64"],
    "light, rounds of 64": ["--round-size", "64", "--set", "learning=light"],
}


def main() -> None:
    """Does what is missing and rewrites the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--episodes", type=int, default=320)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    common = task("resnet20", 0.5, options.data.resolve(), options.weights.resolve())
    common += ["--episodes", str(options.episodes), "--warmup", "64"]
    play(RUNS, common, VARIANTS, options.seeds)
    write_text(
        TABLE,
        f"""# Light learning on ResNet-20, 50 % MACs, {options.episodes} episodes

`python -m experiments.learning.light_resnet20 --data DIR --weights DIR`, commit {commit()}, on {processor()}.

{table(RUNS, VARIANTS, options.seeds)}
""",
    )


if __name__ == "__main__":
    main()
