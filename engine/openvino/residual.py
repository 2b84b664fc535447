"""The float variant of an OpenVINO graph: levels of any fineness in, what is to be added to them out.

Knows OpenVINO's graphs; nothing of engines or models. `engine.residual` does the same to ONNX graphs.

A model's graph begins with a cast from uint8, and ends with limits, rounding and a cast to uint8. The variant is the
same without these. Where the graph ends with the sum of the frames and a correction, as one that learnt what to correct
does, it gives the correction as it is; else the difference to the frames.
"""

from __future__ import annotations

from typing import Any

import openvino as ov
from openvino import opset13 as ops

FRAMES, RESTORED = "frames", "restored"
ENDING = ("Clamp", "Maximum", "Minimum", "Round", "Transpose")
"""What may lie between the sum and the cast."""


def lacks(graph: Any) -> str:
    """Why `graph` has no float variant, after 'the graph'; nothing if it has one."""
    casts = _consumers(graph.input(FRAMES))
    if not casts or any(not _casts_to(node, ov.Type.f32) for node in casts):
        return "does not begin with a cast to float32"
    last = _before(graph.output(RESTORED).get_node())
    if not _casts_to(last, ov.Type.u8) or _levels(last)[0].get_element_type() != ov.Type.f32:
        return "does not end with a cast from float32"
    return ""


def to_residual(graph: Any) -> str:
    """Turn `graph` into its float variant: it takes `frames` of float32, and gives the residual as `restored`.

    Says what the residual is: the `correction` that the graph adds, or a `difference`, which is only as fine as what
    the device computes sums in. For a graph that lacks nothing, and whose shapes are fixed.
    """
    frames = graph.input(FRAMES).get_node()
    last = _before(graph.output(RESTORED).get_node())
    levels, orders = _levels(last)
    kind = "correction"
    residual = _correction(levels, frames)
    if residual is None:
        kind, residual = "difference", levels
    for order in orders:
        residual = ops.transpose(residual, order).output(0)
    frames.set_element_type(ov.Type.f32)
    frames.validate_and_infer_types()
    if kind == "difference":
        residual = ops.subtract(residual, frames).output(0)
    for target in list(last.output(0).get_target_inputs()):
        target.replace_source_output(residual)
    graph.validate_nodes_and_infer_types()
    return kind


def _levels(last: Any) -> tuple[Any, list[Any]]:
    """What is limited and rounded before the cast `last`, and how it is transposed on the way."""
    orders: list[Any] = []
    source = last.input_value(0)
    while (node := source.get_node()).get_type_name() in ENDING:
        if node.get_type_name() == "Transpose":
            orders.insert(0, node.input_value(1).get_node().data)
        source = next(value for value in node.input_values() if value.get_node().get_type_name() != "Constant")
    return source, orders


def _correction(levels: Any, frames: Any) -> Any:
    """What the sum `levels` adds to the frames; None if it is no such sum."""
    add = levels.get_node()
    if add.get_type_name() != "Add":
        return None
    for mine, other in ((0, 1), (1, 0)):
        source = add.input_value(mine).get_node()
        while source.get_type_name() in ("Convert", "Transpose"):
            source = _before(source)
        correction = add.input_value(other)
        if source == frames and correction.get_partial_shape() == levels.get_partial_shape():
            return correction
    return None


def _consumers(port: Any) -> list[Any]:
    return [target.get_node() for target in port.get_target_inputs()]


def _casts_to(node: Any, kind: Any) -> bool:
    return bool(node.get_type_name() == "Convert" and node.get_output_element_type(0) == kind)


def _before(node: Any) -> Any:
    return node.input_value(0).get_node()
