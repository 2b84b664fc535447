"""Export: the model computes what the checkpoint computes, or nothing is written."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import scenes

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("safetensors")

from safetensors.torch import load_file, save_file  # noqa: E402

from engine.backends import open_engine  # noqa: E402
from engine.model import load_model  # noqa: E402
from engine.protocol import EngineOptions  # noqa: E402
from export import package  # noqa: E402
from export.blur import CASES  # noqa: E402
from export.checkpoint import find  # noqa: E402
from export.errors import ExportError  # noqa: E402
from export.leaves import dead_leaves  # noqa: E402
from export.metrics import psnr  # noqa: E402
from export.networks.generator import FrameNet  # noqa: E402
from export.networks.restore import RestoreNetConfig  # noqa: E402
from export.package import export_model, load_network  # noqa: E402
from export.train import TrainConfig, Trainer  # noqa: E402

CONFIG = TrainConfig(network=RestoreNetConfig(unshuffle=4, widths=(16, 16), blocks=(1, 1)))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint whose network corrects by several levels."""
    trainer = Trainer(CONFIG, "cpu")
    torch.nn.init.normal_(trainer.average.tail.weight, std=0.02)
    return trainer.save(tmp_path / "run", {"origins": ["drawn"], "pictures": 4})


def tamper(checkpoint: Path, **changes: torch.Tensor) -> None:
    file = checkpoint / "weights.safetensors"
    save_file({**load_file(file), **{name.replace("__", "."): tensor for name, tensor in changes.items()}}, file)


def refusal(checkpoint: Path, output: Path) -> str:
    """The one line with which an export is refused, having left nothing."""
    with pytest.raises(ExportError) as caught:
        export_model(checkpoint, output, name="small")
    assert not output.exists() or not list(output.iterdir())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_exported_model_computes_what_the_checkpoint_computes(checkpoint: Path, tmp_path: Path) -> None:
    exported = export_model(checkpoint, tmp_path / "out", name="small")
    scene = CASES["gaussian 1.6"](dead_leaves(64, 96, np.random.default_rng(9)), np.random.default_rng(0))
    with torch.no_grad():
        expected = FrameNet(load_network(find(checkpoint)))(torch.from_numpy(scene)[None]).numpy()[0]
    assert psnr(scene, expected) < 45  # there is something to get right
    with (
        open_engine("openvino", str(exported.path), EngineOptions(precision="f32")) as engine,
        engine.submit(np.repeat(scene[None], 2, axis=0)).result() as result,
    ):
        for frame in result.frames:
            assert psnr(expected, frame) > 60


def test_a_run_exports_its_newest_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    of_run = export_model(checkpoint.parent, tmp_path / "out", name="small").manifest
    assert of_run == export_model(checkpoint, tmp_path / "again", name="small").manifest


def test_every_precision_that_runs_here_is_proven(checkpoint: Path, tmp_path: Path) -> None:
    proofs = export_model(checkpoint, tmp_path, name="small").proofs
    assert [proof.precision for proof in proofs][:1] == ["f32"]
    for proof in proofs:
        assert proof.psnr_db >= package.TOLERANCE_DB[proof.precision]


def test_the_graph_casts_at_its_ends_and_nothing_else_touches_uint8(checkpoint: Path, tmp_path: Path) -> None:
    export_model(checkpoint, tmp_path, name="small")
    graph = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "small.onnx"), strict_mode=True).graph
    values = [*graph.value_info, *graph.input, *graph.output]
    bytes_ = {value.name for value in values if value.type.tensor_type.elem_type == onnx.TensorProto.UINT8}
    assert bytes_ == {"frames", "restored"}
    assert {node.op_type for node in graph.node if bytes_ & {*node.input, *node.output}} == {"Cast"}
    free = [[dimension.dim_param for dimension in value.type.tensor_type.shape.dim] for value in graph.input]
    assert free == [["N", "H", "W", ""]]


def test_a_manifest_states_what_the_checkpoint_was(checkpoint: Path, tmp_path: Path) -> None:
    export_model(checkpoint, tmp_path, name="small", licence="CC0-1.0")
    manifest = load_model(str(tmp_path / "small.json")).manifest
    assert (manifest.id, manifest.stride, manifest.licence) == ("small", 8, "CC0-1.0")
    assert manifest.overlap_px % manifest.stride == 0
    assert manifest.architecture == CONFIG.network.model_dump(mode="json")
    assert manifest.training["origins"] == ["drawn"]
    assert manifest.training["steps"] == 0
    assert manifest.gain_db == {}


def test_pictures_measure_the_gain_that_the_manifest_states(checkpoint: Path, tmp_path: Path) -> None:
    pictures = scenes.write_scenes(tmp_path / "drawn", 2, side=256)
    manifest = export_model(checkpoint, tmp_path / "out", name="small", pictures=pictures).manifest
    assert list(manifest.gain_db) == list(CASES)
    assert manifest.gain_db["gaussian 1.6"] < 0  # random weights restore nothing, and the manifest says so
    assert manifest.training["measured"] == 2


def test_an_export_replaces_the_one_before(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_model(checkpoint, out, name="small")
    tamper(checkpoint, tail__bias=torch.full((48,), 0.01))
    second = export_model(checkpoint, out, name="small")
    assert load_model(str(out / "small.json")).manifest == second.manifest
    assert sorted(path.name for path in out.iterdir()) == ["small.json", "small.onnx"]


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
        ({"recipe": "paint"}, "recipe must be 'restore', got 'paint'"),
        ({"config": {"network": {"widths": [8]}}}, "not one of a restore network"),
        ({"config": {}}, "not one of a restore network"),
        ({"config": None}, "not one of a restore network"),
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
    strayed = package.to_onnx(load_network(find(checkpoint)))
    tamper(checkpoint, tail__bias=torch.zeros(48))
    monkeypatch.setattr(package, "to_onnx", lambda _: strayed)
    line = refusal(checkpoint, tmp_path / "out")
    assert line.startswith("small: in f32 the engine must be within 60 dB of its checkpoint, got 3")
    assert "greatest error 5 levels" in line or "greatest error 6 levels" in line


def test_a_full_disk_leaves_nothing(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    assert "No space left on device" in refusal(checkpoint, tmp_path / "out")


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden"])
def test_a_name_that_is_a_path_is_refused(checkpoint: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ExportError, match="plain file name"):
        export_model(checkpoint, tmp_path / "out", name=name)
