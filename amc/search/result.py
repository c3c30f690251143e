"""What a search returns: the networks it reports, the policy, the effort. `amc.runs.folder` writes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import nn

from amc.config.search import SearchConfig
from amc.pool.pool import IN_PROCESS, Usage
from amc.problem.layer_patterns import LayerPattern
from amc.profiling.layer_times import LayerTime
from amc.profiling.timing import Timing
from envs.measure import ACCURACY, Measure
from envs.space.assignment import Key
from envs.space.policy import Policy

SCHEMA_VERSION = 1
NETWORKS = ("dense", "uniform", "start", "found")
"""What is reported, in the order in which it is shown; start only where there was one."""
FINETUNED = "fine-tuned"
"""The network found after training, in a result to which training has added it."""
Stopped = Literal["episodes", "effort", "time", "patience"]


class Images(NamedTuple):
    """Images that were scored, and how many the plain way (every episode, all images of the reward) would have."""

    scored: int
    plain: int


NOTHING_SCORED = Images(0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkReport:
    """What the result says of one network.

    Attributes:
        metric: Split name -> the task's metric on it.
        costs: Cost name -> value, recounted on the real network.
        key: [S] values of the assignment: channels kept, ranks of patterns.
        each: Split name -> [N] metric of each sample, for paired comparisons; {} where it is no mean over samples.
        resampled: Split name -> [R] metric on bootstrap resamples (`amc.scoring.paired`); {} where it is such a mean.
        standard_error: Split name -> of the metric over samples.
    """

    metric: dict[str, float]
    costs: dict[str, float]
    key: Key
    each: dict[str, NDArray[np.float32]] = field(repr=False, compare=False, default_factory=dict)
    resampled: dict[str, NDArray[np.float64]] = field(repr=False, compare=False, default_factory=dict)
    standard_error: dict[str, float] = field(compare=False, default_factory=dict)

    @property
    def accuracy(self) -> dict[str, float]:
        """The metric, by the name that it has for most tasks."""
        return self.metric


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """The outcome of a search.

    Attributes:
        task: Task name.
        budgets: Cost name -> limit in the cost's unit.
        seed: The run's seed.
        reports: dense, uniform, start (the best solution that a learner started from) and found.
        policy: The pruning policy found.
        networks: The same ones, as modules.
        episodes: Episodes played.
        stopped: What ended the search.
        evaluations: Policies compressed and scored during the search.
        image_forwards: Everything the search paid for.
        seconds: Wall time of the search.
        failures: Episodes whose evaluation failed.
        images: Images that the episodes were scored on.
        workers: How many, and how much of their time they waited.
        patterns: Every layer with a weight, as found leaves it; none where no pattern was decided.
        remarks: What a reader of these numbers has to know, one sentence each.
        uncounted: Operators of the network that no cost counts.
        measure: Name, direction and unit of the metric.
    """

    task: str
    budgets: dict[str, float]
    seed: int
    reports: dict[str, NetworkReport]
    policy: Policy
    networks: dict[str, nn.Module] = field(repr=False)
    episodes: int
    stopped: Stopped
    evaluations: int
    image_forwards: int
    seconds: float
    failures: int = 0
    images: Images = NOTHING_SCORED
    workers: Usage = IN_PROCESS
    patterns: tuple[LayerPattern, ...] = ()
    remarks: tuple[str, ...] = ()
    uncounted: tuple[str, ...] = ()
    measure: Measure = ACCURACY

    def to_json(
        self,
        versions: Mapping[str, str],
        latency: Mapping[str, Timing],
        layers: Mapping[str, Sequence[LayerTime]] | None = None,
    ) -> dict[str, Any]:
        """The content of `result.json`."""
        each = {name: [layer.to_json() for layer in times] for name, times in (layers or {}).items()}
        patterns = {one.layer: one.to_json() for one in self.patterns}
        reports = {
            name: {
                self.measure.name: report.metric,
                "standard_error": report.standard_error,
                "costs": report.costs,
                "choices": list(report.key),
            }
            for name, report in self.reports.items()
        }
        return {
            "schema_version": SCHEMA_VERSION,
            "task": self.task,
            "budgets": self.budgets,
            "seed": self.seed,
            "metric": self.measure.to_json(),
            **reports,
            **({"patterns": patterns} if patterns else {}),
            **({"removed": [branch.name for branch in self.policy.branches]} if self.policy.branches else {}),
            "episodes": self.episodes,
            "failures": self.failures,
            "stopped": self.stopped,
            "evaluations": self.evaluations,
            "images": self.images._asdict(),
            "image_forwards": self.image_forwards,
            "versions": dict(versions),
            "uncounted": list(self.uncounted),
            "remarks": list(self.remarks),
            "measured": {
                "seconds": round(self.seconds, 2),
                "latency_ms": {name: timing.median_ms for name, timing in latency.items()},
                "latency_spread": {name: timing.spread() for name, timing in latency.items()},
                "workers": {"number": self.workers.workers, "idle": round(self.workers.idle, 4)},
                **({"layers": each} if each else {}),
            },
        }


def stored_latency(document: Mapping[str, Any]) -> dict[str, Timing]:
    """Network name -> its time, from the content of `result.json`."""
    latency_ms, spread = document["measured"]["latency_ms"], document["measured"]["latency_spread"]
    return {name: Timing(median_ms=value, **spread[name]) for name, value in latency_ms.items()}


def stored_layers(document: Mapping[str, Any]) -> dict[str, tuple[LayerTime, ...]]:
    """Network name -> time of each layer, from the content of `result.json`; {} without a profile."""
    layers = document["measured"].get("layers", {})
    return {name: tuple(LayerTime(**time) for time in times) for name, times in layers.items()}


def with_measured(result: SearchResult, document: Mapping[str, Any]) -> SearchResult:
    """A result computed again, with what was measured and said when it was computed first.

    Args:
        result: The result.
        document: The content of `result.json`.
    """
    measured = document["measured"]
    return replace(
        result,
        seconds=measured["seconds"],
        workers=Usage(measured["workers"]["number"], measured["workers"]["idle"]),
        remarks=tuple(document["remarks"]),
    )


def with_provenance(policy: Policy, config: SearchConfig) -> Policy:
    """The policy with everything needed to make its network again."""
    return replace(policy, provenance={"config": config.model_dump(mode="json", exclude_none=True)})
