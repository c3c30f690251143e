"""What is measured and gathered at the end of a run: latencies side by side, times of layers, the report's data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from amc.config.search import SearchConfig
from amc.problem.layer_patterns import layer_patterns
from amc.problem.setup import Setup
from amc.profiling.layer_times import LayerTime, layer_times
from amc.profiling.timing import BY_LATENCY, BY_WIDTH, LESS, Timing, latency_ms, timing_remarks
from amc.reporting.facts import ReportData, gather
from amc.search.episode import Episode
from amc.search.result import SearchResult
from hw_profiles.device import describe_device

TIMED_SECONDS = 3.0
"""Time spent on timing the networks of a result side by side."""


def measured_latency(
    networks: Mapping[str, nn.Module], setup: Setup, pruned: str
) -> tuple[dict[str, Timing], tuple[str, ...]]:
    """Latencies side by side, and what has to be said of them; none where onnxruntime cannot run a network."""
    profile = setup.table.profile if setup.table else None
    setting = {"threads": profile.threads, "batch": profile.batch} if profile else {}
    try:
        timings = latency_ms(networks, setup.task.example_input, seconds=TIMED_SECONDS, **setting)
    except ValueError as error:
        return {}, (f"No latency was measured: {error}.",)
    cures = [BY_LATENCY] if "latency_ms" not in setup.constraint.limits() else []
    cures += [BY_WIDTH] if (setup.config.rules.round_to or 1) % 8 else []
    return timings, timing_remarks(timings, pruned, threads=setting.get("threads", 1), cures=cures or [LESS])


def measured_layers(result: SearchResult, setup: Setup) -> dict[str, tuple[LayerTime, ...]]:
    """Where the time of the dense and the found network goes, by the profile and, if it is of this device, really."""
    table = setup.table
    if table is None:
        return {}
    device = describe_device(table.profile.threads)
    here = table.profile.sessions[0].device.cpu == device["cpu"]
    shown = {name: result.networks[name] for name in ("dense", "found")}
    return layer_times(shown, setup.task.example_input, table, here=here and table.profile.threads == 1)


def report_data(
    setup: Setup, config: SearchConfig, document: Mapping[str, Any], episodes: Sequence[Episode]
) -> ReportData:
    """What the report of a finished search shows.

    Args:
        setup: What was searched on.
        config: The complete configuration.
        document: The content of `result.json`.
        episodes: Those that did not fail, in order.
    """
    return gather(
        document,
        patterns=layer_patterns(setup, setup.assignment(document["found"]["choices"])),
        agent=config.agent,
        configuration=config.to_toml(),
        family=setup.anatomy.family,
        sites=setup.sites,
        cost=setup.constraint.budgets[0].cost,
        samples={"validation": len(setup.task.validation), "test": len(setup.task.test)},
        episodes=episodes,
    )
