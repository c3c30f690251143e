"""Episodes as they are written down: finished ones, and those whose evaluation failed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from envs.measure import ACCURACY, Measure
from envs.reward import Evaluation
from envs.space.assignment import Key


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """One finished episode, as it is written down.

    Attributes:
        searcher: The searcher or start that proposed it.
        actions: [S] executed preserve ratios, six digits.
        key: [S] values of the assignment: channels kept, ranks of patterns.
        reward: What the searcher was told.
        evaluation: What the policy achieves.
    """

    searcher: str
    actions: tuple[float, ...]
    key: Key
    reward: float
    evaluation: Evaluation

    def to_json(self, index: int) -> dict[str, Any]:
        """One line of `episodes.jsonl`; only what configuration and seed determine."""
        return {**_decided(self, index), **self.evaluation.to_json(), "reward": self.reward}


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An episode whose evaluation failed however often it was tried: it counts, and nothing is learned from it.

    Attributes:
        searcher: The searcher or start that proposed it.
        actions: [S] executed preserve ratios, six digits.
        key: [S] values of the assignment: channels kept, ranks of patterns.
        reason: What went wrong the last time, one line.
    """

    searcher: str
    actions: tuple[float, ...]
    key: Key
    reason: str

    def to_json(self, index: int) -> dict[str, Any]:
        """One line of `episodes.jsonl`."""
        return {**_decided(self, index), "failed": self.reason}


Line: TypeAlias = Episode | Failure


def _decided(line: Line, index: int) -> dict[str, Any]:
    """What every line of `episodes.jsonl` begins with."""
    return {
        "episode": index,
        "searcher": line.searcher,
        "actions": list(line.actions),
        "choices": list(line.key),
    }


def read_line(line: Mapping[str, Any], measure: Measure = ACCURACY) -> Line:
    """Reads `to_json` of an episode or a failure back, whose metric says what `measure` does.

    Raises:
        KeyError: If a field is missing.
    """
    common: dict[str, Any] = {
        "searcher": line["searcher"],
        "actions": tuple(line["actions"]),
        "key": tuple(line["choices"]),
    }
    if "failed" in line:
        return Failure(**common, reason=line["failed"])
    return Episode(**common, reward=line["reward"], evaluation=Evaluation.from_json(line, measure))
