"""Tiny models whose output is known by arithmetic, for tests of everything that runs a model."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.model import Manifest, StateTensor

STRIDE = 4
BRIGHTER = 10
STATE = StateTensor(input="history", output="history_out", channels=3, scale=2)


def brightened(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What the model of `brighten_onnx` gives."""
    return np.minimum(frames.astype(np.int64) + BRIGHTER, 255).astype(np.uint8)


def brighten_onnx() -> bytes:
    """A model without history that adds `BRIGHTER` levels."""
    onnx = pytest.importorskip("onnx")
    node, tensor = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    kernel = np.zeros((3, 3, 3, 3), np.float32)
    kernel[range(3), range(3), 1, 1] = 1
    nodes = [
        *_enter(onnx),
        node("Conv", ["levels", "kernel", "bias"], ["sum"], pads=[1, 1, 1, 1]),
        *_leave(onnx, "sum"),
    ]
    weights = {"kernel": kernel, "bias": np.full(3, BRIGHTER, np.float32), **_limits()}
    shape = ["N", "H", "W", 3]
    return _serialise(
        onnx,
        nodes,
        [tensor("frames", onnx.TensorProto.UINT8, shape)],
        [tensor("restored", onnx.TensorProto.UINT8, shape)],
        weights,
    )


def brighten_half_onnx() -> bytes:
    """The same in f16 from end to end, which no float variant can be made of."""
    onnx = pytest.importorskip("onnx")
    node, tensor = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    nodes = [
        node("Cast", ["frames"], ["levels"], to=onnx.TensorProto.FLOAT16),
        node("Add", ["levels", "brighter"], ["sum"]),
        node("Cast", ["sum"], ["restored"], to=onnx.TensorProto.UINT8),
    ]
    shape = ["N", "H", "W", 3]
    return _serialise(
        onnx,
        nodes,
        [tensor("frames", onnx.TensorProto.UINT8, shape)],
        [tensor("restored", onnx.TensorProto.UINT8, shape)],
        {"brighter": np.float16(BRIGHTER)},
    )


def constant_onnx(level: float) -> bytes:
    """A model that gives the same for every frame: `level` everywhere, which may be NaN."""
    onnx = pytest.importorskip("onnx")
    node, tensor = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    nodes = [*_enter(onnx), node("Mul", ["levels", "none"], ["nothing"]), node("Add", ["nothing", "level"], ["sum"])]
    shape = ["N", "H", "W", 3]
    return _serialise(
        onnx,
        [*nodes, *_leave(onnx, "sum")],
        [tensor("frames", onnx.TensorProto.UINT8, shape)],
        [tensor("restored", onnx.TensorProto.UINT8, shape)],
        {"none": np.float32(0), "level": np.float32(level), **_limits()},
    )


def centred(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What the model of `centre_onnx` gives."""
    mean = frames.mean(axis=(1, 2), keepdims=True, dtype=np.float64)
    return np.rint(np.clip(frames - mean + 128, 0, 255)).astype(np.uint8)


def centre_onnx() -> bytes:
    """A model that moves the mean of the whole frame to 128, channel by channel, and so may not be tiled."""
    onnx = pytest.importorskip("onnx")
    node, tensor = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    nodes = [
        *_enter(onnx),
        node("GlobalAveragePool", ["levels"], ["mean"]),
        node("Sub", ["levels", "mean"], ["deviation"]),
        node("Add", ["deviation", "middle"], ["sum"]),
        *_leave(onnx, "sum"),
    ]
    shape = ["N", "H", "W", 3]
    return _serialise(
        onnx,
        nodes,
        [tensor("frames", onnx.TensorProto.UINT8, shape)],
        [tensor("restored", onnx.TensorProto.UINT8, shape)],
        {"middle": np.float32(128), **_limits()},
    )


def echo_onnx() -> bytes:
    """A recurrent model: its history is half of the history before plus the frame, and is what it gives."""
    onnx = pytest.importorskip("onnx")
    node, tensor = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    nodes = [
        *_enter(onnx),
        node("AveragePool", ["levels"], ["small"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Mul", ["history", "half"], ["faded"]),
        node("Add", ["faded", "small"], ["history_out"]),
        node("Resize", ["history_out", "", "scales"], ["large"], mode="nearest"),
        *_leave(onnx, "large"),
    ]
    weights = {"half": np.float32(0.5), "scales": np.array([1, 1, 2, 2], np.float32), **_limits()}
    shape, state = ["N", "H", "W", 3], ["N", 3, "h", "w"]
    return _serialise(
        onnx,
        nodes,
        [tensor("frames", onnx.TensorProto.UINT8, shape), tensor("history", onnx.TensorProto.FLOAT, state)],
        [tensor("restored", onnx.TensorProto.UINT8, shape), tensor("history_out", onnx.TensorProto.FLOAT, state)],
        weights,
    )


def write_model(folder: Path, onnx: bytes, *, name: str = "tiny", **manifest: Any) -> Path:
    """Write a model and its manifest; returns the manifest's path."""
    facts = {"id": name, "file": f"{name}.onnx", "stride": STRIDE, "overlap_px": 8, **manifest}
    (folder / f"{name}.onnx").write_bytes(onnx)
    path = folder / f"{name}.json"
    path.write_text(Manifest(sha256=hashlib.sha256(onnx).hexdigest(), **facts).model_dump_json(), encoding="utf-8")
    return path


def _enter(onnx: Any) -> list[Any]:
    return [
        onnx.helper.make_node("Cast", ["frames"], ["float_frames"], to=onnx.TensorProto.FLOAT),
        onnx.helper.make_node("Transpose", ["float_frames"], ["levels"], perm=[0, 3, 1, 2]),
    ]


def _leave(onnx: Any, levels: str) -> list[Any]:
    return [
        onnx.helper.make_node("Clip", [levels, "least", "most"], ["clipped"]),
        onnx.helper.make_node("Round", ["clipped"], ["rounded"]),
        onnx.helper.make_node("Transpose", ["rounded"], ["float_restored"], perm=[0, 2, 3, 1]),
        onnx.helper.make_node("Cast", ["float_restored"], ["restored"], to=onnx.TensorProto.UINT8),
    ]


def _limits() -> dict[str, Any]:
    return {"least": np.float32(0), "most": np.float32(255)}


def _serialise(onnx: Any, nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: dict[str, Any]) -> bytes:
    constants = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    graph = onnx.helper.make_graph(nodes, "tiny", inputs, outputs, constants)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())
