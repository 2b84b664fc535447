"""Stores of decoded pictures: which go in, that they come out as they are, and that a store is whole or not there."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import av
import clips
import cv2
import numpy as np
import pytest
import scenes
from av.video.stream import VideoStream

from export.errors import ExportError
from export.leaves import dead_leaves
from export.store import PictureStore, build_matched, match


def bar(number: int) -> np.ndarray:
    """A picture RGB (48, 160, 3), in colour, with a bar whose left edge is 2 px further right in each."""
    picture = np.full((48, 160, 3), (30, 90, 200), np.uint8)
    picture[:, 2 * number : 2 * number + 12] = (250, 200, 20)
    return picture


def bar_number(picture: np.ndarray) -> int:
    return round(float(np.argmax(picture[24, :, 0] > 140)) / 2)


def write_frames(
    path: Path, frame: Callable[[int], np.ndarray], *, damaged: tuple[int, ...] = (), codec: str = "mpeg4"
) -> Path:
    """A video of 48 frames, every fourth a key frame; the packets `damaged` hold zeros behind their start code."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=25)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = 160, 48, "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.bit_rate = 4, 2_000_000
        for number in range(48):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame(number), format="rgb24")))
        output.mux(stream.encode(None))
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    for number in damaged:
        begin, size = places[number]
        assert begin
        data[begin + 4 : begin + size] = bytes(size - 4)
    path.write_bytes(data)
    return path


# Pictures.


def test_a_store_holds_the_pictures_as_they_decode(tmp_path: Path) -> None:
    pictures = [dead_leaves(*size, np.random.default_rng(0), leaves=50) for size in ((90, 120), (64, 200))]
    paths = [tmp_path / "0.png", tmp_path / "1.png"]
    for path, picture in zip(paths, pictures, strict=True):
        cv2.imwrite(str(path), picture[..., ::-1])
    store, skipped = PictureStore.build(paths, tmp_path / "store.u8", 64)
    assert (len(store), skipped) == (2, [])
    for number, picture in enumerate(pictures):
        assert np.array_equal(store.picture(number), picture)


def test_damaged_and_small_files_are_passed_over_by_name(tmp_path: Path) -> None:
    paths = scenes.write_scenes(tmp_path, 1, side=160)
    torn, small, video = tmp_path / "torn.png", tmp_path / "small.png", tmp_path / "torn.mp4"
    torn.write_bytes(paths[0].read_bytes()[:100])
    cv2.imwrite(str(small), np.zeros((50, 90, 3), np.uint8))
    video.write_bytes(b"nothing")
    store, skipped = PictureStore.build([*paths, torn, small, video], tmp_path / "store.u8", 64)
    assert len(store) == 1
    assert [line.split(": ")[0] for line in skipped] == [str(torn), str(small), str(video)]
    assert "at least 64 px on each side, got 90x50" in skipped[1]


def test_nothing_usable_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "torn.png").write_bytes(b"torn")
    with pytest.raises(ExportError, match="no usable picture among 1"):
        PictureStore.build([tmp_path / "torn.png"], tmp_path / "store.u8", 64)
    assert [path.name for path in tmp_path.iterdir()] == ["torn.png"]


def test_a_disk_that_is_full_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    paths = scenes.write_scenes(tmp_path / "drawn", 2)
    with clips.full_disk(20_000), pytest.raises(ExportError, match="not writable"):
        PictureStore.build(paths, tmp_path / "store.u8", 64)
    assert [path.name for path in tmp_path.iterdir()] == ["drawn"]


def test_the_frames_of_a_video_are_pictures_too(tmp_path: Path) -> None:
    video = clips.write_video(tmp_path / "clip.mp4", count=30, pix_fmt="yuv444p")
    store, skipped = PictureStore.build([video], tmp_path / "store.u8", 48, frames_per_video=3)
    assert (len(store), skipped) == (3, [])
    for number, shown in enumerate((5, 15, 25)):
        assert np.abs(store.picture(number).astype(int) - clips.smooth(shown, 64, 48)).max() <= 3


def test_grey_pictures_are_kept_unless_they_are_unwanted(tmp_path: Path) -> None:
    colour, *_ = scenes.write_scenes(tmp_path, 1)
    grey = tmp_path / "grey.png"
    cv2.imwrite(str(grey), cv2.imread(str(colour), cv2.IMREAD_GRAYSCALE))
    assert len(PictureStore.build([colour, grey], tmp_path / "all.u8", 64)[0]) == 2
    store, skipped = PictureStore.build([colour, grey], tmp_path / "colour.u8", 64, keep_grey=False)
    assert len(store) == 1
    assert skipped == [f"{grey}: pictures must be in colour, got a grey one"]


def test_grey_frames_do_not_discard_the_rest_of_a_video(tmp_path: Path) -> None:
    """As of one that fades in from black."""
    video = write_frames(tmp_path / "fade.mp4", lambda number: bar(number) if number >= 8 else bar(number) * 0)
    grey = write_frames(tmp_path / "grey.mp4", lambda number: bar(number)[..., :1].repeat(3, axis=2))
    store, skipped = PictureStore.build([video, grey], tmp_path / "store.u8", 48, frames_per_video=12, keep_grey=False)
    assert len(store) == 10
    assert skipped == [f"{grey}: pictures must be in colour, got a grey one"]


def test_a_loader_gets_the_name_of_a_store_and_not_its_pixels(tmp_path: Path) -> None:
    store, _ = PictureStore.build(scenes.write_scenes(tmp_path / "drawn", 2), tmp_path / "store.u8", 64)
    sent = pickle.dumps(store)
    assert len(sent) < 1000
    assert np.array_equal(pickle.loads(sent).pixels, store.pixels)


# Pairs.


def write_pairs(tmp_path: Path, *names: str) -> tuple[Path, Path]:
    """Two folders of pictures of 120x100 px; the blurred ones are white, the sharp ones black."""
    blurred, sharp = tmp_path / "blurred", tmp_path / "sharp"
    for name in names:
        for root, level, suffix in ((blurred, 255, ".png"), (sharp, 0, ".bmp")):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str((root / name).with_suffix(suffix)), np.full((100, 120, 3), level, np.uint8))
    return blurred, sharp


def build_pairs(blurred: Path, sharp: Path, **options: int) -> tuple[PictureStore, PictureStore, list[str]]:
    """The stores of two folders, and a line for every file passed over."""
    pairs, alone = match(blurred, sharp)
    targets = (blurred.with_suffix(".u8"), sharp.with_suffix(".u8"))
    *stores, skipped = build_matched(pairs, targets, 32, **options)
    return stores[0], stores[1], [*alone, *skipped]


def test_files_of_the_same_name_are_pairs_at_any_depth(tmp_path: Path) -> None:
    blurred, sharp, skipped = build_pairs(*write_pairs(tmp_path, "a", "deep/b"))
    assert (len(blurred), len(sharp), skipped) == (2, 2, [])
    assert blurred.pixels.min() == 255
    assert sharp.pixels.max() == 0


def test_a_file_without_counterpart_or_of_another_size_is_passed_over_by_name(tmp_path: Path) -> None:
    blurred, sharp = write_pairs(tmp_path, "a", "b", "c", "d")
    (sharp / "a.bmp").unlink()
    (blurred / "b.png").unlink()
    cv2.imwrite(str(sharp / "c.bmp"), np.zeros((100, 119, 3), np.uint8))
    store, _, skipped = build_pairs(blurred, sharp)
    assert len(store) == 1
    assert skipped == [
        f"{blurred / 'a.png'}: {sharp} has no counterpart named 'a'",
        f"{sharp / 'b.bmp'}: {blurred} has no counterpart named 'b'",
        f"{blurred / 'c.png'}: must be 119x100 like {sharp / 'c.bmp'}, got 120x100",
    ]


def test_of_two_files_of_the_same_name_the_one_passed_over_is_named(tmp_path: Path) -> None:
    blurred, sharp = write_pairs(tmp_path, "a")
    (blurred / "a.webp").write_bytes((blurred / "a.png").read_bytes())
    pairs, skipped = match(blurred, sharp)
    assert pairs == [(blurred / "a.png", sharp / "a.bmp")]
    assert skipped == [f"{blurred / 'a.webp'}: {blurred / 'a.png'} has the same name and is taken"]


def test_a_folder_given_as_a_dot_is_matched_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blurred, sharp = write_pairs(tmp_path, "a", "deep/b")
    monkeypatch.chdir(blurred)
    pairs, skipped = match(Path(), sharp)
    assert [(pair[0].name, pair[1].name) for pair in pairs] == [("a.png", "a.bmp"), ("b.png", "b.bmp")]
    assert skipped == []


def test_folders_without_any_pair_are_refused_in_one_line(tmp_path: Path) -> None:
    blurred, sharp = write_pairs(tmp_path, "a")
    (sharp / "a.bmp").rename(sharp / "z.bmp")
    with pytest.raises(ExportError, match="no usable pair among 0 of the same name"):
        build_pairs(blurred, sharp)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blurred", "sharp"]


def test_videos_are_matched_frame_by_frame(tmp_path: Path) -> None:
    for root in ("blurred", "sharp"):
        (tmp_path / root).mkdir()
        clips.write_video(tmp_path / root / "a.mp4", count=20)
        clips.write_video(tmp_path / root / "b.mp4", count=20 if root == "sharp" else 19)
    blurred, sharp, skipped = build_pairs(tmp_path / "blurred", tmp_path / "sharp", frames_per_video=5)
    assert (len(blurred), len(sharp)) == (5, 5)
    assert np.array_equal(blurred.pixels, sharp.pixels)
    assert [line.split(": ")[1].split(" like")[0] for line in skipped] == ["must have 20 frames"]


@pytest.mark.parametrize("torn", ["blurred", "sharp"])
def test_videos_stay_in_step_where_one_is_damaged(tmp_path: Path, torn: str) -> None:
    for root in ("blurred", "sharp"):
        write_frames(tmp_path / root / "a.mp4", bar, damaged=(10, 11, 12, 25) if root == torn else ())
    blurred, sharp, _ = build_pairs(tmp_path / "blurred", tmp_path / "sharp", frames_per_video=48)
    shown = [(bar_number(blurred.picture(i)), bar_number(sharp.picture(i))) for i in range(len(blurred))]
    intact = [number for number in range(48) if number not in (*range(8, 16), *range(24, 28))]
    assert shown == [(number, number) for number in intact]


def test_a_damaged_video_without_times_is_passed_over_by_name(tmp_path: Path) -> None:
    for root in ("blurred", "sharp"):
        for name in ("a", "b"):
            torn = (10,) if (root, name) == ("sharp", "b") else ()
            write_frames(tmp_path / root / f"{name}.avi", bar, damaged=torn)
    blurred, _, skipped = build_pairs(tmp_path / "blurred", tmp_path / "sharp", frames_per_video=4)
    assert len(blurred) == 4
    assert [line.split(": ")[0] for line in skipped] == [str(tmp_path / "sharp" / "b.avi")]


def test_grey_frames_of_a_sharp_video_do_not_discard_the_rest_of_its_pairs(tmp_path: Path) -> None:
    for root in ("blurred", "sharp"):
        write_frames(tmp_path / root / "a.mp4", lambda number: bar(number) if number >= 8 else bar(number) * 0)
    pairs, _ = match(tmp_path / "blurred", tmp_path / "sharp")
    targets = (tmp_path / "blurred.u8", tmp_path / "sharp.u8")
    blurred, _, skipped = build_matched(pairs, targets, 32, frames_per_video=12, keep_grey=False)
    assert (len(blurred), skipped) == (10, [])
