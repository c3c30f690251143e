"""Memory of a search process: its peak, and whether it stays flat from episode to episode.

Command: python -m experiments.bench.memory [--task digits] [--data DIR --weights DIR] [--episodes 1000] [--images 1000]
Plays a real search and reads the resident size of the process (Linux) after every tenth of the episodes.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field

from amc.problem.prepare import prepare
from amc.problem.setup import set_up
from amc.search.loop import search
from amc.search.state import Snapshot
from experiments.bench.episode import add_task, config_of


def megabytes(name: str) -> float:
    """VmRSS (now) or VmHWM (peak) of this process."""
    with open("/proc/self/status", encoding="utf-8") as file:
        sizes = dict(line.split(":", 1) for line in file)
    return int(sizes[name].split()[0]) / 1024


@dataclass
class Scale:
    """Weighs the process every so many episodes.

    Attributes:
        every: Episodes between two weighings.
        seen: (episodes, MB) pairs.
    """

    every: int
    seen: list[tuple[int, float]] = field(default_factory=list)

    def round(self, snapshot: Snapshot) -> None:
        """After each round."""
        if len(snapshot.lines) >= self.every * (len(self.seen) + 1):
            self.seen.append((len(snapshot.lines), megabytes("VmRSS")))


def main() -> None:
    """Prints the weighings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_task(parser)
    parser.add_argument("--repair", default="sequential", help="none, layerwise, sequential")
    parser.add_argument("--agent", default="ddpg", help="what chooses the widths")
    parser.add_argument("--episodes", type=int, default=1000)
    options = parser.parse_args()
    config = config_of(options, options.repair)
    config = config.model_copy(update={"episodes": options.episodes, "agent": options.agent, "confirm": 1})
    scale = Scale(max(1, options.episodes // 10))
    search(prepare(set_up(config)), scale)
    peak = megabytes("VmHWM")
    if options.json:
        print(json.dumps({"task": options.task, "resident_mb": scale.seen, "peak_mb": peak}))
        return
    print("| episodes | resident, MB |\n|---|---|")
    print("\n".join(f"| {episodes} | {size:.0f} |" for episodes, size in scale.seen))
    print(f"\npeak, confirmation included: {peak:.0f} MB")


if __name__ == "__main__":
    main()
