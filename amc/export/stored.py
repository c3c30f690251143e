"""Export of a network as it is stored: from the files of a run or an applied policy, without task, data and repair."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from amc.export.applied import FINETUNING, POLICY, WEIGHTS, Which, network_folder, read_policy
from amc.export.interface import CHECKED, INTERFACE, Interface, read_interface
from amc.export.onnx import write_onnx
from amc.export.program import write_program
from amc.export.rebuild import load_network
from amc.export.structure import STRUCTURE
from amc.export.timm_string import timm_string
from amc.storage.files import write_text
from envs.network.copies import in_mode
from envs.network.outputs import selecting
from envs.space.policy import Policy


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stored:
    """A network that was read back.

    Attributes:
        name: "found" or "fine-tuned".
        network: It, in eval mode, returning the one tensor that counts.
        policy: Its policy.
        interface: How it is called.
    """

    name: str
    network: nn.Module
    policy: Policy
    interface: Interface

    def write(self, path: Path) -> str:
        """Writes the network in the form that the file's name says, and what is to be said of it.

        Raises:
            ValueError: If there is no such form, or the network cannot be written in it.
            OSError: If the file cannot be written.
        """
        if path.suffix not in _FORMS:
            raise ValueError(
                f"a network is exported to a file NAME.onnx, NAME.pt2 or NAME.txt, but got {str(path)!r}: call it so"
            )
        said = _FORMS[path.suffix](self, path)
        return f"wrote {path}: the network {self.name}; {said}"

    def _onnx(self, path: Path) -> str:
        example = self.interface.example
        difference = write_onnx(self.network, example, self.interface.inputs(), path, self.policy.patterns())
        return f"onnxruntime and torch agree on {CHECKED} inputs (largest relative difference {difference:.1e})"

    def _program(self, path: Path) -> str:
        write_program(self.network, self.interface.example, path)
        return "`torch.export.load(path).module()` runs it with torch alone, at any batch size"

    def _timm(self, path: Path) -> str:
        write_text(path, timm_string(self.network, self.policy) + "\n")
        return "timm.models._prune.adapt_model_from_file's format: the sizes, without weights"


_FORMS = {".onnx": Stored._onnx, ".pt2": Stored._program, ".txt": Stored._timm}
"""End of a file's name -> what writes it."""


def is_stored(run: Path) -> bool:
    """Whether a network with everything that export needs lies in a folder, or beside a policy."""
    folder = run if run.is_dir() else run.parent
    return all((folder / name).is_file() for name in (POLICY, WEIGHTS, STRUCTURE, INTERFACE))


def read_stored(run: Path, which: Which = "newest") -> Stored:
    """Reads a network back.

    Args:
        run: A run folder, what `amc apply` wrote, or the policy in one of them.
        which: Network of a run.

    Raises:
        OtherCode: If its code cannot be imported, or has changed since.
        ValueError: If a file is missing or damaged, or there is no such network.
    """
    folder = run if run.is_dir() else run.parent
    home = network_folder(folder, which)
    interface = read_interface(home)
    return Stored(
        name="fine-tuned" if home.name == FINETUNING else "found",
        network=selecting(in_mode(load_network(home)), interface.output),
        policy=read_policy(home / POLICY),
        interface=interface,
    )
