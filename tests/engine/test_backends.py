"""Choosing a back-end by name."""

from __future__ import annotations

from pathlib import Path

import models
import pytest

from engine import backends
from engine.backends import BACKENDS, open_engine
from engine.errors import EngineError
from engine.openvino.engine import OpenVinoEngine
from engine.protocol import Build, EngineOptions


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(models.write_model(tmp_path, models.brighten_onnx()))


def test_auto_opens_one_that_restores(model: str) -> None:
    with open_engine("auto", model) as engine:
        assert engine.spec.backend.startswith("openvino/CPU ")
        assert engine.spec.model == "tiny"


def test_auto_says_what_serves_and_why_no_other_does_each_reason_once(
    model: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "why_no_gpu", lambda: "no NVIDIA driver")
    caplog.set_level("INFO", "engine")
    open_engine("auto", model, EngineOptions(precision="f32")).close()
    assert caplog.messages == ["engine openvino/CPU f32 (not tensorrt, torch: no NVIDIA driver)"]


@pytest.mark.parametrize("build", ["background", "wait"])
def test_an_engine_that_needs_no_build_is_opened_as_it_is(model: str, build: Build) -> None:
    with open_engine("openvino", model, EngineOptions(build=build)) as engine:
        assert isinstance(engine, OpenVinoEngine)


def test_an_unknown_name_is_refused_with_the_names_there_are(model: str) -> None:
    with pytest.raises(EngineError, match=f"engine must be one of auto, {', '.join(BACKENDS)}, got 'onnx'"):
        open_engine("onnx", model)


def test_a_back_end_whose_package_is_missing_is_refused_by_the_package(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(backends.BACKENDS, "absent", "no_such_package.engine:Engine")
    with pytest.raises(EngineError, match=r"needs a package that is not installed .no_such_package."):
        open_engine("absent", model)
