"""Export: the model computes what the checkpoint computes, or nothing is written."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scenes

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("safetensors")

from safetensors.torch import load_file, save_file  # noqa: E402

from daemon.tiles import TilePlan  # noqa: E402
from engine.backends import open_engine  # noqa: E402
from engine.errors import EngineError  # noqa: E402
from engine.model import load_model  # noqa: E402
from engine.protocol import EngineOptions  # noqa: E402
from export import package  # noqa: E402
from export.blur import CASES  # noqa: E402
from export.checkpoint import Checkpoint, find, save  # noqa: E402
from export.errors import ExportError  # noqa: E402
from export.leaves import dead_leaves  # noqa: E402
from export.metrics import psnr  # noqa: E402
from export.networks.generator import FrameNet  # noqa: E402
from export.networks.restore import RestoreNet, RestoreNetConfig  # noqa: E402
from export.package import Exported, Order, export_generator, export_model  # noqa: E402
from export.proof import PROOF_CASES, TOLERANCE_DB  # noqa: E402
from export.recipes import load_generator  # noqa: E402
from export.targets import Task  # noqa: E402

NETWORK = RestoreNetConfig(unshuffle=4, widths=(16, 16), blocks=(1, 1))
INFO = {
    "recipe": "restore",
    "step": 0,
    "config": {"network": NETWORK.model_dump(mode="json"), "seed": 7},
    "data": {"origins": ["drawn"], "pictures": 4},
}


class Plain(torch.nn.Module):
    """A generator of stride 2 that draws its output anew: what it gives is not its input and a correction."""

    whole_frame = False
    stride = 2

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.down = torch.nn.Conv2d(3, 8, 5, stride=2, padding=2, bias=False)
        self.norm = torch.nn.BatchNorm2d(8)
        self.up = torch.nn.ConvTranspose2d(8, 3, 5, stride=2, padding=2, output_padding=1)
        for convolution in (self.down, self.up):
            torch.nn.init.normal_(convolution.weight, std=0.15, generator=generator)

    def forward(self, blurred: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.up(torch.relu(self.norm(self.down(blurred * 2 - 1))))) * 0.5 + 0.5

    def restore_levels(self, levels: torch.Tensor) -> torch.Tensor:
        return self(levels / 255) * 255

    def fold(self) -> None:
        """Nothing to fold."""


class Amplifier(Plain):
    """Gives 40 times the little by which two nearly equal sums differ: what bfloat16 rounds away."""

    stride = 1

    def forward(self, blurred: torch.Tensor) -> torch.Tensor:
        kernel = torch.full((3, 3, 3, 3), 1 / 27)
        flat = torch.nn.functional.conv2d(blurred + 1, kernel, padding=1)
        return 0.5 + 40 * (flat - torch.nn.functional.conv2d(flat, kernel, padding=1)).clamp(-0.01, 0.01)


class Normed(Plain):
    """Knows the mean and deviation of the whole frame."""

    whole_frame = True

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.InstanceNorm2d(8, affine=True)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint whose network corrects by several levels."""
    network = RestoreNet(NETWORK)
    torch.nn.init.normal_(network.tail.weight, std=0.02, generator=torch.Generator().manual_seed(1))
    return save(tmp_path / "run", INFO, network.state_dict(), {"none": torch.zeros(1)})


def tamper(checkpoint: Path, **changes: torch.Tensor) -> None:
    file = checkpoint / "weights.safetensors"
    save_file({**load_file(file), **{name.replace("__", "."): tensor for name, tensor in changes.items()}}, file)


def export(checkpoint: Path, output: Path, *targets: Any, **facts: Any) -> Exported:
    """The checkpoint as the model `small`."""
    return export_model(checkpoint, Order(output, "small", Task(targets or None), **facts))


def refusal(checkpoint: Path, output: Path, *targets: Any, **facts: Any) -> str:
    """The one line with which an export is refused, having left nothing."""
    with pytest.raises(ExportError) as caught:
        export(checkpoint, output, *targets, **facts)
    assert not output.exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_exported_model_computes_what_the_checkpoint_computes(checkpoint: Path, tmp_path: Path) -> None:
    exported = export(checkpoint, tmp_path / "out")
    scene = CASES["gaussian 1.6"](dead_leaves(64, 96, np.random.default_rng(9)), np.random.default_rng(0))
    with torch.no_grad():
        expected = FrameNet(load_generator(find(checkpoint)))(torch.from_numpy(scene)[None]).numpy()[0]
    assert psnr(scene, expected) < 45  # there is something to get right
    with (
        open_engine("openvino", str(exported.path), EngineOptions(precision="f32")) as engine,
        engine.submit(np.repeat(scene[None], 2, axis=0)).result() as result,
    ):
        for frame in result.frames:
            assert psnr(expected, frame) > 60


def test_a_run_exports_its_newest_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    of_run = export(checkpoint.parent, tmp_path / "out").manifest
    assert of_run == export(checkpoint, tmp_path / "again").manifest


def test_every_precision_that_runs_here_is_proven(checkpoint: Path, tmp_path: Path) -> None:
    made = export(checkpoint, tmp_path)
    proofs = made.proofs
    assert [(proof.precision, proof.backend) for proof in proofs][:2] == [
        ("f32", "openvino/CPU f32"),
        ("f16", "torch/cpu f16"),
    ]
    assert set(made.manifest.precisions) == {proof.precision for proof in proofs}
    for proof in proofs:
        assert proof.holds
        assert proof.psnr_db >= TOLERANCE_DB[proof.precision]


def exported(generator: torch.nn.Module, output: Path, pictures: tuple[Path, ...] = ()) -> Exported:
    info = {**INFO, "recipe": "drawn", "config": {"network": {"side": 5}}}
    return export_generator(generator.eval(), Checkpoint(output, info), Order(output, "drawn", pictures=pictures))


@pytest.mark.parametrize("generator", [Plain(), Normed()])
def test_any_generator_becomes_a_model_that_computes_the_same(
    generator: Plain, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    manifest = exported(generator, tmp_path).manifest
    assert (manifest.recipe, manifest.architecture, manifest.stride) == ("drawn", {"side": 5}, 2)
    assert manifest.mac_per_pixel == 2 * 25 * 3 * 8 / 4
    assert manifest.whole_frame == generator.whole_frame
    assert (manifest.overlap_px == 0) == generator.whole_frame
    assert not recwarn.list


def test_a_model_that_half_precision_spoils_is_exported_for_f32_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = exported(Amplifier(), tmp_path)
    assert made.manifest.precisions == ("f32",)
    assert "in f16 the engine must be within 55 dB of its checkpoint" in caplog.text
    for proof in made.proofs[1:]:
        assert not proof.holds
        assert f"in {proof.precision} the engine must be within" in caplog.text
    with open_engine("auto", str(made.path)) as engine:
        assert engine.spec.backend == "openvino/CPU f32"
    with pytest.raises(EngineError, match="must be auto or f32 for model 'drawn'"):
        open_engine("auto", str(made.path), EngineOptions(precision="bf16"))


def test_a_whole_frame_model_restores_a_frame_beyond_tile_px_as_torch_does(tmp_path: Path) -> None:
    generator = Normed().eval()
    made = exported(generator, tmp_path)
    frame = dead_leaves(151, 97, np.random.default_rng(3))
    frame[100:] //= 4  # a tile would see another mean
    with open_engine("openvino", str(made.path), EngineOptions(precision="f32", tile_px=64)) as engine:
        plan = TilePlan.for_frame(151, 97, stride=2, limit=engine.spec.tile, overlap=engine.spec.overlap_px)
        with engine.submit(plan.split(frame)).result() as result:
            restored = plan.merge(result.frames)
    mirrored = np.pad(frame, ((0, 1), (0, 1), (0, 0)), mode="reflect")
    with torch.no_grad():
        expected = FrameNet(generator)(torch.from_numpy(mirrored)[None]).numpy()[0, :151, :97]
    assert psnr(expected, restored) > 60
    with torch.no_grad():
        upper = FrameNet(generator)(torch.from_numpy(mirrored[:64])[None]).numpy()[0, :48]
    assert psnr(expected[:48], upper[:, :97]) < 40  # it does matter that the frame came whole


def test_pictures_smaller_than_a_stride_prove_and_measure_too(tmp_path: Path) -> None:
    generator = Plain()
    generator.stride = 128
    faces = tuple(scenes.write_scenes(tmp_path / "faces", 2, side=64))
    made = exported(generator, tmp_path / "out", faces)
    assert made.proofs[0].frames == 2 * len(PROOF_CASES)
    assert made.manifest.training["measured"] == 2


def test_the_graph_casts_at_its_ends_and_nothing_else_touches_uint8(checkpoint: Path, tmp_path: Path) -> None:
    export(checkpoint, tmp_path)
    graph = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "small.onnx"), strict_mode=True).graph
    values = [*graph.value_info, *graph.input, *graph.output]
    bytes_ = {value.name for value in values if value.type.tensor_type.elem_type == onnx.TensorProto.UINT8}
    assert bytes_ == {"frames", "restored"}
    assert {node.op_type for node in graph.node if bytes_ & {*node.input, *node.output}} == {"Cast"}
    free = [[dimension.dim_param for dimension in value.type.tensor_type.shape.dim] for value in graph.input]
    assert free == [["N", "H", "W", ""]]


def test_a_manifest_states_what_the_checkpoint_was(checkpoint: Path, tmp_path: Path) -> None:
    export(checkpoint, tmp_path, licence="CC0-1.0")
    manifest = load_model(str(tmp_path / "small.json")).manifest
    assert (manifest.id, manifest.stride, manifest.licence) == ("small", 8, "CC0-1.0")
    assert manifest.overlap_px % manifest.stride == 0
    assert manifest.architecture == NETWORK.model_dump(mode="json")
    assert manifest.precisions[0] == "f32"
    assert not manifest.whole_frame
    assert manifest.training["origins"] == ["drawn"]
    assert manifest.training["steps"] == 0
    assert manifest.gain_db == {}


def test_pictures_measure_the_gain_that_the_manifest_states(checkpoint: Path, tmp_path: Path) -> None:
    pictures = scenes.write_scenes(tmp_path / "drawn", 2, side=256)
    manifest = export(checkpoint, tmp_path / "out", pictures=tuple(pictures)).manifest
    assert list(manifest.gain_db) == list(CASES)
    assert manifest.gain_db["gaussian 1.6"] < 0  # random weights restore nothing, and the manifest says so
    assert manifest.training["measured"] == 2


def test_an_export_replaces_the_one_before(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(checkpoint, out)
    tamper(checkpoint, tail__bias=torch.full((48,), 0.01))
    second = export(checkpoint, out)
    assert load_model(str(out / "small.json")).manifest == second.manifest
    names = ["small.check.npz", "small.f16.onnx", "small.json", "small.onnx"]
    assert sorted(path.name for path in out.iterdir()) == names
    export(checkpoint, out, "openvino")
    assert sorted(path.name for path in out.iterdir()) == [name for name in names if "f16" not in name]


def test_weights_of_another_shape_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    tamper(checkpoint, head__bias=torch.zeros(3))
    assert "not those of the network it names" in refusal(checkpoint, tmp_path / "out")


def test_a_foreign_tensor_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    tamper(checkpoint, attention__weight=torch.zeros(3))
    assert "not those of the network it names" in refusal(checkpoint, tmp_path / "out")


def test_weights_that_are_not_finite_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    tamper(checkpoint, tail__bias=torch.full((48,), float("nan")))
    assert "weights must be finite, tail.bias is not" in refusal(checkpoint, tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"recipe": "paint"}, "recipe must be one of restore, "),
        ({"config": {"network": {"widths": [8]}}}, "the configuration is not one of the recipe 'restore'"),
        ({"config": {}}, "the configuration is not one of the recipe 'restore'"),
        ({"config": None}, "'config' must be a table, got None"),
        ({"step": "many"}, "'step' must be a whole number from 0, got 'many'"),
        ({"format": 7}, "format must be 1, got 7"),
    ],
)
def test_a_checkpoint_that_is_not_ours_is_refused(
    checkpoint: Path, tmp_path: Path, changes: dict[str, object], rule: str
) -> None:
    file = checkpoint / "checkpoint.json"
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **changes}), encoding="utf-8")
    assert rule in refusal(checkpoint, tmp_path / "out")


def test_an_engine_that_strays_from_its_checkpoint_is_refused(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph of other weights stands in for an exporter or an engine that computes something else."""
    tamper(checkpoint, tail__bias=torch.full((48,), 0.02))
    strayed = package.to_onnx(load_generator(find(checkpoint)))
    tamper(checkpoint, tail__bias=torch.zeros(48))
    monkeypatch.setattr(package, "to_onnx", lambda *_: strayed)
    line = refusal(checkpoint, tmp_path / "out")
    assert line.startswith("small: in f32 the engine must be within 60 dB of its checkpoint, got 3")
    assert "greatest error 5 levels" in line or "greatest error 6 levels" in line


def test_a_full_disk_leaves_nothing(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    assert "No space left on device" in refusal(checkpoint, tmp_path / "out")


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden"])
def test_a_name_that_is_a_path_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ExportError, match="plain file name"):
        Order(tmp_path / "out", name)
