"""Scores of networks on images: metric, cross-entropy, distance from the dense network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from amc.tasks.batches import Batch
from amc.tasks.metric import Metric, Statistics
from amc.tasks.metrics import accuracy
from amc.tasks.plugins import describe
from amc.tasks.splits import Split
from envs.compression.damage import damage_of, output_error
from envs.network.copies import functional_copy
from envs.network.graph import Graph
from envs.network.inference import converted, inference_copy
from envs.network.inputs import call, channels_last, mapped, narrowed
from envs.parallel import map_chunks
from envs.regression.counted import Counts, mask_of
from envs.reward import Block, Evaluation
from hw_profiles.layers import IntArray, Layout

FloatArray = NDArray[np.float32]

Taken = TypeVar("Taken")
Outputs: TypeAlias = Sequence[Tensor]
"""[B, ...] of each chunk of samples: batches that are padded to different lengths have outputs of different shapes."""
ChunkScore: TypeAlias = tuple[tuple[Tensor, ...], Tensor | None, Tensor | None]
"""Statistics of the metric, [B] cross-entropy and squared difference from the dense network's outputs."""
Backend = Literal["bf16", "fp32", "eager"]
"""bfloat16 with folded normalization; fp32 with folded normalization; the network as it is."""

MAX_LOSS = 1e4
"""Largest cross-entropy: a collapsed network's reward must still be a number."""
WORST = 1e30
"""Squared error of an output that is no number or overflows: an episode must stay readable."""
SCORING_BYTES = 256e6
"""Activations held by one scoring chunk."""
CACHED_BYTES, MIN_CHUNK, MAX_CHUNK = 2**22, 8, 250
"""The largest activation of a scoring chunk, so that the next layer finds it in a core's cache: by 250 images of
32 x 32, ResNet-56 takes 1.2 (bf16) to 1.4 (fp32) times as long as by 64. Fewer than 8 give it too little to do."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Score:
    """How a network does on some images.

    Attributes:
        statistics: What the metric keeps of every image: arrays with N rows.
        losses: [N] cross-entropy of each image; None where targets are no class indices.
        errors: [N] squared difference from the dense network's outputs, None if those were not given.
        metric: Makes a value of the statistics.
    """

    statistics: Statistics
    losses: FloatArray | None
    errors: FloatArray | None = None
    metric: Metric = accuracy

    def __len__(self) -> int:
        """Images."""
        return len(self.statistics[0])

    @property
    def value(self) -> float:
        """The metric on all these images together."""
        return self.metric.value(self.statistics)

    @property
    def signed(self) -> float:
        """The same, negated where lower is better: of two, the larger is better."""
        return self.metric.measure.signed(self.value)

    @property
    def each(self) -> FloatArray:
        """[N] metric of each image, for paired comparisons; only of a metric per sample (`Metric.is_mean`)."""
        return np.asarray(self.statistics[0], dtype=np.float32)

    def at(self, indices: Sequence[int] | IntArray) -> Score:
        """The same on a part of the images."""
        losses, errors = (None if x is None else x[indices] for x in (self.losses, self.errors))
        return replace(self, statistics=tuple(rows[indices] for rows in self.statistics), losses=losses, errors=errors)

    def followed_by(self, other: Score) -> Score:
        """This one and the score on other images behind it."""
        losses, errors = (
            None if a is None or b is None else np.concatenate([a, b])
            for a, b in ((self.losses, other.losses), (self.errors, other.errors))
        )
        both = zip(self.statistics, other.statistics, strict=True)
        return replace(self, statistics=tuple(map(np.concatenate, both)), losses=losses, errors=errors)

    def blocks(self, count: int) -> tuple[Block, ...]:
        """Means over `count` parts of the images, as equal in size as can be."""
        parts = (self.at(part.tolist()) for part in np.array_split(np.arange(len(self)), count))
        means = (part.evaluation({}, 0) for part in parts)
        return tuple(Block(one.metric, one.loss, one.output_error) for one in means)

    def evaluation(self, costs: Mapping[str, float], image_forwards: int) -> Evaluation:
        """What a reward is made of."""
        loss, error = (None if x is None else float(x.mean(dtype=np.float64)) for x in (self.losses, self.errors))
        return Evaluation(
            metric=self.value,
            loss=loss,
            output_error=error,
            costs=costs,
            images=len(self),
            image_forwards=image_forwards,
            measure=self.metric.measure,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorer:
    """Scores networks of one task.

    Attributes:
        graph: Operator graph of the dense network, for folding.
        metric: The task's.
        counts: Which tokens of a batch count, None: all.
        chunk: Images per forward pass.
        device: "cpu" or "cuda".
        backend: The arithmetic, see `amc.scoring.backend`.
    """

    graph: Graph
    metric: Metric
    counts: Counts | None = None
    chunk: int = 250
    device: str = "cpu"
    backend: Backend = "fp32"

    def __call__(self, network: nn.Module, split: Split, indices: Sequence[int], dense: Outputs | None = None) -> Score:
        """Metric, cross-entropy and distance from the dense network over the chosen images of a split.

        Args:
            network: The network to score.
            split: Where the images are.
            indices: Which ones, [N].
            dense: Outputs of the dense network on them, as `outputs` gives them.
        """

        def one(part: range, outputs: Tensor, targets: Tensor, mask: Tensor | None) -> ChunkScore:
            return self._chunk(outputs, targets, None if dense is None else dense[part.start // self.chunk], mask)

        return _score_of(self.over(network, split, indices, one), self.metric)

    def of_outputs(self, dense: Outputs, split: Split) -> Score:
        """The dense network's score on a whole split, by its outputs: nothing runs again."""
        starts = range(0, len(split), self.chunk)
        parts = [range(start, min(start + self.chunk, len(split))) for start in starts]
        chunks = (
            self._chunk(outputs, read(split, part)[1], outputs) for part, outputs in zip(parts, dense, strict=True)
        )
        return _score_of(chunks, self.metric)

    def _chunk(self, outputs: Tensor, targets: Tensor, dense: Tensor | None, mask: Tensor | None = None) -> ChunkScore:
        error = None
        if dense is not None:
            new, old = map(self.metric.judged, (outputs, dense))
            error = damage_of(output_error, new, old, targets, mask).nan_to_num(nan=WORST, posinf=WORST)
        return self.metric.statistics(outputs, targets), _cross_entropy(outputs, targets), error

    def outputs(self, network: nn.Module, split: Split, indices: Sequence[int]) -> list[Tensor]:
        """[B, ...] outputs of each chunk of the chosen images; other axes may differ between chunks."""
        return list(self.over(network, split, indices, lambda part, outputs, *rest: outputs))

    def over(
        self,
        network: nn.Module,
        split: Split,
        indices: Sequence[int],
        take: Callable[[range, Tensor, Tensor, Tensor | None], Taken],
    ) -> Iterator[Taken]:
        """What `take(positions in indices, outputs, targets, mask of tokens)` says of each chunk, in order."""
        plain, narrow = self.backend == "eager", torch.bfloat16 if self.backend == "bf16" else None
        fast = functional_copy(network) if plain else inference_copy(network, self.graph)
        if narrow is not None or self.device != "cpu":
            fast = converted(fast, self.device, narrow)

        def one(start: int) -> Taken:
            part = range(start, min(start + self.chunk, len(indices)))
            inputs, targets = read(split, indices[part.start : part.stop])
            mask = mask_of(self.counts, inputs)
            inputs = mapped(lambda tensor: tensor.to(self.device), inputs)
            if narrow is not None:
                inputs = narrowed(inputs, narrow)
            with torch.no_grad():
                outputs: Tensor = call(fast, inputs if plain else channels_last(inputs)).cpu()
            return take(part, outputs if narrow is None else outputs.float(), targets, mask)

        return map_chunks(one, range(0, len(indices), self.chunk))


def scoring_chunk(dense: Layout, device: str) -> int:
    """Images per forward pass of a network with this layout."""
    largest = 4 * max(layer.out_channels * int(np.prod(layer.out_map)) for layer in dense.layers)
    cached = max(MIN_CHUNK, CACHED_BYTES / largest) if device == "cpu" else MAX_CHUNK
    return int(max(1, min(MAX_CHUNK, cached, SCORING_BYTES / (3 * largest))))


def read(split: Split, indices: Sequence[int]) -> Batch:
    """One batch of a split; what the user's dataset or transform raises becomes one line."""
    try:
        return split.batch(indices)
    except (ValueError, OSError):
        raise
    except Exception as error:
        raise ValueError(
            f"data must give the samples asked for, but raised {describe(error)}: correct the dataset or its transform"
        ) from error


def _score_of(chunks: Iterable[ChunkScore], metric: Metric) -> Score:
    kept, losses, errors = zip(*chunks, strict=True)
    statistics = metric.joined(kept)
    return Score(statistics=statistics, losses=_joined(losses), errors=_joined(errors), metric=metric)


def _cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor | None:
    """[B] cross-entropy of class scores [B, K, ...], None where targets are no class indices."""
    fits = outputs.ndim >= 2 and targets.shape == (len(outputs), *outputs.shape[2:])
    if not fits or targets.is_floating_point() or bool(((targets < 0) | (targets >= outputs.shape[1])).any()):
        return None
    loss = F.cross_entropy(outputs.float(), targets.long(), reduction="none")
    loss = loss.flatten(1).mean(dim=1) if loss.ndim > 1 else loss
    return loss.nan_to_num(nan=MAX_LOSS, posinf=MAX_LOSS).clamp(max=MAX_LOSS)


def _joined(parts: Sequence[Tensor | None]) -> FloatArray | None:
    known = [part for part in parts if part is not None]
    return torch.cat(known).float().numpy() if len(known) == len(parts) else None
