"""Repair: what stays of a network is refitted to the dense network's outputs, by least squares, without labels.

Not at all (`unrepaired`), layer by layer (`layerwise`), or in execution order on what the smaller network really
reads (`sequential`). `repairs.REPAIRS` names them; a new one is a file with a class and a line there, such as
`"scaled": "envs.repair.scaled:ScaledRepair"`:

    class ScaledRepair(Repair):  # gives what reads fewer channels the sum that it had
        def __call__(self, pruned: Pruned) -> None:
            for name, axes in pruned.axes.items():
                if axes.inputs is not None:
                    layer = pruned.network.get_submodule(name)
                    dense = self.dense.network.get_submodule(name)
                    rows = weight_rows(layer) * weight_rows(dense).shape[1] / weight_rows(layer).shape[1]
                    write_fit(pruned.network, name, None, rows, rows.new_zeros(rows.shape[0] * rows.shape[2]))

What `Repair` declares beside `__call__` (image-forwards, what a worker holds) has defaults for repairs like this one.
"""
