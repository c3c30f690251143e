"""`amc apply`, `amc export`, `amc check`: from a policy to a network in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from amc.cli.options import Overrides, configured

console = Console()

PolicyArgument = Annotated[Path, typer.Argument(help="policy.json of a run.")]


@configured("task", "data", "checkpoint", anything=False)
def apply(
    overrides: Overrides,
    policy: PolicyArgument,
    out: Annotated[Path, typer.Option("--out", help="Folder for network.safetensors and policy.json.")],
) -> None:
    """Make the smaller network of a policy: sliced, repaired, as safetensors beside its policy."""
    from amc.cli.commands import run_apply

    run_apply(policy, overrides, out, console)


@configured("task", "data", "checkpoint", anything=False)
def export(
    overrides: Overrides,
    run: Annotated[Path, typer.Argument(help="Run folder, what `amc apply` wrote, or a policy.json.")],
    out: Annotated[
        Path,
        typer.Option("--out", help="File to write: NAME.onnx, NAME.pt2 (torch.export) or NAME.txt (timm's sizes)."),
    ],
    which: Annotated[
        Literal["newest", "found", "fine-tuned"],
        typer.Option("--which", help="Network of the run: newest (fine-tuned, if it was), found or fine-tuned."),
    ] = "newest",
    repair_again: Annotated[
        bool, typer.Option("--repair-again", help="From policy and data, in place of the stored weights.")
    ] = False,
) -> None:
    """Write the smaller network as ONNX (or another form, by the file's name), verified against torch.

    Weights are those stored beside the policy: no data is needed. Other data or weights are repaired anew.
    """
    from amc.cli.commands import run_export

    run_export(run, overrides, out, console, which=which, again=repair_again)


def check(
    path: Annotated[Path, typer.Argument(help="policy.json, a folder that `amc apply` wrote, .safetensors or .onnx.")],
) -> None:
    """Verify weights against their sparsity patterns, group by group, from the file alone."""
    from amc.export.check import check_file

    console.print(check_file(path))
