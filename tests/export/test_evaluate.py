"""Evaluation and comparison: figures that can be worked out by hand, repeatable, and honest about sharp input."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import cv2
import models
import numpy as np
import pytest
import scenes
from numpy.typing import NDArray
from rich.console import Console

from engine.backends import open_engine
from engine.protocol import Engine, EngineOptions
from export import compare, evaluate
from export.blur import CASES
from export.errors import ExportError
from export.metrics import CEILING_DB
from export.pictures import read_picture

SOME = {name: CASES[name] for name in ("gaussian 1.6", "motion 9", "sharp")}


@contextmanager
def opened(backend: str, folder: Path) -> Iterator[Engine]:
    """The brightening model on `openvino`, or nothing at all on `identity`."""
    path = models.write_model(folder, models.brighten_onnx())
    with open_engine(backend, str(path), EngineOptions(precision="f32")) as engine:
        yield engine


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with opened("openvino", tmp_path) as engine:
        yield engine


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    return scenes.write_scenes(tmp_path / "drawn", 3, side=90)


def write(path: Path, picture: NDArray[np.uint8]) -> Path:
    cv2.imwrite(str(path), picture[..., ::-1])
    return path


def rows(engine: Engine, pictures: list[Path], size: int | None = 48) -> dict[str, evaluate.CaseRow]:
    return {row.case: row for row in evaluate.evaluate_model(engine, pictures, cases=SOME, size=size)}


def test_an_engine_that_changes_nothing_gains_nothing(pictures: list[Path], tmp_path: Path) -> None:
    with opened("identity", tmp_path) as identity:
        found = rows(identity, pictures)
    for row in found.values():
        assert row.restored_db == row.blurred_db
        assert row.ssim_gain == 0
        assert row.pictures == 3
    assert found["sharp"].score_db == CEILING_DB


def test_an_engine_that_harms_is_seen_to_harm(engine: Engine, pictures: list[Path]) -> None:
    found = rows(engine, pictures)
    assert found["gaussian 1.6"].score_db < 0
    # Ten levels everywhere, less where the picture was near white.
    assert found["sharp"].score_db == pytest.approx(28.13, abs=0.5)


def test_an_evaluation_repeats_whatever_the_order(engine: Engine, pictures: list[Path]) -> None:
    there, back = rows(engine, pictures), rows(engine, pictures[::-1])
    for case, row in there.items():
        assert row.blurred_db == pytest.approx(back[case].blurred_db)
        assert row.worst == back[case].worst


def test_pictures_of_any_size_are_measured_whole(engine: Engine, tmp_path: Path) -> None:
    odd = write(tmp_path / "odd.png", read_picture(scenes.write_scenes(tmp_path, 1, side=64)[0])[:53, :37])
    assert rows(engine, [odd], size=None)["sharp"].pictures == 1


def test_a_picture_smaller_than_the_crop_is_refused(engine: Engine, pictures: list[Path]) -> None:
    with pytest.raises(ExportError, match="at least 256 px on each side, got 90x90"):
        evaluate.evaluate_model(engine, pictures)


def test_the_worst_picture_is_named(engine: Engine, tmp_path: Path) -> None:
    flat = write(tmp_path / "flat.png", np.full((64, 64, 3), 100, np.uint8))
    white = write(tmp_path / "white.png", np.full((64, 64, 3), 255, np.uint8))
    sharp = rows(engine, [flat, white])["sharp"]
    assert sharp.worst == f"{tmp_path.name}/flat.png"
    assert sharp.worst_db == pytest.approx(28.13, abs=0.01)
    assert sharp.restored_db == pytest.approx((28.13 + CEILING_DB) / 2, abs=0.01)


def test_the_development_split_is_chosen_where_it_is(tmp_path: Path) -> None:
    scenes.write_scenes(tmp_path / "other", 2, side=32)
    (tmp_path / "brighton-drone").mkdir()
    held = write(tmp_path / "brighton-drone" / "DJI_0020.webp", np.zeros((32, 32, 3), np.uint8))
    assert evaluate.development_pictures([tmp_path]) == [held]
    assert len(evaluate.development_pictures([tmp_path / "other"])) == 2


def test_no_pictures_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no picture found"):
        evaluate.development_pictures([tmp_path])


def test_a_sheet_shows_sharp_blurred_and_restored(engine: Engine, pictures: list[Path], tmp_path: Path) -> None:
    evaluate.sheet(tmp_path / "sheet.png", engine, pictures[:2], size=48)
    sheet = read_picture(tmp_path / "sheet.png")
    assert sheet.shape == (2 * 48, 3 * 48, 3)
    np.testing.assert_array_equal(sheet[:48, :48], read_picture(pictures[0])[21:69, 21:69])


def test_a_sheet_of_an_unknown_case_is_refused(engine: Engine, pictures: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"case must be one of .*, got 'fog'"):
        evaluate.sheet(tmp_path / "sheet.png", engine, pictures, case="fog")


def test_rows_render_as_a_table_and_as_json(engine: Engine, pictures: list[Path]) -> None:
    found = evaluate.evaluate_model(engine, pictures, cases=SOME, size=48)
    console = Console(width=200, file=io.StringIO())
    with console.capture() as capture:
        console.print(evaluate.table(found))
    text = capture.get()
    assert all(case in text for case in SOME)
    assert [row["case"] for row in json.loads(json.dumps(evaluate.to_json(found), allow_nan=False))] == list(SOME)
    assert evaluate.gains(found) == {row.case: round(row.score_db, 2) for row in found}


def write_clip(path: Path, frames: list[NDArray[np.uint8]]) -> Path:
    """A clip that holds its frames exactly."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=Fraction(25))
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "bgr0"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="bgr0")))
        container.mux(stream.encode())
    return path


GREY = [np.full((32, 48, 3), level, np.uint8) for level in (50, 100, 150)]


def test_two_pictures_are_compared(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.png", GREY[0]), write(tmp_path / "b.png", GREY[0] + 10)
    (row,) = compare.compare(a, b)
    assert (row.name, row.frames) == ("b.png", 1)
    assert row.psnr_db == pytest.approx(28.13, abs=0.01)


def test_two_clips_are_compared_frame_by_frame(tmp_path: Path) -> None:
    truth = write_clip(tmp_path / "truth.mkv", GREY)
    restored = write_clip(tmp_path / "restored.mkv", [GREY[0], GREY[1] + 1, GREY[2] + 10])
    (row,) = compare.compare(truth, restored)
    assert row.frames == 3
    assert row.psnr_db == pytest.approx((CEILING_DB + 48.13 + 28.13) / 3, abs=0.01)
    assert row.worst_db == pytest.approx(28.13, abs=0.01)


def test_folders_are_compared_by_name_whatever_the_suffix(tmp_path: Path) -> None:
    for folder, suffix, names in (("truth", "png", "abc"), ("restored", "bmp", "ca")):
        (tmp_path / folder).mkdir()
        for name in names:
            write(tmp_path / folder / f"{name}.{suffix}", GREY[0])
    found = compare.compare(tmp_path / "truth", tmp_path / "restored")
    assert [row.name for row in found] == ["a.bmp", "c.bmp"]
    assert [row["psnr_db"] for row in compare.to_json(found)] == [CEILING_DB] * 2
    assert compare.table(found).row_count == 3


def test_a_clip_that_lost_a_frame_is_refused(tmp_path: Path) -> None:
    truth, restored = write_clip(tmp_path / "truth.mkv", GREY), write_clip(tmp_path / "restored.mkv", GREY[:2])
    with pytest.raises(ExportError, match=r"as many frames as its original, but .*restored.mkv ends before"):
        compare.compare(truth, restored)


def test_a_picture_of_another_size_is_refused(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.png", GREY[0]), write(tmp_path / "b.png", GREY[0][:16])
    with pytest.raises(ExportError, match="must be 48x32 like its original, got 48x16"):
        compare.compare(a, b)


def test_a_file_without_an_original_is_refused(tmp_path: Path) -> None:
    for folder, name in (("truth", "a"), ("restored", "b")):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / f"{name}.png", GREY[0])
    with pytest.raises(ExportError, match="has no original named 'b'"):
        compare.compare(tmp_path / "truth", tmp_path / "restored")


@pytest.mark.parametrize("name", ["text.mp4", "text.png"])
def test_a_file_that_does_not_decode_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("no picture", encoding="utf-8")
    with pytest.raises(ExportError, match=f"{name}: "):
        compare.compare(tmp_path / name, tmp_path / name)


def test_a_file_beside_a_folder_or_beside_nothing_is_refused(tmp_path: Path) -> None:
    picture = write(tmp_path / "a.png", GREY[0])
    with pytest.raises(ExportError, match="two files or two folders"):
        compare.compare(picture, tmp_path)
    with pytest.raises(ExportError, match="no such file or folder"):
        compare.compare(picture, tmp_path / "absent.png")
