import os
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from amc.tasks.batches import converted
from amc.tasks.cifar10 import load_cifar10
from amc.tasks.splits import (
    ArraySplit,
    DatasetSplit,
    Split,
    as_split,
    chunks,
    known_targets,
    load_digits,
    subset,
    typed,
)

DATA = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="no CIFAR-10 files in ../shared/data")


class Items(Dataset[Any]):
    """A dataset of given items that counts how many were loaded."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items
        self.loaded = 0

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        self.loaded += 1
        return self.items[index]


def arrays(count: int = 20) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8), rng.integers(0, 10, count)


def test_an_array_split_gives_inputs_as_they_are_and_integer_targets() -> None:
    x, y = arrays()
    inputs, targets = ArraySplit(x, y.astype(np.int32)).batch([3, 1])
    assert (inputs.dtype, targets.dtype) == (torch.uint8, torch.int64)
    np.testing.assert_array_equal(inputs.numpy(), x[[3, 1]])
    assert targets.tolist() == y[[3, 1]].tolist()


CONVERSIONS = [
    (torch.uint8, torch.float32, True),
    (torch.uint16, torch.float32, True),
    (torch.bool, torch.float32, True),
    (torch.float64, torch.float32, True),
    (torch.float32, torch.float16, True),
    (torch.float16, torch.bfloat16, True),
    (torch.int32, torch.int64, True),
    (torch.uint16, torch.int64, True),
    (torch.bool, torch.int64, True),
    (torch.int64, torch.int32, False),
    (torch.float32, torch.int64, False),
    (torch.float16, torch.uint8, False),
    (torch.int64, torch.bool, False),
    (torch.float32, torch.bool, False),
    (torch.int8, torch.uint8, False),
]


@pytest.mark.parametrize(("have", "want", "changes"), CONVERSIONS, ids=str)
def test_inputs_become_what_is_wanted_only_where_no_number_loses_its_meaning(
    have: torch.dtype, want: torch.dtype, changes: bool
) -> None:
    values = torch.tensor([[0, 1], [1, 0]])
    x, y = values.to(have), np.zeros(2)
    splits: list[Split] = [
        ArraySplit(x, y),
        ArraySplit(values, y, lambda raw: raw.to(have)),
        DatasetSplit(TensorDataset(x, x)),
    ]
    for split in [*splits, subset(splits[0], [0, 1])]:
        assert split.batch([0, 1])[0].dtype == have
        inputs, _ = typed(split, torch.zeros(1, dtype=want)).batch([0, 1])
        assert inputs.dtype == (want if changes else have)
        assert inputs.to(torch.int64).equal(values)


def test_without_a_wanted_type_inputs_stay_what_they_are() -> None:
    x = torch.zeros(3, dtype=torch.float16)
    assert converted(x, None) is x


def test_a_split_of_ones_own_is_not_converted() -> None:
    class Own:
        def __len__(self) -> int:
            return 2

        def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
            return torch.zeros(len(indices), 1, dtype=torch.uint8), torch.zeros(len(indices))

    own = Own()
    assert typed(own, torch.zeros(1)) is own


def test_an_array_split_keeps_its_arrays_as_they_are() -> None:
    x, y = arrays()
    split = ArraySplit(x, y)
    split.batch(range(5))
    assert split.inputs is x
    assert x.dtype == np.uint8


def test_a_transform_sees_raw_batches_only() -> None:
    seen: list[tuple[torch.dtype, int]] = []

    def double(raw: Tensor) -> Tensor:
        seen.append((raw.dtype, len(raw)))
        return raw.to(torch.float32) * 2

    x, y = arrays()
    inputs, _ = ArraySplit(x, y, double).batch(range(6))
    assert seen == [(torch.uint8, 6)]
    np.testing.assert_array_equal(inputs.numpy(), x[:6] * 2.0)


def test_a_batch_of_read_only_arrays_is_a_writable_copy() -> None:
    x, y = (array.copy() for array in arrays())
    x.flags.writeable = y.flags.writeable = False
    inputs, targets = ArraySplit(x, y).batch(range(20))
    inputs.zero_()
    targets.zero_()
    assert x.any()
    assert y.any()


def test_a_memory_mapped_array_is_read_by_rows(tmp_path: Path) -> None:
    x, y = arrays()
    np.save(tmp_path / "x.npy", x)
    inputs, _ = ArraySplit(np.load(tmp_path / "x.npy", mmap_mode="r"), y).batch([7])
    np.testing.assert_array_equal(inputs.numpy(), x[[7]])


def test_arrays_of_foreign_byte_order_are_read() -> None:
    x, y = arrays()
    inputs, targets = ArraySplit(x.astype(">f4"), y.astype(">i4")).batch([2])
    np.testing.assert_array_equal(inputs.numpy(), x[[2]])
    assert targets.tolist() == y[[2]].tolist()


def test_float_targets_stay_floats() -> None:
    x, _ = arrays()
    assert ArraySplit(x, np.linspace(0, 1, 20)).batch([0])[1].dtype == torch.float32


def test_inputs_and_targets_must_be_equally_many() -> None:
    x, y = arrays()
    with pytest.raises(ValueError, match="20 inputs and 19 targets"):
        ArraySplit(x, y[:-1])


@pytest.mark.parametrize("bad", [np.array(["a"] * 20), np.array([None] * 20), np.float32(1), torch.ones(20) * 1j])
def test_targets_must_be_real_numbers(bad: Any) -> None:
    with pytest.raises(ValueError, match="targets must be an array of real numbers"):
        ArraySplit(arrays()[0], bad)


def test_a_dataset_is_loaded_only_where_a_batch_asks() -> None:
    dataset = Items([(torch.full((2,), float(i)), i) for i in range(50)])
    inputs, targets = DatasetSplit(dataset).batch([4, 40])
    assert dataset.loaded == 2
    assert inputs.tolist() == [[4.0, 4.0], [40.0, 40.0]]
    assert targets.tolist() == [4, 40]
    assert targets.dtype == torch.int64


@pytest.mark.parametrize(
    ("item", "law"),
    [
        ({"image": 1}, "must be pairs"),
        ((torch.ones(2), 1, 2), "must be pairs"),
        (("picture.png", 1), "must be tensors or arrays"),
    ],
)
def test_a_dataset_of_anything_but_pairs_is_refused(item: Any, law: str) -> None:
    with pytest.raises(ValueError, match=law):
        DatasetSplit(Items([item] * 20)).batch([0])


def test_a_dataset_of_unequal_shapes_is_refused() -> None:
    split = DatasetSplit(Items([(torch.ones(2), 0), (torch.ones(3), 0)]))
    with pytest.raises(ValueError, match=r"one shape, but got \(2,\) and \(3,\)"):
        split.batch([0, 1])


def test_every_kind_of_data_becomes_a_split() -> None:
    x, y = arrays()
    tensors = torch.from_numpy(x), torch.from_numpy(y)
    ready = ArraySplit(x, y)
    kinds: list[Any] = [(x, y), [x, y], tensors, (x.tolist(), y.tolist()), TensorDataset(*tensors), ready]
    for data in [*kinds, list(zip(x, y, strict=True)), subset(ready, range(20))]:
        split = as_split(data)
        assert isinstance(split, Split)
        assert len(split) == 20
        inputs, targets = split.batch([5, 0])
        np.testing.assert_array_equal(inputs.numpy(), x[[5, 0]])
        assert targets.tolist() == y[[5, 0]].tolist()
    assert as_split(ready) is ready


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter([])


@pytest.mark.parametrize(
    "data",
    [
        np.ones((20, 3)),
        torch.ones(20, 3),
        {"x": 1},
        None,
        "folder",
        7,
        Stream(),
        DataLoader(TensorDataset(torch.ones(20, 3), torch.ones(20))),
    ],
)
def test_what_is_no_data_is_refused(data: Any) -> None:
    with pytest.raises(ValueError, match="data must be a pair"):
        as_split(data)


def test_ragged_lists_are_refused() -> None:
    with pytest.raises(ValueError, match="inputs must be an array of numbers"):
        as_split(([[1, 2], [3]], [0, 1]))


@given(
    chosen=st.lists(st.integers(0, 19), max_size=30),
    data=st.data(),
)
def test_a_subset_reads_through_to_its_split(chosen: list[int], data: st.DataObject) -> None:
    x, y = arrays()
    view = subset(ArraySplit(x, y), chosen)
    assert len(view) == len(chosen)
    inner = data.draw(st.lists(st.integers(0, len(chosen) - 1), max_size=10) if chosen else st.just([]))
    inputs, targets = subset(view, inner).batch(range(len(inner)))
    np.testing.assert_array_equal(inputs.numpy(), x[[chosen[i] for i in inner]])
    assert targets.tolist() == [int(y[chosen[i]]) for i in inner]


@pytest.mark.parametrize("index", [-1, 20])
def test_a_subset_cannot_leave_its_split(index: int) -> None:
    with pytest.raises(ValueError, match=f"0 <= index < 20 must hold, but got index={index}"):
        subset(ArraySplit(*arrays()), [0, index])


@given(count=st.integers(0, 200), size=st.integers(1, 70))
def test_chunks_cover_every_position_once_and_in_order(count: int, size: int) -> None:
    parts = chunks(count, size)
    assert [position for part in parts for position in part] == list(range(count))
    assert all(len(part) == size for part in parts[:-1])


def test_chunks_need_a_positive_size() -> None:
    with pytest.raises(ValueError, match="size >= 1 must hold"):
        chunks(10, 0)


def test_targets_in_memory_are_known_without_loading() -> None:
    x, y = arrays()
    known = known_targets(subset(ArraySplit(x, y), [3, 1]))
    assert known is not None
    assert known.tolist() == y[[3, 1]].tolist()
    assert known_targets(DatasetSplit(Items([(1, 2)] * 20))) is None


def test_a_split_pickles() -> None:
    split = subset(ArraySplit(*arrays()), range(3))
    again = pickle.loads(pickle.dumps(split))
    assert torch.equal(again.batch([2])[0], split.batch([2])[0])


def test_the_digits_are_divided_without_overlap() -> None:
    parts = load_digits()
    assert [len(x) for x, _ in parts] == [600, 600, 597]
    assert len({image.tobytes() for x, _ in parts for image in x}) == 1797


def test_the_digits_are_divided_the_same_way_every_time() -> None:
    (first, _, _), (again, _, _) = load_digits(), load_digits()
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])


def write_official(folder: Path, count: int = 4, **changes: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate([*(f"data_batch_{part}" for part in range(1, 6)), "test_batch"]):
        data = np.full((count, 3072), number, dtype=np.uint8)
        data[:, :1024] = 100  # the red plane
        content = {b"data": data, b"labels": [number] * count, b"batch_label": b"training batch"}
        content |= {key.encode(): value for key, value in changes.items()}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.parametrize("inside", [".", "cifar-10-batches-py"])
def test_the_official_cifar10_folder_is_read(tmp_path: Path, inside: str) -> None:
    write_official(tmp_path / inside)
    (train_x, train_y), (test_x, test_y) = load_cifar10(tmp_path)
    assert (train_x.shape, test_x.shape) == ((20, 32, 32, 3), (4, 32, 32, 3))
    assert train_x[4, 0, 0].tolist() == [100, 1, 1]
    assert train_y.tolist() == [label for label in range(5) for _ in range(4)]
    assert test_y.tolist() == [5] * 4


def test_pickles_written_by_python_2_are_read(tmp_path: Path) -> None:
    write_official(tmp_path)
    for path in tmp_path.iterdir():  # the official files name numpy's old module and carry raw byte strings
        path.write_bytes(path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert len(load_cifar10(tmp_path)[0][0]) == 20


class Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def test_a_malicious_pickle_is_refused_and_not_executed(tmp_path: Path) -> None:
    write_official(tmp_path / "data", extra=Malicious(tmp_path / "executed"))
    with pytest.raises(ValueError, match="mkdir does not belong in a file of images"):
        load_cifar10(tmp_path / "data")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "payload",
    [
        b"cbuiltins\neval\n(S'1+1'\ntR.",
        b"cnumpy\nload\n(S'x'\ntR.",
        b"c_codecs\nencode\n(S'aa'\nS'rot13'\ntR.",
        b"cnumpy\nndarray.tofile\n.",
        b"",
        b"no pickle at all",
    ],
)
def test_a_damaged_or_foreign_pickle_is_refused(tmp_path: Path, payload: bytes) -> None:
    write_official(tmp_path)
    (tmp_path / "test_batch").write_bytes(payload)
    with pytest.raises(ValueError, match=r"test_batch' does not .*: download it again"):
        load_cifar10(tmp_path)


def test_a_truncated_official_file_is_refused(tmp_path: Path) -> None:
    write_official(tmp_path)
    path = tmp_path / "data_batch_3"
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ValueError, match="data_batch_3"):
        load_cifar10(tmp_path)


def test_a_missing_official_file_is_refused(tmp_path: Path) -> None:
    write_official(tmp_path)
    (tmp_path / "data_batch_2").unlink()
    with pytest.raises(ValueError, match=r"data_batch_2' does not .*FileNotFoundError"):
        load_cifar10(tmp_path)


def write_npz(folder: Path, part: str, **arrays: Any) -> None:
    np.savez(folder / f"cifar10_{part}.npz", **arrays)


@pytest.mark.parametrize(
    "bad",
    [
        {"x": np.zeros((4, 3, 32, 32), np.uint8), "y": np.zeros(4, np.int64)},
        {"x": np.zeros((4, 32, 32, 3), np.float32), "y": np.zeros(4, np.int64)},
        {"x": np.zeros((4, 32, 32, 3), np.uint8), "y": np.zeros(3, np.int64)},
        {"x": np.zeros((4, 32, 32, 3), np.uint8), "y": np.full(4, 10)},
        {"x": np.zeros((0, 32, 32, 3), np.uint8), "y": np.zeros(0, np.int64)},
        {"x": np.zeros((4, 32, 32, 3), np.uint8)},
        {"x": np.zeros((4, 32, 32, 3), np.uint8), "y": np.array([None] * 4)},
    ],
)
def test_npz_files_of_other_content_are_refused(tmp_path: Path, bad: dict[str, Any]) -> None:
    write_npz(tmp_path, "train", x=np.zeros((4, 32, 32, 3), np.uint8), y=np.zeros(4, np.int64))
    write_npz(tmp_path, "test", **bad)
    with pytest.raises(ValueError, match=r"cifar10_test.npz' does not"):
        load_cifar10(tmp_path)


def test_a_truncated_npz_file_is_refused(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_npz(tmp_path, part, x=np.zeros((4, 32, 32, 3), np.uint8), y=np.zeros(4, np.int64))
    path = tmp_path / "cifar10_train.npz"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"cifar10_train\.npz"):
        load_cifar10(tmp_path)


def test_a_folder_without_cifar10_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds neither: point --data at such a folder"):
        load_cifar10(tmp_path)


@pytest.mark.data
@needs_data
def test_the_npz_files_hold_cifar10() -> None:
    (train_x, train_y), (test_x, test_y) = load_cifar10(DATA)
    assert (train_x.shape, test_x.shape) == ((50000, 32, 32, 3), (10000, 32, 32, 3))
    assert np.bincount(train_y).tolist() == [5000] * 10
    assert np.bincount(test_y).tolist() == [1000] * 10
