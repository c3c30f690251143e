"""The folder of an applied policy: the smaller network's weights, and the policy from which it is made again."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import safetensors
import safetensors.torch
from torch import nn

from amc.export.structure import STRUCTURE, write_structure
from amc.storage.files import read_json, write_bytes, write_json
from envs.network.outputs import unselected
from envs.space.patterns import verify_network
from envs.space.policy import Policy
from hw_profiles.documents import one_line

POLICY, WEIGHTS = "policy.json", "network.safetensors"
"""File names of an applied policy."""
FINETUNING = "finetuned"
"""Folder within a run's: the same files of the network found as training has left it, and where training stands."""
Which = Literal["newest", "found", "fine-tuned"]
"""Which network of a run; the newest is the fine-tuned one, once there is one."""


def network_folder(folder: Path, which: Which = "newest") -> Path:
    """Where the files of one of a run's networks are.

    Raises:
        ValueError: If the fine-tuned one is asked for, and there is none.
    """
    trained = folder / FINETUNING
    if which == "fine-tuned" and not (trained / WEIGHTS).is_file():
        raise ValueError(
            f"a fine-tuned network is there once training has ended, but {str(folder)!r} has none: "
            f"`amc finetune {folder}` first"
        )
    return trained if which != "found" and (trained / WEIGHTS).is_file() else folder


def write_applied(policy: Policy, network: nn.Module, folder: Path) -> None:
    """Writes a smaller network's weights and its policy, from which `load_applied` makes it again.

    Args:
        policy: The policy.
        network: The network after pruning and repair.
        folder: Made if it is not there.

    Raises:
        ValueError: If the folder already holds one of the files.
        OSError: If it cannot be written; neither of the files is left behind then.
    """
    held = [name for name in (WEIGHTS, POLICY) if (folder / name).exists()]
    if held:
        raise ValueError(
            f"an applied policy needs a folder without {WEIGHTS} and {POLICY}, but {str(folder)!r} holds {held[0]}: "
            "choose another folder"
        )
    write_network(policy, network, folder)


def write_network(policy: Policy, network: nn.Module, folder: Path) -> None:
    """As `write_applied`; files that are there are replaced.

    Raises:
        PatternMismatch: If weights break the policy's patterns.
        OSError: If it cannot be written.
    """
    verify_network(network, policy.patterns())
    folder.mkdir(parents=True, exist_ok=True)
    # safetensors refuses memory that two tensors share
    state = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in network.state_dict().items()}
    try:
        write_structure(unselected(network), folder / STRUCTURE)
        write_bytes(folder / WEIGHTS, safetensors.torch.save(state))
        write_json(folder / POLICY, policy.to_json())
    except BaseException:
        for name in (WEIGHTS, STRUCTURE):
            (folder / name).unlink(missing_ok=True)
        raise


def read_policy(path: Path) -> Policy:
    """Reads `policy.json`.

    Raises:
        ValueError: If it is missing, truncated, of a newer schema or not a policy.
    """
    try:
        return Policy.from_json(read_json(path, "a policy"))
    except ValueError as error:
        known = str(path) in str(error)
        raise ValueError(one_line(error) if known else f"{one_line(error)} (in {str(path)!r})") from error


def load_applied(dense: nn.Module, folder: Path) -> nn.Module:
    """The smaller network that `write_applied` wrote, as a plain trainable module.

    Args:
        dense: The original network with any weights; it is not changed.
        folder: A folder with `policy.json` and `network.safetensors`.

    Raises:
        ValueError: If a file is missing or damaged, or belongs to another network.
    """
    policy = read_policy(folder / POLICY)
    path = folder / WEIGHTS
    try:
        state = safetensors.torch.load(path.read_bytes())
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(
            f"the weights must be a readable safetensors file, but {str(path)!r} is not ({one_line(error)}): "
            "apply the policy again"
        ) from error
    try:
        small = policy.apply(dense, check_weights=False)
        small.load_state_dict(state, strict=True)
        verify_network(small, policy.patterns())
    except (RuntimeError, AttributeError, IndexError) as error:
        raise ValueError(
            f"policy and weights must fit the network and each other, but those in {str(folder)!r} do not "
            f"({one_line(error)}): use {POLICY} and {WEIGHTS} as they were written together"
        ) from error
    return small
