"""What the commands do: search, resume, apply, export. Printing goes through the console that is passed."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text
from torch import nn

from amc.config.own_code import refuse_code
from amc.config.parts import WorkersConfig
from amc.config.search import SearchConfig, load_config
from amc.export.applied import POLICY, WEIGHTS, read_policy, write_applied
from amc.export.onnx import CHECKED_IMAGES, export_onnx
from amc.problem.prepare import calibrate
from amc.problem.setup import Setup, set_up
from amc.profiling.timing import rounds_in_words
from amc.reporting.live import live
from amc.reporting.screen import ConsoleScreen
from amc.reporting.tables import remarks_below, stored_comparison
from amc.runs.runner import HERE, Ended, Run, measured_latency, new_run, resume_run
from amc.runs.showing import show_run
from amc.studies.compare import PAGE
from amc.studies.competition import run_compare
from envs.network.inference import placed
from envs.space.policy import Policy, weights_fingerprint
from hw_profiles.documents import shown


def run_search(
    config: SearchConfig, out: Path, console: Console, *, fresh: bool = False, workers: WorkersConfig = HERE
) -> Run:
    """Searches, writes the run folder, shows the comparison."""
    with live(console) as region:
        run = new_run(config, out, ConsoleScreen(console, region), fresh=fresh, workers=workers)
    show_run(run, console)
    return run


def run_resume(
    path: Path, more: int, console: Console, workers: WorkersConfig = HERE, given: Mapping[str, Any] | None = None
) -> None:
    """Goes on with a run where it stopped; one that has ended shows its result, unless it gets more episodes.

    Args:
        path: The run folder.
        more: Episodes to add.
        console: Where to print.
        workers: Where episodes are played.
        given: Task and reward as the command line names them, which a function of the user's has to be.
    """
    try:
        with live(console) as region:
            run = resume_run(path, more, ConsoleScreen(console, region), workers, given or {})
    except Ended as ended:
        console.print(stored_comparison(ended.result))
        console.out(f"{path} has ended; `--episodes +N` goes on with it", highlight=False)
        return
    show_run(run, console)


def run_comparison(config: SearchConfig, agents: Sequence[str], seeds: int, out: Path, console: Console) -> None:
    """Runs every agent with every seed at the same effort, shows and writes what they say together."""

    def say(text: str) -> None:
        console.out(text, style="bold", highlight=False)

    with live(console) as region:
        said = run_compare(config, agents, seeds, out, ConsoleScreen(console, region), say)
    console.out(said, highlight=False)
    console.out(f"wrote {out / PAGE}", highlight=False)


def run_apply(policy_file: Path, overrides: Mapping[str, Any], out: Path, console: Console) -> nn.Module:
    """Makes the smaller network of a policy and writes it.

    Args:
        policy_file: `policy.json` of a run.
        overrides: Task, data or checkpoint, where others than the run's are meant.
        out: Folder to write.
        console: Where to print.
    """
    policy, setup, small = _rebuild(policy_file, overrides, console)
    write_applied(policy, small, out)
    _side_by_side(setup, policy, small, console)
    console.out(f"wrote {out / WEIGHTS} and {out / POLICY}", highlight=False)
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
    policy, setup, small = _rebuild(policy_file, overrides, console)
    difference = export_onnx(small, out, setup.task, policy.patterns())
    _side_by_side(setup, policy, small, console)
    console.out(
        f"wrote {out}: onnxruntime and torch agree on {min(CHECKED_IMAGES, len(setup.task.validation))} images "
        f"(largest relative difference {difference:.1e})",
        highlight=False,
    )


def _rebuild(policy_file: Path, overrides: Mapping[str, Any], console: Console) -> tuple[Policy, Setup, nn.Module]:
    """The policy, the setup it came from (its configuration, other task, data or weights if given), the network."""
    policy = read_policy(policy_file)
    stored = _stored_config(policy, policy_file)
    refuse_code(stored, overrides, str(policy_file))
    if overrides.get("task", stored.get("task")) != stored.get("task"):
        stored.pop("data", None)
        stored.pop("checkpoint", None)
    with live(console) as screen:
        setup = set_up(load_config(None, stored | dict(overrides)), screen.step)
        policy.check_structure(setup.task.network)
        if policy.weights != weights_fingerprint(setup.task.network):
            said = "the policy was made for other weights of this network"
            console.print(Text.assemble(("warning: ", "yellow"), said))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            small = placed(calibrate(setup, screen.step).compress(policy).network, "cpu")
    return policy, setup, small


def _stored_config(policy: Policy, where: Path) -> dict[str, Any]:
    """The configuration that a policy was made with, as far as compression needs it: no reward is computed."""
    stored = policy.provenance.get("config", {})
    if not isinstance(stored, dict):
        raise ValueError(
            f"`provenance.config` of a policy must be a table, but got {shown(stored)} in {str(where)!r}: "
            "take the file as it was written"
        )
    return {key: value for key, value in stored.items() if key != "reward"}


def _side_by_side(setup: Setup, policy: Policy, small: nn.Module, console: Console) -> None:
    networks = {"dense": setup.task.network, "pruned": small}
    latency, remarks = measured_latency(networks, setup, "pruned")
    for name, network in networks.items():
        patterns = policy.patterns() if name == "pruned" else {}
        costs = ", ".join(f"{cost} {value:,.6g}" for cost, value in setup.real_costs(network, patterns).items())
        timed = f"{latency[name]} ms, " if name in latency else ""
        console.out(f"{name:>8}: {timed}{costs}", highlight=False)
    if latency:
        console.print(Text(rounds_in_words([timing.rounds for timing in latency.values()]), style="dim"))
    for remark in remarks_below(remarks):
        console.print(remark)
