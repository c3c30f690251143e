"""A metric: what networks are judged by, per sample, per element or of the whole set. The common ones: `metrics.py`.

All three kinds are one mechanism. `statistics` turns a batch into arrays with one row per sample, `value` turns the
rows of any samples into the number. So samples can be scored in any batches and anywhere, and every subset and every
resample of them has its value, which intervals are made of (`amc.scoring.paired`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amc.tasks.plugins import describe
from envs.measure import Measure

Per = Literal["sample", "element", "set"]
Statistics: TypeAlias = tuple[NDArray[Any], ...]
"""Arrays with one row per sample."""

TOLERANCE = 1e-6
"""By which a score may leave [0, 1] through rounding."""


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """A function that judges outputs by targets, and what its number says.

    Attributes:
        name: In tables and sentences, and its key in files.
        function: Of outputs and targets, as tensors on the CPU. What it returns depends on `per`.
        per: "sample": one score per sample, `[B]`; the metric is their mean. "element": one score per element,
            `[B, ...]` (a token, a pixel), or a pair of them and a mask of the same shape that says which count; the
            metric is their mean over all elements of all samples. "set": one number for all samples together (a rank
            correlation, mAP, F1), for any subset of them too.
        higher_is_better: Its direction.
        unit: Written behind a value: "dB"; "%" for a share that is written in per cent.
        fraction: Whether it lies in [0, 1], which rewards that are made of an error need.
        transform: Applied to the mean of elements (`math.exp` for perplexity).
        keep: For "set": what is kept of a batch, a tensor or a tuple of tensors `[B, ...]`. Those of all samples are
            the arguments of `function`. By default outputs and targets are kept, whole.
        prediction: What of the outputs is judged, a function of them alone, such as the cosine of two embeddings; by
            default the outputs. `function` and `keep` get it in their place, and networks are compared with the dense
            one by it (`output_error`, damage curves).
    """

    name: str
    function: Callable[..., Any]
    _: KW_ONLY
    per: Per = "sample"
    higher_is_better: bool = True
    unit: str = ""
    fraction: bool = False
    transform: Callable[[float], float] | None = None
    keep: Callable[[Tensor, Tensor], Tensor | tuple[Tensor, ...]] | None = None
    prediction: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        """Refuses what no metric could be.

        Raises:
            ValueError: If a part does not fit the others.
        """
        if not callable(self.function):
            raise ValueError(
                f"a metric needs a function of outputs and targets, but {self.name!r} got "
                f"{type(self.function).__name__}: write amc.Metric(name, function)"
            )
        if self.per not in ("sample", "element", "set"):
            raise ValueError(f"a metric is per 'sample', 'element' or 'set', but {self.name!r} is per {self.per!r}")
        for part, kind in (("transform", "element"), ("keep", "set")):
            if getattr(self, part) is not None and self.per != kind:
                raise ValueError(f"{part} belongs to a metric per {kind!r}, but {self.name!r} is per {self.per!r}")
        _ = self.measure

    @property
    def measure(self) -> Measure:
        """What its number says."""
        return Measure(name=self.name, higher_is_better=self.higher_is_better, unit=self.unit, fraction=self.fraction)

    @property
    def is_mean(self) -> bool:
        """Whether the metric is the mean of scores of single samples."""
        return self.per == "sample"

    def statistics(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        """What has to be kept of a batch.

        Args:
            outputs: `[B, ...]`, what the network says.
            targets: `[B, ...]`.

        Returns:
            Tensors with B rows: the scores; sums and counts of elements; what the set's function takes.

        Raises:
            ValueError: If the function raises, or returns anything else than `per` asks for; one line.
        """
        function = (self.keep or _whole) if self.per == "set" else self.function
        outputs = self.judged(outputs)
        try:
            found = function(outputs, targets)
        except Exception as error:  # it may be the user's code
            raise ValueError(
                f"the metric {self.name!r} must score outputs {_shape(outputs)} against targets {_shape(targets)}, "
                f"but raised {describe(error)}: correct the metric or the targets"
            ) from error
        rows = found if isinstance(found, tuple) else (found,)
        self._check(rows, len(outputs))
        if self.per == "element":
            rows = self._sums(*rows)
        return tuple(row.detach().cpu().float() if self._is_number(row) else row.detach().cpu() for row in rows)

    def judged(self, outputs: Tensor) -> Tensor:
        """`[B, ...]` what of the outputs is judged, and by which they are compared with the dense network's.

        Raises:
            ValueError: If `prediction` raises, or does not give one row per sample; one line.
        """
        if self.prediction is None:
            return outputs
        try:
            found = self.prediction(outputs)
        except Exception as error:  # it may be the user's code
            raise ValueError(
                f"the prediction of the metric {self.name!r} must take outputs {_shape(outputs)}, but raised "
                f"{describe(error)}: correct it"
            ) from error
        if not isinstance(found, Tensor) or found.ndim < 1 or len(found) != len(outputs) or found.is_complex():
            raise ValueError(
                f"the prediction of the metric {self.name!r} must be a real tensor with one row for each of "
                f"{len(outputs)} samples, but is {_shape(found) if isinstance(found, Tensor) else type(found).__name__}"
            )
        return found if found.is_floating_point() else found.float()

    def value(self, statistics: Statistics) -> float:
        """The metric of some samples.

        Args:
            statistics: Rows of `statistics`, one per sample, of any samples of a split.

        Raises:
            ValueError: If the function raises on them, or gives no finite number; one line.
        """
        try:
            value = self._value(statistics)
        except Exception as error:  # it may be the user's code
            raise ValueError(
                f"the metric {self.name!r} must have a value on any samples, but on {len(statistics[0])} of them it "
                f"raised {describe(error)}: return what an undefined value stands for, such as 0"
            ) from error
        if not math.isfinite(value):
            raise ValueError(
                f"the metric {self.name!r} must be a finite number, but on {len(statistics[0])} samples it is {value}: "
                "return what an undefined value stands for, such as 0"
            )
        if self.fraction and not self.is_mean and not -TOLERANCE <= value <= 1 + TOLERANCE:
            raise ValueError(f"the metric {self.name!r} must lie in [0, 1], but is {value:g}: {_WIDEN}")
        return value

    def joined(self, batches: Sequence[tuple[Tensor, ...]]) -> Statistics:
        """Statistics of all batches, in order.

        Raises:
            ValueError: If their shapes differ.
        """
        shapes = [[row.shape[1:] for row in batch] for batch in batches]
        if other := next((one for one in shapes if one != shapes[0]), None):
            raise ValueError(
                f"what the metric {self.name!r} keeps of its samples must have one shape, but has "
                f"{[list(shape) for shape in shapes[0]]} and {[list(shape) for shape in other]}: "
                "pass keep=, which makes it one shape in all batches, for example by padding"
            )
        return tuple(torch.cat(rows).numpy() for rows in zip(*batches, strict=True))

    def _value(self, statistics: Statistics) -> float:
        if self.per == "sample":
            return float(statistics[0].mean(dtype=np.float64))
        if self.per == "set":
            return float(self.function(*(torch.tensor(rows) for rows in statistics)))
        sums, counts = (float(rows.sum(dtype=np.float64)) for rows in statistics)
        mean = sums / counts if counts else math.nan
        return mean if self.transform is None else float(self.transform(mean))

    def _is_number(self, row: Tensor) -> bool:
        return self.per != "set" or row.is_floating_point()

    def _check(self, rows: Sequence[object], samples: int) -> None:
        """Refuses anything but tensors of one row per sample, NaN, and scores outside [0, 1] of a fraction."""
        per_sample, most = self.per == "sample", {"sample": 1, "element": 2}.get(self.per, len(rows))
        fits = 1 <= len(rows) <= most and all(isinstance(row, Tensor) and row.shape[:1] == (samples,) for row in rows)
        if not fits or (per_sample and [list(row.shape) for row in rows if isinstance(row, Tensor)] != [[samples]]):
            wanted = {
                "sample": f"one score per sample, [{samples}]",
                "element": f"scores [{samples}, ...] of elements, or a pair of them and a mask",
                "set": f"tensors of one row per sample, [{samples}, ...]",
            }
            raise ValueError(
                f"the metric {self.name!r} must return {wanted[self.per]}, but for {samples} samples it returned "
                f"{' and '.join(_shape(row) for row in rows) or 'nothing'}: correct it, or choose another per="
            )
        scores = [row for row in rows if isinstance(row, Tensor)]
        if self.per != "set" and any(bool(row.isnan().any()) for row in scores):
            raise ValueError(
                f"the metric {self.name!r} must return numbers, but returned NaN for some {self.per}: "
                "return what it stands for instead, such as 0"
            )
        if per_sample and self.fraction and not ((scores[0] >= -TOLERANCE) & (scores[0] <= 1 + TOLERANCE)).all():
            shown = [round(value, 4) for value in scores[0].tolist()[:4]]
            raise ValueError(
                f"the metric {self.name!r} must return one score in [0, 1] per sample, but returned {shown}: {_WIDEN}"
            )

    def _sums(self, values: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """[B] sums of the elements that count, and [B] how many these are."""
        counted = torch.ones_like(values, dtype=torch.bool) if mask is None else mask.bool()
        if counted.shape != values.shape:
            raise ValueError(
                f"the mask of the metric {self.name!r} must have its values' shape {list(values.shape)}, but has "
                f"{list(counted.shape)}: return one truth value per element"
            )
        chosen = torch.where(counted, values.double(), 0.0)
        return chosen.flatten(1).sum(dim=1), counted.flatten(1).sum(dim=1)


_WIDEN = "scale it, or pass amc.Metric(name, function), which may take any value"


def _whole(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    return outputs, targets


def _shape(value: object) -> str:
    return f"{list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
