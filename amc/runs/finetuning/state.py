"""Where training stands after an epoch, in one safetensors file: what resume starts from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from amc.storage.files import write_bytes

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class State:
    """Everything that the next epoch depends on.

    Attributes:
        epoch: Epochs done.
        tensors: Part ("network", "average", "best", "optimizer/3") -> name -> tensor.
        lines: What every epoch came to, JSON.
        best: Epoch (from 1) of the best validation score so far, 0: none yet.
        kept: Unit name -> channels, where training chose others than the policy; else empty.
        fingerprint: Of everything that training was started with.
    """

    epoch: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    lines: tuple[dict[str, Any], ...]
    best: int
    kept: Mapping[str, tuple[int, ...]]
    fingerprint: str

    def write(self, path: Path) -> None:
        """Replaces the file atomically."""
        header = {
            "schema_version": SCHEMA_VERSION,
            "epoch": self.epoch,
            "lines": list(self.lines),
            "best": self.best,
            "kept": {name: list(channels) for name, channels in self.kept.items()},
            "fingerprint": self.fingerprint,
        }
        flat = {
            f"{part}|{name}": tensor.detach().cpu().clone().contiguous()
            for part, named in self.tensors.items()
            for name, tensor in named.items()
        }
        write_bytes(path, safetensors.torch.save(flat, metadata={"state": json.dumps(header)}))


def read_state(path: Path) -> State | None:
    """Reads it back; None if no epoch has ended.

    Raises:
        ValueError: If the file is damaged, or of another version.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["state"])
            tensors = dict[str, dict[str, Tensor]]()
            for key in file.keys():  # noqa: SIM118 - it is no mapping
                part, name = key.split("|", 1)
                tensors.setdefault(part, {})[name] = file.get_tensor(key)
        if header["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema_version is {header['schema_version']}, not {SCHEMA_VERSION}")
        return State(
            epoch=int(header["epoch"]),
            tensors=tensors,
            lines=tuple(header["lines"]),
            best=int(header["best"]),
            kept={name: tuple(channels) for name, channels in header["kept"].items()},
            fingerprint=str(header["fingerprint"]),
        )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"training goes on from an undamaged state only, but {str(path)!r} is not usable "
            f"({type(error).__name__}: {error}): remove it to start again"
        ) from error


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """The optimizer's moments, by parameter."""
    state = optimizer.state_dict()["state"]
    return {
        f"optimizer/{number}": {
            name: torch.as_tensor(value, device="cpu") for name, value in moments.items() if value is not None
        }
        for number, moments in state.items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Puts moments back into an optimizer of the same parameters."""
    fresh = optimizer.state_dict()
    fresh["state"] = {
        int(part.removeprefix("optimizer/")): dict(moments)
        for part, moments in tensors.items()
        if part.startswith("optimizer/")
    }
    optimizer.load_state_dict(fresh)
