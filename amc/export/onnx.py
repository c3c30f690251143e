"""Export: ONNX compared with torch before it is written, onnxruntime latency side by side, and the
folder of an applied policy. What a run writes beside these stands in `record.py`.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from amc.export.check import verify_model
from amc.storage.files import write_bytes
from amc.tasks.task import Task
from envs.network.copies import functional_copy
from hw_profiles.documents import one_line

TOLERANCE = 1e-3
"""Largest accepted difference between onnxruntime and torch, relative to the largest output."""

OPSET, CHUNK = 17, 32
CHECKED_IMAGES = 16
"""Real images on which a written model is compared with torch."""


def onnx_bytes(network: nn.Module, example_input: Tensor) -> bytes:
    """A network as ONNX with a dynamic batch axis and the weights inside.

    Args:
        network: Maps one tensor [B, ...] to one tensor [B, ...]; it is not changed. Exported in eval mode.
        example_input: [1, ...] input.

    Raises:
        ValueError: If no exporter makes a model that agrees with torch on the example at every batch size tried.
    """
    return _export(network, example_input, torch.cat([example_input] * 3))[0]


def verify_onnx(model: bytes, network: nn.Module, inputs: Tensor) -> float:
    """Compares onnxruntime with torch at batch 1 and at a larger batch.

    Args:
        model: The ONNX model.
        network: The network it was made from.
        inputs: [N, ...] real inputs, N >= 1.

    Returns:
        The largest absolute difference relative to the largest absolute output.

    Raises:
        ValueError: If the model does not run, or differs by more than `TOLERANCE`.
    """
    if not len(inputs):
        raise ValueError("an ONNX model must be compared on at least one input, but got none: give it real inputs")
    twin = _portable(network)
    session = _session(model)
    several = inputs if len(inputs) > 1 else torch.cat([inputs, inputs])
    pairs: list[tuple[Tensor, Tensor]] = []
    for batch in (inputs[:1].cpu(), *torch.split(several.cpu(), CHUNK)):
        with torch.no_grad():
            expected, got = twin(batch), _run(session, batch)
        if not isinstance(expected, Tensor) or got.shape != expected.shape:
            raise ValueError(
                f"onnxruntime and torch must give one tensor of one shape, but got {list(got.shape)} and "
                f"{list(getattr(expected, 'shape', []))} at batch {len(batch)}: "
                "return one tensor from forward and take the batch size from its input"
            )
        pairs.append((expected, got))
    difference = torch.stack([(got - expected).abs().max() for expected, got in pairs]).max()
    largest = torch.stack([expected.abs().max() for expected, _ in pairs]).max()
    relative = float(difference / largest) if largest else float(difference)
    if not relative <= TOLERANCE:  # NaN is refused as well
        raise ValueError(
            f"onnxruntime and torch must agree within {TOLERANCE:g} of the largest output, but differ by "
            f"{relative:.3g}: check that the model was exported from this network, without random operators in it"
        )
    return relative


def write_onnx(
    network: nn.Module, example_input: Tensor, inputs: Tensor, path: Path, patterns: Mapping[str, str] | None = None
) -> float:
    """Exports, compares with torch, and only then writes, atomically.

    Args:
        network: As for `onnx_bytes`.
        example_input: [1, ...] input.
        inputs: [N, ...] real inputs to compare on.
        path: The file; an old one is replaced.
        patterns: Layer name -> pattern that network and model must keep to.

    Returns:
        The largest relative difference found.

    Raises:
        ValueError: If the network cannot be exported, the model differs from it, or a pattern is broken; or OSError.
    """
    model, difference = _export(network, example_input, inputs)
    verify_model(model, network, patterns or {})
    write_bytes(path, model)
    return difference


def export_onnx(network: nn.Module, path: Path | str, task: Task, patterns: Mapping[str, str] | None = None) -> float:
    """Writes a network as ONNX after comparing it with torch on validation images of its task.

    Args:
        network: The network, such as `result.network`.
        path: The file.
        task: Whose example input and images are used.
        patterns: Layer name -> pattern that network and model must keep to.

    Returns:
        The largest relative difference found.

    Raises:
        ValueError: If the network cannot be exported, the model differs from it, or a pattern is broken; or OSError.
    """
    inputs, _ = task.validation.batch(range(min(CHECKED_IMAGES, len(task.validation))))
    return write_onnx(network, task.example_input, inputs, Path(path), patterns)


def _export(network: nn.Module, example_input: Tensor, inputs: Tensor) -> tuple[bytes, float]:
    """The model of the first exporter whose model agrees with torch on `inputs`, and by how much it differs."""
    twin = _portable(network)
    example = torch.cat([example_input, example_input]).detach().cpu()  # a batch of 1 would be taken for a constant
    for exporter in EXPORTERS:
        try:
            with _quiet(), torch.no_grad():
                model = exporter(twin, example)
        except Exception as error:  # the exporters raise whatever the network's code raises
            reason = error.__cause__ if isinstance(error.__cause__, Exception) else error
            failure = ValueError(
                f"the network must be expressible in ONNX, but {type(network).__name__} is not "
                f"({type(reason).__name__}: {one_line(reason)}): use operators that torch.onnx knows"
            )
            continue
        try:
            return model, verify_onnx(model, twin, inputs)
        except ValueError as error:
            failure = error
    raise failure


def by_tracing(network: nn.Module, example: Tensor) -> bytes:
    """The TorchScript exporter: deprecated, but ten times as fast as the other (0.1-0.4 s against 3-6 s)."""
    file: Any = io.BytesIO()  # accepted, though the annotation knows only paths
    torch.onnx.export(
        network,
        (example,),
        file,
        dynamo=False,
        opset_version=OPSET,
        verbose=False,
        input_names=["input"],
        output_names=["output"],
        dynamic_axes={"input": {0: "batch"}, "output": {0: "batch"}},
    )
    return bytes(file.getvalue())


def by_torch_export(network: nn.Module, example: Tensor) -> bytes:
    """The torch.export exporter: slow, for what tracing does not catch and for the day the other is gone."""
    program = torch.onnx.export(
        network,
        (example,),
        dynamo=True,
        verbose=False,
        input_names=["input"],
        output_names=["output"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    return bytes(program.model_proto.SerializeToString()) if program is not None else b""


EXPORTERS = (by_tracing, by_torch_export)
"""What makes a model of a network, in the order in which they are tried."""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporters' deprecations, progress lines and dumps of graphs off the screen.

    The tracing exporter of torch 2.13 turns its log to the C level on whatever `verbose` says, hence the swap.
    """
    before = logging.root.manager.disable
    dump = getattr(torch._C, "_jit_onnx_log", None)
    nowhere = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        setattr(torch._C, "_jit_onnx_log", lambda *values: None)  # noqa: B010 (unknown to the annotations)
        try:
            yield
        finally:
            logging.disable(before)
            setattr(torch._C, "_jit_onnx_log", dump)  # noqa: B010


def _portable(network: nn.Module) -> nn.Module:
    """A copy on the CPU in eval mode; parameters that are there already are shared, never moved."""
    if all(tensor.device.type == "cpu" for tensor in (*network.parameters(), *network.buffers())):
        return functional_copy(network)
    return functional_copy(copy.deepcopy(network).cpu())


def _session(model: bytes) -> Any:
    """An onnxruntime session on the CPU.

    Raises:
        ValueError: If onnxruntime refuses the model.
    """
    from hw_profiles.bench.device_script import make_session

    try:
        return make_session(model, threads=1)
    except Exception as error:  # onnxruntime's exceptions have no common base of their own
        raise ValueError(
            f"an ONNX model must load in onnxruntime, but it refuses this one ({one_line(error)}): export it again"
        ) from error


def _run(session: Any, batch: Tensor) -> Tensor:
    import onnxruntime

    from hw_profiles.bench.device_script import FATAL

    options = onnxruntime.RunOptions()
    options.log_severity_level = FATAL
    try:
        return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: batch.numpy()}, options)[0])
    except Exception as error:  # as above
        raise ValueError(
            f"an ONNX model must run at every batch size, but this one fails at {len(batch)} ({one_line(error)}): "
            "take the batch size from the input in forward"
        ) from error
