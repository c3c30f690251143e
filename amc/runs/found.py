"""What a search found, as `amc.search` and `amc.resume` return it: from the search itself, or read from its folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.numpy
from rich.console import Console
from torch import nn

from amc.config.own_code import refuse_code
from amc.export.applied import FINETUNING, POLICY, WEIGHTS, load_applied, read_policy
from amc.problem.given.objects import NO_OBJECTS, Objects
from amc.reporting.notebook import as_html
from amc.reporting.tables import stored_comparison
from amc.runs.folder import SCORES, RunFolder, versions
from amc.runs.runner import Run
from amc.runs.showing import show_files
from amc.search.result import FINETUNED, NETWORKS, NetworkReport
from amc.tasks.task import Task, load_task
from envs.measure import Measure
from envs.network.outputs import unselected
from envs.space.policy import Policy


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Result:
    """What a search found.

    Attributes:
        record: The content of `result.json` (docs/run_folder.md).
        policy: The pruning policy; `policy.apply(network)` makes the widths again on any weights.
        networks: dense, found and, once it was trained, fine-tuned; uniform and start (where there was one) too if the
            search ended just now.
        reports: Network name -> accuracies and recounted costs.
        task: What was searched.
        folder: The run folder, None where none was asked for.
        objects: What the search was given as objects.
    """

    record: Mapping[str, Any] = field(repr=False)
    policy: Policy = field(repr=False)
    networks: Mapping[str, nn.Module] = field(repr=False)
    reports: Mapping[str, NetworkReport]
    task: Task = field(repr=False)
    folder: Path | None
    objects: Objects = field(default=NO_OBJECTS, repr=False)

    @classmethod
    def of(cls, run: Run, *, kept: bool = True) -> Result:
        """Of a search that has just ended.

        Args:
            run: The search.
            kept: Whether its folder stays.
        """
        return cls(
            record=run.result.to_json(versions(), run.latency),
            policy=run.result.policy,
            networks={name: unselected(network) for name, network in run.result.networks.items()},
            reports=run.result.reports,
            task=run.prepared.setup.task,
            folder=run.folder if kept else None,
            objects=run.prepared.setup.objects,
        )

    @property
    def network(self) -> nn.Module:
        """The network found: a plain module, physically smaller, on the CPU."""
        return self.networks["found"]

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a reader of the numbers has to know, one sentence each."""
        return tuple(self.record["remarks"])

    def show(self, console: Console | None = None) -> None:
        """Prints the comparison, and where the files are; in a notebook it is a table."""
        console = console or Console()
        console.print(stored_comparison(self.record))
        if self.folder is not None:
            show_files(self.record, self.folder, console)

    def _repr_html_(self) -> str:
        return as_html(lambda console: console.print(stored_comparison(self.record)))


def reopened(path: Path, objects: Objects, given: Mapping[str, str] | None = None) -> Result:
    """The result of a run that has ended, from its folder.

    Args:
        path: The run folder.
        objects: The task, where the run's configuration names none that can be loaded.
        given: The task's name, where that is a function of the user's: a folder may not choose code. None: the caller
            knows what the folder names.

    Raises:
        ValueError: If a file is damaged, or does not fit the task's network.
    """
    folder = RunFolder.reopen(path)
    config, record = folder.config(), folder.result()
    if record is None:
        raise ValueError(f"only a run that has ended has a result, but {str(path)!r} has not: go on with it")
    objects.check(config)
    if given is not None:
        refuse_code({"task": config.task}, given, str(path))
    task: Task = objects.task or load_task(config.task, data=config.data, checkpoint=config.checkpoint)
    scores = safetensors.numpy.load_file(path / SCORES)
    measure = Measure.from_json(record.get("metric"))
    reports = {
        name: NetworkReport(
            metric=record[name][measure.name],
            costs=record[name]["costs"],
            key=(),
            each={split: scores[f"{name}|{split}"] for split in ("validation", "test") if f"{name}|{split}" in scores},
        )
        for name in (*NETWORKS, FINETUNED)
        if name in record
    }
    networks = {"dense": unselected(task.network), "found": unselected(load_applied(task.network, path))}
    if FINETUNED in record and (path / FINETUNING / WEIGHTS).is_file():  # not while it is trained again
        networks[FINETUNED] = unselected(load_applied(task.network, path / FINETUNING))
    policy = read_policy(path / POLICY)
    return Result(
        record=record, policy=policy, networks=networks, reports=reports, task=task, folder=path, objects=objects
    )
