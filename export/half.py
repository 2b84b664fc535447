"""Turn a graph of f32 into one whose convolutions compute in f16, for engines that take types as they stand.

Knows ONNX graphs; nothing of networks, of engines or of how near the result comes.

The converters that ONNX Runtime and onnxconverter-common ship choose by the kind of a node. Here its place decides:
the sum of a frame and its correction is an `Add` as between convolutions, but needs whole levels up to 255.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

CONVOLUTIONS = {"Conv", "ConvTranspose"}
MOVING = {
    "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape", "Slice", "SpaceToDepth",
    "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
}  # fmt: skip
"""Nodes that only move values."""
SCALING = {*CONVOLUTIONS, *MOVING, "Add", "AveragePool", "LeakyRelu", "MaxPool", "PRelu", "Relu", "Sub"}
"""Nodes that give half as much for inputs and biases of half the size."""
CALM = {*SCALING, "Clip", "Mul", "Sigmoid", "Tanh"}
"""Nodes that may compute in f16. Others stay in f32: norms above all, whose sums overflow f16."""
UNSCALED = {"Conv": (1,), "ConvTranspose": (1,), "PRelu": (1,)}
"""Inputs that are factors, by kind of node."""

HEADROOM = 16
"""By how much values in f16 are scaled down. f16 ends at 65504, and a frame of black and white noise, which no network
is trained on, drives values of the shipped model to 42,000; patterns made to hurt, to 250,000, and then to NaN."""


def to_half(f32: bytes) -> bytes:
    """The graph `f32` with its convolutions, and what lies between them, in f16; inputs and outputs stay as they are.

    What comes before the first convolution and after the last one stays in f32, but for nodes that only move values.
    A `Cast` stands wherever the type changes: strongly typed TensorRT refuses a node with inputs of two types. Where
    all that is in f16 scales, it computes with values of a `HEADROOM`th: the same result, further from overflow.
    """
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(f32), strict_mode=True)
    graph = model.graph
    constants = _constants(graph)
    values = [*graph.value_info, *graph.input, *graph.output]
    floats = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    floats |= {name for name, array in constants.items() if array.dtype == np.float32}
    half = _half_nodes(graph, floats)
    _Rewriting(graph, half, floats, constants).run()
    _drop_unused(graph)
    del graph.value_info[:]  # the old types
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def _constants(graph: GraphProto) -> dict[str, np.ndarray]:
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    return found


def _half_nodes(graph: GraphProto, floats: set[str]) -> set[int]:
    """Which nodes go to f16, by their place in the graph; nodes come after those whose values they take."""
    nodes = list(graph.node)
    maker = {name: i for i, node in enumerate(nodes) for name in node.output if node.op_type != "Constant"}
    before = [{maker[name] for name in node.input if name in maker} for node in nodes]
    after: list[set[int]] = [set() for _ in nodes]
    for i, makers in enumerate(before):
        for j in makers:
            after[j].add(i)
    convolution = [node.op_type in CONVOLUTIONS for node in nodes]
    follows, leads = list(convolution), list(convolution)
    for i in range(len(nodes)):
        follows[i] |= any(follows[j] for j in before[i])
    for i in reversed(range(len(nodes))):
        leads[i] |= any(leads[j] for j in after[i])
    half = {i for i, node in enumerate(nodes) if follows[i] and leads[i] and node.op_type in CALM}
    moving = [i for i, node in enumerate(nodes) if node.op_type in MOVING and set(node.output) <= floats]
    # One sweep each way lets whole rows of them join.
    for row, neighbours in ((moving[::-1], after), (moving, before)):
        for i in row:
            if neighbours[i] and neighbours[i] <= half:
                half.add(i)
    return half


class _Rewriting:
    """The nodes anew, with the values that they take in their type; changes `graph`."""

    def __init__(self, graph: GraphProto, half: set[int], floats: set[str], constants: dict[str, np.ndarray]) -> None:
        self._graph, self._half, self._floats, self._constants = graph, half, floats, constants
        nodes = list(graph.node)
        self._halved = {name for i in half for name in nodes[i].output if name in floats}
        self._given = {value.name for value in graph.output} & self._halved  # what the graph gives stays in f32
        scales = all(
            nodes[i].op_type in SCALING
            and all(nodes[i].input[k] in constants for k in UNSCALED.get(nodes[i].op_type, ()))
            for i in half
        )
        self._headroom = HEADROOM if scales else 1
        self._other: dict[tuple[str, bool], str] = {(name, True): name for name in self._given}
        """The name of a value in the other type, by whether it is scaled."""
        self._written: list[NodeProto] = []

    def run(self) -> None:
        for i, node in enumerate(list(self._graph.node)):
            factors = UNSCALED.get(node.op_type, ())
            node.input[:] = [
                self._typed(name, i in self._half, scaled=k not in factors) for k, name in enumerate(node.input)
            ]
            mine = [name for name in node.output if name in self._given]
            node.output[:] = [f"{name}_f16" if name in mine else name for name in node.output]
            self._written.append(node)
            for name in mine:
                self._to_f32(f"{name}_f16", name)
        del self._graph.node[:]
        self._graph.node.extend(self._written)

    def _typed(self, name: str, in_half: bool, *, scaled: bool) -> str:
        """The name under which a node takes the value `name`."""
        if name not in self._floats or (name in self._halved) == in_half:
            return f"{name}_f16" if name in self._given else name
        scaled = scaled or name not in self._constants
        if (name, scaled) not in self._other:
            other = self._other[name, scaled] = f"{name}_{'f16' if in_half else 'f32'}{'' if scaled else '_factor'}"
            if not in_half:
                self._to_f32(name, other)
            elif name in self._constants:
                array = self._constants[name] / np.float32(self._headroom if scaled else 1)
                self._graph.initializer.append(numpy_helper.from_array(array.astype(np.float16), other))
            else:
                self._cast(self._times(name, 1 / self._headroom, f"{name}_scaled"), other, TensorProto.FLOAT16)
        return self._other[name, scaled]

    def _to_f32(self, name: str, other: str) -> None:
        if self._headroom == 1:
            self._cast(name, other, TensorProto.FLOAT)
            return
        self._cast(name, f"{name}_cast", TensorProto.FLOAT)
        self._times(f"{name}_cast", self._headroom, other)

    def _cast(self, name: str, other: str, kind: int) -> None:
        self._written.append(helper.make_node("Cast", [name], [other], name=f"{other}/Cast", to=kind))

    def _times(self, name: str, factor: float, product: str) -> str:
        if factor == 1:
            return name
        constant = f"{product}_by"
        self._graph.initializer.append(numpy_helper.from_array(np.asarray(factor, np.float32), constant))
        self._written.append(helper.make_node("Mul", [name, constant], [product], name=f"{product}/Mul"))
        return product


def _drop_unused(graph: GraphProto) -> None:
    """Leave out the constants that only the f32 graph needed."""
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    nodes = [node for node in graph.node if node.op_type != "Constant" or node.output[0] in used]
    tensors = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(tensors)
