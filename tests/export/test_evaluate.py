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
from export import commands_measure, compare, evaluate, report
from export.blur import CASES
from export.errors import ExportError
from export.metrics import CEILING_DB, psnr
from export.pictures import read_picture

TINT = 4.02
"""From grey 128 to (138, 128, 128) in a*b*, by the formulas of CIELAB: (3.78, 1.36)."""

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


def rows(engine: Engine, pictures: list[Path], size: int | None = 48) -> dict[str, report.Row]:
    return {row.name: row for row in report.by_blur(evaluate.evaluate_model(engine, pictures, cases=SOME, size=size))}


def test_an_engine_that_changes_nothing_gains_nothing(pictures: list[Path], tmp_path: Path) -> None:
    with opened("identity", tmp_path) as identity:
        found = rows(identity, pictures)
    for row in found.values():
        assert row.restored_db == row.blurred_db
        assert row.ssim_gain == 0
        assert row.scores == 3
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
    assert rows(engine, [odd], size=None)["sharp"].scores == 1


def test_pictures_smaller_than_the_crop_are_measured_whole(engine: Engine, pictures: list[Path]) -> None:
    assert evaluate.evaluate_model(engine, pictures) == evaluate.evaluate_model(engine, pictures, size=None)


def test_a_picture_too_small_for_ssim_is_refused(engine: Engine, tmp_path: Path) -> None:
    tiny = write(tmp_path / "tiny.png", np.zeros((20, 10, 3), np.uint8))
    with pytest.raises(ExportError, match=r"tiny.png: pictures must be at least 11 px on each side, got 10x20"):
        evaluate.evaluate_model(engine, [tiny], size=None)


def test_cases_of_a_caller_are_measured_on_small_pictures(tmp_path: Path) -> None:
    faces = scenes.write_scenes(tmp_path / "faces", 2, side=64)
    darker = {"darker": lambda picture, _: picture // 2}
    with opened("identity", tmp_path) as identity:
        found = evaluate.evaluate_model(identity, faces, cases=darker, size=None)
    for score, path in zip(found, faces, strict=True):
        sharp = read_picture(path)
        assert (score.folder, score.name, score.case) == ("faces", path.name, "darker")
        assert score.blurred_db == psnr(sharp, sharp // 2)


def test_a_tint_is_measured_as_a_shift_of_colour(tmp_path: Path) -> None:
    flat = write(tmp_path / "flat.png", np.full((32, 32, 3), 128, np.uint8))
    reddish = {"reddish": lambda picture, _: picture + np.array([10, 0, 0], np.uint8)}
    with opened("identity", tmp_path) as identity:
        (tinted,) = evaluate.evaluate_model(identity, [flat], cases=reddish, size=None)
        (sharp,) = evaluate.evaluate_model(identity, [flat], cases={"sharp": CASES["sharp"]}, size=None)
    assert tinted.colour_shift == pytest.approx(TINT, abs=0.01)
    assert sharp.colour_shift == 0


def test_grey_and_low_light_are_what_the_model_sees(engine: Engine, pictures: list[Path]) -> None:
    for views in (("grey",), ("low light",), ("grey", "low light")):
        (seen,) = evaluate.restored_triples(engine, pictures[:1], cases=SOME, size=48, views=views)
        truth = read_picture(pictures[0])[21:69, 21:69].astype(float)
        if "grey" in views:
            truth = np.repeat((truth @ [0.299, 0.587, 0.114])[..., None], 3, axis=2)
        if "low light" in views:
            truth = truth / 4
        np.testing.assert_allclose(seen.sharp, truth, atol=0.76)
        np.testing.assert_array_equal(seen.restored, models.brightened(seen.blurred))
        score, *_ = evaluate.evaluate_model(engine, pictures[:1], cases=SOME, size=48, views=views)
        assert score.blurred_db == psnr(seen.sharp, seen.blurred)


def test_a_motion_is_the_same_in_grey_as_in_colour(engine: Engine, pictures: list[Path]) -> None:
    """Blurring and turning grey can be exchanged, to rounding, only if the random path is the same."""
    motion = {"motion 9": CASES["motion 9"]}
    (plain,) = evaluate.restored_triples(engine, pictures[:1], cases=motion, size=48)
    (seen,) = evaluate.restored_triples(engine, pictures[:1], cases=motion, size=48, views=("grey",))
    assert np.abs(evaluate.grey(plain.blurred).astype(int) - seen.blurred).max() <= 2


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


def score(folder: str, name: str, case: str, *figures: float) -> evaluate.Score:
    return evaluate.Score(folder, name, case, *figures)


BY_HAND = (
    score("street", "a", "motion", 20, 23, 0.5, 0.7, 0.1),
    score("street", "a", "sharp", 100, 60, 1, 0.99, 0.2),
    score("street", "b", "motion", 24, 23, 0.6, 0.6, 0.3),
    score("street", "b", "sharp", 100, 40, 1, 0.97, 0.4),
    score("office", "a", "motion", 30, 34, 0.8, 0.9, 1.1),
    score("office", "a", "sharp", 100, 50, 1, 0.95, 0.0),
)


def test_blurs_are_summed_up_over_all_folders() -> None:
    motion, sharp = report.by_blur(BY_HAND)
    assert (motion.name, motion.scores, sharp.name, sharp.scores) == ("motion", 3, "sharp", 3)
    assert (motion.blurred_db, motion.restored_db) == pytest.approx((74 / 3, 80 / 3))
    assert motion.score_db == pytest.approx(2)
    assert (motion.ssim, motion.ssim_gain) == pytest.approx((2.2 / 3, 0.3 / 3))
    assert motion.colour_shift == pytest.approx(0.5)
    assert (motion.worst, motion.worst_db) == ("street/b", -1)
    assert (sharp.score_db, sharp.worst, sharp.worst_db) == (50, "street/b", 40)
    assert report.gains(BY_HAND) == {"motion": 2, "sharp": 50}


def test_folders_are_summed_up_over_all_blurs_but_sharp() -> None:
    street, office = report.by_folder(BY_HAND)
    assert (street.name, street.scores, office.name, office.scores) == ("street", 2, "office", 1)
    assert (street.score_db, office.score_db) == (1, 4)
    assert (street.worst, street.worst_case, street.worst_db) == ("street/b", "motion", -1)
    assert report.by_folder(BY_HAND[1:2])[0].score_db == 60  # nothing but sharp was measured


def test_json_holds_blurs_folders_the_blurs_of_each_folder_and_every_picture() -> None:
    found = json.loads(json.dumps(report.to_json(BY_HAND), allow_nan=False))
    assert [row["name"] for row in found["blurs"]] == ["motion", "sharp"]
    street, office = found["folders"]
    assert street["score_db"] == 1
    assert [(row["name"], row["scores"], row["score_db"]) for row in street["blurs"]] == [
        ("motion", 2, 1),
        ("sharp", 2, 50),
    ]
    assert [row["score_db"] for row in office["blurs"]] == [4, 50]
    assert [(picture["folder"], picture["case"]) for picture in found["pictures"]] == [
        (score.folder, score.case) for score in BY_HAND
    ]


def test_folders_are_shown_where_there_are_several() -> None:
    def text(scores: tuple[evaluate.Score, ...]) -> str:
        console = Console(width=200, file=io.StringIO())
        with console.capture() as capture:
            console.print(report.tables(scores))
        return capture.get()

    both = text(BY_HAND)
    assert "office" in both
    assert "b, motion" in both
    assert "folder" not in text(BY_HAND[:4])


def test_a_choice_of_blurs_is_measured_and_shown(
    engine: Engine, pictures: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    choice = commands_measure.Choice(blurs=("motion 9", "sharp"), grey=True)
    sheet = tmp_path / "sheet.png"
    commands_measure.evaluate_model(
        engine, [pictures[0].parent], everything=True, sheet=sheet, as_json=True, choice=choice
    )
    found = json.loads(capsys.readouterr().out)
    assert (found["model"], found["views"]) == ("tiny", ["grey"])
    assert [row["name"] for row in found["blurs"]] == ["motion 9", "sharp"]
    shown = read_picture(sheet)
    np.testing.assert_array_equal(shown[..., 0], shown[..., 1])


def test_an_unknown_blur_is_refused_with_those_there_are(engine: Engine, pictures: list[Path]) -> None:
    with pytest.raises(ExportError, match=r"^blur must be one of gaussian 1.6, .*, got 'fog'$"):
        commands_measure.evaluate_model(
            engine,
            [pictures[0].parent],
            everything=True,
            sheet=None,
            as_json=True,
            choice=commands_measure.Choice(blurs=("fog",)),
        )


def test_scores_render_as_a_table_and_as_json(engine: Engine, pictures: list[Path]) -> None:
    found = evaluate.evaluate_model(engine, pictures, cases=SOME, size=48)
    console = Console(width=200, file=io.StringIO())
    with console.capture() as capture:
        console.print(report.tables(found))
    text = capture.get()
    assert all(case in text for case in SOME)
    assert [row["name"] for row in json.loads(json.dumps(report.to_json(found), allow_nan=False))["blurs"]] == list(
        SOME
    )


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
