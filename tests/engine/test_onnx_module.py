"""ONNX graphs in torch: they give what OpenVINO gives, or are refused by the node that is not known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
import numpy as np
import openvino as ov
import pytest
from numpy.typing import NDArray

onnx = pytest.importorskip("onnx")
torch = pytest.importorskip("torch")

from engine.errors import ModelError  # noqa: E402
from engine.model import load_model  # noqa: E402
from engine.torch.onnx_module import OnnxModule  # noqa: E402
from export.graph import to_onnx  # noqa: E402
from export.networks.img2img import Img2ImgConfig, Img2ImgNet  # noqa: E402
from export.networks.resnet import ResNetConfig, ResNetGenerator  # noqa: E402
from export.networks.restore import RestoreNet, RestoreNetConfig  # noqa: E402
from export.networks.unet import UNet, UNetConfig  # noqa: E402

RECIPES = {
    "restore": lambda: RestoreNet(RestoreNetConfig(unshuffle=2, widths=(8, 12), blocks=(1, 1))),
    "img2img": lambda: Img2ImgNet(Img2ImgConfig(widths=(4, 6))),
    "pix2pix": lambda: UNet(UNetConfig(width=4, downs=3)),
    "cyclegan": lambda: ResNetGenerator(ResNetConfig(width=4, blocks=2)),
    "dualgan": lambda: UNet(UNetConfig(width=4, downs=3, norm="instance")),
}
FILE = Path("some.onnx")
FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64


def picture(*shape: int) -> NDArray[np.uint8]:
    """Soft waves, (N, H, W, 3)."""
    n, y, x, c = np.ogrid[: shape[0], : shape[1], : shape[2], :3]
    return (128 + 100 * np.sin(x / (5 + c) + n) * np.cos(y / (9 - c))).astype(np.uint8)


def in_openvino(data: bytes, inputs: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
    core = ov.Core()
    config = {"INFERENCE_PRECISION_HINT": "f32"}
    results = core.compile_model(core.read_model(data), "CPU", config)(inputs)
    return [np.array(results[port]) for port in results]


def in_torch(data: bytes, inputs: dict[str, NDArray[Any]], weights: torch.dtype | None = None) -> list[NDArray[Any]]:
    module = OnnxModule(data, FILE, weights)
    with torch.inference_mode():
        results = module({name: torch.from_numpy(array) for name, array in inputs.items()})
    return [tensor.numpy() for tensor in results.values()]


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    error = float(np.mean(np.square(a.astype(np.float64) - b)))
    return 10 * float(np.log10(255**2 / error)) if error else float("inf")


@pytest.fixture(params=RECIPES)
def exported(request: pytest.FixtureRequest) -> bytes:
    """The graph of each recipe's network, small, with weights that let a picture through."""
    torch.manual_seed(0)
    network = RECIPES[request.param]()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 4:
                torch.nn.init.kaiming_normal_(parameter, a=1)
            else:
                parameter += 0.1 * torch.randn_like(parameter)
    return to_onnx(network.eval())


@pytest.mark.parametrize("shape", [(1, 64, 48), (2, 32, 96)])
def test_the_graphs_of_all_recipes_compute_what_openvino_does(exported: bytes, shape: tuple[int, int, int]) -> None:
    frames = {"frames": picture(*shape)}
    (expected,), (got,) = in_openvino(exported, frames), in_torch(exported, frames)
    assert int(expected.max()) - int(expected.min()) > 20  # it is a picture
    assert np.abs(expected.astype(int) - got).max() <= 1
    assert psnr(expected, got) >= 60


def test_convolutions_in_bfloat16_stay_near(exported: bytes) -> None:
    frames = {"frames": picture(1, 64, 48)}
    (exact,), (got,) = in_torch(exported, frames), in_torch(exported, frames, torch.bfloat16)
    assert psnr(exact, got) > 35  # weights drawn at random amplify more than trained ones


def test_the_shipped_model_computes_what_openvino_does() -> None:
    data, frames = load_model("fast").onnx, {"frames": picture(1, 96, 128)}
    (expected,), (got,) = in_openvino(data, frames), in_torch(data, frames)
    assert np.abs(expected.astype(int) - got).max() <= 1
    (half,) = in_torch(data, frames, torch.bfloat16)
    assert psnr(expected, half) >= 48


def node(kind: str, inputs: list[str], outputs: list[str] | None = None, **attributes: Any) -> Any:
    return onnx.helper.make_node(kind, inputs, outputs or ["y"], name="the_node", **attributes)


def graph(
    nodes: list[Any], constants: dict[str, Any] | None = None, *, opset: int = 18, outputs: int = 1, rank: int = 4
) -> bytes:
    """A graph from `x`, float (N, C, H, W), to `y` (and `y1` ...) of `rank` dimensions."""
    values = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()]
    names = ["y", *(f"y{i}" for i in range(1, outputs))]
    made = onnx.helper.make_graph(
        nodes,
        "one",
        [onnx.helper.make_tensor_value_info("x", FLOAT, ["N", "C", "H", "W"])],
        [onnx.helper.make_tensor_value_info(name, FLOAT, list("abcde")[:rank]) for name in names],
        values,
    )
    opsets = [onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid("com.microsoft", 1)]
    return bytes(onnx.helper.make_model(made, opset_imports=opsets, ir_version=9).SerializeToString())


def weights(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def ints(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


K3, K2 = {"kernel_shape": [3, 3]}, {"kernel_shape": [2, 2], "strides": [2, 2]}
BN = {"s": weights(4), "b": weights(4), "m": weights(4), "v": np.abs(weights(4))}
SIZES = [
    node("Shape", ["x"], ["shape"], start=2),
    node("Mul", ["shape", "three"], ["larger"]),
    node("Concat", ["first", "larger"], ["sizes"], axis=0),
]
ONE_NODE: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "conv": ([node("Conv", ["x", "w", "b"], pads=[1, 1, 1, 1], **K3)], {"w": weights(8, 4, 3, 3), "b": weights(8)}),
    "conv, uneven pads, stride": (
        [node("Conv", ["x", "w"], pads=[0, 1, 2, 1], strides=[2, 1])],
        {"w": weights(8, 4, 3, 3)},
    ),
    "conv, groups, dilations": (
        [node("Conv", ["x", "w"], group=2, dilations=[2, 1], pads=[2, 1, 2, 1])],
        {"w": weights(8, 2, 3, 3)},
    ),
    "conv, valid": ([node("Conv", ["x", "w"], auto_pad="VALID")], {"w": weights(8, 4, 3, 3)}),
    "transposed conv": (
        [node("ConvTranspose", ["x", "w", "b"], strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1])],
        {"w": weights(4, 6, 3, 3), "b": weights(6)},
    ),
    "transposed conv, groups": (
        [node("ConvTranspose", ["x", "w"], group=2, strides=[2, 1], dilations=[1, 2])],
        {"w": weights(4, 3, 3, 3)},
    ),
    "relu": ([node("Relu", ["x"])], {}),
    "leaky relu": ([node("LeakyRelu", ["x"], alpha=0.3)], {}),
    "leaky relu, default": ([node("LeakyRelu", ["x"])], {}),
    "prelu": ([node("PRelu", ["x", "s"])], {"s": weights(4, 1, 1)}),
    "sigmoid": ([node("Sigmoid", ["x"])], {}),
    "tanh": ([node("Tanh", ["x"])], {}),
    "round": ([node("Mul", ["x", "s"], ["z"]), node("Round", ["z"])], {"s": np.float32(0.5)}),
    "number first": ([node("Sub", ["s", "x"], ["z"]), node("Div", ["s", "z"])], {"s": np.float32(9)}),
    "channels": ([node("Mul", ["x", "s"], ["z"]), node("Add", ["b", "z"])], {"s": weights(4, 1, 1), "b": weights(1)}),
    "clip": ([node("Clip", ["x", "", "most"])], {"most": np.float32(0.2)}),
    "depth to space, DCR": ([node("DepthToSpace", ["x"], blocksize=2)], {}),
    "depth to space, CRD": ([node("DepthToSpace", ["x"], blocksize=2, mode="CRD")], {}),
    "space to depth": ([node("SpaceToDepth", ["x"], blocksize=2)], {}),
    "pad": ([node("Pad", ["x", "p", "v"])], {"p": ints(0, 0, 1, 2, 0, 1, 3, 4), "v": np.float32(7)}),
    "pad, cut": ([node("Pad", ["x", "p"])], {"p": ints(0, 0, -1, 2, 0, 0, 1, -2)}),
    "pad, mirrored": ([node("Pad", ["x", "p"], mode="reflect")], {"p": ints(0, 0, 1, 2, 0, 0, 3, 4)}),
    "pad, edge, axes": ([node("Pad", ["x", "p", "", "a"], mode="edge")], {"p": ints(1, 2, 3, 4), "a": ints(3, 2)}),
    "nearest": ([node("Resize", ["x", "", "s"])], {"s": np.array([1, 1, 3, 2], np.float32)}),
    "nearest, as old torch": (
        [node("Resize", ["x", "", "s"], coordinate_transformation_mode="asymmetric", nearest_mode="floor")],
        {"s": np.array([1, 1, 3, 7], np.float32)},
    ),
    "linear": ([node("Resize", ["x", "", "s"], mode="linear")], {"s": np.array([1, 1, 2, 1.7], np.float32)}),
    "linear, smaller": (
        [node("Resize", ["x", "", "s"], mode="linear", coordinate_transformation_mode="pytorch_half_pixel")],
        {"s": np.array([1, 1, 0.5, 0.6], np.float32)},
    ),
    "linear, corners, sizes": (
        [node("Resize", ["x", "", "", "n"], mode="linear", coordinate_transformation_mode="align_corners")],
        {"n": ints(2, 4, 13, 40)},
    ),
    "linear, computed sizes": (
        [*SIZES, node("Resize", ["x", "", "", "sizes"], mode="linear")],
        {"three": ints(3), "first": ints(2, 4)},
    ),
    "average": ([node("AveragePool", ["x"], pads=[1, 1, 1, 1], **K3)], {}),
    "average, pads count": ([node("AveragePool", ["x"], pads=[1, 0, 1, 2], count_include_pad=1, **K3)], {}),
    "greatest": ([node("MaxPool", ["x"], pads=[0, 1, 1, 1], dilations=[1, 2], **K3)], {}),
    "greatest of four": ([node("MaxPool", ["x"], **K2)], {}),
    "global average": ([node("GlobalAveragePool", ["x"])], {}),
    "instance norm": ([node("InstanceNormalization", ["x", "s", "b"])], {"s": weights(4), "b": weights(4)}),
    "batch norm": ([node("BatchNormalization", ["x", *BN], epsilon=0.01)], BN),
    "mean": ([node("ReduceMean", ["x", "a"], keepdims=0)], {"a": ints(1, -1)}),
    "concat": ([node("Concat", ["x", "c", "x"], axis=-1)], {"c": weights(2, 4, 12, 3)}),
    "slice": (
        [node("Slice", ["x", "s", "e", "a", "t"])],
        {"s": ints(1, -3), "e": ints(1 << 60, -99), "a": ints(2, -1), "t": ints(2, -1)},
    ),
    "gather": ([node("Gather", ["x", "i"], axis=2)], {"i": ints(3, -1, 0)}),
    "gather one": ([node("Gather", ["x", "i"], axis=1)], {"i": np.int64(-2)}),
    "transpose": ([node("Transpose", ["x"])], {}),
    "squeeze": (
        [node("Unsqueeze", ["x", "a"], ["z"]), node("Slice", ["z", "s", "e"], ["w"]), node("Squeeze", ["w", "q"])],
        {"a": ints(0, -1), "s": ints(0), "e": ints(1), "q": ints(-1)},
    ),
    "reshape": ([node("Reshape", ["x", "s"])], {"s": ints(0, 2, -1, 0)}),
    "a reshape by the shape": (
        [
            node("Shape", ["x"], ["shape"]),
            node("Gather", ["shape", "which"], ["sides"]),
            node("Div", ["sides", "two"], ["halves"]),
            node("Concat", ["sides", "halves", "rest"], ["target"], axis=0),
            node("Reshape", ["x", "target"]),
        ],
        {"which": ints(1), "two": ints(2), "rest": ints(-1)},
    ),
    "constants folded": (
        [
            node("Constant", [], ["c"], value_floats=[1.0, 2.0, 3.0, 4.0]),
            node("Reshape", ["c", "s"], ["r"]),
            node("ConstantOfShape", ["n"], ["ones"], value=onnx.helper.make_tensor("v", FLOAT, [1], [5.0])),
            node("Add", ["r", "ones"], ["sum"]),
            node("Identity", ["sum"], ["same"]),
            node("Mul", ["x", "same"]),
        ],
        {"s": ints(4, 1, 1), "n": ints(4, 1, 1)},
    ),
}
RANKS = {"squeeze": 5, "mean": 2, "gather one": 3, "a reshape by the shape": 3}


@pytest.mark.parametrize("name", ONE_NODE)
def test_an_operator_computes_what_openvino_does(name: str) -> None:
    nodes, constants = ONE_NODE[name]
    data, x = graph(nodes, constants, rank=RANKS.get(name, 4)), weights(2, 4, 12, 20)
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
    (expected,), (got,) = in_openvino(data, {"x": x}), in_torch(data, {"x": x})
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("constants", [{"n": ints(1, 3)}, {}])
def test_a_split_gives_its_parts_in_order(constants: dict[str, Any]) -> None:
    even = {} if constants else {"num_outputs": 2}
    parts = graph([node("Split", ["x", *constants], ["y", "y1"], axis=1, **even)], constants, outputs=2)
    x = weights(2, 4, 12, 20)
    for expected, got in zip(in_openvino(parts, {"x": x}), in_torch(parts, {"x": x}), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_a_graph_in_float16_computes_in_float16() -> None:
    nodes = [
        node("Cast", ["x"], ["h"], to=onnx.TensorProto.FLOAT16),
        node("Conv", ["h", "w"], ["c"]),
        node("Cast", ["c"], to=FLOAT),
    ]
    kernel, x = weights(8, 4, 1, 1), weights(2, 4, 12, 20)
    (got,) = in_torch(graph(nodes, {"w": kernel.astype(np.float16)}), {"x": x})
    exact = np.einsum("nchw,ocij->nohw", x, kernel)
    np.testing.assert_array_equal(got, got.astype(np.float16))  # no finer than it
    np.testing.assert_allclose(got, exact, atol=0.01)


W = {"w": weights(8, 4, 3, 3)}


@pytest.mark.parametrize(
    ("made", "constants", "rule"),
    [
        (node("Erf", ["x"]), {}, "the torch engine does not know this operator"),
        (node("Gelu", ["x"], domain="com.microsoft"), {}, "the torch engine does not know this operator"),
        (node("Conv", ["x", "w"], auto_pad="SAME_UPPER"), W, "auto_pad must be NOTSET or VALID, got SAME_UPPER"),
        (node("ConvTranspose", ["x", "w"], pads=[0, 0, 1, 1]), {"w": weights(4, 8, 3, 3)}, "same on both sides"),
        (node("ConvTranspose", ["x", "w"], output_shape=[9, 9]), {"w": weights(4, 8, 3, 3)}, "output_shape must be"),
        (node("MaxPool", ["x"], ceil_mode=1, **K3), {}, "ceil_mode must be 0, got 1"),
        (node("AveragePool", ["x"], ceil_mode=1, **K3), {}, "ceil_mode must be 0, got 1"),
        (node("MaxPool", ["x"], kernel_shape=[3]), {}, "kernel_shape must have two sides"),
        (node("Pad", ["x", "p"], mode="wrap"), {"p": ints(0, 0, 1, 1, 0, 0, 1, 1)}, "mode must be"),
        (node("Resize", ["x", "", "s"], mode="cubic"), {"s": weights(4)}, "mode must be nearest or linear, got cubic"),
        (node("Resize", ["x", "", "s"], axes=[2, 3]), {"s": weights(2)}, "attribute axes is not known here"),
        (node("Resize", ["x", "", "s"], nearest_mode="ceil"), {"s": weights(4)}, "nearest_mode must be"),
        (node("Cast", ["x"], to=onnx.TensorProto.STRING), {}, "tensor type 8 is not known here"),
        (node("DepthToSpace", ["x"], blocksize=2, mode="XYZ"), {}, "mode must be DCR or CRD, got XYZ"),
        (node("Reshape", ["x", "x"]), {}, "input 'x' must be a constant, or depend on shapes alone"),
    ],
)
def test_what_is_not_known_in_full_is_refused_by_file_and_node(made: Any, constants: dict[str, Any], rule: str) -> None:
    with pytest.raises(ModelError, match=rf"^some\.onnx: node 'the_node' \({made.op_type}\): .*{rule}"):
        OnnxModule(graph([made], constants, opset=19), FILE)


@pytest.mark.parametrize(
    ("scales", "rule"), [([1, 1, 1.5, 2], "whole factors"), ([1, 2, 1, 1], "only height and width")]
)
def test_what_only_a_shape_shows_is_refused_by_the_node_too(scales: list[float], rule: str) -> None:
    data = graph([node("Resize", ["x", "", "s"])], {"s": np.array(scales, np.float32)})
    with pytest.raises(ModelError, match=rf"^some\.onnx: node 'the_node' \(Resize\): .*{rule}"):
        in_torch(data, {"x": weights(2, 4, 12, 20)})


@pytest.mark.parametrize("data", [b"", b"no graph", models.brighten_onnx()[:300]])
def test_what_is_no_graph_is_refused_by_its_file(data: bytes) -> None:
    with pytest.raises(ModelError, match=r"^some\.onnx: not an ONNX graph"):
        OnnxModule(data, FILE)


@pytest.mark.parametrize("opset", [12, 23])
def test_operator_sets_whose_meanings_are_not_known_are_refused(opset: int) -> None:
    with pytest.raises(ModelError, match=f"the opset must be 13 to 22, got {opset}"):
        OnnxModule(graph([node("Relu", ["x"])], opset=opset), FILE)


def test_weights_move_with_the_module_and_sizes_do_not() -> None:
    nodes, constants = ONE_NODE["linear, computed sizes"]
    assert not list(OnnxModule(graph(nodes, constants), FILE).buffers())
    nodes, constants = ONE_NODE["conv"]
    assert [tuple(buffer.shape) for buffer in OnnxModule(graph(nodes, constants), FILE).buffers()] == [
        (8, 4, 3, 3),
        (8,),
    ]
