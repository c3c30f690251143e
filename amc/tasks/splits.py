"""Where samples come from: splits that give batches on demand (arrays, datasets, views of them), and the embedded
digits. The reader of CIFAR-10 stands in `cifar10.py`; what a network does with samples stands elsewhere.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from amc.tasks.batches import (
    Array,
    Arrays,
    Batch,
    Collate,
    as_array,
    as_arrays,
    as_inputs,
    as_target,
    check_arrays,
    collated,
    fitted,
    row,
    rows,
    stacked,
)
from amc.tasks.plugins import describe
from envs.network.inputs import Inputs, tensors

Pair: TypeAlias = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]

SAMPLES = 4
"""Real inputs on which units are verified: enough to tell a mistake from chance, and little work."""


@runtime_checkable
class Split(Protocol):
    """A set of samples that can be read in any order, a batch at a time."""

    def __len__(self) -> int:
        """The number of samples."""
        ...

    def batch(self, indices: Sequence[int]) -> Batch:
        """Reads the samples at `indices`, in that order.

        Args:
            indices: B positions, each in [0, len(self)); a range will do.

        Returns:
            Inputs of B samples, in a `Task` of the example input's form and dtypes (axes other than the batch, such as
            the length of a text, may differ from batch to batch), and targets `[B, ...]` (integers as int64, else
            float32).
        """
        ...


SplitLike: TypeAlias = Split | Dataset[Any] | Sequence[Any]
"""What `as_split` takes: a split, a map-style dataset, or a pair (inputs, targets) of arrays."""


@dataclass(frozen=True, eq=False)
class ArraySplit:
    """Samples held in two arrays, which are kept as they are and converted a batch at a time.

    Attributes:
        inputs: `[N, ...]`, any real dtype, or a tuple or dict of such arrays; memory-mapped arrays stay on disk.
        targets: `[N, ...]`, any real dtype.
        transform: maps raw inputs of B samples in their own dtype to what the network takes.
            Without one, numbers are only converted, never scaled.
        example: an input whose form and dtypes batches get, where `fitted` gets there; None: as the data or its
            transform has them. A `Task` sets it to its example input.
    """

    inputs: Arrays
    targets: Array
    transform: Callable[[Any], Any] | None = None
    example: Inputs | None = None

    def __post_init__(self) -> None:
        check_arrays("targets", self.targets, len(self.targets) if self.targets.ndim else 0)
        check_arrays("inputs", self.inputs, len(self.targets))

    def __len__(self) -> int:
        return len(self.targets)

    def batch(self, indices: Sequence[int]) -> Batch:
        """Reads inputs and targets `[B, ...]`; all are copies."""
        inputs = rows(self.inputs, indices)
        if self.transform is not None:
            inputs = self.transform(inputs)
        fit = fitted(inputs, self.example)
        check_finite_inputs(fit, indices)
        return fit, as_target(row(self.targets, indices))


@dataclass(frozen=True, eq=False)
class DatasetSplit:
    """Samples of a map-style dataset whose items are (input, target), loaded when a batch asks for them.

    Attributes:
        dataset: has `__len__` and `__getitem__`; inputs are tensors or arrays, or a tuple or dict of them.
        collate: makes a batch (inputs, targets) of a list of items, such as by padding; None: shapes must agree.
        example: as in `ArraySplit`.
    """

    dataset: Any
    collate: Collate | None = None
    example: Inputs | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    def batch(self, indices: Sequence[int]) -> Batch:
        """Loads inputs and targets `[B, ...]`, and stacks or collates them.

        Raises:
            ValueError: if an item is not a pair of numbers, or the inputs differ in shape and nothing collates them.
        """
        places = [int(index) for index in indices]
        items = [self._loaded(place) for place in places]
        inputs, targets = stacked(items, places) if self.collate is None else collated(self.collate, items)
        fit = fitted(inputs, self.example)
        check_finite_inputs(fit, places)
        return fit, targets

    def _loaded(self, index: int) -> Any:
        """One item; what the dataset raises becomes one line with its index."""
        try:
            return self.dataset[index]
        except Exception as error:  # the dataset is the user's code
            raise ValueError(
                f"a dataset must give every item, but item {index} raised {describe(error)}: replace that file, or "
                "correct the dataset"
            ) from error


@dataclass(frozen=True, eq=False)
class FormedSplit:
    """A split of one's own, of which a network takes several inputs; its batches must have the example's form."""

    split: Split
    example: Inputs

    def __len__(self) -> int:
        return len(self.split)

    def batch(self, indices: Sequence[int]) -> Batch:
        """Reads a batch of the split."""
        inputs, targets = self.split.batch(indices)
        return fitted(as_inputs(inputs, "a split's inputs"), self.example), targets


@dataclass(frozen=True, eq=False)
class SubsetSplit:
    """A lazy view of some samples of another split; make one with `subset`."""

    split: Split
    indices: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, indices: Sequence[int]) -> Batch:
        """Reads inputs and targets `[B, ...]` through the view."""
        return self.split.batch(self.indices[np.asarray(indices, dtype=np.int64)].tolist())


def as_split(data: SplitLike, collate: Collate | None = None) -> Split:
    """Makes a split of whatever the user has.

    Args:
        data: a split (returned as it is); a pair (inputs, targets) of arrays, tensors or lists of numbers, where
            inputs may be a tuple or a dict of arrays; or any map-style dataset of (input, target).
        collate: makes a batch of a list of the dataset's items.

    Raises:
        ValueError: if it is none of these, the arrays do not fit together, or there is nothing to collate.
    """
    ready = isinstance(data, tuple | list) and len(data) == 2
    if collate is not None and (ready or (isinstance(data, Split) and not isinstance(data, Dataset))):
        raise ValueError(
            "collate= makes batches of a dataset's items, but got data that is in batches already: "
            "leave it out, or give datasets of (input, target)"
        )
    if isinstance(data, tuple | list) and len(data) == 2:
        return ArraySplit(as_arrays("inputs", data[0]), as_array("targets", data[1]))
    if isinstance(data, Split) and not isinstance(data, Dataset):
        return data
    iterable = isinstance(data, IterableDataset | Mapping | np.ndarray | Tensor | str)
    if iterable or not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        raise ValueError(
            "data must be a pair (inputs, targets) of arrays or a dataset with __len__ and __getitem__, "
            f"but got {type(data).__name__}: give both arrays, or the dataset behind the loader"
        )
    return DatasetSplit(data, collate)


def typed(split: Split, example: Inputs) -> Split:
    """The same samples in the example's form and dtypes, where `fitted` gets there.

    A user's own kind of split gives what it gives; where there are several inputs, their names are checked.
    """
    if isinstance(split, ArraySplit | DatasetSplit):
        return replace(split, example=example)
    if isinstance(split, SubsetSplit):
        return replace(split, split=typed(split.split, example))
    return split if isinstance(example, Tensor) else FormedSplit(split, example)


def subset(split: Split, indices: Sequence[int]) -> Split:
    """A lazy view of the samples at `indices`, in that order.

    Raises:
        ValueError: if an index lies outside the split.
    """
    chosen = np.array(indices, dtype=np.int64).reshape(-1)
    outside = chosen[(chosen < 0) | (chosen >= len(split))]
    if len(outside):
        raise ValueError(
            f"0 <= index < {len(split)} must hold, but got index={int(outside[0])}: choose samples that the split has"
        )
    return SubsetSplit(split, chosen)


def chunks(count: int, size: int) -> list[range]:
    """Cuts the positions 0..count into consecutive ranges of `size`; the last may be shorter.

    Raises:
        ValueError: if `count` is negative or `size` is not positive.
    """
    if count < 0 or size < 1:
        raise ValueError(
            f"count >= 0 and size >= 1 must hold, but got count={count}, size={size}: "
            "choose a positive number of samples per chunk"
        )
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def known_targets(split: Split) -> Tensor | None:
    """All targets `[N, ...]` of a split whose targets are in memory; None where samples must be loaded."""
    if isinstance(split, ArraySplit):
        return as_target(row(split.targets, range(len(split))))
    if isinstance(split, SubsetSplit):
        targets = known_targets(split.split)
        return None if targets is None else row(targets, split.indices.tolist())
    return None


def load_digits(seed: int = 0) -> tuple[Pair, Pair, Pair]:
    """scikit-learn's 1,797 handwritten digits, drawn into training (600), validation (600) and test (597).

    Args:
        seed: of the permutation; the shipped weights belong to seed 0.

    Returns:
        Three pairs: digits `[N, 1, 8, 8]` uint8 with values 0..16, classes `[N]` int64.
    """
    from sklearn.datasets import load_digits as read  # heavy

    digits, classes = read(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(digits))
    x = digits.astype(np.uint8).reshape(-1, 1, 8, 8)[order]
    y = classes.astype(np.int64)[order]
    first, second, third = slice(0, 600), slice(600, 1200), slice(1200, None)
    return (x[first], y[first]), (x[second], y[second]), (x[third], y[third])


class NotFinite(ValueError):
    """An input is NaN or infinite.

    Attributes:
        index: Which sample's.
    """

    def __init__(self, index: int, where: str = "") -> None:
        """Takes the sample's position in its split, and the name of the split."""
        named = f"{where} sample" if where else "sample"
        super().__init__(
            f"inputs must be finite, but {named} {index} holds NaN or infinity: clean the data or its transform"
        )
        self.index = index


def check_finite_inputs(inputs: Inputs, indices: Sequence[int]) -> None:
    """Refuses inputs of B samples that are NaN or infinite, naming the first of their positions `indices` in the data.

    Raises:
        NotFinite: if there is one.
    """
    for tensor in tensors(inputs):
        if not tensor.is_floating_point() or bool(tensor.isfinite().all()):
            continue
        broken = (~tensor.flatten(1).isfinite().all(dim=1)).nonzero()
        raise NotFinite(int(indices[int(broken[0])]))


def verification_samples(split: Split) -> Inputs:
    """A few inputs of a split, on which units are verified."""
    inputs: Inputs = split.batch(range(min(SAMPLES, len(split))))[0]
    return inputs
