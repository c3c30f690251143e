"""Reading `result.json` from anywhere: checked as far as anything is read of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from amc.search.result import FINETUNED, NETWORKS, Stopped
from amc.storage.files import read_json
from envs.measure import ACCURACY
from hw_profiles.documents import Open, validated

Amount = Annotated[float, Field(ge=0, le=1e300)]
Count = Annotated[int, Field(ge=0)]


class MetricEntry(Open):
    """What the metric's numbers say, as in `envs.measure.Measure`."""

    name: Annotated[str, Field(min_length=1)]
    higher_is_better: bool
    unit: str
    fraction: bool


class SplitEntry(Open):
    """The metric by split."""

    validation: float
    test: float


class NetworkEntry(Open):
    """What one network costs; the metric stands beside it, by its name."""

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
    metric: MetricEntry | None = None
    dense: NetworkEntry
    uniform: NetworkEntry
    found: NetworkEntry
    start: NetworkEntry | None = None
    finetuned: NetworkEntry | None = Field(None, alias=FINETUNED)
    episodes: Count
    stopped: Stopped
    image_forwards: Count
    measured: MeasuredEntry
    remarks: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _comparable(self) -> ResultFile:
        costs = self.dense.costs
        for network in (self.uniform, self.found, self.start or self.found, self.finetuned or self.found):
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
    file = validated(ResultFile, data, str(path), "a result")
    name = file.metric.name if file.metric else ACCURACY.name
    for network in (network for network in (*NETWORKS, FINETUNED) if data.get(network) is not None):
        value = validated(SplitEntry, data[network].get(name), str(path), f"{name} of {network} in a result")
        if (file.metric is None or file.metric.fraction) and not 0 <= value.validation <= 1 >= value.test >= 0:
            raise ValueError(
                f"{name} must lie in [0, 1], but that of {network} in {str(path)!r} is "
                f"{value.validation} / {value.test}: take the file as it was written"
            )
    return data
