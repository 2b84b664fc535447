"""The f16 graph: convolutions in f16, what needs whole levels in f32, a cast wherever the type changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from engine.backends import open_engine  # noqa: E402
from engine.protocol import EngineOptions  # noqa: E402
from export.graph import to_onnx  # noqa: E402
from export.half import to_half  # noqa: E402
from export.networks.img2img import Img2ImgConfig, Img2ImgNet  # noqa: E402
from export.networks.resnet import ResNetConfig, ResNetGenerator  # noqa: E402
from export.networks.restore import RestoreNet, RestoreNetConfig  # noqa: E402
from export.networks.unet import UNet, UNetConfig  # noqa: E402

SHIPPED = Path(__file__).parents[2] / "engine" / "models" / "fast.onnx"
NETWORKS = {
    "restore": lambda: RestoreNet(RestoreNetConfig(unshuffle=4, widths=(8, 8), blocks=(1, 1))),
    "img2img": lambda: Img2ImgNet(Img2ImgConfig(widths=(4, 4))),
    "pix2pix": lambda: UNet(UNetConfig(width=2, downs=4)),
    "dualgan": lambda: UNet(UNetConfig(width=2, downs=4, norm="instance")),
    "cyclegan": lambda: ResNetGenerator(ResNetConfig(width=2, blocks=1)),
}


def halved(name: str) -> bytes:
    return to_half(to_onnx(NETWORKS[name]().eval()))


def types(graph: Any) -> dict[str, int]:
    """The type of every value of a graph."""
    values = [*graph.value_info, *graph.input, *graph.output]
    found = {value.name: value.type.tensor_type.elem_type for value in values}
    return found | {tensor.name: tensor.data_type for tensor in graph.initializer}


def read(data: bytes) -> tuple[list[Any], dict[str, int]]:
    """Nodes and types."""
    graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(data), strict_mode=True).graph
    return list(graph.node), types(graph)


@pytest.mark.parametrize("name", NETWORKS)
def test_convolutions_compute_in_f16_from_weights_of_f16(name: str) -> None:
    nodes, kind = read(halved(name))
    convolutions = [node for node in nodes if node.op_type in ("Conv", "ConvTranspose")]
    assert convolutions
    for node in convolutions:
        assert {kind[value] for value in (*node.input, *node.output)} == {TensorProto.FLOAT16}


@pytest.mark.parametrize("name", NETWORKS)
def test_only_casts_change_a_type_and_touch_uint8(name: str) -> None:
    nodes, kind = read(halved(name))
    floating = {TensorProto.FLOAT, TensorProto.FLOAT16}
    for node in nodes:
        if node.op_type != "Cast":
            met = {kind[value] for value in (*node.input, *node.output) if value}
            assert len(met & floating) <= 1, node.name
            assert TensorProto.UINT8 not in met


def test_the_skip_and_what_makes_levels_stay_in_f32() -> None:
    nodes, kind = read(halved("restore"))
    last_add = [node for node in nodes if node.op_type == "Add"][-1]
    for node in [last_add, *(node for node in nodes if node.op_type in ("Clip", "Round"))]:
        assert kind[node.output[0]] == TensorProto.FLOAT
    first_half = next(i for i, node in enumerate(nodes) if kind[node.output[0]] == TensorProto.FLOAT16)
    assert nodes[first_half].op_type == "Cast"
    assert {"Mul", "Sub"} <= {node.op_type for node in nodes[:first_half]}


@pytest.mark.parametrize("name", ["dualgan", "cyclegan"])
def test_norms_stay_in_f32(name: str) -> None:
    nodes, kind = read(halved(name))
    norms = [node for node in nodes if node.op_type == "InstanceNormalization"]
    assert norms
    assert {kind[node.output[0]] for node in norms} == {TensorProto.FLOAT}


def test_the_weights_are_there_once() -> None:
    whole = SHIPPED.read_bytes()
    assert len(to_half(whole)) < 0.51 * len(whole)


def test_inputs_outputs_and_free_sizes_stay(tmp_path: Path) -> None:
    before, after = (
        onnx.load_from_string(data).graph for data in (SHIPPED.read_bytes(), to_half(SHIPPED.read_bytes()))
    )
    assert list(before.input) == list(after.input)
    assert list(before.output) == list(after.output)


def convolution(gains: tuple[float, ...], *, history: bool = False) -> bytes:
    """A model that adds 0 to a frame, in a roundabout way: a row of convolutions, and in the end times 0.001."""
    node, tensor = helper.make_node, helper.make_tensor_value_info
    nodes = [
        node("Cast", ["frames"], ["wide"], to=TensorProto.FLOAT),
        node("Transpose", ["wide"], ["levels"], perm=[0, 3, 1, 2]),
    ]
    weights: dict[str, NDArray[Any]] = {"little": np.float32(0.001), "least": np.float32(0), "most": np.float32(255)}
    value = "levels"
    for i, gain in enumerate(gains):
        weights[f"w{i}"] = (gain * np.eye(3)).astype(np.float32)[..., None, None]
        weights[f"b{i}"] = np.full(3, 0.5, np.float32)
        nodes.append(node("Conv", [value, f"w{i}", f"b{i}"], [f"c{i}"]))
        value = f"c{i}"
    nodes += [
        node("Mul", [value, "little"], ["correction"]),
        node("Add", ["levels", "correction"], ["sum"]),
        node("Clip", ["sum", "least", "most"], ["clipped"]),
        node("Round", ["clipped"], ["rounded"]),
        node("Transpose", ["rounded"], ["narrow"], perm=[0, 2, 3, 1]),
        node("Cast", ["narrow"], ["restored"], to=TensorProto.UINT8),
    ]
    shape = ["N", "H", "W", 3]
    outputs = [tensor("restored", TensorProto.UINT8, shape)]
    if history:
        outputs.append(tensor("c0", TensorProto.FLOAT, ["N", 3, "H", "W"]))
    inputs = [tensor("frames", TensorProto.UINT8, shape)]
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "row", inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def test_values_beyond_f16_do_not_become_nan(tmp_path: Path) -> None:
    row = convolution((20, 50, 1 / 20, 1 / 50))  # 255 levels become 255,000
    frame = np.full((1, 16, 16, 3), 255, np.uint8)
    frame[:, 4:] = 120
    restored = []
    for name, data in (("plain", row), ("typed", to_half(row))):  # torch takes types as they stand
        path = models.write_model(tmp_path, data, name=name)
        with (
            open_engine("torch", str(path), EngineOptions(device="cpu", precision="f32")) as engine,
            engine.submit(frame).result() as result,
        ):
            restored.append(result.frames.copy())
    np.testing.assert_array_equal(*restored)


def test_what_the_graph_gives_beside_frames_stays_in_f32() -> None:
    nodes, kind = read(to_half(convolution((2, 3), history=True)))
    assert kind["c0"] == TensorProto.FLOAT
    assert {kind[node.output[0]] for node in nodes if node.op_type == "Conv"} == {TensorProto.FLOAT16}


def test_a_graph_without_convolutions_stays_as_it_is() -> None:
    assert TensorProto.FLOAT16 not in read(to_half(models.echo_onnx()))[1].values()
