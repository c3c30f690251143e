"""What `amc apply` and `amc export` do. Printing goes through the console handed in."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text
from torch import nn

from amc.config.search import load_config
from amc.export.applied import POLICY, WEIGHTS, read_policy, write_applied
from amc.export.onnx import write_onnx
from amc.profiling.timing import rounds_in_words
from amc.reporting.live import live
from amc.reporting.tables import remarks_below
from amc.runs.runner import measured_latency
from amc.search.setup import Problem
from envs.network.inference import placed
from envs.space.policy import Policy, weights_fingerprint

CHECKED_IMAGES = 16
"""Real images on which an ONNX file is compared with torch."""


def run_apply(policy_file: Path, overrides: Mapping[str, Any], out: Path, console: Console) -> nn.Module:
    """Makes the smaller network of a policy and writes it.

    Args:
        policy_file: `policy.json` of a run.
        overrides: Task, data or checkpoint, where others than the run's are meant.
        out: Folder to write.
        console: Where to print.
    """
    policy, problem, small = _rebuild(policy_file, overrides, console)
    write_applied(policy, small, out)
    _side_by_side(problem, policy, small, console)
    console.print(f"wrote {out / WEIGHTS} and {out / POLICY}", highlight=False, soft_wrap=True)
    return small


def run_export(policy_file: Path, overrides: Mapping[str, Any], out: Path, console: Console) -> None:
    """Makes the smaller network of a policy and writes it as ONNX, compared with torch on real images.

    Args:
        policy_file: `policy.json` of a run.
        overrides: As for `run_apply`.
        out: File to write.
        console: Where to print.
    """
    if not out.parent.is_dir():
        raise ValueError(f"the folder of the ONNX file must exist, but {str(out.parent)!r} does not: make it first")
    policy, problem, small = _rebuild(policy_file, overrides, console)
    count = min(CHECKED_IMAGES, len(problem.task.validation))
    inputs, _ = problem.task.validation.batch(range(count))
    difference = write_onnx(small, problem.task.example_input, inputs, out, policy.patterns())
    _side_by_side(problem, policy, small, console)
    console.print(
        f"wrote {out}: onnxruntime and torch agree on {count} images (largest relative difference {difference:.1e})",
        highlight=False,
        soft_wrap=True,
    )


def _rebuild(policy_file: Path, overrides: Mapping[str, Any], console: Console) -> tuple[Policy, Problem, nn.Module]:
    """The policy, the problem it came from (its configuration, other task, data or weights if given), the network."""
    policy = read_policy(policy_file)
    stored: dict[str, Any] = dict(policy.provenance.get("config", {}))
    if overrides.get("task", stored.get("task")) != stored.get("task"):
        stored.pop("data", None)
        stored.pop("checkpoint", None)
    with live(console) as screen:
        problem = Problem(load_config(None, stored | dict(overrides)), screen.step)
        policy.check_structure(problem.task.network)
        if policy.weights != weights_fingerprint(problem.task.network):
            console.print("[yellow]warning:[/] the policy was made for other weights of this network")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            small = placed(problem.compressor.compress(policy).network, "cpu")
    return policy, problem, small


def _side_by_side(problem: Problem, policy: Policy, small: nn.Module, console: Console) -> None:
    networks = {"dense": problem.task.network, "pruned": small}
    latency, remarks = measured_latency(networks, problem, "pruned")
    for name, network in networks.items():
        patterns = policy.patterns() if name == "pruned" else {}
        costs = ", ".join(f"{cost} {value:,.6g}" for cost, value in problem.real_costs(network, patterns).items())
        timed = f"{latency[name]} ms, " if name in latency else ""
        console.print(f"{name:>8}: {timed}{costs}", highlight=False)
    if latency:
        console.print(Text(rounds_in_words([timing.rounds for timing in latency.values()]), style="dim"))
    for remark in remarks_below(remarks):
        console.print(remark)
