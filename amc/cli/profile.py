"""`amc profile ...`: measure a device, bundle for another one, import, list, show, validate, check."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from amc.cli.options import Overrides, configured

if TYPE_CHECKING:
    from amc.tasks.task import Task
    from envs.units.anatomy import Anatomy
    from hw_profiles.latency.profile import Profile

app = typer.Typer(
    name="profile",
    help="Hardware profiles: measure a device, plug it in, know the error. docs/hardware_profiles.md",
    no_args_is_help=True,
)
console = Console()

ATTENTION = "rules.attention"
"""Key of what is decided about attention: a profile holds the widths that a search with the same asks for."""
TaskOption = Annotated[str, typer.Option("--task", help="Task whose network is measured, as for search.")]
RuntimeOption = Annotated[str, typer.Option(help="Runtime of the kernels, such as onnxruntime or torch.")]
ThreadsOption = Annotated[int, typer.Option(help="Threads within an operator.")]
BatchOption = Annotated[int, typer.Option(help="Batch size.")]
DtypeOption = Annotated[str, typer.Option(help="fp32 or fp16.")]
AgainOption = Annotated[
    float | None,
    typer.Option("--again-minutes", min=0.0, help="Minutes for timing disturbed ones again; left out: 5."),
]
KeepOption = Annotated[bool, typer.Option("--keep-disturbed", help="Store it however disturbed it stays.")]
BranchesOption = Annotated[
    bool, typer.Option("--branches", help="What is left without a residual branch, too: for a search with --branches.")
]
ProfileArgument = Annotated[str, typer.Argument(help="File or name of a profile.")]


@app.command()
@configured("data", "checkpoint", ATTENTION, anything=False)
def measure(
    overrides: Overrides,
    task: TaskOption,
    out: Annotated[Path, typer.Option("--out", help="Profile to write, or to add to.")],
    runtime: RuntimeOption = "onnxruntime",
    threads: ThreadsOption = 1,
    batch: BatchOption = 1,
    dtype: DtypeOption = "fp32",
    coarse: Annotated[bool, typer.Option("--coarse", help="Fewer widths, in a minute or two.")] = False,
    round_to: Annotated[
        int, typer.Option(min=1, help="Only multiples of this: all that a search with this --round-to needs.")
    ] = 1,
    branches: BranchesOption = False,
    again_minutes: AgainOption = None,
    keep_disturbed: KeepOption = False,
) -> None:
    """Measure this device for a task; goes on where it was stopped, adds to a profile what is missing."""
    from amc.profiling.measure import measure_profile
    from amc.profiling.setting import Setting
    from amc.reporting.live import live
    from hw_profiles.bench.measure import COARSE, MeasureOptions
    from hw_profiles.latency.steps import stand_ins

    setting = Setting(runtime=runtime, threads=threads, batch=batch, dtype=dtype)
    careful = COARSE if coarse else MeasureOptions()
    options = replace(careful, again_minutes=_again(again_minutes), keep_disturbed=keep_disturbed)
    with live(console) as screen:
        _, anatomy = _network(task, overrides, branches=branches)
        profile = measure_profile(anatomy, setting, options, out, screen.step, round_to=round_to)
    if (found := profile.sessions[-1].disturbed) is not None:
        console.out(found.in_words(), highlight=False)
    entries = sum(len(times.entries) for times in profile.kernels)
    console.out(f"wrote {out}: {entries} entries of {len(profile.kernels)} kernels", highlight=False)
    for place, functions in stand_ins(anatomy.family.dense, profile.execution()).items():
        console.out(f"not measured, timed as {place}: {', '.join(functions)}", highlight=False)
    console.out(f"next: amc profile check {out} --task {task}", highlight=False)


@app.command()
@configured("data", "checkpoint", ATTENTION, anything=False)
def bundle(
    overrides: Overrides,
    task: TaskOption,
    out: Annotated[Path, typer.Option("--out", help="Archive to write.")],
    batch: BatchOption = 1,
    dtype: DtypeOption = "fp32",
    entries: Annotated[int, typer.Option(min=1, help="Maximum of entries; each takes about 0.3 s.")] = 1000,
    branches: BranchesOption = False,
) -> None:
    """Pack what measures another device: it needs only Python, numpy and onnxruntime there."""
    from amc.profiling.measure import bundle_for
    from amc.profiling.setting import Setting
    from amc.storage.files import write_bytes

    _, anatomy = _network(task, overrides, branches=branches)
    content = bundle_for(anatomy, Setting(batch=batch, dtype=dtype), entries)
    write_bytes(out, content)
    console.out(f"wrote {out} ({len(content) / 1e6:.1f} MB)", highlight=False)
    console.out(f"next, on the device: python {out.name} --threads 1 --out measured.json", highlight=False)
    console.out("then here: amc profile import measured.json --name NAME", highlight=False)


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="The file that the device wrote, or a profile.")],
    name: Annotated[str | None, typer.Option(help="Name of the profile; default: the file's.")] = None,
    replace_: Annotated[bool, typer.Option("--replace", help="Replace a profile of this name.")] = False,
) -> None:
    """Check what a device measured and add it to your profiles."""
    from amc.profiling.importing import import_profile
    from amc.profiling.show import disturbances
    from amc.profiling.store import read_profile

    path, entries = import_profile(file, name, replace=replace_)
    console.out(f"wrote {path}: {entries} entries; use it as --profile {path.stem}", highlight=False)
    for line in disturbances(read_profile(path)):
        console.out(line, highlight=False)


@app.command("list")
def list_() -> None:
    """Show the known profiles, and where they lie."""
    from amc.profiling.show import listing

    console.print(listing())


@app.command()
def show(
    profile: ProfileArgument,
    plot: Annotated[Path | None, typer.Option("--plot", help="SVG file of all curves to write.")] = None,
) -> None:
    """Show what a profile holds: device, kernels, times, errors; draw it with --plot."""
    from amc.profiling.show import kernels_table, picture, summary
    from amc.storage.files import write_text

    _, found = _read(profile)
    console.out(summary(found), highlight=False)
    console.print(kernels_table(found))
    if plot is not None:
        write_text(plot, picture(found))
        console.out(f"wrote {plot}", highlight=False)


@app.command()
def validate(file: Annotated[Path, typer.Argument(help="File of a profile.")]) -> None:
    """Check a file against the format and its laws; one line and exit code 1 if it is broken."""
    from amc.profiling.store import read_profile

    found = read_profile(file)
    entries = sum(len(t.entries) for t in found.kernels)
    console.out(f"{file} is a valid profile: {entries} entries of {len(found.kernels)} kernels", highlight=False)


@app.command()
@configured("data", "checkpoint", ATTENTION, anything=False)
def check(
    overrides: Overrides,
    profile: ProfileArgument,
    task: TaskOption,
    networks: Annotated[int, typer.Option(help="Random pruned networks to time.")] = 30,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    again_minutes: AgainOption = None,
    keep_disturbed: KeepOption = False,
) -> None:
    """Time random pruned networks whole on this device, and store the correction with its held-out error."""
    from amc.profiling.check import CheckOptions, Subject, check_profile
    from amc.profiling.measure import check_here
    from amc.profiling.store import write_profile
    from amc.reporting.live import live

    path, found = _read(profile)
    check_here(found, path)
    journal = path.with_name(f"{path.name}.check.partial")
    options = CheckOptions(
        networks=networks, journal=journal, again_minutes=_again(again_minutes), keep_disturbed=keep_disturbed
    )
    with live(Console(stderr=True) if as_json else console) as screen:
        loaded, anatomy = _network(task, overrides)
        subject = Subject(loaded.name, loaded.network, loaded.example_input, anatomy)
        checked = check_profile(found, str(path), subject, options, screen.step)
    others = [c for c in found.corrections if c.network != checked.correction.network]
    write_profile(path, found.model_copy(update={"corrections": [*others, checked.correction]}))
    journal.unlink()
    if as_json:
        typer.echo(json.dumps(checked.to_json(), indent=2))
        return
    c = checked.correction
    console.out(
        f"{c.networks} networks, held out: median error {c.median_relative_error:.1%}, 95 % below "
        f"{c.p95_relative_error:.1%}, rank correlation {c.spearman:.3f}",
        highlight=False,
    )
    if (dense := checked.dense) is not None:
        console.out(
            f"dense {dense} ms (median ± median absolute deviation, beside {dense.rounds} networks)", highlight=False
        )
    if c.disturbed is not None:
        console.out(c.disturbed.in_words("networks"), highlight=False)
    console.out(f"stored in {path}: whole = {c.intercept_ms:.4f} ms + {c.slope:.3f} x sum of kernels", highlight=False)


def _network(task: str, overrides: Overrides, *, branches: bool = False) -> tuple[Task, Anatomy]:
    from amc.tasks.splits import verification_samples
    from amc.tasks.task import load_task
    from envs.space.settings import RulesConfig
    from envs.units.anatomy import dissect

    loaded = load_task(task, **{name: value for name, value in overrides.items() if name != ATTENTION})
    samples = verification_samples(loaded.calibration)
    attention = overrides.get(ATTENTION, RulesConfig().attention)
    anatomy = dissect(loaded.network, loaded.example_input, samples, attention, branches=branches)
    return loaded.of_network(anatomy.network), anatomy


def _again(minutes: float | None) -> float:
    from hw_profiles.passes import AGAIN_MINUTES  # needs numpy

    return AGAIN_MINUTES if minutes is None else minutes


def _read(name: str) -> tuple[Path, Profile]:
    from amc.profiling.store import find_profile

    return find_profile(name, lambda text: console.print(Text.assemble(("warning: ", "yellow"), text), soft_wrap=True))
