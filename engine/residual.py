"""The float variant of a model: its ONNX graphs take levels of any fineness, and give what is to be added to them.

Knows ONNX graphs; nothing of engines. `engine.openvino.residual` does the same without the package onnx.

A model's graph begins with a cast from uint8, and ends with limits, rounding and a cast to uint8. The variant is the
same without these, less the frames. So no model needs a file more.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto, helper

from .errors import EngineError
from .model import Model, Precision
from .protocol import Engine
from .selfcheck import self_check

FRAMES, RESTORED = "frames", "restored"
ENDING = ("Clip", "Identity", "Max", "Min", "Round", "Transpose")
"""What may lie between the sum and the cast."""


def lacks(data: bytes) -> str:
    """Why the graph has no float variant, after 'the graph'; nothing if it has one."""
    try:
        model = onnx.shape_inference.infer_shapes(onnx.load_from_string(data))
    except DecodeError:
        return "is none"
    graph = model.graph
    takers = [node for node in graph.node if FRAMES in node.input]
    if not takers or any(_cast_to(node) != TensorProto.FLOAT for node in takers):
        return "does not begin with a cast to float32"
    last = _makers(graph).get(RESTORED)
    if last is None or _cast_to(last) != TensorProto.UINT8:
        return "does not end with a cast from float32"
    levels, _ = _levels(graph)
    kinds = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    return "" if kinds.get(levels) == TensorProto.FLOAT else "does not end with a cast from float32"


def lacking(model: Model) -> str:
    """Why a model has no float variant: a whole clause; nothing if it has one."""
    precisions: tuple[Precision, ...] = ("f32", *model.graphs)
    faults = ((precision, lacks(model.graph(precision))) for precision in precisions)
    return next((f"its {precision} graph {why}" for precision, why in faults if why), "")


def to_residual(data: bytes) -> bytes:
    """The float variant of a graph that lacks nothing: `frames` are float32, `restored` is the residual in float32."""
    model = onnx.load_from_string(data)
    graph = model.graph
    value, orders = _levels(graph)
    graph.node.remove(_makers(graph)[RESTORED])
    for i, order in enumerate(orders):
        moved = f"{RESTORED}_levels_{i}"
        graph.node.append(helper.make_node("Transpose", [value], [moved], name=f"{moved}/Transpose", perm=order))
        value = moved
    graph.node.append(helper.make_node("Sub", [value, FRAMES], [RESTORED], name=f"{RESTORED}/Sub"))
    _drop_unused(graph)
    for port in (*graph.input, *graph.output):
        if port.name in (FRAMES, RESTORED):
            port.type.tensor_type.elem_type = TensorProto.FLOAT
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def floating(model: Model) -> Model:
    """The float variant of a model that lacks nothing."""
    data = to_residual(model.onnx)
    graphs = {precision: to_residual(graph) for precision, graph in model.graphs.items()}
    pinned = {
        precision: pin.model_copy(update={"sha256": _sha256(graphs[precision])})
        for precision, pin in model.manifest.graphs.items()
    }
    manifest = model.manifest.model_copy(update={"sha256": _sha256(data), "graphs": pinned, "check": None})
    return replace(model, manifest=manifest, onnx=data, graphs=graphs, check=None, floating=True)


class Variant:
    """An engine's float variant, opened and checked when it is first asked for. Threads may share it."""

    def __init__(self, model: Model, open_it: Callable[[Model], Engine]) -> None:
        """`model` is the one whose variant `open_it` is given."""
        self._model, self._open = model, open_it
        self._engine: Engine | None = None
        self._closed = False
        self._lock = threading.Lock()

    def engine(self) -> Engine:
        """Waits while it is opened. Raises EngineError, also after `close`."""
        with self._lock:
            if self._closed:
                raise EngineError("the engine is closed")
            self._engine = self._engine or self._opened()
            return self._engine

    def _opened(self) -> Engine:
        engine = self._open(floating(self._model))
        try:
            self_check(engine, self._model, levels=True)
        except BaseException:
            engine.close()
            raise
        return engine

    def close(self) -> None:
        with self._lock:
            self._closed = True
        if self._engine:
            self._engine.close()


def _levels(graph: Any) -> tuple[str, list[list[int]]]:
    """What is limited and rounded before the last cast, and how it is transposed on the way."""
    orders: list[list[int]] = []
    makers = _makers(graph)
    constants = {tensor.name for tensor in graph.initializer}
    constants |= {name for name, node in makers.items() if node.op_type == "Constant"}
    name = makers[RESTORED].input[0]
    while (node := makers.get(name)) and node.op_type in ENDING:
        if node.op_type == "Transpose":
            orders.insert(0, list(helper.get_attribute_value(node.attribute[0])))
        name = next(each for each in node.input if each not in constants)
    return name, orders


def _makers(graph: Any) -> dict[str, Any]:
    return {name: node for node in graph.node for name in node.output}


def _cast_to(node: Any) -> int | None:
    """The type that a `Cast` casts to; None of another node."""
    return node.attribute[0].i if node.op_type == "Cast" else None


def _drop_unused(graph: Any) -> None:
    """Leave out the nodes that nothing needs any more, and what was known of their values."""
    needed = {port.name for port in graph.output}
    for node in reversed(list(graph.node)):
        if needed.isdisjoint(node.output):
            graph.node.remove(node)
        else:
            needed.update(node.input)
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in needed]:
        graph.initializer.remove(tensor)
    del graph.value_info[:]


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
