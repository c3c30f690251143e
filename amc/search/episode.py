"""Episodes as they are written down: finished ones, and those whose evaluation failed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

from pydantic import Field

from envs.measure import ACCURACY, Measure
from envs.reward import Evaluation
from envs.space.assignment import Key
from hw_profiles.documents import Strict, validated

Count = Annotated[int, Field(ge=0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """One finished episode, as it is written down.

    Attributes:
        searcher: The searcher or start that proposed it.
        actions: [S] executed preserve ratios, six digits.
        key: [S] values of the assignment: channels kept, ranks of patterns.
        reward: What the searcher was told.
        evaluation: What the policy achieves.
        budgets: Cost name -> the episode's own budget in a search over a range; None where all have the same.
        profile: Of the device that the budgets and the latency are of; None where there is one device.
    """

    searcher: str
    actions: tuple[float, ...]
    key: Key
    reward: float
    evaluation: Evaluation
    budgets: Mapping[str, float] | None = None
    profile: str | None = None

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
        budgets: As of an episode.
        profile: As of an episode.
    """

    searcher: str
    actions: tuple[float, ...]
    key: Key
    reason: str
    budgets: Mapping[str, float] | None = None
    profile: str | None = None

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
        **({} if line.budgets is None else {"budgets": dict(line.budgets)}),
        **({} if line.profile is None else {"profile": line.profile}),
    }


class _Decided(Strict):
    """What every line begins with."""

    episode: Count
    searcher: str
    actions: list[Annotated[float, Field(ge=0, le=1)]]
    choices: list[Count]
    budgets: dict[str, float] | None = None
    profile: str | None = None


class _FailureLine(_Decided):
    failed: str


Block = Annotated[list[float | None], Field(min_length=3, max_length=3)]


class _EpisodeLine(_Decided):
    metric: float
    loss: float | None
    output_error: float | None
    costs: dict[str, float]
    images: Count
    image_forwards: Count
    blocks: list[Block] = Field(default_factory=list)
    reward: float


def read_line(line: Any, where: str, measure: Measure = ACCURACY) -> Line:
    """Reads `to_json` of an episode or a failure back, whose metric says what `measure` does.

    Args:
        line: What a line holds.
        where: The file's name, for the message.
        measure: Name, direction and unit of the metric.

    Raises:
        ValueError: If a field is missing, unknown or of the wrong kind; one line.
    """
    kind = _FailureLine if isinstance(line, dict) and "failed" in line else _EpisodeLine
    names = {measure.name: "metric"}
    renamed = {names.get(key, key): value for key, value in line.items()} if isinstance(line, dict) else line
    validated(kind, renamed, where, "an episode")
    decided = {"searcher": line["searcher"], "actions": tuple(line["actions"]), "key": tuple(line["choices"])}
    decided |= {"budgets": line.get("budgets"), "profile": line.get("profile")}
    if kind is _FailureLine:
        return Failure(**decided, reason=line["failed"])
    # As they stand in the line, not as the model has them: resume writes the same bytes again.
    return Episode(**decided, reward=line["reward"], evaluation=Evaluation.from_json(line, measure))
