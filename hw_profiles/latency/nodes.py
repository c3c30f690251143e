"""ONNX nodes as they are put together: a few lines around `onnx.helper`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

OPSET, IR_VERSION = 17, 9
"""Old enough for onnxruntime 1.14 and younger."""

DTYPES = {"fp32": 1, "fp16": 10}
"""Our names -> ONNX's element types."""


@dataclass(slots=True)
class OnnxGraph:
    """Collects nodes, constants and outputs of one graph.

    Attributes:
        dtype: ONNX's element type of all floats.
        nodes: In execution order.
        inputs: What is fed.
        constants: Small tensors that stand in the model.
        outputs: Names of the tensors that are given out.
    """

    dtype: int
    nodes: list[Any] = field(default_factory=list)
    inputs: list[Any] = field(default_factory=list)
    constants: list[Any] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)

    def input(self, name: str, shape: Sequence[int]) -> str:
        """Declares an input; returns its name."""
        from onnx import helper

        self.inputs.append(helper.make_tensor_value_info(name, self.dtype, list(shape)))
        return name

    def node(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Adds a node of one output; returns that one's name."""
        from onnx import helper

        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], **attributes))
        return name

    def integers(self, values: Sequence[int]) -> str:
        """Adds a vector of integers; returns its name."""
        from onnx import TensorProto, helper

        name = f"i{len(self.constants)}"
        self.constants.append(helper.make_tensor(name, TensorProto.INT64, [len(values)], list(values)))
        return name

    def filled(self, shape: Sequence[int], value: float) -> str:
        """Adds a tensor of equal values that the runtime fills in; returns its name."""
        from onnx import helper

        tensor = helper.make_tensor("value", self.dtype, [1], [value])
        return self.node("ConstantOfShape", [self.integers(shape)], value=tensor)

    def scalar(self, value: float) -> str:
        """Adds a number; returns its name."""
        from onnx import helper

        name = f"s{len(self.constants)}"
        self.constants.append(helper.make_tensor(name, self.dtype, [], [value]))
        return name

    def model(self) -> bytes:
        """The model, serialized."""
        from onnx import helper

        outputs = [helper.make_empty_tensor_value_info(name) for name in self.outputs]
        for output in outputs:
            output.type.tensor_type.elem_type = self.dtype
        graph = helper.make_graph(self.nodes, "probe", self.inputs, outputs, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        return bytes(model.SerializeToString())
