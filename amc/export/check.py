"""Verification of sparsity patterns from what is stored, whatever wrote it: policies, safetensors, ONNX models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from rich.table import Table
from rich.text import Text
from safetensors import SafetensorError
from torch import Tensor, nn

from amc.export.semi_structured import TOLERANCE, difference_on_cuda
from amc.storage.files import read_json
from envs.space.patterns import PatternMismatch, tightest, verify, verify_network
from envs.space.policy import Policy
from hw_profiles.patterns import DENSE, Pattern, parse_pattern

POLICY, WEIGHTS = "policy.json", "network.safetensors"
MOST_AXES = 64
"""Of a tensor that torch's operators take."""


def check_file(path: Path) -> Table:
    """What the weights in a file keep to, and whether that is what the policy beside them says.

    Args:
        path: A policy, a folder with policy and weights, or weights alone (.safetensors, .onnx).

    Raises:
        ValueError: If the file is not readable, or a weight breaks its pattern.
    """
    path = path / POLICY if path.is_dir() else path
    if path.suffix in (".safetensors", ".onnx"):
        weights = _safetensors(path) if path.suffix == ".safetensors" else _onnx(path.read_bytes())
        policy = path.with_name(POLICY)
        wanted = _patterns(policy) if policy.is_file() and path.name == WEIGHTS else {}
        return _table(str(path), weights, wanted)
    beside = path.with_name(WEIGHTS)
    return _table(str(path), _safetensors(beside) if beside.is_file() else {}, _patterns(path))


def verify_model(model: bytes, network: nn.Module, patterns: Mapping[str, str]) -> None:
    """Checks a network and the ONNX model made of it: the exporter folds and renames, but must keep the zeros.

    Raises:
        PatternMismatch: If a weight breaks its pattern, in the network or in the model.
    """
    verify_network(network, patterns)
    stored = _onnx(model) if patterns else {}
    wanted = Counter((tuple(network.get_submodule(name).weight.shape), text) for name, text in patterns.items())  # type: ignore[arg-type]
    for (shape, text), count in wanted.items():
        shapes = {shape, shape[::-1]} if len(shape) == 2 else {shape}  # a linear layer may be stored transposed
        found = sum(_keeps(weight, shape, parse_pattern(text)) for weight in stored.values() if weight.shape in shapes)
        if found < count:
            raise PatternMismatch(
                f"the ONNX model must keep the zeros of {count} weights of shape {list(shape)} under {text}, but "
                f"{found} do: export with another version of torch"
            )


def _keeps(weight: Tensor, shape: tuple[int, ...], pattern: Pattern) -> bool:
    ways = [weight] if weight.ndim != 2 else [one for one in (weight, weight.T) if tuple(one.shape) == shape]
    for way in ways:
        try:
            verify(way, pattern)
        except PatternMismatch:
            continue
        return True
    return False


def _table(title: str, weights: Mapping[str, Tensor], wanted: Mapping[str, str]) -> Table:
    table = Table(title=Text(f"{title}: every group checked"), title_justify="left")
    for heading in ("weight", "shape", "not zero", "pattern", "verified"):
        table.add_column(heading)
    known = {name.removesuffix(".weight"): weight for name, weight in weights.items()}
    for name, text in wanted.items():
        if name not in known:
            table.add_row(Text(name), "-", "-", text, "no weights beside the policy")
    for name, weight in known.items():
        pattern = parse_pattern(wanted[name]) if name in wanted else tightest(weight)
        verify(weight, pattern, what=repr(name))
        share = float((weight != 0).double().mean())
        products = _on_cuda(name, weight) if str(pattern) == "2:4" else ""
        said = "as the policy says" if name in wanted else "found" if pattern != DENSE else "-"
        table.add_row(Text(name), "x".join(map(str, weight.shape)), f"{share:.1%}", str(pattern), said + products)
    return table


def _on_cuda(name: str, weight: Tensor) -> str:
    """What a CUDA device makes of a 2:4 weight, '' without one.

    Raises:
        PatternMismatch: If its products differ from the dense ones.
    """
    difference = difference_on_cuda(weight)
    if difference is not None and not difference <= TOLERANCE:
        raise PatternMismatch(
            f"2:4 products on CUDA must agree with dense ones, but {name!r} differs by {difference:.2g} of the largest "
            "output: use another version of torch"
        )
    return "" if difference is None else f"; 2:4 products on CUDA differ by {difference:.1e}"


def _patterns(path: Path) -> dict[str, str]:
    return Policy.from_json(read_json(path, "a policy")).patterns()


def _safetensors(path: Path) -> dict[str, Tensor]:
    """Weights (two axes or more) by name."""
    try:
        state = safetensors.torch.load(path.read_bytes())
    except SafetensorError as error:
        raise ValueError(f"weights must be a safetensors file, but {str(path)!r} is not ({error})") from error
    for name, tensor in state.items():
        if tensor.ndim > MOST_AXES:
            raise ValueError(
                f"weights must have at most {MOST_AXES} axes, but {name!r} in {str(path)!r} has {tensor.ndim}: give "
                "the weights of a network"
            )
    return {name: tensor for name, tensor in state.items() if tensor.ndim > 1}


def _onnx(model: bytes) -> dict[str, Tensor]:
    """The initializers of a model with two axes or more."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        graph = onnx.load_from_string(model).graph
    except DecodeError as error:
        raise ValueError(f"an ONNX model must be readable, but this one is not ({error})") from error
    arrays = {entry.name: np.array(onnx.numpy_helper.to_array(entry)) for entry in graph.initializer}
    return {name: torch.from_numpy(array) for name, array in arrays.items() if array.ndim > 1}
