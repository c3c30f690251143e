"""What is written to a file by itself: a network with its task, or what a search found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import nn

from amc.tasks.task import Task


class Found(Protocol):
    """What a search found (`amc.Result`)."""

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """Networks by name: "found", and "fine-tuned" once it was trained."""
        ...

    @property
    def task(self) -> Task:
        """The task that was searched."""
        ...


def network_and_task(network: nn.Module | Found, task: Task | None) -> tuple[nn.Module, Task]:
    """The network to be written, of what a search found the newest, and its task.

    Raises:
        ValueError: If a network comes without a task.
    """
    if not isinstance(network, nn.Module):
        return network.networks.get("fine-tuned", network.networks["found"]), task or network.task
    if task is None:
        raise ValueError("a network is written with its task, but got none: pass task=, or the result of a search")
    return network, task
