"""`dataset prepare`: what is left out, where the rest goes, and that a set is whole or not there."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import clips
import cv2
import numpy as np
import pytest
import scenes

pytest.importorskip("imagehash")
pytest.importorskip("PIL")

from export.commands_dataset import prepare as command
from export.dataset import DatasetConfig, Report, prepare
from export.errors import ExportError
from export.pictures import is_grey, read_picture

REPOSITORY = Path(__file__).parents[2]
ALL_TO_TRAIN = DatasetConfig(split=(1, 0, 0))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twelve different pictures, 160 px, in two folders."""
    scenes.write_scenes(tmp_path / "data" / "one", 6, first_seed=0)
    scenes.write_scenes(tmp_path / "data" / "two", 6, first_seed=6)
    return tmp_path / "data"


def scene(data: Path, number: int = 0) -> np.ndarray:
    """One of the pictures, BGR."""
    picture = cv2.imread(str(data / "one" / f"scene{number:03d}.png"))
    assert picture is not None
    return picture


def reasons(report: Report) -> dict[str, str]:
    return {Path(drop.source).name: drop.reason for drop in report.dropped}


def files(out: Path) -> list[str]:
    return sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())


# What is left out.


def test_different_pictures_are_all_kept_as_they_are(data: Path, tmp_path: Path) -> None:
    report = prepare([data], tmp_path / "out", ALL_TO_TRAIN)
    assert report.counts() == {"found": 12, "corrupt": 0, "small": 0, "grey": 0, "duplicate": 0, "kept": 12}
    for name, source in report.kept.items():
        assert (tmp_path / "out" / name).read_bytes() == Path(source).read_bytes()


def test_a_damaged_file_is_left_out_by_name(data: Path, tmp_path: Path) -> None:
    (data / "one" / "torn.jpg").write_bytes(b"\xff\xd8\xff torn")
    (data / "one" / "torn.mp4").write_bytes(b"torn")
    report = prepare([data], tmp_path / "out", ALL_TO_TRAIN)
    assert reasons(report) == {"torn.jpg": "corrupt", "torn.mp4": "corrupt"}
    assert report.dropped[0].detail == "not a picture that decodes"
    assert report.counts()["found"] == 14


def test_small_pictures_are_left_out_and_none_is_enlarged(data: Path, tmp_path: Path) -> None:
    cv2.imwrite(str(data / "one" / "below.png"), scene(data)[:63, :90])
    cv2.imwrite(str(data / "one" / "just.png"), scene(data, 1)[:64, :90])
    assert reasons(prepare([data], tmp_path / "out", ALL_TO_TRAIN)) == {"below.png": "small"}
    larger = prepare([data], tmp_path / "larger", DatasetConfig(split=(1, 0, 0), size=65))
    assert reasons(larger) == {"below.png": "small", "just.png": "small"}
    assert larger.dropped[0].detail == "must be at least 65 px on each side, got 90x63"


def grey_variants(data: Path) -> dict[str, np.ndarray]:
    """One picture without colour, in the ways in which such pictures are met, BGR."""
    grey = cv2.resize(cv2.cvtColor(scene(data), cv2.COLOR_BGR2GRAY), (480, 480), interpolation=cv2.INTER_CUBIC)
    three = cv2.merge([grey, grey, grey])
    tone = np.array([0.6, 0.85, 1.0])
    rng = np.random.default_rng(0)
    noisy = np.clip(three + rng.normal(0, 6, three.shape), 0, 255).astype(np.uint8)
    return {
        "grey.png": grey,
        "in three channels.png": three,
        "jpeg with noise in its chroma.jpg": noisy,
        "sepia.jpg": (three * tone).astype(np.uint8),
        "small sepia.png": (three * tone).astype(np.uint8)[::3, ::3],
    }


def test_grey_pictures_are_left_out_however_they_are_stored(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "grey"
    folder.mkdir()
    for name, picture in grey_variants(data).items():
        cv2.imwrite(str(folder / name), picture, [cv2.IMWRITE_JPEG_QUALITY, 75] if name.endswith("jpg") else [])
        assert is_grey(read_picture(folder / name)), name
    report = prepare([data, folder], tmp_path / "out", ALL_TO_TRAIN)
    assert set(reasons(report).values()) == {"grey"}
    assert report.counts()["grey"] == 5


def test_infrared_cameras_keep_their_grey_pictures(data: Path, tmp_path: Path) -> None:
    for path in data.rglob("*.png"):
        cv2.imwrite(str(path), cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
    config = DatasetConfig(split=(1, 0, 0), keep_grey=True)
    assert prepare([data], tmp_path / "out", config).counts()["kept"] == 12


def test_pale_pictures_and_grey_ones_with_something_in_colour_are_not_grey(data: Path) -> None:
    colour = scene(data)[..., ::-1].astype(float)
    pale = (0.85 * colour.mean(axis=2, keepdims=True) + 0.15 * colour).astype(np.uint8)
    assert not is_grey(pale)
    lamp = np.repeat(cv2.cvtColor(scene(data), cv2.COLOR_BGR2GRAY)[..., None], 3, axis=2)
    lamp[20:50, 20:50] = (200, 30, 30)
    assert not is_grey(lamp)


def test_copies_are_left_out_also_re_encoded_scaled_or_brighter(data: Path, tmp_path: Path) -> None:
    original = scene(data)
    half = cv2.resize(original, (80, 80), interpolation=cv2.INTER_AREA)
    copies = data / "zcopies"  # behind the originals, in the order of names
    copies.mkdir()
    (copies / "same.png").write_bytes((data / "one" / "scene000.png").read_bytes())
    for quality in (20, 50, 90):
        cv2.imwrite(str(copies / f"quality {quality}.jpg"), original, [cv2.IMWRITE_JPEG_QUALITY, quality])
    cv2.imwrite(str(copies / "half.jpg"), half, [cv2.IMWRITE_JPEG_QUALITY, 80])
    cv2.imwrite(str(copies / "twice.png"), cv2.resize(original, (320, 320), interpolation=cv2.INTER_CUBIC))
    cv2.imwrite(str(copies / "brighter.png"), np.clip(original * 1.1 + 6, 0, 255).astype(np.uint8))
    report = prepare([data], tmp_path / "out", ALL_TO_TRAIN)
    assert reasons(report) == {path.name: "duplicate" for path in copies.iterdir()}
    assert all("one/scene000.png" in drop.detail for drop in report.dropped)


def test_frames_of_a_video_are_pictures_of_the_folder_that_it_lies_in(data: Path, tmp_path: Path) -> None:
    video = clips.write_video(data / "one" / "clip.mp4", count=24, width=160, height=120, pix_fmt="yuv444p")
    report = prepare([data], tmp_path / "out", DatasetConfig(split=(1, 0, 0), frames_per_video=4))
    frames = [name for name in report.kept if "clip" in name]
    assert 1 <= len(frames) <= 4
    assert report.counts()["found"] == 16
    first = read_picture(tmp_path / "out" / "train" / "one" / "clip-001.png")
    assert np.abs(first.astype(int) - clips.smooth(3, 160, 120)).max() <= 4
    assert report.kept["train/one/clip-001.png"] == f"{video}#1"


# Where the rest goes.


def test_a_size_takes_the_centre_square_by_area(data: Path, tmp_path: Path) -> None:
    wide = np.zeros((128, 200, 3), np.uint8)
    wide[:, 36:164] = scene(data)[:128, :128]
    cv2.imwrite(str(data / "one" / "wide.png"), wide)
    report = prepare([data], tmp_path / "out", DatasetConfig(split=(1, 0, 0), size=64))
    assert "train/one/wide.png" in report.kept
    given = read_picture(tmp_path / "out" / "train" / "one" / "wide.png")
    blocks = wide[:, 36:164, ::-1].reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))
    assert given.shape == (64, 64, 3)
    assert np.abs(given - blocks).max() <= 0.5


def test_a_split_by_folders_keeps_origins_whole(data: Path, tmp_path: Path) -> None:
    scenes.write_scenes(data / "three", 3, first_seed=20)
    report = prepare([data], tmp_path / "out", DatasetConfig(val=("two",), test=("three",)))
    assert report.splits() == {"train": {"one": 6}, "val": {"two": 6}, "test": {"three": 3}}
    assert len(files(tmp_path / "out" / "val" / "two")) == 6


def test_a_split_by_shares_moves_no_picture_when_others_are_added(tmp_path: Path) -> None:
    data, config = tmp_path / "data", DatasetConfig(split=(0.5, 0.25, 0.25))
    scenes.write_scenes(data / "one", 30, side=96, first_seed=10)
    before = prepare([data], tmp_path / "before", config).kept
    scenes.write_scenes(data / "a", 20, side=96, first_seed=100)
    after = prepare([data], tmp_path / "after", config)
    assert before.items() <= after.kept.items()
    numbers = [sum(origins.values()) for origins in after.splits().values()]
    assert sum(numbers) == 50
    assert numbers == pytest.approx([25, 12.5, 12.5], abs=9)


def test_the_frames_of_a_video_stay_together(tmp_path: Path) -> None:
    data = tmp_path / "data"
    scenes.write_scenes(data / "one", 24, side=96)
    for number in range(6):
        clips.write_video(data / "one" / f"{number}.mkv", count=10 * (number + 1), width=96, height=80 + 2 * number)
    config = DatasetConfig(split=(0.5, 0.25, 0.25), frames_per_video=5)
    kept = prepare([data], tmp_path / "out", config).kept
    splits: dict[str, set[str]] = {}
    for name, source in kept.items():
        if "#" in source:
            splits.setdefault(source.split("#")[0], set()).add(name.split("/")[0])
    assert all(len(places) == 1 for places in splits.values())


def test_files_of_the_same_name_from_different_places_are_both_kept(tmp_path: Path) -> None:
    scenes.write_scenes(tmp_path / "a" / "x", 6, first_seed=0)
    for path in scenes.write_scenes(tmp_path / "b" / "x", 6, first_seed=6):
        path.rename(path.with_stem(f"scene{int(path.stem[-3:]) - 6:03d}"))
    report = prepare([tmp_path / "a", tmp_path / "b"], tmp_path / "out", ALL_TO_TRAIN)
    assert len(report.kept) == len(files(tmp_path / "out")) - 1 == 12
    assert "train/x/scene000-2.png" in report.kept


def test_dataset_json_says_what_was_done(data: Path, tmp_path: Path) -> None:
    (data / "one" / "torn.png").write_bytes(b"")
    prepare([data], tmp_path / "out", DatasetConfig(val=("two",), size=64))
    told = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert told["counts"] == {"found": 13, "corrupt": 1, "small": 0, "grey": 0, "duplicate": 0, "kept": 12}
    assert told["splits"] == {"train": {"one": 6}, "val": {"two": 6}, "test": {}}
    assert told["settings"]["size"] == 64
    (dropped,) = told["dropped"]
    assert dropped == {
        "source": str(data / "one" / "torn.png"),
        "reason": "corrupt",
        "detail": "not a picture that decodes",
    }
    assert sorted([*told["kept"], "dataset.json"]) == files(tmp_path / "out")


def test_the_same_command_gives_the_same_bytes(data: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        prepare([data], tmp_path / name, DatasetConfig(val=("two",), size=64))
    assert files(tmp_path / "a") == files(tmp_path / "b")
    for name in files(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


# What is refused, and that nothing half made is left.


def test_a_folder_that_holds_something_is_not_written_to(data: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(ExportError, match="out: must be an empty folder or not exist yet"):
        prepare([data], tmp_path / "out", ALL_TO_TRAIN)
    assert files(tmp_path / "out") == ["mine.txt"]


def test_an_empty_folder_is_filled(data: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    prepare([data], tmp_path / "out", ALL_TO_TRAIN)
    assert len(files(tmp_path / "out")) == 13


def test_a_set_inside_of_what_is_read_is_refused(data: Path) -> None:
    with pytest.raises(ExportError, match="must not lie inside"):
        prepare([data], data / "out", ALL_TO_TRAIN)


def test_too_few_pictures_are_refused_with_the_number_that_is_needed(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"one: a data set needs at least 10 pictures, got 6 \(6 found, 0 corrupt"):
        prepare([data / "one"], tmp_path / "out", ALL_TO_TRAIN)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ExportError, match="empty: no picture or video found"):
        prepare([tmp_path / "empty"], tmp_path / "out", ALL_TO_TRAIN)
    assert not (tmp_path / "out").exists()


def test_a_split_that_stays_empty_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"no picture is left for 'test' of 12; a share of 0\.001 takes about 3000"):
        prepare([data], tmp_path / "out", DatasetConfig(split=(0.5, 0.499, 0.001)))
    with pytest.raises(ExportError, match="no picture is left for 'train' of 12"):
        prepare([data], tmp_path / "out", DatasetConfig(val=("one", "two")))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_a_folder_that_is_not_there_is_refused_by_name(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"'val' must name folders that hold .* \(one, two\), got 'thre'"):
        prepare([data], tmp_path / "out", DatasetConfig(val=("thre",)))
    with pytest.raises(ExportError, match="nowhere: data must be a folder"):
        prepare([tmp_path / "nowhere"], tmp_path / "out", ALL_TO_TRAIN)


def test_a_failure_midway_leaves_nothing(data: Path, tmp_path: Path) -> None:
    def stop(done: int, files: int) -> None:
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare([data], tmp_path / "out", ALL_TO_TRAIN, progress=stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_a_disk_that_is_full_is_one_line_and_leaves_nothing(data: Path, tmp_path: Path) -> None:
    config = DatasetConfig(split=(1, 0, 0), size=128)
    with clips.full_disk(5_000), pytest.raises(ExportError, match="out: not writable"):
        prepare([data], tmp_path / "out", config)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_after_a_kill_the_same_command_makes_the_set(data: Path, tmp_path: Path) -> None:
    killed = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom export.dataset import DatasetConfig, prepare\n"
        "def kill(done, files):\n    if done == 6:\n        os.kill(os.getpid(), signal.SIGKILL)\n"
        "prepare([Path(sys.argv[1])], Path(sys.argv[2]), DatasetConfig(split=(1, 0, 0)), progress=kill)\n"
    )
    out = tmp_path / "out"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    ended = subprocess.run([sys.executable, "-c", killed, data, out], env=environment, timeout=60)
    assert ended.returncode == -signal.SIGKILL
    assert not out.exists()
    prepare([data], out, ALL_TO_TRAIN)
    assert len(files(out)) == 13
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "out"]


def test_fewer_than_a_thousand_pictures_are_warned_of(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        prepare([data], tmp_path / "out", ALL_TO_TRAIN)
    assert "fewer than 1000 pictures to train on (12)" in caplog.text


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ({"split": (0.5, 0.2, 0.2)}, "sum to 1"),
        ({"split": (0, 0.5, 0.5)}, "train above 0"),
        ({"split": (float("nan"), 0, 1)}, "sum to 1"),
        ({"split": (0.5, float("nan"), 0.5)}, "sum to 1"),
        ({"split": (0.8, 0.1, 0.1), "val": ("one",)}, "got both"),
        ({"val": ("one",), "test": ("one",)}, "'one' in both"),
        ({"size": 4}, "size"),
        ({"sizes": 64}, "sizes"),
    ],
)
def test_settings_that_make_no_sense_are_refused(values: dict[str, object], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        DatasetConfig.model_validate(values)


# The command.


def test_the_command_shows_the_counts_and_names_what_is_damaged(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (data / "one" / "torn.png").write_bytes(b"")
    command({"split": "0.5,0.25,0.25", "keep_grey": True}, [data], tmp_path / "out", quiet=False)
    shown = capsys.readouterr().out
    rows = {line.split("│")[1].strip(): line.split("│")[2].strip() for line in shown.splitlines() if "│" in line}
    assert (rows["found"], rows["corrupt"], rows["kept"]) == ("13", "1", "12")
    assert f"left out {data / 'one' / 'torn.png'}: not a picture that decodes" in caplog.text


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"split": "half"}, "'split' must be three shares such as 0.8,0.1,0.1, got 'half'"),
        ({"split": "0.9,0.1"}, "'split' must be three shares such as 0.8,0.1,0.1, got '0.9,0.1'"),
        ({"size": 1}, "'size' must be greater than or equal to 8, got 1"),
        ({"split": "0.9,0.1,0.1"}, "which sum to 1, train above 0, got 0.9,0.1,0.1"),
        ({"split": "nan,0,1"}, "which sum to 1, train above 0, got nan,0.0,1.0"),
    ],
)
def test_the_command_refuses_in_one_line(data: Path, tmp_path: Path, values: dict[str, object], line: str) -> None:
    with pytest.raises(ExportError) as refusal:
        command(values, [data], tmp_path / "out", quiet=True)
    assert line in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_refusal_before_the_first_file_shows_no_bar(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ExportError, match="must name folders"):
        command({"val": ("thre",)}, [data], tmp_path / "out", quiet=False)
    assert capsys.readouterr().err == ""
    command({"split": "0.5,0.25,0.25", "keep_grey": True}, [data], tmp_path / "out", quiet=False)
    assert "12/12" in capsys.readouterr().err


def test_a_name_that_is_not_utf8_is_kept(data: Path, tmp_path: Path) -> None:
    scene_path = data / "one" / "scene000.png"
    scene_path.rename(scene_path.with_name(os.fsdecode(b"caf\xe9.png")))
    prepare([data], tmp_path / "out", ALL_TO_TRAIN)
    assert (tmp_path / "out" / "train" / "one" / os.fsdecode(b"caf\xe9.png")).exists()
