"""What the commands do: search, resume, apply, export. Printing goes through the console handed in."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text
from torch import nn

from amc.compare import PAGE, read_run, trace, write_comparison, write_trace
from amc.config import SearchConfig, load_config
from amc.config_parts import WorkersConfig
from amc.export import POLICY, WEIGHTS, latency_ms, read_policy, write_applied, write_onnx
from amc.layer_times import LayerTime, layer_times
from amc.live import Live, live
from amc.problem import Problem
from amc.record import CONFIG, REPORT, RESULT, RunFolder
from amc.report import write_report
from amc.result import SearchResult
from amc.search import Watcher, search
from amc.show import comparison, remarks_below, stored_comparison
from amc.snapshot import Snapshot
from amc.timing import BY_LATENCY, BY_WIDTH, LESS, Timing, rounds_in_words, timing_remarks
from amc.workers import staffed
from envs.inference import placed
from envs.policy import Policy, weights_fingerprint
from hw_profiles.device_script import describe_device

CHECKED_IMAGES = 16
"""Real images on which an ONNX file is compared with torch."""

HERE = WorkersConfig()
"""No workers: episodes are played in this process."""

MOST_EPISODES = 1_000_000
"""Of a run that only its effort ends."""


def run_search(
    config: SearchConfig, out: Path, console: Console, *, fresh: bool = False, workers: WorkersConfig = HERE
) -> SearchResult:
    """Searches, writes the run folder, shows the comparison."""
    with live(console) as screen:
        problem = Problem(config, screen.step)
        return _search(problem, RunFolder.create(out, config, fresh=fresh), None, screen, console, workers)


def run_resume(path: Path, more: int, console: Console, workers: WorkersConfig = HERE) -> None:
    """Goes on with a run where it stopped; one that has ended shows its result, unless it gets more episodes.

    Args:
        path: The run folder.
        more: Episodes to add to those configured.
        console: Where to print.
        workers: Who plays from now on; it need not be who played before.

    Raises:
        ValueError: If there is no run, it is damaged, or its task has changed since.
    """
    folder = RunFolder.reopen(path)
    config, result = folder.config(), folder.result()
    if more:
        if config.single:
            raise ValueError(
                f"agent {config.agent!r} computes one policy, but got --episodes: search with another agent"
            )
        config = config.model_copy(update={"episodes": config.episodes + more})
        folder.replace_config(config)
    elif result is not None and result["stopped"] != "time" and result["episodes"] >= config.planned_episodes:
        console.print(stored_comparison(result))
        console.print(f"{path} has ended; `--episodes +N` goes on with it", highlight=False)
        return
    with live(console) as screen:
        problem, snapshot = Problem(config, screen.step), folder.snapshot()
        _search(problem, folder, snapshot, screen, console, workers)


def _search(
    problem: Problem,
    folder: RunFolder,
    snapshot: Snapshot | None,
    screen: Live,
    console: Console,
    workers: WorkersConfig = HERE,
    *watchers: Watcher,
) -> SearchResult:
    """Searches from a snapshot on, writes the results, shows them."""
    if problem.config.backend.name == "auto":
        backend = problem.backend  # settled here
        folder.replace_config(problem.config)
        if (found := problem.agreement) is not None:
            took = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in found.seconds)
            console.print(
                f"scoring in {backend}: accuracies within {100 * found.difference:.2f} points of eager fp32 ({took})",
                highlight=False,
            )
    watcher = _All((folder, _Shown(screen, problem.config.planned_episodes), *watchers))
    with staffed(problem, workers) as rollouts:
        result = search(problem, watcher, snapshot, rollouts)
    screen.step("timing networks", 0, 1)
    latency, remarks = _latency(result.networks, problem, "found")
    result = replace(result, remarks=(*result.remarks, *remarks))
    layers = _layers(result, problem)
    folder.finish(result, latency, layers)
    last = folder.snapshot()
    assert last is not None
    write_report(folder.path / REPORT, problem, result, latency, last.episodes, layers)
    screen.step("timing networks", 1, 1)
    screen.stop()
    console.print(comparison(result, latency))
    effort = f"{result.evaluations} evaluations, {result.image_forwards:,} image-forwards, {result.seconds:.0f} s"
    if result.images.scored < result.images.plain:
        effort += f", {result.images.scored / result.images.plain:.0%} of the images that the plain way scores"
    if result.failures:
        effort += f", {result.failures} of {result.episodes} evaluations failed"
    if result.workers.workers:
        effort += f", {result.workers.workers} workers idle {result.workers.idle:.0%} of the time"
    console.print(f"searched with {effort}; wrote", highlight=False)
    for name in (POLICY, WEIGHTS, RESULT, REPORT):
        console.print(f"  {folder.path / name}", highlight=False, soft_wrap=True)
    return result


def run_compare(config: SearchConfig, agents: Sequence[str], seeds: int, out: Path, console: Console) -> str:
    """Runs every agent with every seed at the same effort, or goes on where that stopped; writes the comparison.

    Args:
        config: Task, budgets, effort and settings; the agents' own limits are lifted.
        agents: Who competes.
        seeds: Runs per agent, with seeds 0, 1, ...
        out: Folder of the run folders and of the comparison.
        console: Where to print.

    Returns:
        The verdict.
    """
    planned = [(agent, seed) for seed in range(seeds) for agent in dict.fromkeys(agents)]
    configs = {pair: _competitor(config, *pair) for pair in planned}  # a wrong agent is refused before any work
    runs = []
    for number, (agent, seed) in enumerate(planned, start=1):
        folder = out / f"{agent}-{seed}"
        if (run := read_run(folder, agent, seed)) is None:
            console.print(f"[bold]{agent}, seed {seed}[/] ({number} of {len(planned)})")
            _compete(configs[agent, seed], folder, console)
            run = read_run(folder, agent, seed)
            assert run is not None
        runs.append(run)
        if number % len(set(agents)):
            continue  # pairs need the same seeds: the comparison is written after every seed
        budgets = ", ".join(f"{name} = {value:g}" for name, value in config.constraint.items())
        said = write_comparison(out, runs, f"{config.task}, {budgets}, {config.effort:,} image-forwards each")
    console.print(said, highlight=False)
    console.print(f"wrote {out / PAGE}", highlight=False, soft_wrap=True)
    return said


def _competitor(config: SearchConfig, agent: str, seed: int) -> SearchConfig:
    values = config.model_dump(mode="json", exclude_none=True)
    return load_config(None, {**values, "agent": agent, "seed": seed, "episodes": MOST_EPISODES})


def _compete(config: SearchConfig, path: Path, console: Console) -> None:
    """One run and its curve, from where an earlier process stopped."""
    problem = run_on(config, path, console)
    last = RunFolder.reopen(path).snapshot()
    assert last is not None
    write_trace(path, trace(problem, last))


def run_on(
    config: SearchConfig, path: Path, console: Console, workers: WorkersConfig = HERE, *watchers: Watcher
) -> Problem:
    """One run, from where an earlier process stopped."""
    started = (path / CONFIG).exists()
    if started:  # the backend stays, whatever this machine would choose
        config = config.model_copy(update={"backend": RunFolder.reopen(path).config().backend})
    with live(console) as screen:
        problem = Problem(config, screen.step)
        folder = RunFolder.reopen(path) if started else RunFolder.create(path, config)
        _search(problem, folder, folder.snapshot() if started else None, screen, console, workers, *watchers)
    return problem


def run_apply(
    policy_file: Path, task: str | None, data: Path | None, checkpoint: Path | None, out: Path, console: Console
) -> nn.Module:
    """Makes the smaller network of a policy and writes it."""
    policy, problem, small = _rebuild(policy_file, task, data, checkpoint, console)
    write_applied(policy, small, out)
    _side_by_side(problem, policy, small, console)
    console.print(f"wrote {out / WEIGHTS} and {out / POLICY}", highlight=False, soft_wrap=True)
    return small


def run_export(
    policy_file: Path, task: str | None, data: Path | None, checkpoint: Path | None, out: Path, console: Console
) -> None:
    """Makes the smaller network of a policy and writes it as ONNX, compared with torch on real images."""
    if not out.parent.is_dir():
        raise ValueError(f"the folder of the ONNX file must exist, but {str(out.parent)!r} does not: make it first")
    policy, problem, small = _rebuild(policy_file, task, data, checkpoint, console)
    count = min(CHECKED_IMAGES, len(problem.task.validation))
    inputs, _ = problem.task.validation.batch(range(count))
    difference = write_onnx(small, problem.task.example_input, inputs, out, policy.patterns())
    _side_by_side(problem, policy, small, console)
    console.print(
        f"wrote {out}: onnxruntime and torch agree on {count} images (largest relative difference {difference:.1e})",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


def _rebuild(
    policy_file: Path, task: str | None, data: Path | None, checkpoint: Path | None, console: Console
) -> tuple[Policy, Problem, nn.Module]:
    """The policy, the problem it came from (its configuration, other task, data or weights if given), the network."""
    policy = read_policy(policy_file)
    stored: dict[str, Any] = dict(policy.provenance.get("config", {}))
    if task is not None and task != stored.get("task"):
        stored.pop("data", None)
        stored.pop("checkpoint", None)
    stored |= {k: v for k, v in {"task": task, "data": data, "checkpoint": checkpoint}.items() if v is not None}
    with live(console) as screen:
        problem = Problem(load_config(None, stored), screen.step)
        policy.check_structure(problem.task.network)
        if policy.weights != weights_fingerprint(problem.task.network):
            console.print("[yellow]warning:[/] the policy was made for other weights of this network")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            small = placed(problem.compressor.compress(policy).network, "cpu")
    return policy, problem, small


def _side_by_side(problem: Problem, policy: Policy, small: nn.Module, console: Console) -> None:
    networks = {"dense": problem.task.network, "pruned": small}
    latency, remarks = _latency(networks, problem, "pruned")
    for name, network in networks.items():
        patterns = policy.patterns() if name == "pruned" else {}
        costs = ", ".join(f"{cost} {value:,.6g}" for cost, value in problem.real_costs(network, patterns).items())
        timed = f"{latency[name]} ms, " if name in latency else ""
        console.print(f"{name:>8}: {timed}{costs}", highlight=False)
    if latency:
        console.print(Text(rounds_in_words([timing.rounds for timing in latency.values()]), style="dim"))
    for remark in remarks_below(remarks):
        console.print(remark)


def _latency(
    networks: Mapping[str, nn.Module], problem: Problem, pruned: str
) -> tuple[dict[str, Timing], tuple[str, ...]]:
    """Latencies side by side, and what has to be said of them; none where onnxruntime cannot run a network."""
    profile = problem.table.profile if problem.table else None
    setting = {"threads": profile.threads, "batch": profile.batch} if profile else {}
    try:
        timings = latency_ms(networks, problem.task.example_input, **setting)
    except ValueError as error:
        return {}, (f"No latency was measured: {error}.",)
    cures = [BY_LATENCY] if "latency_ms" not in problem.constraint.limits() else []
    cures += [BY_WIDTH] if (problem.config.rules.round_to or 1) % 8 else []
    return timings, timing_remarks(timings, pruned, threads=setting.get("threads", 1), cures=cures or [LESS])


def _layers(result: SearchResult, problem: Problem) -> dict[str, tuple[LayerTime, ...]]:
    """Where the time of the dense and the found network goes, by the profile and, if it is of this device, really."""
    table = problem.table
    if table is None:
        return {}
    device = describe_device(table.profile.threads)
    here = table.profile.runtime == "onnxruntime" and table.profile.sessions[0].device.cpu == device["cpu"]
    shown = {name: result.networks[name] for name in ("dense", "found")}
    return layer_times(shown, problem.task.example_input, table, here=here and table.profile.threads == 1)


@dataclass(frozen=True, slots=True)
class _All:
    """Tells all, the run folder first."""

    watchers: tuple[Watcher, ...]

    def round(self, snapshot: Snapshot) -> None:
        """After each round."""
        for watcher in self.watchers:
            watcher.round(snapshot)


@dataclass(frozen=True, slots=True)
class _Shown:
    """Tells the screen."""

    screen: Live
    wanted: int

    def round(self, snapshot: Snapshot) -> None:
        """After each round."""
        self.screen.round(snapshot, self.wanted)
