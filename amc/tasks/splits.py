"""Where samples come from: splits that give batches on demand (arrays, datasets, views of them), and the embedded
digits. The reader of CIFAR-10 stands in `cifar10.py`; what a network does with samples stands elsewhere.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from amc.tasks.plugins import describe

Array: TypeAlias = npt.NDArray[Any] | Tensor
Pair: TypeAlias = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]

SAMPLES = 4
"""Real inputs on which units are verified: enough to tell a mistake from chance, and little work."""


@runtime_checkable
class Split(Protocol):
    """A set of samples that can be read in any order, a batch at a time."""

    def __len__(self) -> int:
        """The number of samples."""
        ...

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Reads the samples at `indices`, in that order.

        Args:
            indices: B positions, each in [0, len(self)); a range will do.

        Returns:
            Inputs `[B, ...]`, in a `Task` of the example input's dtype, and targets `[B, ...]` (integers as int64,
            else float32).
        """
        ...


SplitLike: TypeAlias = Split | Dataset[Any] | Sequence[Any]
"""What `as_split` takes: a split, a map-style dataset, or a pair (inputs, targets) of arrays."""


@dataclass(frozen=True, eq=False)
class ArraySplit:
    """Samples held in two arrays, which are kept as they are and converted a batch at a time.

    Attributes:
        inputs: `[N, ...]`, any real dtype; memory-mapped arrays stay on disk.
        targets: `[N, ...]`, any real dtype.
        transform: maps raw inputs `[B, ...]` in their own dtype to what the network takes.
            Without one, numbers are only converted, never scaled.
        dtype: of the inputs that batches hold, where `converted` gets there; None: as the data or its transform
            has them. A `Task` sets it to that of its example input.
    """

    inputs: Array
    targets: Array
    transform: Callable[[Tensor], Tensor] | None = None
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        for role, array in (("inputs", self.inputs), ("targets", self.targets)):
            _check_array(role, array)
        if len(self.inputs) != len(self.targets):
            raise ValueError(
                f"inputs and targets must be equally many, but got {len(self.inputs)} inputs and "
                f"{len(self.targets)} targets: give one target for each input"
            )

    def __len__(self) -> int:
        return len(self.inputs)

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Reads inputs `[B, ...]` and targets `[B, ...]`; both are copies."""
        inputs = _rows(self.inputs, indices)
        if self.transform is not None:
            inputs = self.transform(inputs)
        inputs = converted(inputs, self.dtype)
        check_finite_inputs(inputs, indices)
        return inputs, _as_target(_rows(self.targets, indices))


@dataclass(frozen=True, eq=False)
class DatasetSplit:
    """Samples of a map-style dataset whose items are (input, target), loaded when a batch asks for them.

    Attributes:
        dataset: has `__len__` and `__getitem__`; inputs are tensors or arrays of one shape.
        dtype: of the inputs, as in `ArraySplit`.
    """

    dataset: Any
    dtype: torch.dtype | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Loads and stacks inputs `[B, ...]` and targets `[B, ...]`.

        Raises:
            ValueError: if an item is not a pair of numbers, or the inputs differ in shape.
        """
        items = [_item(self._loaded(int(index)), int(index)) for index in indices]
        inputs, targets = [item[0] for item in items], [item[1] for item in items]
        stacked = converted(_stack("inputs", inputs), self.dtype)
        check_finite_inputs(stacked, indices)
        return stacked, _as_target(_stack("targets", targets))

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
class SubsetSplit:
    """A lazy view of some samples of another split; make one with `subset`."""

    split: Split
    indices: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Reads inputs `[B, ...]` and targets `[B, ...]` through the view."""
        return self.split.batch(self.indices[np.asarray(indices, dtype=np.int64)].tolist())


def as_split(data: SplitLike) -> Split:
    """Makes a split of whatever the user has.

    Args:
        data: a split (returned as it is); a pair (inputs, targets) of arrays, tensors or lists of numbers;
            or any map-style dataset of (input, target).

    Raises:
        ValueError: if it is none of these, or the arrays do not fit together.
    """
    if isinstance(data, tuple | list) and len(data) == 2:
        return ArraySplit(_as_array("inputs", data[0]), _as_array("targets", data[1]))
    if isinstance(data, Split) and not isinstance(data, Dataset):
        return data
    iterable = isinstance(data, IterableDataset | Mapping | np.ndarray | Tensor | str)
    if iterable or not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        raise ValueError(
            "data must be a pair (inputs, targets) of arrays or a dataset with __len__ and __getitem__, "
            f"but got {type(data).__name__}: give both arrays, or the dataset behind the loader"
        )
    return DatasetSplit(data)


def typed(split: Split, dtype: torch.dtype) -> Split:
    """The same samples with inputs of `dtype`, where `converted` gets there; a user's own kind of split stays."""
    if isinstance(split, ArraySplit | DatasetSplit):
        return replace(split, dtype=dtype)
    if isinstance(split, SubsetSplit):
        return replace(split, split=typed(split.split, dtype))
    return split


def converted(inputs: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Inputs as `dtype`, where that is a number of a kind that holds them; else, or without one, as they are.

    Pixels and truth values become floats, and floats change their precision; floats never become indices, no number
    becomes a truth value, and no integer a narrower one.
    """
    if dtype is None or inputs.dtype == dtype or not torch.can_cast(inputs.dtype, dtype):
        return inputs
    if not dtype.is_floating_point and not _within(inputs.dtype, dtype):
        return inputs
    return inputs.to(dtype)


def _within(narrow: torch.dtype, wide: torch.dtype) -> bool:
    """Whether an integer type holds every value of another one, or of truth values."""
    lowest, highest = (0, 1) if narrow is torch.bool else (torch.iinfo(narrow).min, torch.iinfo(narrow).max)
    return torch.iinfo(wide).min <= lowest and highest <= torch.iinfo(wide).max


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
        return _as_target(_rows(split.targets, range(len(split))))
    if isinstance(split, SubsetSplit):
        targets = known_targets(split.split)
        return None if targets is None else targets[torch.from_numpy(split.indices)]
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


def check_finite_inputs(inputs: Tensor, indices: Sequence[int]) -> None:
    """Refuses inputs `[B, ...]` that are NaN or infinite, naming the first of their positions `indices` in the data.

    Raises:
        ValueError: if there is one.
    """
    if not inputs.is_floating_point() or bool(inputs.isfinite().all()):
        return
    broken = (~inputs.flatten(1).isfinite().all(dim=1)).nonzero()
    raise ValueError(
        f"inputs must be finite, but sample {int(indices[int(broken[0])])} holds NaN or infinity: "
        "clean the data or its transform"
    )


def _rows(array: Array, indices: Sequence[int]) -> Tensor:
    # Index lists copy, so that read-only arrays (shared memory, memory maps) give tensors of their own.
    chosen = np.asarray(indices, dtype=np.int64)
    if isinstance(array, Tensor):
        return array[torch.from_numpy(chosen)]
    rows = np.asarray(array[chosen])
    return torch.from_numpy(rows.astype(rows.dtype.newbyteorder("="), order="C", copy=False))


def _as_target(targets: Tensor) -> Tensor:
    exact = not (targets.is_floating_point() or targets.dtype is torch.bool)
    return targets.to(torch.int64 if exact else torch.float32)


def _as_array(role: str, values: Any) -> Array:
    if isinstance(values, Tensor | np.ndarray):
        return values
    try:
        return np.asarray(values)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{role} must be an array of numbers, but got {type(values).__name__} ({error}): "
            "stack them into one array, or give a dataset"
        ) from error


def _check_array(role: str, array: Array) -> None:
    numeric = not array.is_complex() if isinstance(array, Tensor) else array.dtype.kind in "biuf"
    if not numeric or array.ndim == 0:
        raise ValueError(
            f"{role} must be an array of real numbers with the sample as first axis, but got "
            f"{array.dtype} {tuple(array.shape)}: convert them to numbers, one row per sample"
        )


def _item(item: Any, index: int) -> tuple[Tensor, Tensor]:
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise ValueError(
            f"a dataset's items must be pairs (input, target), but item {index} is a {type(item).__name__}: "
            "wrap the dataset so that it returns such pairs"
        )
    if not isinstance(item[0], Tensor | np.ndarray):
        raise ValueError(
            f"a dataset's inputs must be tensors or arrays, but item {index} holds a "
            f"{type(item[0]).__name__}: convert it in the dataset's transform"
        )
    return _copied(item[0]), _copied(item[1])


def _copied(value: Any) -> Tensor:
    return value.detach() if isinstance(value, Tensor) else torch.tensor(np.asarray(value))


def _stack(role: str, values: list[Tensor]) -> Tensor:
    shapes = sorted({tuple(value.shape) for value in values})
    if len(shapes) > 1:
        raise ValueError(
            f"a dataset's {role} must have one shape, but got {shapes[0]} and {shapes[1]}: "
            "resize or crop them in the dataset's transform"
        )
    return torch.stack(values)


def verification_samples(split: Split) -> Tensor:
    """[B, ...] a few inputs of a split, on which units are verified."""
    return split.batch(range(min(SAMPLES, len(split))))[0]
