"""The self-check on real engines: what computes something else than its checkpoint is refused before it serves."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import models
import numpy as np
import pytest
from numpy.typing import NDArray

from engine.backends import open_engine
from engine.errors import EngineError, ModelError
from engine.identity import IdentityEngine
from engine.model import PinnedFile, load_model
from engine.protocol import EngineOptions
from engine.selfcheck import self_check


def check_pair(folder: Path, **arrays: NDArray[np.generic]) -> PinnedFile:
    """Write `tiny.check.npz` beside a model."""
    data = io.BytesIO()
    np.savez_compressed(data, **arrays)
    return pinned(folder, data.getvalue())


def pinned(folder: Path, data: bytes) -> PinnedFile:
    (folder / "tiny.check.npz").write_bytes(data)
    return PinnedFile(file="tiny.check.npz", sha256=hashlib.sha256(data).hexdigest())


def noise(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)


def refusal(path: Path) -> str:
    with pytest.raises(EngineError) as caught:
        open_engine("openvino", str(path))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_engine_that_computes_what_its_checkpoint_does_is_opened(tmp_path: Path) -> None:
    blurred = noise(1, 32, 32)
    pair = check_pair(tmp_path, blurred=blurred, restored=models.brightened(blurred))
    open_engine("openvino", str(models.write_model(tmp_path, models.brighten_onnx(), check=pair))).close()


def test_an_engine_that_computes_something_else_is_refused_by_how_far_off_it_is(tmp_path: Path) -> None:
    blurred = noise(1, 32, 32)
    pair = check_pair(tmp_path, blurred=blurred, restored=blurred)  # the graph adds 10 levels: 28 dB
    line = refusal(models.write_model(tmp_path, models.brighten_onnx(), check=pair))
    assert line.startswith("openvino/CPU ")
    assert "'tiny'" in line
    assert "within 40 dB of the checkpoint, got 28." in line


def test_levels_are_checked_when_they_first_come(tmp_path: Path) -> None:
    blurred = noise(1, 32, 32)
    pair = check_pair(tmp_path, blurred=blurred, restored=models.brightened(blurred))
    model = load_model(str(models.write_model(tmp_path, models.brighten_onnx(), check=pair)))
    with open_engine("openvino", str(model.path)) as engine:
        self_check(engine, model, levels=True)
    with (
        IdentityEngine(model, EngineOptions()) as engine,
        pytest.raises(EngineError, match=r"within 40 dB .* got 28\."),
    ):
        self_check(engine, model, levels=True)


def test_an_engine_of_tiles_smaller_than_the_pair_is_still_checked_for_life(tmp_path: Path) -> None:
    pair = check_pair(tmp_path, blurred=noise(1, 64, 64), restored=noise(1, 64, 64))
    small = EngineOptions(tile_px=32)
    open_engine("openvino", str(models.write_model(tmp_path, models.brighten_onnx(), check=pair)), small).close()
    with pytest.raises(EngineError, match="all black"):
        open_engine("openvino", str(models.write_model(tmp_path, models.constant_onnx(0.0), check=pair)), small)


@pytest.mark.parametrize("with_pair", [True, False])
def test_an_engine_that_gives_black_is_refused_and_named_so(tmp_path: Path, *, with_pair: bool) -> None:
    blurred = noise(1, 32, 32)
    pair = check_pair(tmp_path, blurred=blurred, restored=blurred) if with_pair else None
    assert "all black" in refusal(models.write_model(tmp_path, models.constant_onnx(0.0), check=pair))


@pytest.mark.parametrize("with_pair", [True, False])
def test_an_engine_that_gives_nan_is_refused(tmp_path: Path, *, with_pair: bool) -> None:
    blurred = noise(1, 32, 32)
    pair = check_pair(tmp_path, blurred=blurred, restored=blurred) if with_pair else None
    assert "self-check" in refusal(models.write_model(tmp_path, models.constant_onnx(float("nan")), check=pair))


def test_the_history_is_part_of_the_check(tmp_path: Path) -> None:
    blurred = np.stack([np.full((8, 8, 3), level, np.uint8) for level in (40, 100)])
    remembered = blurred.copy()
    remembered[1] += 40 // 2
    model = models.echo_onnx()
    good = check_pair(tmp_path, blurred=blurred, restored=remembered)
    open_engine("openvino", str(models.write_model(tmp_path, model, states=(models.STATE,), check=good))).close()
    forgot = check_pair(tmp_path, blurred=blurred, restored=blurred)
    assert "(frame 2 of 2)" in refusal(models.write_model(tmp_path, model, states=(models.STATE,), check=forgot))


def test_auto_goes_on_to_the_next_engine_and_says_why_none_is_left(tmp_path: Path) -> None:
    path = models.write_model(tmp_path, models.constant_onnx(0.0))
    with pytest.raises(EngineError, match=r"^no engine works here: tensorrt: .*; torch: .*; openvino: .*all black"):
        open_engine("auto", str(path))


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"no archive", b"\x93NUMPY"])
def test_what_is_no_check_pair_is_refused_by_its_name(tmp_path: Path, data: bytes) -> None:
    path = models.write_model(tmp_path, models.brighten_onnx(), check=pinned(tmp_path, data))
    with pytest.raises(ModelError, match=r"tiny\.check\.npz: not a check pair"):
        open_engine("openvino", str(path))


@pytest.mark.parametrize(
    "arrays",
    [
        {"blurred": noise(1, 8, 8)},
        {"blurred": noise(1, 8, 8), "restored": noise(1, 8, 12)},
        {"blurred": noise(8, 8), "restored": noise(8, 8)},
        {"blurred": noise(1, 8, 8).astype(np.float32), "restored": noise(1, 8, 8)},
        {"blurred": noise(0, 8, 8), "restored": noise(0, 8, 8)},
    ],
)
def test_arrays_of_another_kind_are_no_check_pair(tmp_path: Path, arrays: dict[str, NDArray[np.generic]]) -> None:
    path = models.write_model(tmp_path, models.brighten_onnx(), check=check_pair(tmp_path, **arrays))
    with pytest.raises(ModelError, match=r"tiny\.check\.npz: .*check pair"):
        open_engine("openvino", str(path))


def test_a_damaged_check_pair_is_refused_by_its_hash(tmp_path: Path) -> None:
    pair = check_pair(tmp_path, blurred=noise(1, 8, 8), restored=noise(1, 8, 8))
    path = models.write_model(tmp_path, models.brighten_onnx(), check=pair)
    (tmp_path / "tiny.check.npz").write_bytes(b"else")
    with pytest.raises(ModelError, match=r"tiny\.check\.npz: sha256 must be"):
        open_engine("openvino", str(path))
