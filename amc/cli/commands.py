"""What the commands do: search, resume, apply, export. Printing goes through the console that is passed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text
from torch import nn

from amc.config.own_code import KEYS, confirm_code
from amc.config.parts import WorkersConfig
from amc.config.search import SearchConfig
from amc.export.applied import FINETUNING, POLICY, WEIGHTS, Which, network_folder, read_policy, write_applied
from amc.export.interface import write_interface
from amc.export.onnx import CHECKED_IMAGES, export_onnx
from amc.export.rebuild import OtherCode
from amc.export.stored import Stored, is_stored, read_stored
from amc.problem.setup import Setup
from amc.profiling.timing import rounds_in_words
from amc.reporting.live import live
from amc.reporting.screen import ConsoleScreen
from amc.reporting.tables import remarks_below, stored_comparison
from amc.runs.applying import made_with, rebuild
from amc.runs.ending import measured_latency
from amc.runs.finetuning.run import finetune_run
from amc.runs.folder import REPORT, RESULT
from amc.runs.found import Result
from amc.runs.result_file import read_result
from amc.runs.runner import HERE, Ended, new_run, resume_run
from amc.runs.studies.competition import run_compare
from amc.runs.studies.teaching import asking
from envs.space.policy import Policy


def run_search(
    config: SearchConfig, out: Path, console: Console, *, fresh: bool = False, workers: WorkersConfig = HERE
) -> Result:
    """Searches, writes the run folder, shows the comparison."""
    with live(console) as region:
        run = new_run(config, out, ConsoleScreen(console, region), fresh=fresh, workers=workers)
    found = Result.of(run)
    found.show(console)
    return found


def run_policy(
    run: Path,
    given: Mapping[str, Any],
    refine: int,
    out: Path,
    console: Console,
    *,
    fresh: bool = False,
    workers: WorkersConfig = HERE,
) -> Result:
    """Asks the agent of a range for the policy of one budget, and shows it beside the knapsack's.

    Args:
        run: Run folder of the search over the range.
        given: The budget at `constraint`, the device at `profile`; task and reward, where they are own functions.
        refine: Episodes that improve the answer.
        out: Run folder to write.
        console: Where to print.
        fresh: Move an earlier run in `out` aside.
        workers: Where episodes are played.
    """
    config = asking(run, given["constraint"], refine, given.get("profile"))
    named = {key: value for key, value in given.items() if key in KEYS}
    confirm_code(config.model_dump(include=set(KEYS)), named, str(run))
    return run_search(config, out, console, fresh=fresh, workers=workers)


def run_resume(
    path: Path,
    more: int,
    console: Console,
    workers: WorkersConfig = HERE,
    given: Mapping[str, Any] | None = None,
    *,
    previous: bool = False,
) -> None:
    """Goes on with a run where it stopped; one that has ended shows its result, unless it gets more episodes.

    Args:
        path: The run folder.
        more: Episodes to add.
        console: Where to print.
        workers: Where episodes are played.
        given: Task and reward as the command line names them, which a function of the user's has to be.
        previous: Go on from the round before the last one.
    """
    try:
        with live(console) as region:
            screen = ConsoleScreen(console, region)
            run = resume_run(path, more, screen, workers, given=given or {}, previous=previous)
    except Ended as ended:
        console.print(stored_comparison(ended.result))
        if ended.written:
            console.out(f"wrote {', '.join(ended.written)} again", highlight=False)
        console.out(f"{path} has ended; `--episodes +N` goes on with it", highlight=False)
        return
    Result.of(run).show(console)


def run_finetune(
    path: Path, settings: Mapping[str, Any], console: Console, *, given: Mapping[str, Any], fresh: bool
) -> None:
    """Trains the network that a run has found, and shows it beside the others.

    Args:
        path: The run folder.
        settings: Settings of training that were given.
        console: Where to print.
        given: The task as the command line names it, which a function of the user's has to be.
        fresh: Begin again.
    """
    with live(console) as region:
        record = finetune_run(path, settings, ConsoleScreen(console, region), given=given, fresh=fresh)
    console.print(stored_comparison(record))
    console.out(f"wrote {path / FINETUNING / WEIGHTS}, {path / RESULT} and {path / REPORT}", highlight=False)


def run_comparison(config: SearchConfig, agents: Sequence[str], seeds: int, out: Path, console: Console) -> None:
    """Runs every agent with every seed at the same effort, shows and writes what they say together."""

    def say(text: str) -> None:
        console.out(text, style="bold", highlight=False)

    with live(console) as region:
        found = run_compare(config, agents, seeds, out, ConsoleScreen(console, region), say)
    found.show(console)


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
    write_interface(setup.task, out)
    _side_by_side(setup, policy, small, console)
    console.out(f"wrote {out / WEIGHTS} and {out / POLICY}", highlight=False)
    return small


def run_export(
    run: Path,
    overrides: Mapping[str, Any],
    out: Path,
    console: Console,
    *,
    which: Which = "newest",
    again: bool = False,
) -> None:
    """Writes a run's network in another form, compared with torch: the stored one, else one repaired anew.

    Args:
        run: A run folder, what `amc apply` wrote, or `policy.json`.
        overrides: As for `run_apply`.
        out: File to write; its name says in which form.
        console: Where to print.
        which: Network of the run.
        again: Repair from policy and data, whatever is stored.
    """
    if not out.parent.is_dir():
        raise ValueError(f"the folder of the exported file must exist, but {str(out.parent)!r} does not: make it first")
    policy_file = run / POLICY if run.is_dir() else run
    if not again and is_stored(run) and made_with(read_policy(policy_file), overrides, str(run)):
        console.out(_stored(run, which).write(out), highlight=False)
        if (result := policy_file.with_name(RESULT)).is_file():
            console.print(stored_comparison(read_result(result)))
        return
    _check_made_again(policy_file, out, which, again=again)
    policy, setup, small = _rebuild(policy_file, overrides, console)
    difference = export_onnx(small, out, setup.task, policy.patterns())
    _side_by_side(setup, policy, small, console)
    console.out(
        f"wrote {out}: onnxruntime and torch agree on {min(CHECKED_IMAGES, len(setup.task.validation))} images "
        f"(largest relative difference {difference:.1e})",
        highlight=False,
    )


def _check_made_again(policy_file: Path, out: Path, which: Which, *, again: bool) -> None:
    """Refuses what a network that is made again from its policy cannot be: another form than ONNX, or fine-tuned.

    Raises:
        ValueError: If it is asked for.
    """
    if out.suffix in (".pt2", ".txt"):
        raise ValueError(
            f"a network that is made again from its policy is exported as NAME.onnx, but got {str(out)!r}: call it "
            "so, or export the stored network of a run, with its own data and weights"
        )
    wanted = "found" if again and which == "newest" else which
    if network_folder(policy_file.parent, wanted).name == FINETUNING:
        raise ValueError(
            f"a fine-tuned network is exported as it is stored, but in {str(policy_file.parent)!r} other data or "
            "weights are asked for, or its task's output is a function: add --which found, or load it by `amc.load`"
        )


def _stored(run: Path, which: Which) -> Stored:
    """The stored network; where it cannot be read for its code, the error says what does without that."""
    try:
        return read_stored(run, which)
    except OtherCode as error:
        error.add_note("--repair-again makes the network found from its policy and the task's data")
        raise


def _rebuild(policy_file: Path, overrides: Mapping[str, Any], console: Console) -> tuple[Policy, Setup, nn.Module]:
    """The policy, the setup it came from (its configuration, other task, data or weights if given), the network."""
    policy = read_policy(policy_file)
    with live(console) as screen:
        setup, small, same_weights = rebuild(policy, overrides, screen.step, source=str(policy_file))
    if not same_weights:
        said = "the policy was made for other weights of this network"
        console.print(Text.assemble(("warning: ", "yellow"), said))
    return policy, setup, small


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
