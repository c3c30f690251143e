"""CIFAR-10 and its splits, read from npz files or the official folder; no file is ever executed."""

import pickle
import zipfile
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
import numpy.typing as npt

from amc.tasks.splits import ArraySplit, Pair


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


def cifar10_splits(folder: Path, transform: Callable[[Any], Any]) -> tuple[ArraySplit, ArraySplit, ArraySplit]:
    """Training, validation and test split for weights that have seen all training images.

    The first half of the official test images is for validation, the second for the test.

    Args:
        folder: As for `load_cifar10`.
        transform: What a network reads of pixels `[B, 32, 32, 3]` uint8.

    Raises:
        ValueError: As `load_cifar10`.
    """
    train, (x, y) = load_cifar10(folder)
    half = len(x) // 2
    parts = (train, (x[:half], y[:half]), (x[half:], y[half:]))
    training, validation, test = (ArraySplit(*part, transform) for part in parts)
    return training, validation, test


def _read_npz(path: Path) -> Pair:
    try:
        # Opened here, because np.load leaves a damaged file open.
        with path.open("rb") as file:
            _check_sizes(file)
            with np.load(file, allow_pickle=False) as arrays:
                pixels, classes = arrays["x"], arrays["y"]
    except Exception as error:  # zipfile, zlib and numpy raise many kinds for a damaged file
        _refuse(path, error)
    return _check_cifar10(path, pixels, classes)


def _check_sizes(file: BinaryIO) -> None:
    """Refuses arrays that say they are larger than what the archive holds of them, before they are made."""
    with zipfile.ZipFile(file) as archive:
        for name in ("x.npy", "y.npy"):
            held = archive.getinfo(name).file_size
            with archive.open(name) as part:
                version = np.lib.format.read_magic(part)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(part)
            if prod(shape) * dtype.itemsize > held or held > MOST_BYTES:
                raise ValueError(f"{name} is {dtype} {shape}, which its {held:,} bytes cannot be")
    file.seek(0)


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


MOST_BYTES = 2**30
"""Of an array; the training images take 0.15 GB."""


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
