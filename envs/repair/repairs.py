"""All repairs by name."""

from __future__ import annotations

from envs.repair.layerwise import LayerwiseRepair
from envs.repair.repair import Dense, Repair
from envs.repair.sequential import SequentialRepair
from envs.repair.unrepaired import Unrepaired

REPAIRS: dict[str, type[Repair]] = {
    "none": Unrepaired,
    "layerwise": LayerwiseRepair,
    "sequential": SequentialRepair,
}


def repair_named(name: str, dense: Dense) -> Repair:
    """The repair of that name; layer-wise repair where it needs a traced graph that there is not.

    Raises:
        ValueError: If there is none of that name.
    """
    if name not in REPAIRS:
        raise ValueError(f"a repair must be one of {', '.join(REPAIRS)}, but got {name!r}")
    kind = REPAIRS[name]
    return LayerwiseRepair(dense) if kind.walks and not dense.graph.traced else kind(dense)
