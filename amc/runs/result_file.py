"""Reading `result.json` from anywhere: checked as far as anything is read of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from amc.search.result import Stopped
from amc.storage.files import read_json
from hw_profiles.documents import Open, validated

Fraction = Annotated[float, Field(ge=0, le=1)]
Amount = Annotated[float, Field(ge=0, le=1e300)]
Count = Annotated[int, Field(ge=0)]


class AccuracyEntry(Open):
    """Fractions by split."""

    validation: Fraction
    test: Fraction


class NetworkEntry(Open):
    """What one network achieves and costs."""

    accuracy: AccuracyEntry
    costs: Annotated[dict[str, Amount], Field(min_length=1)]


class SpreadEntry(Open):
    """How the rounds of a timed network scatter."""

    mad_ms: Amount
    rounds: Count


class MeasuredEntry(Open):
    """What depends on the machine."""

    seconds: Amount
    latency_ms: dict[str, Amount]
    latency_spread: dict[str, SpreadEntry] = Field(default_factory=dict)


class ResultFile(Open):
    """What is read of a result; fields may be added to it, and files of earlier versions lack some."""

    schema_version: Annotated[int, Field(ge=1, le=1)]
    task: str
    dense: NetworkEntry
    uniform: NetworkEntry
    found: NetworkEntry
    start: NetworkEntry | None = None
    episodes: Count
    stopped: Stopped
    image_forwards: Count
    measured: MeasuredEntry
    remarks: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _comparable(self) -> ResultFile:
        costs = self.dense.costs
        for network in (self.uniform, self.found, self.start or self.found):
            if network.costs.keys() != costs.keys():
                raise ValueError(f"every network must have the costs {', '.join(costs)}, but one has others")
        if not all(costs.values()):
            raise ValueError("every cost of the dense network must be more than nothing, but one is 0")
        return self


def read_result(path: Path) -> dict[str, Any]:
    """The content of a `result.json`.

    Raises:
        ValueError: If it is missing, damaged, or lacks what is read of it; one line.
    """
    data: dict[str, Any] = read_json(path, "a result")
    validated(ResultFile, data, str(path), "a result")
    return data
