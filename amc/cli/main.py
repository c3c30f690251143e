"""The command line: the only place that prints. Each command reads options, calls one function, shows the result."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperCommand

from amc.cli.profile import app as profile_app
from amc.config.parts import WorkersConfig
from amc.config.search import load_config, parse_constraints, parse_override

app = typer.Typer(
    name="amc",
    help="Find the best per-layer pruning policy of a trained network for a budget, without fine-tuning in the loop.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
app.add_typer(profile_app)
console = Console()

TaskOption = Annotated[
    str | None,
    typer.Option("--task", help="digits, cifar10-resnet20, cifar10-resnet56 or package.module:function."),
]
DataOption = Annotated[Path | None, typer.Option("--data", help="Folder of the task's data.")]
CheckpointOption = Annotated[
    Path | None, typer.Option("--checkpoint", help="Weights: safetensors, or a torch state dict.")
]
ConstraintOption = Annotated[
    list[str] | None,
    typer.Option(
        "--constraint",
        help="COST=BUDGET, a fraction of dense (<= 1) or absolute; repeat for several. "
        "Costs: macs (synonym: flops), params, memory, latency (fraction), latency_ms; sparsity=2:4@RULES "
        "(multiple-of-4, cutlass-float16, ...) and coverage=SHARE with patterns. Default macs=0.5.",
    ),
]
ProfileOption = Annotated[
    str | None, typer.Option("--profile", help="File or name of the profile that latency budgets count by.")
]
ChooseOption = Annotated[
    str | None, typer.Option("--choose", help="What is decided: channels (default), patterns, unstructured, mixed.")
]
SelectionOption = Annotated[
    str | None, typer.Option(help="Which weights go under a pattern: magnitude, wanda, sparsegpt.")
]
AgentOption = Annotated[str | None, typer.Option(help="ddpg (default), td3, sac, cmaes, random, knapsack or uniform.")]
RewardOption = Annotated[
    str | None,
    typer.Option(
        help="accuracy, accuracy_latency, error_log_cost, error_log_params, loss, output_error or "
        "package.module:function."
    ),
]
RoundOption = Annotated[
    int | None,
    typer.Option(
        help="Kept channels are a multiple of this, or all. Left out: of 8 in units of 96 channels and more, "
        "any number with a profile."
    ),
]
MinOption = Annotated[float | None, typer.Option(help="Smallest preserve ratio.")]
MaxOption = Annotated[float | None, typer.Option(help="Largest preserve ratio.")]
SkipOption = Annotated[list[str] | None, typer.Option(help="Layer names (shell pattern) that stay; repeatable.")]
WorkersOption = Annotated[int, typer.Option(min=0, help="Play episodes on that many Ray workers; 0: in this process.")]
RayOption = Annotated[str | None, typer.Option("--ray", help="Address of a Ray cluster (auto, HOST:6379) to play on.")]
GpusOption = Annotated[float, typer.Option("--gpus-per-worker", min=0.0, help="GPUs of each worker.")]
LimitOption = Annotated[
    float, typer.Option("--limit", min=0.001, help="Seconds after which an evaluation on a worker has failed.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Any configuration key, such as compression.images=500; repeatable.")
]


@app.command()
def inspect(
    task: TaskOption = None,
    data: DataOption = None,
    checkpoint: CheckpointOption = None,
    skip: SkipOption = None,
    choose: ChooseOption = None,
    constraint: ConstraintOption = None,
    round_to: RoundOption = None,
    min_ratio: MinOption = None,
    max_ratio: MaxOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON (docs/inspection.md).")] = False,
) -> None:
    """Show what can be pruned and how far: units, why every other layer stays, the lowest reachable costs."""
    from amc.problem.inspection import inspection
    from amc.reporting.inspection_view import inspection_tables
    from amc.tasks.checks import check_task
    from amc.tasks.task import load_task

    if task is None:
        raise ValueError("inspect needs a task, but got none: pass for example --task digits")
    loaded = load_task(task, data=data, checkpoint=checkpoint)
    check_task(loaded)
    overrides: dict[str, Any] = {
        "task": task,
        "choose": choose,
        "rules.round_to": round_to,
        "rules.min_ratio": min_ratio,
        "rules.max_ratio": max_ratio,
        "rules.skip": skip or None,
        "constraint": parse_constraints(constraint) if constraint else None,
    }
    found = inspection(loaded, load_config(None, overrides))
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
    else:
        console.print(inspection_tables(found), highlight=False)


@app.command()
def search(
    recipe: Annotated[Path | None, typer.Argument(help="TOML recipe; every option overrides it.")] = None,
    task: TaskOption = None,
    out: Annotated[Path, typer.Option("--out", help="Run folder to write.")] = Path("runs/search"),
    data: DataOption = None,
    checkpoint: CheckpointOption = None,
    constraint: ConstraintOption = None,
    profile: ProfileOption = None,
    choose: ChooseOption = None,
    selection: SelectionOption = None,
    agent: AgentOption = None,
    preset: Annotated[str | None, typer.Option(help="default, or paper: as He et al. 2018.")] = None,
    episodes: Annotated[int | None, typer.Option(help="Policies tried.")] = None,
    warmup: Annotated[int | None, typer.Option(help="Episodes before ddpg, td3 and sac learn.")] = None,
    round_size: Annotated[int | None, typer.Option(help="Episodes proposed together.")] = None,
    max_minutes: Annotated[float | None, typer.Option(help="End, confirmation included, after about so long.")] = None,
    reward: RewardOption = None,
    importance: Annotated[
        str | None, typer.Option(help="Channel score: obs, l1, l2, bn_scale, fpgm, taylor, fluctuation, random.")
    ] = None,
    repair: Annotated[str | None, typer.Option(help="Refit of the rest: sequential, layerwise, none.")] = None,
    round_to: RoundOption = None,
    min_ratio: MinOption = None,
    max_ratio: MaxOption = None,
    skip: SkipOption = None,
    device: Annotated[str | None, typer.Option(help="Where networks are repaired and scored: cpu or cuda.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every draw.")] = None,
    settings: SetOption = None,
    workers: WorkersOption = 0,
    ray: RayOption = None,
    gpus: GpusOption = 0.0,
    limit: LimitOption = 3600.0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Move an earlier run in --out aside.")] = False,
) -> None:
    """Search a pruning policy within a budget and write a run folder."""
    overrides: dict[str, Any] = {
        "task": task,
        "data": data,
        "checkpoint": checkpoint,
        "agent": agent,
        "episodes": episodes,
        "warmup": warmup,
        "preset": preset,
        "round_size": round_size,
        "max_minutes": max_minutes,
        "choose": choose,
        "compression.selection": selection,
        "profile": profile,
        "reward": reward,
        "device": device,
        "seed": seed,
        "rules.round_to": round_to,
        "rules.min_ratio": min_ratio,
        "rules.max_ratio": max_ratio,
        "rules.skip": skip or None,
        "compression.importance": importance,
        "compression.repair": repair,
        "constraint": parse_constraints(constraint) if constraint else None,
    }
    overrides |= dict(parse_override(text) for text in settings or [])
    config = load_config(recipe, overrides)
    from amc.cli.commands import run_search

    run_search(config, out, console, fresh=fresh, workers=_workers(workers, ray, gpus, limit))


@app.command()
def resume(
    run: Annotated[Path, typer.Argument(help="Run folder of a search that was stopped or has ended.")],
    episodes: Annotated[str | None, typer.Option(help="+N goes on for N more episodes.")] = None,
    workers: WorkersOption = 0,
    ray: RayOption = None,
    gpus: GpusOption = 0.0,
    limit: LimitOption = 3600.0,
) -> None:
    """Go on with a run exactly where it stopped; on one that has ended, show its result."""
    from amc.cli.commands import run_resume

    run_resume(run, _more(episodes), console, _workers(workers, ray, gpus, limit))


@app.command(context_settings={"allow_extra_args": True})
def compare(
    context: typer.Context,
    agents: Annotated[list[str] | None, typer.Option("--agents", help="Who competes: ddpg random cmaes ...")] = None,
    effort: Annotated[int | None, typer.Option(help="Image-forwards that each run may pay.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs per agent.")] = 3,
    recipe: Annotated[Path | None, typer.Option(help="TOML recipe; every option overrides it.")] = None,
    task: TaskOption = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of all runs and of the comparison.")] = Path(
        "runs/compare"
    ),
    data: DataOption = None,
    checkpoint: CheckpointOption = None,
    constraint: ConstraintOption = None,
    profile: ProfileOption = None,
    settings: SetOption = None,
) -> None:
    """Compare agents at equal effort over several seeds, with intervals; goes on where it was stopped."""
    names = [*(agents or ["ddpg", "random", "cmaes", "knapsack", "uniform"]), *context.args]
    overrides: dict[str, Any] = {
        "task": task,
        "data": data,
        "checkpoint": checkpoint,
        "effort": effort,
        "profile": profile,
        "constraint": parse_constraints(constraint) if constraint else None,
    }
    overrides |= dict(parse_override(text) for text in settings or [])
    config = load_config(recipe, overrides)
    if config.effort is None:
        raise ValueError(
            "a comparison needs an effort, but got none: pass for example --effort 300000 (image-forwards)"
        )
    from amc.cli.commands import run_comparison

    run_comparison(config, names, seeds, out, console)


class Spread(TyperCommand):
    """A command whose repeatable options take several values: `--budgets 0.3 0.5` is `--budgets 0.3 --budgets 0.5`."""

    several = ("--budgets", "--agents", "--profiles", "--tune")

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Spreads the values, then parses as usual."""
        spread: list[str] = []
        option = ""
        for text in args:
            if text.startswith("-"):
                option = text if text in self.several else ""
            elif option and spread[-1] != option:
                spread.append(option)
            spread.append(text)
        return super().parse_args(ctx, spread)


@app.command(cls=Spread)
def sweep(
    recipe: Annotated[Path | None, typer.Argument(help="TOML recipe; every option overrides it.")] = None,
    budgets: Annotated[
        list[float] | None, typer.Option("--budgets", help="Of the recipe's first cost: 0.3 0.5 0.7")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Searches per agent and budget.")] = 3,
    agents: Annotated[list[str] | None, typer.Option("--agents", help="Who searches: ddpg knapsack ...")] = None,
    task: TaskOption = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of all runs and of the front.")] = Path("runs/sweep"),
    data: DataOption = None,
    checkpoint: CheckpointOption = None,
    constraint: ConstraintOption = None,
    settings: SetOption = None,
    profiles: Annotated[
        list[str] | None, typer.Option("--profiles", help="Sweep under each of these profiles: board.json phone ...")
    ] = None,
    tune: Annotated[
        list[str] | None,
        typer.Option("--tune", help="Tune instead: KEY=LOW..HIGH or KEY=A,B,C, such as learning.sigma=0.05..0.3"),
    ] = None,
    samples: Annotated[int, typer.Option(min=2, help="Searches of --tune.")] = 16,
    workers: WorkersOption = 0,
    ray: RayOption = None,
    gpus: GpusOption = 0.0,
    limit: LimitOption = 3600.0,
) -> None:
    """Search over several budgets, agents and seeds; ends with the Pareto front. Repeat it to go on."""
    overrides: dict[str, Any] = {
        "task": task,
        "data": data,
        "checkpoint": checkpoint,
        "constraint": parse_constraints(constraint) if constraint else None,
        "profile": profiles[0] if profiles else None,
    }
    overrides |= dict(parse_override(text) for text in settings or [])
    config = load_config(recipe, overrides)
    if tune:
        from amc.studies.tuning import parse_range, run_tuning

        ranges = [parse_range(text) for text in tune]
        run_tuning(config, ranges, samples, out, console, _workers(workers, ray, gpus, limit))
        return
    from amc.studies.sweep import Grid, run_sweep, run_sweeps

    several = tuple(budgets or list(config.constraint.values())[:1])
    grid = Grid(budgets=several, agents=tuple(agents or [config.agent]), seeds=seeds)
    if len(profiles or []) > 1:
        run_sweeps(config, grid, profiles or [], out, console, _workers(workers, ray, gpus, limit))
    else:
        run_sweep(config, grid, out, console, _workers(workers, ray, gpus, limit))


@app.command()
def apply(
    policy: Annotated[Path, typer.Argument(help="policy.json of a run.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for network.safetensors and policy.json.")],
    task: TaskOption = None,
    data: DataOption = None,
    checkpoint: CheckpointOption = None,
) -> None:
    """Make the smaller network of a policy: sliced, repaired, as safetensors beside its policy."""
    from amc.cli.commands import run_apply

    run_apply(policy, task, data, checkpoint, out, console)


@app.command()
def export(
    policy: Annotated[Path, typer.Argument(help="policy.json of a run.")],
    out: Annotated[Path, typer.Option("--out", help="ONNX file to write.")],
    task: TaskOption = None,
    data: DataOption = None,
    checkpoint: CheckpointOption = None,
) -> None:
    """Write the smaller network as ONNX, verified on real images against torch."""
    from amc.cli.commands import run_export

    run_export(policy, task, data, checkpoint, out, console)


@app.command()
def check(
    path: Annotated[Path, typer.Argument(help="policy.json, a folder that `amc apply` wrote, .safetensors or .onnx.")],
) -> None:
    """Verify weights against their sparsity patterns, group by group, from the file alone."""
    from amc.export.check import check_file

    console.print(check_file(path))


def _workers(number: int, address: str | None, gpus: float, limit: float) -> WorkersConfig:
    return WorkersConfig(workers=number, address=address, gpus=gpus, limit_seconds=limit)


def _more(text: str | None) -> int:
    if text is None:
        return 0
    if not (text.startswith("+") and text[1:].isdigit() and int(text[1:]) > 0):
        raise ValueError(f"--episodes of resume must read +N, but got {text!r}: write for example --episodes +200")
    return int(text[1:])


def main() -> None:
    """Entry point: bad input ends in one line and a non-zero exit, never in a traceback."""
    try:
        app()
    except KeyboardInterrupt:
        more = "`amc resume RUN` goes on with a search, the same command with a measurement"
        _fail(f"stopped: what was written so far is complete; {more}", 130)
    except (ValueError, OSError) as error:
        _fail(" ".join(str(error).split()), 1)


def _fail(message: str, code: int) -> None:
    Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {escape(message)}", highlight=False)
    sys.exit(code)


if __name__ == "__main__":
    main()
