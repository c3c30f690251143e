"""All importances by name."""

from __future__ import annotations

from envs.importance.bn_scale import BatchNormScale
from envs.importance.chance import Chance
from envs.importance.fluctuation import Fluctuation
from envs.importance.fpgm import GeometricMedian
from envs.importance.importance import Importance
from envs.importance.magnitude import L1, L2
from envs.importance.obs import OptimalBrainSurgeon
from envs.importance.taylor import Taylor

IMPORTANCES: dict[str, Importance] = {
    "obs": OptimalBrainSurgeon(),
    "l1": L1(),
    "l2": L2(),
    "bn_scale": BatchNormScale(),
    "fpgm": GeometricMedian(),
    "taylor": Taylor(),
    "fluctuation": Fluctuation(),
    "random": Chance(),
}
