"""Objects of the user's at work: what they raise, and what they must not give, is said in one line that names them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amc.tasks.plugins import describe
from envs.importance.importance import Evidence, Importance
from envs.lookup import name_of
from envs.repair.repair import Dense, Pruned, Repair
from envs.units.units import Unit
from hw_profiles.cost import Cost, Display, FloatArray
from hw_profiles.layers import Layout, Widths


@dataclass(frozen=True, slots=True)
class WatchedCost:
    """A cost of the user's; how it is shown has defaults.

    Attributes:
        own: The cost.
    """

    own: Cost

    @property
    def name(self) -> str:
        """Its name."""
        return self.own.name

    @property
    def unit(self) -> str:
        """Its unit."""
        return self.own.unit

    @property
    def display(self) -> Display:
        """Its own, or its name and digits."""
        found = getattr(self.own, "display", None)
        return found if isinstance(found, Display) else Display(label=self.name)

    @property
    def needs_edges(self) -> bool:
        """As it says; False if it says nothing."""
        return bool(getattr(self.own, "needs_edges", False))

    @property
    def adds_up(self) -> bool:
        """As it says; False if it says nothing."""
        return bool(getattr(self.own, "adds_up", False))

    def many(self, layout: Layout, widths: Widths) -> FloatArray:
        """[K] finite costs.

        Raises:
            ValueError: If it raises, gives something else, or cannot be counted without edges.
        """
        if self.needs_edges and not layout.edges_known:
            raise ValueError(
                f"the cost {self.name!r} needs the network's data flow, but it could not be traced: "
                "bound another cost, or make its forward traceable"
            )
        try:
            found = np.asarray(self.own.many(layout, widths), dtype=np.float64)
        except Exception as error:  # it is the user's
            raise ValueError(f"the cost {self.name!r} raised {describe(error)}: correct its many") from error
        wanted = (len(widths.outputs),)
        if found.shape != wanted:
            raise ValueError(
                f"a cost must give one value per variant, {list(wanted)}, but {self.name!r} gave {list(found.shape)}: "
                "sum over the layers, axis 1"
            )
        if not (np.isfinite(found) & (found >= 0)).all():
            wrong = found[~(np.isfinite(found) & (found >= 0))][0]
            raise ValueError(
                f"a cost must be finite and not negative, but {self.name!r} gave {wrong}: correct its many"
            )
        return found


class WatchedImportance(Importance):
    """An importance of the user's, a function too."""

    def __init__(self, own: Importance) -> None:
        """Takes it, its name, and what it declares."""
        self.own, self.name = own, name_of(own)
        for name in ("reads_moments", "reads_gradients", "mean_shift"):
            setattr(self, name, bool(getattr(own, name, False)))

    def __call__(self, unit: Unit, evidence: Evidence) -> Tensor:
        """[C] finite scores.

        Raises:
            ValueError: If it raises, or gives something else.
        """
        name = self.name
        try:
            scores: Any = self.own(unit, evidence)
        except ValueError as error:
            raise ValueError(f"the importance {name} refuses unit {unit.name!r}: {error}") from error
        except Exception as error:  # it is the user's
            raise ValueError(f"the importance {name} raised {describe(error)} for unit {unit.name!r}") from error
        if not isinstance(scores, Tensor) or scores.shape != (unit.channels,):
            got = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise ValueError(
                f"an importance must give a tensor of one score per channel, [{unit.channels}] for unit {unit.name!r}, "
                f"but {name} gave {got}"
            )
        if not scores.isfinite().all():
            raise ValueError(f"an importance must give finite scores, but some of {name} for {unit.name!r} are not")
        return scores


def watched_repair(own: type) -> type[Repair]:
    """The class of a repair of the user's, completed by the defaults of `Repair`; what it leaves is looked at."""

    class Watched(own, Repair):  # type: ignore[misc]  # a class that is known only now
        def __init__(self, dense: Dense) -> None:
            try:
                super().__init__(dense)
            except Exception as error:  # it is the user's
                raise ValueError(f"the repair {own.__name__} raised {describe(error)} when it was made") from error

        def __call__(self, pruned: Pruned) -> None:
            try:
                own.__call__(self, pruned)
            except Exception as error:  # it is the user's
                raise ValueError(f"the repair {own.__name__} raised {describe(error)}") from error
            for name, tensor in pruned.network.state_dict().items():
                if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                    raise ValueError(f"a repair must leave finite weights, but {own.__name__} left others in {name!r}")

    Watched.__name__ = Watched.__qualname__ = own.__name__
    return Watched
