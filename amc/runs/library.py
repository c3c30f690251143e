"""What `amc.search(...)` does: a search from a script or a notebook, on a task that one has in hand."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from amc.config.parts import WorkersConfig
from amc.config.search import load_config
from amc.reporting.live import live
from amc.reporting.screen import ConsoleScreen
from amc.reporting.tables import comparison
from amc.runs.runner import NoScreen, Run, Screen, run_on
from amc.runs.showing import show_run
from amc.search.result import NetworkReport
from amc.tasks.task import Task
from envs.network.outputs import unselected
from envs.reward import Reward
from envs.space.policy import Policy


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """What a search found.

    Attributes:
        run: The run: result, timings, folder.
        written: Whether its folder stays.
    """

    run: Run = field(repr=False)
    written: bool

    @property
    def network(self) -> nn.Module:
        """The network found: a plain module of its own class, physically smaller, on the CPU."""
        return self.networks["found"]

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """dense, uniform, start (where there was one) and found."""
        return {name: unselected(network) for name, network in self.run.result.networks.items()}

    @property
    def reports(self) -> Mapping[str, NetworkReport]:
        """Network name -> accuracies and recounted costs."""
        return self.run.result.reports

    @property
    def policy(self) -> Policy:
        """The pruning policy; `policy.apply(network)` makes the widths again on any weights."""
        return self.run.result.policy

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a reader of the numbers has to know, one sentence each."""
        return self.run.result.remarks

    @property
    def folder(self) -> Path | None:
        """The run folder, None where none was asked for."""
        return self.run.folder if self.written else None

    def show(self) -> None:
        """Prints the comparison; in a notebook it is a table."""
        if self.written:
            show_run(self.run, Console())
        else:
            Console().print(comparison(self.run.result, self.run.latency))

    def _repr_html_(self) -> str:
        console = Console(file=io.StringIO(), record=True, width=110)
        console.print(comparison(self.run.result, self.run.latency))
        return console.export_html(inline_styles=True, code_format="<pre>{code}</pre>")


def search(
    task: Task | str,
    budgets: Mapping[str, float] | None = None,
    *,
    out: Path | str | None = None,
    searcher: str = "ddpg",
    reward: str | Reward = "auto",
    workers: int = 0,
    seed: int = 0,
    progress: bool = True,
    **settings: Any,
) -> Result:
    """Searches the best pruning policy of a task within budgets, without fine-tuning.

    Args:
        task: A `Task`, or the name of one as on the command line.
        budgets: Cost -> budget, a fraction of dense (<= 1) or absolute; None: the configuration's default.
        out: Run folder. One that holds a run of the same search goes on where it stopped. None: nothing is kept.
        searcher: Agent by name (`amc config agent`).
        reward: Reward by name, or a function of an `Evaluation`.
        workers: Ray workers on this machine; 0: this process.
        seed: Seed of every draw.
        progress: Show bars.
        settings: Any other configuration key (`episodes=40`, `compression={"images": 500}`).

    Raises:
        ValueError: If task, budgets or a setting are not usable; one line.
    """
    named = {
        "task": task if isinstance(task, str) else f"({task.name})",
        **({} if budgets is None else {"constraint": dict(budgets)}),
        "agent": searcher,
        "reward": reward if isinstance(reward, str) else f"({getattr(reward, '__name__', type(reward).__name__)})",
        "seed": seed,
    }
    config = load_config(None, {**named, **settings})
    with ExitStack() as stack:
        folder = Path(out) if out is not None else Path(stack.enter_context(tempfile.TemporaryDirectory())) / "run"
        screen = stack.enter_context(_screen(progress))
        run = run_on(
            config,
            folder,
            screen,
            WorkersConfig(workers=workers),
            task=None if isinstance(task, str) else task,
            reward=None if isinstance(reward, str) else reward,
        )
    return Result(run, out is not None)


@contextmanager
def _screen(progress: bool) -> Iterator[Screen]:
    if not progress:
        yield NoScreen()
        return
    console = Console(stderr=True)
    with live(console) as region:
        yield ConsoleScreen(console, region)
