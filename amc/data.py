"""Where images come from: splits that give batches on demand (arrays, datasets, views of them), and the
readers of the embedded digits and of CIFAR-10. What a network does with them stands elsewhere.
"""

import pickle
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

Array: TypeAlias = npt.NDArray[Any] | Tensor
Pair: TypeAlias = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]


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
            Inputs `[B, ...]` float32, and targets `[B, ...]` (integers as int64, else float32).
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
            Without one, numbers are only converted to float32, not scaled.
    """

    inputs: Array
    targets: Array
    transform: Callable[[Tensor], Tensor] | None = None

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
        """Reads inputs `[B, ...]` float32 and targets `[B, ...]`; both are copies."""
        inputs = _rows(self.inputs, indices)
        if self.transform is not None:
            inputs = self.transform(inputs)
        return inputs.to(torch.float32), _as_target(_rows(self.targets, indices))


@dataclass(frozen=True, eq=False)
class DatasetSplit:
    """Samples of a map-style dataset whose items are (input, target), loaded when a batch asks for them.

    Attributes:
        dataset: has `__len__` and `__getitem__`; inputs are tensors or arrays of one shape.
    """

    dataset: Any

    def __len__(self) -> int:
        return len(self.dataset)

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Loads and stacks inputs `[B, ...]` float32 and targets `[B, ...]`.

        Raises:
            ValueError: if an item is not a pair of numbers, or the inputs differ in shape.
        """
        items = [_item(self.dataset[int(index)], int(index)) for index in indices]
        inputs, targets = [item[0] for item in items], [item[1] for item in items]
        return _stack("inputs", inputs).to(torch.float32), _as_target(_stack("targets", targets))


@dataclass(frozen=True, eq=False)
class SubsetSplit:
    """A lazy view of some samples of another split; make one with `subset`."""

    split: Split
    indices: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Reads inputs `[B, ...]` float32 and targets `[B, ...]` through the view."""
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


def load_cifar10(folder: Path) -> tuple[Pair, Pair]:
    """Reads CIFAR-10 from `cifar10_{train,test}.npz` or from the official `cifar-10-batches-py` folder.

    Args:
        folder: holds the two npz files (arrays x and y), or is the official folder or its parent.

    Returns:
        Training and test images in file order: pixels `[N, 32, 32, 3]` uint8 RGB, classes `[N]` int64.

    Raises:
        ValueError: if neither form is there, or a file is damaged. No file is ever executed.
    """
    if all((folder / f"cifar10_{part}.npz").is_file() for part in ("train", "test")):
        return _read_npz(folder / "cifar10_train.npz"), _read_npz(folder / "cifar10_test.npz")
    for home in (folder, folder / "cifar-10-batches-py"):
        if (home / "test_batch").is_file():
            parts = [_read_official(home / f"data_batch_{part}") for part in range(1, 6)]
            train = np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])
            return train, _read_official(home / "test_batch")
    raise ValueError(
        "a CIFAR-10 folder must hold cifar10_train.npz and cifar10_test.npz, or data_batch_1..5 and "
        f"test_batch, but {str(folder)!r} holds neither: point --data at such a folder"
    )


def _read_npz(path: Path) -> Pair:
    try:
        # Opened here, because np.load leaves a damaged file open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            pixels, classes = arrays["x"], arrays["y"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        _refuse(path, error)
    return _check_cifar10(path, pixels, classes)


def _read_official(path: Path) -> Pair:
    try:
        with path.open("rb") as file:
            content = _ArrayUnpickler(file, encoding="bytes").load()
        pixels = content[b"data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        classes = np.array(content[b"labels"])
    except Exception as error:  # a damaged pickle may raise anything, as its documentation says
        _refuse(path, error)
    return _check_cifar10(path, np.ascontiguousarray(pixels), classes)


def _check_cifar10(path: Path, pixels: npt.NDArray[Any], classes: npt.NDArray[Any]) -> Pair:
    images = pixels.dtype == np.uint8 and pixels.ndim == 4 and pixels.shape[1:] == (32, 32, 3)
    labels = classes.dtype.kind in "iu" and classes.shape == pixels.shape[:1]
    if not (images and labels and len(classes) > 0 and set(np.unique(classes)) <= set(range(10))):
        _refuse(path, f"x is {pixels.dtype} {pixels.shape}, y is {classes.dtype} {classes.shape}")
    return pixels, classes.astype(np.int64)


def _refuse(path: Path, reason: object) -> NoReturn:
    cause = reason if isinstance(reason, Exception) else None
    text = " ".join(f"{type(reason).__name__}: {reason}".split()) if cause else reason
    raise ValueError(
        "a CIFAR-10 file must hold images [N, 32, 32, 3] uint8 and classes 0..9, "
        f"but {str(path)!r} does not ({text}): download it again"
    ) from cause


class _ArrayUnpickler(pickle.Unpickler):
    """Reads pickles of dictionaries, lists, bytes and numeric arrays; any other name is refused."""

    def find_class(self, module: str, name: str) -> Any:
        reconstruct = np.empty(0).__reduce__()[0]
        allowed: dict[tuple[str, str], Any] = {
            ("numpy.core.multiarray", "_reconstruct"): reconstruct,
            ("numpy._core.multiarray", "_reconstruct"): reconstruct,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("_codecs", "encode"): _encode_latin1,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"{module}.{name} does not belong in a file of images")
        return allowed[module, name]


def _encode_latin1(text: str, encoding: str) -> bytes:
    # Python 3 writes bytes this way into old pickles; other codecs (zlib, ...) have no business here.
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"the codec {encoding!r} does not belong in a file of images")
    return text.encode("latin1")


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
