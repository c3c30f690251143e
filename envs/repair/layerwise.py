"""Layer-wise repair: each consumer is refitted to its dense output from the dense features it still reads."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from envs.regression.ridge import Fit
from envs.regression.rows import weight_rows
from envs.repair.bank import LayerwiseBank, input_orders
from envs.repair.normalization import normalization_behind, takes_shift, write_fit
from envs.repair.repair import Dense, Pruned, Repair
from envs.units.slicing import Axes
from envs.units.units import is_depthwise

FitConsumer = Callable[[str, Tensor, bool], Fit]
"""(layer, [k] kept input positions, whether an intercept can be written) -> weights on the kept inputs, and shift."""


class LayerwiseRepair(Repair):
    """Looks fits up in a bank that serves all policies."""

    def __init__(self, dense: Dense) -> None:
        """Notes which unit feeds which consumer."""
        super().__init__(dense)
        self._orders = input_orders(dense.units, dense.orders)

    def __call__(self, pruned: Pruned) -> None:
        """Refits all consumers, then brings layers to their patterns by what they read in the dense network."""
        bank = self.dense.banks.get(pruned.unseen)

        def fit(name: str, kept: Tensor, intercept: bool) -> Fit:
            return bank.fit(name, kept, self._orders.get(name), intercept=intercept)

        write_consumers(self.dense, pruned, bank, fit)
        bring_to_patterns(self.dense, pruned, bank, shifted=True)


def write_consumers(dense: Dense, pruned: Pruned, bank: LayerwiseBank, fit: FitConsumer) -> None:
    """Writes the fit of every consumer that lost inputs, on the outputs that it keeps.

    Args:
        dense: The dense network.
        pruned: The sliced network, changed in place.
        bank: Says which layers can be fitted.
        fit: Gives the fit of one layer.
    """
    folds = dense.graph.folds()
    for name, touched in pruned.axes.items():
        if touched.inputs is None or not bank.fits(name):
            continue
        found = fit(name, touched.inputs, takes_shift(dense.network, folds, name))
        weights, shift = found.weights, found.shift.flatten()
        if touched.mix is not None:
            weights, shift = weights @ touched.mix, shift @ touched.mix
        elif touched.outputs is not None:
            groups = len(weights)
            flat = weights.transpose(1, 2).flatten(0, 1)[touched.outputs]
            weights = flat.reshape(groups, len(flat) // groups, -1).transpose(1, 2)
            shift = shift[touched.outputs]
        write_fit(pruned.network, name, normalization_behind(pruned.network, folds, name), weights, shift)


def bring_to_patterns(dense: Dense, pruned: Pruned, bank: LayerwiseBank, *, shifted: bool) -> None:
    """Brings layers to their patterns by what they read in the dense network.

    Args:
        dense: The dense network.
        pruned: The sliced network, changed in place.
        bank: Tells what changing weights costs; a layer that it does not know is changed by its weights alone.
        shifted: Whether the mean of what goes is put where a shift can be written.
    """
    folds = dense.graph.folds()
    for name, finish in pruned.finishes.items():
        before = weight_rows(pruned.network.get_submodule(name)).double()
        curvature, mean = before.new_ones(before.shape[:2]), before.new_zeros(before.shape[:2])
        if bank.fits(name):
            kept = pruned.axes.get(name, Axes()).inputs
            intercept = shifted and takes_shift(dense.network, folds, name)
            curvature, mean = bank.curvature(name, kept, intercept=intercept)
            outputs = pruned.axes.get(name, Axes()).outputs
            # The groups of a depthwise layer follow its channels.
            if outputs is not None and is_depthwise(dense.network.get_submodule(name)):
                curvature, mean = curvature[outputs], mean[outputs]
        after = finish(before, curvature)
        shift = torch.einsum("gn,gno->go", mean.double(), before - after).flatten()
        write_fit(pruned.network, name, normalization_behind(pruned.network, folds, name), after, shift)
