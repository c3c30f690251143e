"""All repairs by name. A new one is a file beside this one and a line in `REPAIRS`. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envs.lookup import find

if TYPE_CHECKING:
    from envs.repair.repair import Dense, Repair

REPAIRS = {
    "none": "envs.repair.unrepaired:Unrepaired",
    "layerwise": "envs.repair.layerwise:LayerwiseRepair",
    "sequential": "envs.repair.sequential:SequentialRepair",
}
"""Name -> where the class stands."""


def repair_class(name: str | type[Repair]) -> type[Repair]:
    """The class of the repair of that name; a class is itself.

    Raises:
        ValueError: If there is none of that name.
    """
    if not isinstance(name, str):
        return name
    kind: type[Repair] = find("repair", name, REPAIRS)
    return kind


def repair_named(name: str | type[Repair], dense: Dense) -> Repair:
    """The repair of that name; layer-wise repair where it needs a traced graph that there is not.

    Raises:
        ValueError: If there is none of that name.
    """
    kind = repair_class(name)
    return repair_class("layerwise")(dense) if kind.walks and not dense.graph.traced else kind(dense)
