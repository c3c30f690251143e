"""What a runtime has to say of its execution, so that a network's kernels can be read off its layout."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import NamedTuple, Protocol

from hw_profiles.latency.graphs import Probe
from hw_profiles.latency.kernels import BoolArray, Formats, Kernel
from hw_profiles.layers import IntArray


class Operands(NamedTuple):
    """What an operator reads and writes in each of `K` variants of a network.

    Attributes:
        inputs: [K] channels in.
        outputs: [K] channels out.
        groups: [K] groups of a convolution.
        blocked: For each tensor that it reads, [K] where that is in blocks.
    """

    inputs: IntArray
    outputs: IntArray
    groups: IntArray
    blocked: tuple[BoolArray, ...]


class TokenRules(NamedTuple):
    """How a runtime executes operators over positions (tokens).

    Attributes:
        separate_bias: Whether the bias of a linear layer is added by an operator of its own.
        fused_bias: Functions that add this bias themselves when they follow.
        adds_in_norms: Whether a layer norm does the addition before it, with the bias of the layer before that.
        tile: Columns of a product of matrices are computed so many at a time.
    """

    separate_bias: bool = False
    fused_bias: tuple[str, ...] = ()
    adds_in_norms: bool = False
    tile: int = 1


class Execution(Hashable, Protocol):
    """How a runtime executes operators with the tensor formats of one device; equal ones have equal hashes.

    A runtime that does one operator after another, each on plain tensors::

        @dataclass(frozen=True, slots=True)
        class MyExecution:
            formats: Formats
            fused_activations: ClassVar[Mapping[str, str]] = {}
            fuses_additions: ClassVar[bool] = False
            tokens: ClassVar[TokenRules] = TokenRules()

            def blocked(self, kernel: Kernel, operands: Operands) -> tuple[BoolArray, BoolArray]:
                nowhere = np.zeros(len(operands.inputs), dtype=np.bool_)
                return nowhere, nowhere

            def parts(self, probe: Probe) -> list[Probe]:
                return []
    """

    @property
    def formats(self) -> Formats:
        """Tensor formats on the device."""
        ...

    @property
    def fused_activations(self) -> Mapping[str, str]:
        """Function of an operator (`LayerShape.function`) -> activation that runs inside the kernel before it."""
        ...

    @property
    def fuses_additions(self) -> bool:
        """Whether an addition runs inside a convolution before it."""
        ...

    @property
    def tokens(self) -> TokenRules:
        """How it executes operators over positions."""
        ...

    def blocked(self, kernel: Kernel, operands: Operands) -> tuple[BoolArray, BoolArray]:
        """[K] where a kernel reads and [K] where it writes tensors in blocks."""
        ...

    def parts(self, probe: Probe) -> list[Probe]:
        """What each copy in a probe's micro-graph contains beside its kernel, to be taken off the measured time."""
        ...
