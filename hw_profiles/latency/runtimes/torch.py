"""Eager torch: every operator is a kernel of its own, on plain tensors. Normalization is folded before it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import numpy as np

from hw_profiles.latency.graphs import Probe
from hw_profiles.latency.kernels import BoolArray, Formats, Kernel
from hw_profiles.latency.runtimes.execution import Operands, TokenRules

PLAIN = Formats(fuses=False)


@dataclass(frozen=True, slots=True)
class TorchExecution:
    """Fuses nothing and knows only plain tensors."""

    formats: Formats = PLAIN
    fused_activations: ClassVar[Mapping[str, str]] = MappingProxyType({})
    fuses_additions: ClassVar[bool] = False
    tokens: ClassVar[TokenRules] = TokenRules()

    def blocked(self, kernel: Kernel, operands: Operands) -> tuple[BoolArray, BoolArray]:
        """Nowhere."""
        nowhere = np.zeros(len(operands.inputs), dtype=np.bool_)
        return nowhere, nowhere

    def parts(self, probe: Probe) -> list[Probe]:
        """Nothing: micro-graphs are plain loops."""
        return []
