"""What a search has paid and what it has learned for it: every policy is charged once, and remembered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from envs.reward import Evaluation
from envs.space.assignment import Key


class Ledger:
    """Image-forwards and evaluations of one search (law 3 of docs/architecture.md); both only grow.

    Attributes:
        image_forwards: Forward passes of one image each: calibration, damage curves and validation alike.
        evaluations: Policies compressed and scored.
    """

    def __init__(self) -> None:
        """Nothing paid, nothing known."""
        self.image_forwards, self.evaluations = 0, 0
        self._known: dict[Key, Evaluation] = {}
        self._once: set[str] = set()

    @property
    def known(self) -> Mapping[Key, Evaluation]:
        """All evaluations so far by assignment; a live view."""
        return MappingProxyType(self._known)

    def charge(self, image_forwards: int, once: str | None = None) -> None:
        """Adds work that is no evaluation of an episode.

        Args:
            image_forwards: How much.
            once: Name of work whose result is kept, so that asking again is free of charge; None for any other.
        """
        if once in self._once:
            return
        if once is not None:
            self._once.add(once)
        self.image_forwards += image_forwards

    def account(self, key: Key, evaluation: Evaluation) -> Evaluation:
        """Charges an evaluation of a new assignment and remembers it; of a known one gives the first, free of charge.

        The costs are those of the given one, as the first may have been played for another device.

        Args:
            key: The assignment.
            evaluation: Made wherever.
        """
        if key in self._known:
            return replace(self._known[key], costs=evaluation.costs, image_forwards=0)
        self.image_forwards += evaluation.image_forwards
        self.evaluations += 1
        self._known[key] = evaluation
        return evaluation

    def restore(self, image_forwards: int, evaluations: int, known: Mapping[Key, Evaluation]) -> None:
        """Takes over the books of an earlier process."""
        self.image_forwards, self.evaluations = image_forwards, evaluations
        for key, evaluation in known.items():
            self._known.setdefault(key, evaluation)
