"""Claims about a folder of pictures as a stream."""

from __future__ import annotations

import struct
from fractions import Fraction

import clips
import cv2
import numpy as np
import pytest

from daemon.errors import SourceError
from daemon.folder_source import FolderSource
from daemon.loop import Looped

TURN_RIGHT = b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHHI", 0x112, 3, 1, 6, 0, 0)  # EXIF, orientation 6


def write(path, *, grey: int | None = None, size=(24, 40), image=None):
    """A picture of one grey, so that a test can tell which it got."""
    picture = np.full((*size, 3), grey, np.uint8) if image is None else image
    assert cv2.imwrite(str(path), picture)
    return path


def read(folder, **options):
    with FolderSource(folder, **options) as source:
        return list(source), source


def refusal(folder, **options) -> str:
    with pytest.raises(SourceError) as caught:
        read(folder, **options)
    text = str(caught.value)
    assert str(folder) in text
    assert "\n" not in text
    return text


def test_pictures_come_in_the_natural_order_of_their_names(tmp_path) -> None:
    names = ["1.png", "2.png", "010.png", "a2b1.png", "a2b10.png", "A10.png", "b.png"]
    for number, name in reversed(list(enumerate(names))):
        write(tmp_path / name, grey=number)
    frames, source = read(tmp_path)
    assert [int(frame.pixels[0, 0, 0]) for frame in frames] == list(range(len(names)))
    assert [frame.seq for frame in frames] == list(range(len(names)))
    assert source.frames_expected == len(names)
    assert source.damage == []


def test_times_are_those_of_the_rate_exactly(tmp_path) -> None:
    for number in range(4):
        write(tmp_path / f"{number}.png", grey=number)
    frames, _ = read(tmp_path, rate=Fraction(30000, 1001))
    assert [frame.pts * frame.time_base for frame in frames] == [Fraction(1001 * i, 30000) for i in range(4)]
    assert read(tmp_path, rate=0.1)[0][3].pts * read(tmp_path, rate=0.1)[0][3].time_base == 30


def test_sizes_may_differ(tmp_path) -> None:
    write(tmp_path / "1.png", grey=0, size=(24, 40))
    write(tmp_path / "2.png", grey=0, size=(10, 8))
    assert [(frame.height, frame.width) for frame in read(tmp_path)[0]] == [(24, 40), (10, 8)]


def test_whatever_is_stored_comes_as_rgb_of_8_bits(tmp_path) -> None:
    colour = cv2.cvtColor(clips.smooth(0, 40, 24), cv2.COLOR_RGB2BGR)
    write(tmp_path / "1.png", image=colour)
    write(tmp_path / "2.png", image=colour.astype(np.uint16) * 257)
    write(tmp_path / "3.png", image=np.dstack([colour, colour[..., 0]]))
    write(tmp_path / "4.png", image=colour[..., 0])
    frames, _ = read(tmp_path)
    assert all(frame.pixels.dtype == np.uint8 and frame.pixels.shape == (24, 40, 3) for frame in frames)
    for frame in frames[:3]:
        assert np.abs(frame.pixels.astype(int) - clips.smooth(0, 40, 24)).max() <= 1
    assert (frames[3].pixels == colour[..., :1]).all()


def test_pictures_come_upright(tmp_path) -> None:
    kinds, blocks = [cv2.IMAGE_METADATA_EXIF], [np.frombuffer(TURN_RIGHT, np.uint8)]
    done, data = cv2.imencodeWithMetadata(".png", clips.smooth(0, 40, 24)[..., ::-1], kinds, blocks)
    assert done
    (tmp_path / "a.png").write_bytes(data.tobytes())
    ((frame,), _) = read(tmp_path)
    assert frame.rotation == 0
    assert (frame.pixels == np.rot90(clips.smooth(0, 40, 24), -1)).all()


def test_a_damaged_picture_is_passed_over_and_named(tmp_path) -> None:
    for number in range(4):
        write(tmp_path / f"{number}.png", grey=number)
    (tmp_path / "1.png").write_bytes(b"no picture")
    (tmp_path / "2.png").write_bytes(b"")
    frames, source = read(tmp_path)
    assert [(frame.seq, frame.pts) for frame in frames] == [(0, 0), (1, 3)]
    assert [line.split(":")[0] for line in source.damage] == [str(tmp_path / "1.png"), str(tmp_path / "2.png")]


def test_a_thousand_damaged_pictures_do_not_make_a_thousand_lines(tmp_path) -> None:
    write(tmp_path / "a.png", grey=1)
    for number in range(1000):
        (tmp_path / f"{number}.jpg").touch()
    frames, source = read(tmp_path)
    assert len(frames) == 1
    assert len(source.damage) == 21
    assert source.damage[-1] == "980 more pictures could not be read"


def test_a_picture_that_goes_away_meanwhile_is_a_line(tmp_path) -> None:
    write(tmp_path / "1.png", grey=1)
    gone = write(tmp_path / "2.png", grey=2)
    with FolderSource(tmp_path) as source:
        frames = iter(source)
        next(frames)
        gone.unlink()
        assert list(frames) == []
    assert source.damage == [f"{gone}: cannot be read (No such file or directory)"]


def test_other_files_hidden_files_and_folders_are_left_alone(tmp_path) -> None:
    write(tmp_path / "1.PNG", grey=1)
    (tmp_path / "._1.png").write_bytes(b"what macOS leaves")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "below").mkdir()
    write(tmp_path / "below" / "2.png", grey=2)
    frames, source = read(tmp_path)
    assert (len(frames), source.damage) == (1, [])


def test_close_ends_the_iteration(tmp_path) -> None:
    for number in range(4):
        write(tmp_path / f"{number}.png", grey=number)
    with FolderSource(tmp_path) as source:
        frames = iter(source)
        next(frames)
        source.close()
        assert list(frames) == []


def test_a_folder_can_be_looped(tmp_path) -> None:
    for number in range(3):
        write(tmp_path / f"{number}.png", grey=number)
    with Looped(lambda: FolderSource(tmp_path)) as source:
        frames = [frame for frame, _ in zip(source, range(7), strict=False)]
    assert [frame.pts for frame in frames] == list(range(7))
    assert [int(frame.pixels[0, 0, 0]) for frame in frames] == [0, 1, 2, 0, 1, 2, 0]


def test_an_empty_folder_is_refused(tmp_path) -> None:
    assert "got an empty folder" in refusal(tmp_path)


def test_a_folder_of_other_things_is_refused(tmp_path) -> None:
    (tmp_path / "notes.txt").touch()
    assert "must have at least one picture (.png, " in refusal(tmp_path)


def test_a_folder_of_damaged_pictures_is_refused(tmp_path) -> None:
    (tmp_path / "a.png").touch()
    assert "at least one picture that can be read" in refusal(tmp_path)


def test_a_missing_folder_is_refused(tmp_path) -> None:
    assert "no such folder" in refusal(tmp_path / "none")


def test_a_file_is_refused(tmp_path) -> None:
    assert "must be a folder, got a file" in refusal(write(tmp_path / "a.png", grey=1))


def test_an_impossible_rate_is_refused(tmp_path) -> None:
    write(tmp_path / "a.png", grey=1)
    assert "the rate must be from 0.001 to 1000, got 0" in refusal(tmp_path, rate=0)
