"""Removals tried only where they are felt: from the first operator that holds one of the channels to the last one that
gives anything but what silence gives. All later ones compute the same of the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from envs.network.copies import same_output
from envs.network.graph import record
from envs.network.interpreter import Checkpoints, Interpreter
from envs.units.slicing import slice_network
from envs.units.units import Unit
from envs.units.verification.trial import TOLERANCE, Removal, Trial, silenced


class Nearby:
    """Tries removals of one unit at a time in the traced program."""

    def __init__(self, trial: Trial) -> None:
        """Runs the whole network once, to know what its operators do without any removal.

        Args:
            trial: Of a network that could be traced.
        """
        self._trial = trial
        self._interpreter = Interpreter(trial.graph.require_program().nodes)
        self._inputs = (trial.samples, trial.shorter().samples, trial.example)
        self._dense = Checkpoints(self._interpreter, self._inputs, inf)
        self._calls = record(trial.graph, trial.network, trial.example)[1]

    def removal(self, unit: Unit, dropped: list[int], *, all_samples: bool) -> Removal | None:
        """What operators do without some channels; None where the program does not show that it is right.

        Args:
            unit: The unit.
            dropped: Its channels that go.
            all_samples: Whether values are compared on all samples, else on the first.
        """
        stays = sorted(set(range(unit.channels)).difference(dropped))
        places = self._places(unit)
        if not places:
            return None
        try:
            small = slice_network(self._trial.network, [unit], {unit.name: stays})
            end = self._end(unit, dropped, small, places, index=0 if all_samples else 1)
            if end is None:
                return None
            cut = self._dense.advance(self._trial.network, 2, places[0])
            calls = record(self._trial.graph, small, self._trial.example, known=self._calls, cut=cut, stop=end)[1]
        except Exception:  # whatever the network's own code raises: its own forward will tell what is wrong
            return None
        params = sum(parameter.numel() for parameter in small.parameters())
        return Removal(unit.name, len(dropped), tuple(calls), params, len(unit.shares))

    def _places(self, unit: Unit) -> list[int]:
        """Where in the program its members and attributes are called or read off."""
        names = [*(member.module for member in unit.members), *(attribute.name for attribute in unit.attributes)]
        return [
            place
            for place, node in enumerate(self._interpreter.order)
            if node.op in ("call_module", "get_attr") and any(_share(str(node.target), name) for name in names)
        ]

    def _end(
        self, unit: Unit, dropped: list[int], small: nn.Module, places: Sequence[int], *, index: int
    ) -> int | None:
        """The place from which on all that is known is the same with the channels silenced and removed, None: nowhere.

        A wrong value could look right once it was added to a large one. So the first value of the same size that
        differs ends the trial.
        """
        network, inputs = self._trial.network, self._inputs[index]
        cut = self._dense.advance(network, index, places[0])
        resized: set[fx.Node] = set()
        with silenced(network, [unit], {unit.name: dropped}), torch.no_grad():
            silent = self._interpreter.walk(network, inputs, cut=cut)
            removed = self._interpreter.walk(small, inputs, cut=cut)
            for place, ((node, wanted), (_, got)) in enumerate(zip(silent, removed, strict=True), places[0]):
                touched = place in places or not resized.isdisjoint(node.all_input_nodes)
                if touched and not _same(wanted[node], got[node]):
                    if _sizes(wanted[node]) == _sizes(got[node]):
                        return None
                    resized.add(node)
                if place >= places[-1] and resized.isdisjoint(wanted):
                    return place + 1
        return None


def _same(wanted: Any, got: Any) -> bool:
    """Whether two values agree; values without any leaf do."""
    return not [*tree_leaves(wanted), *tree_leaves(got)] or same_output(wanted, got, TOLERANCE)


def _sizes(value: Any) -> list[Any]:
    """Shapes of tensors; numbers as they are, which may be sizes."""
    return [tuple(leaf.shape) if isinstance(leaf, Tensor) else leaf for leaf in tree_leaves(value)]


def _share(target: str, name: str) -> bool:
    """Whether a module or tensor is another one, holds it or lies within it."""
    return target == name or target.startswith(f"{name}.") or name.startswith(f"{target}.")
