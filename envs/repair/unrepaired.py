"""No repair: slicing and patterns alone, but for the means that some importances ask to be kept."""

from __future__ import annotations

from typing import ClassVar

from envs.repair.layerwise import bring_to_patterns, write_consumers
from envs.repair.repair import Pruned, Repair


class Unrepaired(Repair):
    """Weights stay as they are."""

    fits: ClassVar[bool] = False
    alone: ClassVar[str] = "none"

    def __call__(self, pruned: Pruned) -> None:
        """Brings layers to their patterns; what went leaves its mean where `Dense.mean_shift` says so."""
        bank = self.dense.banks.get(pruned.unseen)
        if self.dense.mean_shift:
            write_consumers(self.dense, pruned, bank, lambda name, kept, intercept: bank.compensation(name, kept))
        bring_to_patterns(self.dense, pruned, bank, shifted=self.dense.mean_shift)
