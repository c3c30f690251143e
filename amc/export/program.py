"""A network as a torch.export program, which runs without this package and without the network's code."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ShapesCollection

from amc.storage.files import write_bytes
from amc.tasks.checks import wrapped
from amc.tasks.task import Task
from envs.network.outputs import selecting
from hw_profiles.documents import one_line

TOLERANCE = 1e-4
"""Largest difference of the program's outputs, relative to the largest output: the order of sums differs."""


def save_program(network: nn.Module, path: Path | str, task: Task) -> None:
    """Writes a network as a torch.export program, which runs without this package and without the network's code.

    Args:
        network: The network found, or any of the task's.
        path: The file; `torch.export.load(path).module()` is the network, for any batch size.
        task: Whose example input is used; it must be one tensor.

    Raises:
        ValueError: If torch.export cannot capture the network, or what it captured computes something else.
        OSError: If the file cannot be written.
    """
    if not isinstance(task.example_input, Tensor):
        raise ValueError(
            f"a program is written for networks of one tensor, but task {task.name!r} gives several: "
            "export it to ONNX, or load it by `amc.load`"
        )
    write_program(selecting(network, task.output), task.example_input, Path(path))


def write_program(network: nn.Module, example_input: Tensor, path: Path) -> None:
    """Writes a program of any batch size, and checks that it computes what the network does.

    Args:
        network: In eval mode, on the CPU.
        example_input: [1, ...].
        path: The file, read by `torch.export.load(path).module()`.

    Raises:
        ValueError: If torch.export cannot capture the network, or what it captured computes something else.
        OSError: If the file cannot be written.
    """
    inputs = torch.cat([example_input] * 3)  # a batch of 1 would be taken for a constant
    shapes: Any = ShapesCollection()  # type: ignore[no-untyped-call]  # in the form of forward's signature, as of *args
    shapes[inputs] = {0: Dim.DYNAMIC}
    try:
        program = torch.export.export(network.eval(), (inputs,), dynamic_shapes=shapes)
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
        buffer.seek(0)
        read = torch.export.load(buffer).module()
    except Exception as error:  # torch.export raises whatever the network's code raises, and much else
        cure = f"write its `{inner}`" if (inner := wrapped(network)) else "export it to ONNX, or load it by `amc.load`"
        raise ValueError(
            f"a program needs a network that torch.export can capture, but it says {type(error).__name__}: "
            f"{one_line(error)}; {cure}"
        ) from error
    for batch in (1, 2, 5):
        few = torch.cat([example_input] * batch)
        with torch.no_grad():
            expected, got = network(few), read(few)
        difference = float((got - expected).abs().max()) / max(1.0, float(expected.abs().max()))
        if not difference <= TOLERANCE:
            raise ValueError(
                f"a program must compute what the network does, but for a batch of {batch} outputs differ by "
                f"{difference:.1e} of the largest: export it to ONNX, or load it by `amc.load`"
            )
    write_bytes(path, buffer.getvalue())
