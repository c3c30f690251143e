"""`amc apply`, `amc export`, `amc check`: from a policy to a network in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
    policy: PolicyArgument,
    out: Annotated[Path, typer.Option("--out", help="ONNX file to write.")],
) -> None:
    """Write the smaller network as ONNX, verified on real images against torch."""
    from amc.cli.commands import run_export

    run_export(policy, overrides, out, console)


def check(
    path: Annotated[Path, typer.Argument(help="policy.json, a folder that `amc apply` wrote, .safetensors or .onnx.")],
) -> None:
    """Verify weights against their sparsity patterns, group by group, from the file alone."""
    from amc.export.check import check_file

    console.print(check_file(path))
