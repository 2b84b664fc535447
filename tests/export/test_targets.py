"""Targets: each gives its graphs and its proof, or one line of refusal and nothing else."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import sys
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import scenes
from typer.testing import CliRunner

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("safetensors")

from daemon.cli import app  # noqa: E402
from engine.backends import open_engine  # noqa: E402
from engine.driver import why_no_gpu  # noqa: E402
from engine.errors import ModelError  # noqa: E402
from engine.model import SHIPPED, Manifest, load_model  # noqa: E402
from engine.protocol import EngineOptions  # noqa: E402
from engine.selfcheck import read_check_pair  # noqa: E402
from export.blur import CASES  # noqa: E402
from export.checkpoint import find, save  # noqa: E402
from export.errors import ExportError  # noqa: E402
from export.graph import to_onnx  # noqa: E402
from export.half import to_half  # noqa: E402
from export.leaves import dead_leaves  # noqa: E402
from export.metrics import psnr  # noqa: E402
from export.networks.generator import FrameNet  # noqa: E402
from export.networks.img2img import Img2ImgConfig, Img2ImgNet  # noqa: E402
from export.networks.resnet import ResNetConfig, ResNetGenerator  # noqa: E402
from export.networks.restore import RestoreNet, RestoreNetConfig  # noqa: E402
from export.networks.unet import UNet, UNetConfig  # noqa: E402
from export.package import Exported, Order, export_model, extend_model  # noqa: E402
from export.proof import Pair, prove  # noqa: E402
from export.recipes import load_generator  # noqa: E402
from export.targets import Task, calibration_pictures  # noqa: E402

NETWORK = RestoreNetConfig(unshuffle=4, widths=(16, 16), blocks=(1, 1))
F32 = EngineOptions(device="CPU", precision="f32")

needs_nncf = pytest.mark.skipif(importlib.util.find_spec("nncf") is None, reason="the extra int8 is not installed")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint whose network corrects by several levels."""
    network = RestoreNet(NETWORK)
    torch.nn.init.normal_(network.tail.weight, std=0.02, generator=torch.Generator().manual_seed(1))
    info = {
        "recipe": "restore",
        "step": 0,
        "config": {"network": NETWORK.model_dump(mode="json")},
        "data": {"origins": ["drawn"], "pictures": 4},
    }
    return save(tmp_path / "run", info, network.state_dict(), {"none": torch.zeros(1)})


def export(checkpoint: Path, output: Path, *targets: Any, calibration: tuple[Path, ...] = (), **facts: Any) -> Exported:
    return export_model(checkpoint, Order(output, "small", Task(targets or None, calibration), **facts))


def restored(path: Path, frame: np.ndarray[Any, Any], options: EngineOptions = F32) -> np.ndarray[Any, Any]:
    with open_engine("openvino", str(path), options) as engine, engine.submit(frame).result() as result:
        return result.frames.copy()


def test_an_engine_loads_with_the_check_pair_of_its_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    model = load_model(str(export(checkpoint, tmp_path / "out").path))
    assert model.check is not None
    assert len(model.check) < 150_000
    blurred, expected = read_check_pair(model)
    with torch.no_grad():
        truth = FrameNet(load_generator(find(checkpoint)))(torch.from_numpy(blurred)).numpy()
    np.testing.assert_array_equal(expected, truth)
    assert psnr(blurred, expected) < 45  # an engine that does nothing would not pass
    open_engine("openvino", str(model.path)).close()


def test_a_target_gives_what_it_needs_and_no_more(checkpoint: Path, tmp_path: Path) -> None:
    only = export(checkpoint, tmp_path / "onnx", "onnx").manifest
    assert only.precisions == ("f32", "f16")
    assert set(only.graphs) == {"f16"}
    assert not export(checkpoint, tmp_path / "openvino", "openvino").manifest.graphs


def test_a_fixed_tile_is_the_only_size_that_runs(checkpoint: Path, tmp_path: Path) -> None:
    made = export(checkpoint, tmp_path / "out", tile=(64, 96))
    assert made.manifest.fixed_tile == (64, 96)
    for file in ("small.onnx", "small.f16.onnx"):
        graph = onnx.load(tmp_path / "out" / file).graph
        for value in (*graph.input, *graph.output):
            sizes = [dimension.dim_param or dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
            assert sizes == ["N", 64, 96, 3]
    assert read_check_pair(load_model(str(made.path)))[0].shape == (1, 64, 96, 3)
    batch = np.stack([dead_leaves(64, 96, np.random.default_rng(seed)) for seed in range(2)])
    free = export(checkpoint, tmp_path / "free")
    assert psnr(restored(free.path, batch), restored(made.path, batch)) > 60


def test_a_fixed_tile_measures_pictures_of_any_size(checkpoint: Path, tmp_path: Path) -> None:
    pictures = tuple(scenes.write_scenes(tmp_path / "drawn", 2, side=120))
    for tile in ((64, 96), (256, 320)):
        made = export(checkpoint, tmp_path / f"{tile[0]}", pictures=pictures, tile=tile)
        assert set(made.manifest.gain_db) == set(CASES)


@pytest.mark.parametrize("tile", [(64, 60), (0, 64), (8, 8)])
def test_a_tile_of_broken_strides_is_refused(checkpoint: Path, tmp_path: Path, tile: tuple[int, int]) -> None:
    with pytest.raises(ExportError, match="--tile must be multiples of 8 from 16 px on, got"):
        export(checkpoint, tmp_path / "out", tile=tile)
    assert not (tmp_path / "out").exists()


class Amplified(RestoreNet):
    """Gives 40 times the little by which two nearly equal sums differ: what half precision rounds away."""

    def correction(self, blurred: torch.Tensor) -> torch.Tensor:
        kernel = torch.full((3, 3, 3, 3), 1 / 27)
        flat = torch.nn.functional.conv2d(blurred + 1, kernel, padding=1)
        return 40 * (flat - torch.nn.functional.conv2d(flat, kernel, padding=1)).clamp(-0.01, 0.01)


def test_a_target_that_was_named_and_fails_is_refused(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RestoreNet, "correction", Amplified.correction)
    with pytest.raises(ExportError, match=r"^small: in f16 the engine must be within 55 dB of its checkpoint, got"):
        export(checkpoint, tmp_path / "new" / "out", "onnx")
    assert not (tmp_path / "new").exists()
    assert export(checkpoint, tmp_path / "out").manifest.precisions == ("f32",)


@pytest.mark.skipif(why_no_gpu() is None, reason="there is a GPU here")
def test_tensorrt_without_a_gpu_is_one_line_and_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    task = Task(("onnx", "tensorrt"), engine=EngineOptions(cache=tmp_path / "cache"))
    with pytest.raises(ExportError, match=r"^small: tensorrt cannot run it in f16: [^\n]+$"):
        export_model(checkpoint, Order(tmp_path / "out", "small", task))
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob("cache/*"))


@pytest.mark.gpu
def test_tensorrt_is_built_kept_and_proven(checkpoint: Path, tmp_path: Path) -> None:
    task = Task(("tensorrt",), engine=EngineOptions(cache=tmp_path / "cache"))
    made = export_model(checkpoint, Order(tmp_path / "out", "small", task))
    assert [proof.precision for proof in made.proofs] == ["f32", "f16"]
    assert made.proofs[1].backend.startswith("tensorrt")
    assert any(path.is_file() for path in (tmp_path / "cache").rglob("*"))


def test_a_history_is_proven_frame_by_frame(tmp_path: Path) -> None:
    path = models.write_model(tmp_path, models.echo_onnx(), states=(models.STATE,))
    made = extend_model(str(path), Order(tmp_path / "out", "echo", Task(("openvino",))))
    blurred, expected = read_check_pair(load_model(str(made.path)))
    assert len(blurred) == 3
    assert len((tmp_path / "out" / "echo.check.npz").read_bytes()) < 150_000
    wrong = Pair(blurred, expected[::-1].copy())  # as if the history ran backwards
    model = load_model(str(made.path))
    assert prove("openvino", "f32", model, [Pair(blurred, expected)]).psnr_db > 60
    assert not prove("openvino", "f32", model, [wrong]).holds


# Int8


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    return tuple(scenes.write_scenes(tmp_path_factory.mktemp("data") / "drawn", 4, side=128))


@needs_nncf
def test_int8_holds_its_tolerance_with_symmetric_steps_around_inner_convolutions(
    checkpoint: Path, tmp_path: Path, drawn: tuple[Path, ...]
) -> None:
    made = export(checkpoint, tmp_path / "out", "openvino-int8", calibration=drawn, pictures=drawn[:1])
    assert made.manifest.precisions == ("f32", "int8")
    assert made.proofs[-1].psnr_db >= 48
    assert made.manifest.training["calibration"] == {"pictures": 4, "origins": ["drawn"]}
    graph = onnx.load(tmp_path / "out" / "small.int8.onnx").graph
    makers = {name: node.op_type for node in graph.node for name in node.output}
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    for node in (convolutions[0], convolutions[-1]):
        assert "DequantizeLinear" not in {makers.get(name) for name in node.input}
    whole = [node for node in convolutions if makers.get(node.input[0]) == "DequantizeLinear"]
    assert whole
    for node in whole:
        assert makers[node.input[1]] == "DequantizeLinear"
    steps = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert {node.op_type for node in steps} == {"QuantizeLinear", "DequantizeLinear"}
    for node in steps:
        zero = onnx.numpy_helper.to_array(tensors[node.input[2]])
        assert zero.dtype == np.int8
        assert not zero.any()
    with open_engine("openvino", str(made.path), EngineOptions(precision="int8")) as engine:
        assert engine.spec.backend == "openvino/CPU int8"


def test_int8_without_pictures_is_refused() -> None:
    with pytest.raises(ExportError, match="target openvino-int8 needs pictures to calibrate on: --data PICTURES"):
        Task(("openvino-int8",))


def test_int8_without_its_extra_says_how_to_get_it(
    checkpoint: Path, tmp_path: Path, drawn: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(ExportError, match=r"pip install 'deblurd\[int8\]'"):
        export(checkpoint, tmp_path / "out", "openvino-int8", calibration=drawn)
    assert not (tmp_path / "out").exists()


def test_int8_of_a_model_with_a_history_is_refused(tmp_path: Path, drawn: tuple[Path, ...]) -> None:
    path = models.write_model(tmp_path, models.echo_onnx(), states=(models.STATE,))
    with pytest.raises(ExportError, match="int8 needs a model without a history"):
        extend_model(str(path), Order(tmp_path / "out", "echo", Task(("openvino-int8",), drawn)))


@needs_nncf
def test_int8_that_no_convolution_bears_is_refused(
    checkpoint: Path, tmp_path: Path, drawn: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RestoreNet, "correction", Amplified.correction)
    with pytest.raises(ExportError, match=r"int8"):
        export(checkpoint, tmp_path / "out", "openvino-int8", calibration=drawn)
    assert not (tmp_path / "out").exists()


def test_int8_calibrates_on_pictures_that_prove_nothing(tmp_path: Path) -> None:
    paths = scenes.write_scenes(tmp_path / "drawn", 9, side=32)
    assert len(calibration_pictures([tmp_path], paths)) == 3
    assert set(calibration_pictures([tmp_path], paths[:1])) == set(paths[1:])
    assert set(calibration_pictures([tmp_path / "drawn"], paths[:9:2])) == set(paths[1::2])


def test_int8_never_calibrates_on_an_origin_of_the_development_split(tmp_path: Path) -> None:
    other = scenes.write_scenes(tmp_path / "drawn", 2, side=32)
    listed, beside = scenes.write_scenes(tmp_path / "misc-easyocr", 2, side=32)
    listed.rename(listed.with_name("examples__english.webp"))
    assert beside.exists()
    assert set(calibration_pictures([tmp_path], ())) == set(other)


# Models that are there already


def test_a_model_is_added_to_and_its_own_graph_stays(tmp_path: Path) -> None:
    made = extend_model("fast", Order(tmp_path, "mine"))
    assert (tmp_path / "mine.onnx").read_bytes() == (SHIPPED / "fast.onnx").read_bytes()
    before, after = load_model("fast").manifest, load_model(str(made.path)).manifest
    assert (after.id, after.gain_db, after.licence) == ("mine", before.gain_db, before.licence)
    assert after.graphs["f16"].file == "mine.f16.onnx"
    assert set(before.precisions) <= set(after.precisions)
    assert [proof.precision for proof in made.proofs][:1] == ["f16"]
    open_engine("openvino", str(made.path)).close()


def test_a_model_is_added_to_in_its_place(checkpoint: Path, tmp_path: Path) -> None:
    first = export(checkpoint, tmp_path / "out", "openvino").manifest
    second = extend_model(str(tmp_path / "out" / "small.json"), Order(tmp_path / "out", "small", Task(("onnx",))))
    assert second.manifest.check == first.check  # the checkpoint's own
    assert set(second.manifest.precisions) == {*first.precisions, "f16"}
    assert load_model(str(second.path)).manifest == second.manifest


def test_a_damaged_model_is_refused(tmp_path: Path) -> None:
    path = models.write_model(tmp_path, models.brighten_onnx())
    (tmp_path / "tiny.onnx").write_bytes(b"other")
    with pytest.raises(ModelError, match="sha256 must be"):
        extend_model(str(path), Order(tmp_path / "out", "mine"))


def test_a_fixed_tile_of_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="--tile needs a checkpoint: the graph of fast stays as it is"):
        extend_model("fast", Order(tmp_path / "out", "mine", tile=(64, 64)))


# TensorRT takes the graphs


def built(graph: bytes, side: int) -> str:
    """What TensorRT-RTX says of a graph: nothing, if it parses and builds."""
    trt = pytest.importorskip("tensorrt_rtx_bindings", reason="the TensorRT-RTX wheel is not installed")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(graph):
        return "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
    configuration, profile = builder.create_builder_config(), builder.create_optimization_profile()
    profile.set_shape("frames", (1, side, side, 3), (1, 2 * side, 2 * side, 3), (4, 4 * side, 4 * side, 3))
    configuration.add_optimization_profile(profile)
    return "" if builder.build_serialized_network(network, configuration) else "no plan"


@pytest.mark.parametrize(
    "network",
    [
        RestoreNet(NETWORK),
        Img2ImgNet(Img2ImgConfig(widths=(4, 4))),
        UNet(UNetConfig(width=2, downs=4)),
        UNet(UNetConfig(width=2, downs=4, norm="instance")),
        ResNetGenerator(ResNetConfig(width=2, blocks=1)),
    ],
    ids=["restore", "img2img", "pix2pix", "dualgan", "cyclegan"],
)
def test_tensorrt_builds_the_f16_graph_of_every_recipe(network: Any) -> None:
    assert built(to_half(to_onnx(network.eval())), 2 * network.stride) == ""


@pytest.mark.parametrize("precision", ["f16", "int8"])
def test_tensorrt_builds_the_graphs_of_the_model_that_ships(precision: Any) -> None:
    model = load_model("fast")
    if precision not in model.graphs:
        pytest.skip(f"the model that ships has no {precision} graph")
    assert built(model.graph(precision), 64) == ""


# The command's words


def command(*words: str) -> tuple[int, str]:
    answer = CliRunner().invoke(app, ["export", *words])
    return answer.exit_code, answer.output if answer.exception is None else str(answer.exception)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--target", "paint"], "target must be one of onnx, openvino, openvino-int8, tensorrt, got 'paint'"),
        (["--tile", "64"], "--tile must be HxW, as 544x960, got '64'"),
        (["--tile", "64x-1"], "--tile must be HxW, as 544x960, got '64x-1'"),
        (["--target", "openvino-int8"], "target openvino-int8 needs pictures to calibrate on: --data PICTURES"),
    ],
)
def test_words_that_make_no_sense_are_one_line(checkpoint: Path, tmp_path: Path, words: list[str], line: str) -> None:
    out = tmp_path / "out"
    assert command(str(checkpoint), "-o", str(out), "--name", "small", *words) == (1, line)
    assert not out.exists()


def test_the_command_exports_a_checkpoint_and_adds_to_a_model(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, table = command(str(checkpoint), "-o", str(out), "--name", "small", "--target", "openvino", "--tile", "64x64")
    assert code == 0
    assert "f32 against checkpoint" in table
    assert "openvino/CPU f32" in table
    code, _ = command(str(out / "small.json"), "-o", str(out), "--name", "small", "--target", "onnx", "--quiet")
    assert code == 0
    manifest = Manifest.model_validate_json((out / "small.json").read_bytes())
    assert manifest.fixed_tile == (64, 64)
    assert hashlib.sha256((out / "small.f16.onnx").read_bytes()).hexdigest() == manifest.graphs["f16"].sha256


def test_a_folder_named_like_a_shipped_model_is_a_run(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(checkpoint.parent, tmp_path / "fast")
    code, _ = command("fast", "-o", "out", "--name", "small", "--target", "openvino", "--quiet")
    assert code == 0
    assert load_model(str(tmp_path / "out" / "small.json")).manifest.architecture == NETWORK.model_dump(mode="json")
