"""All importances by name. A new one is a file beside this one and a line in `IMPORTANCES`. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envs.lookup import find

if TYPE_CHECKING:
    from envs.importance.importance import Importance

IMPORTANCES = {
    "obs": "envs.importance.obs:OptimalBrainSurgeon",
    "l1": "envs.importance.magnitude:L1",
    "l2": "envs.importance.magnitude:L2",
    "bn_scale": "envs.importance.bn_scale:BatchNormScale",
    "fpgm": "envs.importance.fpgm:GeometricMedian",
    "taylor": "envs.importance.taylor:Taylor",
    "fluctuation": "envs.importance.fluctuation:Fluctuation",
    "random": "envs.importance.chance:Chance",
}
"""Name -> where the class stands."""


def importance_named(name: str | Importance) -> Importance:
    """The importance of that name; an object is itself.

    Raises:
        ValueError: If there is none of that name.
    """
    if not isinstance(name, str):
        return name
    kind: type[Importance] = find("importance", name, IMPORTANCES)
    return kind()
