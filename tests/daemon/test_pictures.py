from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import clips
import cv2
import numpy as np
import pytest

from daemon.errors import SinkError, SourceError
from daemon.pictures import PictureSource, PictureWriter

TURN_RIGHT = b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHHI", 0x112, 3, 1, 6, 0, 0)  # EXIF, orientation 6


def picture(width: int = 40, height: int = 24) -> np.ndarray:
    """BGR, as OpenCV has it."""
    return cv2.cvtColor(clips.smooth(0, width, height), cv2.COLOR_RGB2BGR)


def write(path, image, exif: bytes = b""):
    if exif:
        kinds, blocks = [cv2.IMAGE_METADATA_EXIF], [np.frombuffer(exif, np.uint8)]
        done, data = cv2.imencodeWithMetadata(path.suffix, image, kinds, blocks)
    else:
        done, data = cv2.imencode(path.suffix, image)
    assert done
    path.write_bytes(data.tobytes())
    return path


def copy(source, target, change=None, **options) -> PictureWriter:
    with PictureSource(source) as frames, PictureWriter(source, target, **options) as writer:
        for frame in frames:
            buffer = writer.lend(frame)
            np.copyto(buffer, frame.pixels)
            writer.send(replace(frame, pixels=change(buffer) if change else buffer))
        writer.close()
        writer.commit()
    return writer


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"])
def test_a_picture_comes_back_in_its_format(tmp_path, suffix):
    source = write(tmp_path / f"a{suffix}", picture())
    writer = copy(source, tmp_path / f"b{suffix}")
    result = cv2.imread(str(tmp_path / f"b{suffix}"), cv2.IMREAD_UNCHANGED)
    assert np.abs(result.astype(int) - picture()).mean() < 3
    assert writer.notes == []


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".bmp"])
def test_formats_without_loss_change_nothing(tmp_path, suffix):
    copy(write(tmp_path / f"a{suffix}", picture()), tmp_path / f"b{suffix}")
    assert (cv2.imread(str(tmp_path / f"b{suffix}")) == picture()).all()


def test_pixels_are_rgb(tmp_path):
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 2] = 255
    (frame,) = PictureSource(write(tmp_path / "a.png", red))
    assert frame.pixels[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_a_picture_that_viewers_turn_is_turned_the_same_way(tmp_path, suffix):
    source = write(tmp_path / f"a{suffix}", picture(), exif=TURN_RIGHT)
    copy(source, tmp_path / f"b{suffix}")
    was, now = cv2.imread(str(source)), cv2.imread(str(tmp_path / f"b{suffix}"))  # which turns as viewers do
    assert now.shape == was.shape == (40, 24, 3)
    assert np.abs(now.astype(int) - was).mean() < 3


def test_a_format_that_knows_no_orientation_gets_the_picture_upright(tmp_path):
    source = write(tmp_path / "a.png", picture(), exif=TURN_RIGHT)
    (frame,) = PictureSource(source, upright=True)
    assert (frame.pixels[..., ::-1] == cv2.imread(str(source))).all()


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tiff"])
def test_transparency_is_kept(tmp_path, suffix):
    alpha = np.tile(np.arange(40, dtype=np.uint8) * 6, (24, 1))
    copy(write(tmp_path / f"a{suffix}", np.dstack([picture(), alpha])), tmp_path / f"b{suffix}")
    assert (cv2.imread(str(tmp_path / f"b{suffix}"), cv2.IMREAD_UNCHANGED)[..., 3] == alpha).all()


def test_transparency_that_the_format_lacks_is_said(tmp_path):
    source = write(tmp_path / "a.png", np.dstack([picture(), picture()[..., 0]]))
    assert copy(source, tmp_path / "b.jpg").notes == ["transparency is lost: .jpg has none"]


def test_a_grey_picture_stays_grey(tmp_path):
    grey = picture()[..., 0]
    copy(write(tmp_path / "a.png", grey), tmp_path / "b.png")
    assert (cv2.imread(str(tmp_path / "b.png"), cv2.IMREAD_UNCHANGED) == grey).all()


def test_16_bits_are_restored_at_8_and_that_is_said(tmp_path):
    source = PictureSource(write(tmp_path / "a.png", picture().astype(np.uint16) * 257))
    (frame,) = source
    assert (frame.pixels[..., ::-1] == picture()).all()
    assert source.warnings == ["restored at 8 bits: the picture has 16"]


def test_a_colour_profile_is_kept(tmp_path):
    header = bytearray(132)
    header[0:4], header[12:24], header[36:40] = struct.pack(">I", 132), b"mntrRGB XYZ ", b"acsp"
    kinds, blocks = [cv2.IMAGE_METADATA_ICCP], [np.frombuffer(bytes(header), np.uint8)]
    done, data = cv2.imencodeWithMetadata(".jpg", picture(), kinds, blocks)
    assert done
    (tmp_path / "a.jpg").write_bytes(data.tobytes())
    copy(tmp_path / "a.jpg", tmp_path / "b.jpg")
    _, kinds, blocks = cv2.imdecodeWithMetadata(np.fromfile(tmp_path / "b.jpg", np.uint8), cv2.IMREAD_UNCHANGED)
    assert [(kind, bytes(block.tobytes())) for kind, block in zip(kinds, blocks, strict=True)] == [
        (cv2.IMAGE_METADATA_ICCP, bytes(header))
    ]


@pytest.mark.parametrize("data", [b"", b"no picture at all", b"\x89PNG\r\n\x1a\n"], ids=["empty", "text", "cut"])
def test_what_is_no_picture_is_refused(tmp_path, data):
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(SourceError, match=r"a\.png: must be a picture"):
        PictureSource(tmp_path / "a.png")


def test_a_missing_picture_is_refused(tmp_path):
    with pytest.raises(SourceError, match="No such file or directory"):
        PictureSource(tmp_path / "none.png")


def test_an_unknown_suffix_is_refused(tmp_path):
    source = write(tmp_path / "a.png", picture())
    with pytest.raises(SinkError, match="must end in one of"):
        PictureWriter(source, tmp_path / "b.xyz")


def test_a_failure_leaves_nothing(tmp_path):
    def fail(pixels):
        raise KeyboardInterrupt

    source = write(tmp_path / "a.png", picture())
    with pytest.raises(KeyboardInterrupt):
        copy(source, tmp_path / "b.png", change=fail)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_pages_that_are_not_restored_are_named(tmp_path: Path) -> None:
    path = tmp_path / "pages.tiff"
    assert cv2.imwritemulti(str(path), [np.full((20, 30, 3), level, np.uint8) for level in (10, 20, 30)])
    assert PictureSource(path).warnings == ["only the first of 3 pages or animation frames is restored and kept"]
