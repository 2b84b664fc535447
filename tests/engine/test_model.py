"""Model files: what is read, and what is refused with one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import models
import pytest

from engine.errors import EngineError, ModelError
from engine.model import WHOLE_FRAME_PX, Manifest, find_manifest, load_model, shipped_models
from engine.openvino.engine import OpenVinoEngine
from engine.protocol import EngineOptions


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return models.write_model(tmp_path, models.brighten_onnx())


def edit(manifest: Path, **changes: Any) -> str:
    facts = json.loads(manifest.read_text(encoding="utf-8"))
    manifest.write_text(json.dumps({**facts, **changes}), encoding="utf-8")
    return str(manifest)


def refusal(name: str) -> str:
    """The one line with which a model is refused, at load or when an engine opens it."""
    with pytest.raises(ModelError) as caught:
        OpenVinoEngine(load_model(name), EngineOptions())
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_a_model_is_found_by_its_manifest_or_by_its_onnx_file(manifest: Path) -> None:
    assert load_model(str(manifest)) == load_model(str(manifest.with_suffix(".onnx")))


def test_every_shipped_model_loads() -> None:
    assert [load_model(name).manifest.id for name in shipped_models()] == shipped_models()


def test_an_unknown_name_is_refused_with_the_names_there_are() -> None:
    line = refusal("no-such-model")
    assert "'no-such-model'" in line
    assert all(name in line for name in shipped_models())


def test_a_path_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    assert "no such model file" in refusal(str(tmp_path / "absent.json"))
    assert "no such model file" in refusal(str(tmp_path / "absent.onnx"))


def test_an_onnx_file_without_a_manifest_is_refused(manifest: Path) -> None:
    manifest.unlink()
    assert "needs its manifest tiny.json" in refusal(str(manifest.with_suffix(".onnx")))


def test_a_manifest_without_its_onnx_file_is_refused(manifest: Path) -> None:
    manifest.with_suffix(".onnx").unlink()
    assert "tiny.onnx: not readable" in refusal(str(manifest))


def test_a_changed_onnx_file_is_refused(manifest: Path) -> None:
    onnx = manifest.with_suffix(".onnx")
    onnx.write_bytes(onnx.read_bytes() + b"\0")
    assert "sha256" in refusal(str(manifest))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"fast"', "\ud800".encode("utf-8", "surrogatepass").hex()])
def test_a_file_that_is_no_manifest_is_refused(manifest: Path, text: str) -> None:
    manifest.write_text(text, encoding="utf-8")
    assert "not a model manifest" in refusal(str(manifest))


def test_bytes_that_are_no_text_are_refused(manifest: Path) -> None:
    manifest.write_bytes(b"\xff\xfe\x00")
    assert "not a model manifest" in refusal(str(manifest))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"format": 2}, "format"),
        ({"colour_space": "linear"}, "colour_space"),
        ({"stride": 0}, "stride"),
        ({"sha256": "abc"}, "sha256"),
        ({"layout": "NCHW"}, "layout"),
    ],
)
def test_a_manifest_of_another_format_is_refused_by_the_key(
    manifest: Path, changes: dict[str, Any], named: str
) -> None:
    assert f"({named}:" in refusal(edit(manifest, **changes))


@pytest.mark.parametrize("file", ["../tiny.onnx", "/etc/hostname", "sub/tiny.onnx", "..", "."])
def test_a_manifest_may_name_no_file_outside_its_folder(manifest: Path, file: str) -> None:
    line = refusal(edit(manifest, file=file))
    assert "'file' must be a name" in line or "not readable" in line


def test_a_folder_is_not_read_as_an_onnx_file(manifest: Path) -> None:
    (manifest.parent / "sub").mkdir()
    assert "not readable" in refusal(edit(manifest, file="sub"))


@pytest.mark.parametrize("onnx", [b"", b"not a graph at all", b"\x08\x09\x12\x07pytorch"])
def test_bytes_that_are_no_graph_are_refused(tmp_path: Path, onnx: bytes) -> None:
    assert "tiny.onnx" in refusal(str(models.write_model(tmp_path, onnx)))


def test_a_truncated_graph_is_refused(tmp_path: Path) -> None:
    whole = models.brighten_onnx()
    assert "tiny.onnx" in refusal(str(models.write_model(tmp_path, whole[: len(whole) // 2])))


def test_a_graph_with_other_tensors_is_refused_by_their_names(tmp_path: Path) -> None:
    foreign = models.brighten_onnx().replace(b"restored", b"repaired")
    line = refusal(str(models.write_model(tmp_path, foreign)))
    assert "must take frames and give restored" in line
    assert "repaired" in line


def test_a_manifest_that_promises_a_history_needs_one_in_the_graph(tmp_path: Path) -> None:
    path = models.write_model(tmp_path, models.brighten_onnx(), states=(models.STATE,))
    assert "history" in refusal(str(path))


@pytest.mark.parametrize("name", shipped_models())
def test_a_manifest_that_names_no_precisions_allows_all_and_tiles(name: str) -> None:
    facts = json.loads(find_manifest(name).read_text(encoding="utf-8"))
    for newer in ("precisions", "whole_frame", "graphs", "check"):
        facts.pop(newer, None)
    manifest = Manifest.model_validate(facts)
    assert manifest.precisions == ("f32", "bf16")
    assert not manifest.whole_frame
    assert manifest.tile(2048) == (2048, 2048)


def test_a_model_proven_in_f32_alone_runs_in_nothing_else(manifest: Path) -> None:
    model = load_model(edit(manifest, precisions=["f32"]))
    for wanted in ("auto", "f32"):
        with OpenVinoEngine(model, EngineOptions(precision=wanted)) as engine:
            assert engine.spec.backend == "openvino/CPU f32"
    with pytest.raises(EngineError, match=r"^precision must be auto or f32 for model 'tiny', .* got 'bf16'$"):
        OpenVinoEngine(model, EngineOptions(precision="bf16"))


@pytest.mark.parametrize(("precisions", "rule"), [(["bf16"], "must hold f32"), ([], "must hold f32"), (["f8"], "f8")])
def test_a_manifest_that_allows_no_f32_or_something_unknown_is_refused(
    manifest: Path, precisions: list[str], rule: str
) -> None:
    line = refusal(edit(manifest, precisions=precisions))
    assert "precisions" in line
    assert rule in line or "'f32', 'bf16', 'f16' or 'int8'" in line


def test_a_tile_is_whole_strides_and_a_whole_frame_model_has_one_for_any_frame(manifest: Path) -> None:
    tiled = load_model(edit(manifest, stride=48)).manifest
    assert tiled.tile(100) == (96, 96)
    assert tiled.tile(10) == (48, 48)
    whole = load_model(edit(manifest, whole_frame=True)).manifest
    assert whole.tile(100) == (WHOLE_FRAME_PX // 48 * 48,) * 2


def test_an_unknown_precision_or_device_is_refused(manifest: Path) -> None:
    model = load_model(str(manifest))
    with pytest.raises(EngineError, match="precision must be auto, f32, bf16 or int8 on OpenVINO, got 'f64'"):
        OpenVinoEngine(model, EngineOptions(precision="f64"))
    with pytest.raises(EngineError, match=r"device must be auto or one of .*, got 'TPU'"):
        OpenVinoEngine(model, EngineOptions(device="TPU"))


def test_a_shipped_model_is_found_by_its_bare_name_only() -> None:
    with pytest.raises(ModelError):
        find_manifest("../engine/models/fast")
