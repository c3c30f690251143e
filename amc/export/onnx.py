"""ONNX: exported, compared with torch, and only then written."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence, Set
from itertools import product
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from amc.export.check import verify_model
from amc.export.found import Found, network_and_task
from amc.storage.files import write_bytes
from amc.tasks.checks import wrapped
from amc.tasks.task import Task
from envs.network.copies import functional_copy
from envs.network.inputs import (
    Inputs,
    argument_names,
    batch_size,
    call,
    divided,
    mapped,
    repeated,
    rows,
    sizes,
    tensors,
)
from envs.network.outputs import selecting
from hw_profiles.documents import one_line

logger = logging.getLogger(__name__)
TOLERANCE = 1e-3
"""Largest accepted difference between onnxruntime and torch, relative to the largest output."""

OPSET, CHUNK = 17, 32
CHECKED_IMAGES = 16
"""Real images on which a written model is compared with torch."""


Axes: TypeAlias = Sequence[Sequence[int]]
"""Of each input, the axes whose sizes may change."""


def onnx_bytes(network: nn.Module, example_input: Inputs) -> bytes:
    """A network as ONNX with a dynamic batch axis and the weights inside.

    There is one input for each tensor, named `input`, or as forward's parameters where there are several. The lengths
    of texts (integers [B, L], and what is as long) are dynamic where the network takes shorter ones, those of different
    length independently of each other.

    Args:
        network: Maps inputs of B samples to one tensor [B, ...]; it is not changed. Exported in eval mode.
        example_input: Input of batch 1.

    Raises:
        ValueError: If no exporter makes a model that agrees with torch on the example at every batch size tried.
    """
    return _export(network, example_input, [repeated(example_input, 3)])[0]


def verify_onnx(model: bytes, network: nn.Module, inputs: Inputs, *others: Inputs) -> float:
    """Compares onnxruntime with torch at batch 1 and at a larger batch.

    Args:
        model: The ONNX model.
        network: The network it was made from.
        inputs: Real inputs, at least one sample.
        others: Further batches, such as longer and shorter ones.

    Returns:
        The largest absolute difference relative to the largest absolute output.

    Raises:
        ValueError: If the model does not run, or differs by more than `TOLERANCE`.
    """
    if not batch_size(inputs):
        raise ValueError("an ONNX model must be compared on at least one input, but got none: give it real inputs")
    twin = _portable(network)
    session = _session(model)
    several = inputs if batch_size(inputs) > 1 else repeated(inputs, 2)
    pairs: list[tuple[Tensor, Tensor]] = []
    for batch in (rows(inputs, 0, 1), *divided(several, CHUNK), *others):
        batch = mapped(Tensor.cpu, batch)
        with torch.no_grad():
            expected, got = call(twin, batch), _run(session, twin, batch)
        if not isinstance(expected, Tensor) or got.shape != expected.shape:
            raise ValueError(
                f"onnxruntime and torch must give one tensor of one shape, but got {list(got.shape)} and "
                f"{list(getattr(expected, 'shape', []))} for {sizes(batch)}: "
                "return one tensor from forward and take all sizes from its inputs"
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
    network: nn.Module,
    example_input: Inputs,
    inputs: Inputs,
    path: Path,
    patterns: Mapping[str, str] | None = None,
    others: Sequence[Inputs] = (),
) -> float:
    """Exports, compares with torch, and only then writes, atomically.

    Args:
        network: As for `onnx_bytes`.
        example_input: Input of batch 1.
        inputs: Real inputs to compare on.
        path: The file; an old one is replaced.
        patterns: Layer name -> pattern that network and model must keep to.
        others: Further batches; axes in which they differ are dynamic.

    Returns:
        The largest relative difference found.

    Raises:
        ValueError: If the network cannot be exported, the model differs from it, or a pattern is broken; or OSError.
    """
    model, difference, axes = _export(network, example_input, [inputs, *others])
    verify_model(model, network, patterns or {})
    write_bytes(path, model)
    for name, tensor, own in zip(_names(network, example_input), tensors(example_input), axes, strict=True):
        if _is_text(tensor) and 1 not in own:
            logger.warning(
                "%s takes %s at the example's length of %d alone: for any length, forward must take it from its inputs",
                *(path.name, name, tensor.shape[1]),
            )
    return difference


def export_onnx(
    network: nn.Module | Found, path: Path | str, task: Task | None = None, patterns: Mapping[str, str] | None = None
) -> float:
    """Writes a network as ONNX after comparing it with torch on validation images of its task.

    The model puts out what the task's `output` selects.

    Args:
        network: What a search returned (the fine-tuned network, once there is one), or any network of the task's.
        path: The file.
        task: Whose example input and images are used; what a search returned knows it.
        patterns: Layer name -> pattern that network and model must keep to.

    Returns:
        The largest relative difference found.

    Raises:
        ValueError: If a network comes without a task, it cannot be exported, the model differs from it, or a pattern
            is broken.
        OSError: If the file cannot be written.
    """
    network, task = network_and_task(network, task)
    count = min(CHECKED_IMAGES, len(task.validation))
    inputs, _ = task.validation.batch(range(count))
    single = [task.validation.batch(range(place, place + 1))[0] for place in range(count)]
    others = [one for one in single if _shapes(one) != _shapes(inputs)]
    selected = selecting(network, task.output)
    return write_onnx(selected, task.example_input, inputs, Path(path), patterns, others)


def _shapes(inputs: Inputs) -> list[torch.Size]:
    """Of one sample."""
    return [tensor.shape[1:] for tensor in tensors(inputs)]


def _export(network: nn.Module, example_input: Inputs, batches: Sequence[Inputs]) -> tuple[bytes, float, Axes]:
    """The first model that agrees with torch on all batches, by how much it differs, and its dynamic axes."""
    twin = _portable(network)
    example = mapped(lambda tensor: tensor.detach().cpu(), example_input)
    shorter = _shortened(twin, example)
    each = [[one] for one in shorter] if len(shorter) > 1 else []  # one length alone, where not all can be left open
    for further, exporter in product([shorter, *each, []] if shorter else [[]], EXPORTERS):
        checked = [*batches, *further]
        example_of_two = repeated(example, 2)  # a batch of 1 would be taken for a constant
        axes = _dynamic_axes(example, checked)
        try:
            with _quiet(), torch.no_grad():
                model = exporter(twin, example_of_two, axes)
        except Exception as error:  # the exporters raise whatever the network's code raises
            reason = error.__cause__ if isinstance(error.__cause__, Exception) else error
            cure = f"export its `{inner}`" if (inner := wrapped(network)) else "use operators that torch.onnx knows"
            failure = ValueError(
                f"the network must be expressible in ONNX, but {type(network).__name__} is not "
                f"({type(reason).__name__}: {one_line(reason)}): {cure}"
            )
            continue
        try:
            return model, verify_onnx(model, twin, *checked), axes
        except ValueError as error:
            failure = error
    if precisions := _other_precisions(twin, example):
        reason = failure.__cause__ if isinstance(failure.__cause__, Exception) else failure
        raise ValueError(
            "a network must be in float32 where onnxruntime has its operators in no other precision, but this one has "
            f"{precisions} ({one_line(reason)}): export `network.float()`, by a task with inputs "
            "of float32"
        ) from failure
    raise failure


def _other_precisions(network: nn.Module, example: Inputs) -> str:
    """The types of floats in a network and its inputs that are not float32."""
    values = (*network.parameters(), *network.buffers(), *tensors(example))
    return ", ".join(sorted({str(one.dtype) for one in values if one.is_floating_point()} - {"torch.float32"}))


def _dynamic_axes(example: Inputs, batches: Sequence[Inputs]) -> Axes:
    """The batch, and every axis in which the batches or the example differ."""
    columns = zip(*(tensors(one) for one in (example, *batches)), strict=True)
    return [
        [axis for axis in range(column[0].ndim) if axis == 0 or len({one.shape[axis] for one in column}) > 1]
        for column in columns
    ]


def _is_text(tensor: Tensor) -> bool:
    return tensor.ndim == 2 and not tensor.is_floating_point()


def _shortened(network: nn.Module, example: Inputs) -> list[Inputs]:
    """The example with texts cut to half: those of each length alone where the network takes it, else all of them."""
    lengths = {one.shape[1] for one in tensors(example) if _is_text(one) and one.shape[1] > 1}
    alone = [_cut(example, {length}) for length in sorted(lengths)]
    taken = [one for one in alone if _runs(network, one)]
    if not taken and len(lengths) > 1 and _runs(network, together := _cut(example, lengths)):
        return [together]
    return taken


def _cut(example: Inputs, lengths: Set[int]) -> Inputs:
    """The example with what is as long as texts of these lengths cut to half."""

    def cut(tensor: Tensor) -> Tensor:
        return tensor[:, : tensor.shape[1] // 2] if tensor.ndim > 1 and tensor.shape[1] in lengths else tensor

    return mapped(cut, example)


def _runs(network: nn.Module, inputs: Inputs) -> bool:
    try:
        with torch.no_grad():
            call(network, inputs)
    except Exception:  # whatever the network's own code raises
        return False
    return True


class _InOrder(nn.Module):
    """Takes several inputs in order, as the exporters pass them."""

    def __init__(self, network: nn.Module, example: Inputs) -> None:
        super().__init__()
        self.network = network
        self._keys = list(example) if isinstance(example, dict) else None

    def forward(self, *inputs: Tensor) -> Any:
        return call(self.network, inputs if self._keys is None else dict(zip(self._keys, inputs, strict=True)))


def _names(network: nn.Module, inputs: Inputs) -> list[str]:
    return ["input"] if isinstance(inputs, Tensor) else argument_names(network.forward, inputs)


def by_tracing(network: nn.Module, example: Inputs, axes: Axes = ((0,),)) -> bytes:
    """The TorchScript exporter: deprecated, but ten times as fast as the other (0.1-0.4 s against 3-6 s)."""
    file: Any = io.BytesIO()  # accepted, though the annotation knows only paths
    names = _names(network, example)
    dynamic = {name: {k: f"{name}_{k}" if k else "batch" for k in own} for name, own in zip(names, axes, strict=True)}
    torch.onnx.export(
        network if isinstance(example, Tensor) else _InOrder(network, example),
        tensors(example),
        file,
        dynamo=False,
        opset_version=OPSET,
        verbose=False,
        input_names=names,
        output_names=["output"],
        dynamic_axes={**dynamic, "output": {0: "batch"}},
    )
    return bytes(file.getvalue())


def by_torch_export(network: nn.Module, example: Inputs, axes: Axes = ((0,),)) -> bytes:
    """The torch.export exporter: slow, for what tracing does not catch and for the day the other is gone."""
    batch = torch.export.Dim("batch")
    shapes: Any = torch.export.ShapesCollection()  # type: ignore[no-untyped-call]
    for tensor, own in zip(tensors(example), axes, strict=True):
        shapes[tensor] = {axis: torch.export.Dim.AUTO if axis else batch for axis in own}
    called = network if isinstance(example, Tensor) else _InOrder(network, example)
    program = torch.onnx.export(
        called,
        tensors(example),
        dynamo=True,
        verbose=False,
        input_names=_names(network, example),
        output_names=["output"],
        dynamic_shapes=shapes.dynamic_shapes(called, tensors(example)),  # in the form of forward's signature
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


def _run(session: Any, network: nn.Module, batch: Inputs) -> Tensor:
    import onnxruntime

    from hw_profiles.bench.device_script import FATAL

    options = onnxruntime.RunOptions()
    options.log_severity_level = FATAL
    try:
        return torch.from_numpy(session.run(None, _known(session, onnx_feed(network, batch)), options)[0])
    except Exception as error:  # as above
        raise ValueError(
            f"an ONNX model must run at every batch size, but this one fails at {batch_size(batch)} "
            f"({one_line(error)}): take the batch size and all others from the input in forward"
        ) from error


def _known(session: Any, feed: dict[str, Any]) -> dict[str, Any]:
    """The inputs that the model kept: one that the network does not read may be gone."""
    return {one.name: feed[one.name] for one in session.get_inputs()}


def onnx_feed(network: nn.Module, batch: Inputs) -> dict[str, Any]:
    """The arrays of a batch by the names that the inputs of the network's model have."""
    return {name: one.numpy() for name, one in zip(_names(network, batch), tensors(batch), strict=True)}
