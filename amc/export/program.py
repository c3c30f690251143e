"""A network as a torch.export program, which runs without this package and without the network's code."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ShapesCollection

from amc.export.found import Found, network_and_task
from amc.storage.files import write_bytes
from amc.tasks.checks import wrapped
from amc.tasks.task import Task
from envs.network.copies import in_mode
from envs.network.inputs import Inputs, call, repeated, tensors
from envs.network.outputs import selecting
from hw_profiles.documents import one_line

TOLERANCE = 1e-4
"""Largest difference of the program's outputs, relative to the largest output: the order of sums differs."""


def save_program(network: nn.Module | Found, path: Path | str, task: Task | None = None) -> None:
    """Writes a network as a torch.export program, which runs without this package and without the network's code.

    Args:
        network: What a search returned (the fine-tuned network, once there is one), or any network of the task's.
        path: The file; `torch.export.load(path).module()` is the network, for any batch size, and is called as it is:
            with one tensor, several in order, or several by name. Texts are as long as in the example.
        task: Whose example input is used; what a search returned knows it.

    Raises:
        ValueError: If a network comes without a task, torch.export cannot capture it, or what it captured computes
            something else.
        OSError: If the file cannot be written.
    """
    network, task = network_and_task(network, task)
    write_program(selecting(network, task.output), task.example_input, Path(path))


def write_program(network: nn.Module, example_input: Inputs, path: Path) -> None:
    """Writes a program of any batch size, and checks that it computes what the network does.

    Args:
        network: In eval mode, on the CPU.
        example_input: Of batch 1.
        path: The file, read by `torch.export.load(path).module()`.

    Raises:
        ValueError: If torch.export cannot capture the network, or what it captured computes something else.
        OSError: If the file cannot be written.
    """
    inputs = repeated(example_input, 3)  # a batch of 1 would be taken for a constant
    shapes: Any = ShapesCollection()  # type: ignore[no-untyped-call]  # in the form of forward's signature, as of *args
    for tensor in tensors(inputs):
        shapes[tensor] = {0: Dim.DYNAMIC}
    given, by_name = ((), inputs) if isinstance(inputs, dict) else (tensors(inputs), {})
    try:
        program = torch.export.export(in_mode(network), given, by_name, dynamic_shapes=shapes)
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
        few = repeated(example_input, batch)
        try:
            with torch.no_grad():
                expected, got = call(network, few), call(read, few)
            difference = float((got - expected).abs().max()) / max(1.0, float(expected.abs().max()))
            wrong = "" if difference <= TOLERANCE else f"outputs differ by {difference:.1e} of the largest"
        except (AssertionError, RuntimeError) as error:  # a guard of torch.export's
            wrong = one_line(error)
        if wrong:
            raise ValueError(
                f"a program must compute what the network does, but for a batch of {batch} {wrong}: "
                "export it to ONNX, or load it by `amc.load`"
            )
    write_bytes(path, buffer.getvalue())
