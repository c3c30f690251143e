"""Reading weights that people bring: safetensors or a torch state dict, never executed, all of them or none."""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import safetensors.torch
import torch
from torch import Tensor, nn


def load_checkpoint(network: nn.Module, path: Path) -> None:
    """Loads weights into a network: all of them, or none.

    Args:
        network: changed in place.
        path: a safetensors file, or a torch state dict (bare, or under "state_dict", "model_state_dict" or
            "model"; a common "module." prefix is dropped). Nothing in the file is executed.

    Raises:
        ValueError: if the file is missing or neither of these, if names, shapes or kinds of numbers do not
            fit the network, or if a weight is not finite.
    """
    state = _unwrap(path, _read_weights(path))
    odd = {key: value for key, value in state.items() if value.is_quantized or value.layout is not torch.strided}
    check_finite(f"checkpoint {str(path)!r}", odd)
    misfits = _misfits(network.state_dict(), state)
    if any(misfits.values()):
        found = "; ".join(f"{what}: {_some(keys)}" for what, keys in misfits.items() if keys)
        raise ValueError(
            f"a checkpoint must hold the network's weights, but {str(path)!r} does not fit ({found}): "
            "give the checkpoint of this very architecture"
        )
    check_finite(f"checkpoint {str(path)!r}", state)
    network.load_state_dict(state, strict=False)


def _misfits(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, list[str]]:
    both = [key for key in own if key in state]
    tied = {own[key].data_ptr() for key in both}
    return {
        # Old files lack the counters of batches; safetensors stores tied weights once.
        "missing": [
            key
            for key in own
            if key not in state and not key.endswith("num_batches_tracked") and own[key].data_ptr() not in tied
        ],
        "unexpected": [key for key in state if key not in own],
        "of another shape": [
            f"{key} {list(state[key].shape)} instead of {list(own[key].shape)}"
            for key in both
            if state[key].shape != own[key].shape
        ],
        "of another kind of number": [
            f"{key} {state[key].dtype} instead of {own[key].dtype}"
            for key in both
            if state[key].is_floating_point() != own[key].is_floating_point()
        ],
    }


def _read_weights(path: Path) -> Any:
    try:
        if path.exists() and not path.is_file():
            raise OSError(None, "it is no regular file")
        with path.open("rb") as file:
            is_safetensors = file.read(9)[8:] == b"{"  # eight bytes of header length, then JSON
    except OSError as error:
        raise ValueError(
            f"a checkpoint must be a file that can be read, but {str(path)!r} is not "
            f"({error.strerror or type(error).__name__}): correct the path"
        ) from error
    _check_archive(path)
    try:
        if is_safetensors:
            return safetensors.torch.load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's own text advises to load it unsafely
        _refuse_checkpoint(path, "it is damaged, or holds objects besides weights", error)
    except Exception as error:  # torch and safetensors raise many kinds for a damaged file
        first_line = str(error).strip().partition("\n")[0]
        _refuse_checkpoint(path, f"{type(error).__name__}: {first_line}", error)


def _check_archive(path: Path) -> None:
    """Refuses an archive that says it holds more than the file does, and one of a scripted network."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError, struct.error):
        return  # no archive: whoever reads it says so
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        _refuse_checkpoint(path, "it holds compressed data, whose size nothing bounds")
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        _refuse_checkpoint(path, "it holds a scripted network: load it with torch.jit.load and take its state_dict()")


def _unwrap(path: Path, content: Any) -> dict[str, Tensor]:
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        _refuse_checkpoint(path, f"it holds a {type(content).__name__}")
    strange = [key for key, value in content.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if strange:
        _refuse_checkpoint(path, f"no tensors: {_some(strange)}")
    prefixed = all(key.startswith("module.") for key in content)
    return {key.removeprefix("module.") if prefixed else key: value for key, value in content.items()}


def _refuse_checkpoint(path: Path, reason: str, cause: Exception | None = None) -> NoReturn:
    raise ValueError(
        f"a checkpoint must be a safetensors file or a torch state dict, but {str(path)!r} is neither "
        f"({reason}): re-save it with safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')"
    ) from cause


def check_finite(owner: str, state: Mapping[str, Tensor]) -> None:
    """Refuses weights that are quantized or sparse, without values (meta tensors), NaN or infinite, naming some."""
    packed = [key for key, value in state.items() if not isinstance(value, Tensor) or value.is_quantized]
    if packed:
        raise ValueError(
            f"weights must be plain tensors, but {owner} is quantized in {_some(packed)}: search on the float network, "
            "and quantize what was found"
        )
    sparse = [key for key, value in state.items() if value.layout is not torch.strided]
    if sparse:
        raise ValueError(
            f"weights must be dense tensors, but {owner} is sparse in {_some(sparse)}: convert it with to_dense()"
        )
    empty = [key for key, value in state.items() if value.is_meta]
    if empty:
        raise ValueError(
            f"weights must have values, but {owner} holds meta tensors in {_some(empty)}: "
            "build the network on the CPU and load its weights"
        )
    broken = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise ValueError(
            f"weights must be finite, but {owner} holds NaN or infinity in {_some(broken)}: "
            "take a checkpoint from before the training diverged"
        )


def _some(names: list[Any], shown: int = 3) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(str(name) for name in names[:shown]) + more
