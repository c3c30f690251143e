"""What a stored network takes and puts out: an example input, and which tensor of its outputs counts.

It lies beside the weights, so that the network is exported without its task and data.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from amc.storage.files import write_bytes
from amc.tasks.task import Task
from envs.network.inputs import Inputs, mapped
from envs.network.outputs import Output
from hw_profiles.documents import one_line

SCHEMA_VERSION = 1
INTERFACE = "interface.safetensors"
"""Name of the file, beside those of weights and structure."""
CHECKED = 16
"""Inputs on which a model made without data is compared with its network."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Interface:
    """How a network is called.

    Attributes:
        example: A batch of one sample: a tensor, or a tuple or dict of them.
        output: Which tensor of what it returns counts, None: it returns one.
    """

    example: Inputs
    output: Output | None

    def inputs(self) -> Inputs:
        """Inputs of `CHECKED` samples: normal noise for floats, the example for everything else."""
        generator = torch.Generator().manual_seed(0)

        def drawn(one: Tensor) -> Tensor:
            several = one.repeat(CHECKED, *[1] * (one.ndim - 1))
            return torch.randn(several.shape, generator=generator) if one.is_floating_point() else several

        return mapped(drawn, self.example)


def write_interface(task: Task, folder: Path) -> None:
    """Writes a task's example and the name of its output; nothing where that is a function.

    Raises:
        OSError: If it cannot be written.
    """
    if callable(task.output):
        return
    form = type(task.example_input).__name__ if isinstance(task.example_input, dict | tuple) else "tensor"
    header = {"schema_version": SCHEMA_VERSION, "form": form, "output": task.output}
    held = {name: one.detach().cpu().clone().contiguous() for name, one in _entries(task.example_input).items()}
    header["names"] = list(held)
    write_bytes(folder / INTERFACE, safetensors.torch.save(held, metadata={"interface": json.dumps(header)}))


def read_interface(folder: Path) -> Interface:
    """Reads it back.

    Raises:
        ValueError: If the file is damaged.
    """
    path = folder / INTERFACE
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["interface"])
            held = {str(name): file.get_tensor(name) for name in header["names"]}
        form, output = header["form"], header["output"]
        if header["schema_version"] != SCHEMA_VERSION or not isinstance(output, str | int | None):
            raise ValueError(f"schema_version {header['schema_version']!r} and output {output!r} are not known")
        example: Inputs = held if form == "dict" else tuple(held.values()) if form == "tuple" else held["0"]
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"what a network takes must be readable, but {str(path)!r} is not ({type(error).__name__}: "
            f"{one_line(error)}): export it from its task with --repair-again"
        ) from error
    return Interface(example=example, output=output)


def _entries(example: Inputs) -> dict[str, Tensor]:
    """Tensors by name; in order, of those without names."""
    if isinstance(example, dict):
        return dict(example)
    several = example if isinstance(example, tuple) else (example,)
    return {str(place): one for place, one in enumerate(several)}
