from __future__ import annotations

import struct
import zlib
from dataclasses import replace
from pathlib import Path

import clips
import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from daemon.errors import SinkError, SourceError
from daemon.picture_data import Picture, encode
from daemon.pictures import PictureSource, PictureWriter, keeps_orientation

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


DEEP = np.random.default_rng(3).integers(0, 65536, (24, 40, 4)).astype(np.uint16)


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("image", [DEEP[..., :3], DEEP, DEEP[..., 0]], ids=["colour", "transparent", "grey"])
def test_16_bits_stay_16_bits(tmp_path, suffix, image):
    writer = copy(write(tmp_path / f"a{suffix}", image), tmp_path / f"b{suffix}")
    result = cv2.imread(str(tmp_path / f"b{suffix}"), cv2.IMREAD_UNCHANGED)
    assert result.dtype == np.uint16
    assert (result == image).all()
    assert writer.notes == []


def test_16_bits_for_a_format_of_8_are_rounded_and_that_is_said(tmp_path):
    source = write(tmp_path / "a.png", picture().astype(np.uint16) * 257 + 100)
    writer = copy(source, tmp_path / "b.bmp")
    assert (cv2.imread(str(tmp_path / "b.bmp")) == picture()).all()
    assert writer.notes == ["written with 8 bits a colour, not 16: .bmp has no more"]


def photo(path, image=None, orientation=6):
    """With the tags of a camera, a place, a colour profile, and XMP."""
    exif = Image.Exif()
    exif[0x112], exif[0x10F], exif[0x11A] = orientation, "Maker", 300.0
    exif[0x8769], exif[0x8825] = {0x9003: "2020:01:01 00:00:00", 0x829A: (1, 100)}, {1: "N", 2: (1.0, 2.0, 3.0)}
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    kinds = [cv2.IMAGE_METADATA_EXIF, cv2.IMAGE_METADATA_XMP, cv2.IMAGE_METADATA_ICCP]
    blocks = (exif.tobytes().removeprefix(b"Exif\0\0"), b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>", profile)
    metadata = tuple(zip(map(int, kinds), blocks, strict=True))
    path.write_bytes(encode(Picture(picture() if image is None else image, metadata), path.suffix, 95))
    return path


def described(path):
    """What stands beside the pixels, as another library reads it; the orientation as it is before Pillow turns it."""
    with Image.open(path) as opened:
        exif = opened.getexif()
        tags = [exif.get(tag) for tag in (0x112, 0x10F, 0x11A)]
        more = [dict(exif.get_ifd(tag)) for tag in (0x8769, 0x8825)]
        opened.load()  # PNG has its XMP after the pixels
        return [*tags, *more, opened.info.get("xmp"), opened.info["icc_profile"]]


@pytest.mark.parametrize("after", [".png", ".jpg", ".webp", ".tiff"])
@pytest.mark.parametrize("before", [".png", ".jpg", ".webp", ".tiff"])
def test_exif_xmp_and_profile_are_kept_from_format_to_format(tmp_path, before, after):
    source = photo(tmp_path / f"a{before}")
    copy(source, tmp_path / f"b{after}")
    wanted, found = described(source), described(tmp_path / f"b{after}")
    if before == ".tiff":
        wanted[0] = None  # its pixels are upright now
    assert found == wanted


@pytest.mark.parametrize("after", [".png", ".jpg", ".webp", ".tiff", ".bmp"])
@pytest.mark.parametrize("before", [".png", ".jpg", ".webp", ".tiff"])
def test_a_turned_picture_is_seen_as_before(tmp_path, before, after):
    source, target = photo(tmp_path / f"a{before}"), tmp_path / f"b{after}"
    with (
        PictureSource(source, upright=not keeps_orientation(target)) as frames,
        PictureWriter(source, target) as writer,
    ):
        writer.send(next(iter(frames)))
        writer.commit()
    with Image.open(source) as old, Image.open(target) as new:
        seen = [np.asarray(ImageOps.exif_transpose(each).convert("RGB")).astype(int) for each in (old, new)]
    assert seen[0].shape == seen[1].shape == (40, 24, 3)
    assert np.abs(seen[0] - seen[1]).mean() < 4


@pytest.mark.parametrize("suffix", [".tiff"])
def test_large_pictures_of_many_strips_keep_their_tags(tmp_path, suffix):
    image = np.random.default_rng(1).integers(0, 65536, (1200, 1600, 4)).astype(np.uint16)
    source = photo(tmp_path / f"a{suffix}", image, orientation=1)
    copy(source, tmp_path / f"b{suffix}")
    assert (cv2.imread(str(tmp_path / f"b{suffix}"), cv2.IMREAD_UNCHANGED) == image).all()
    assert described(source)[1:] == described(tmp_path / f"b{suffix}")[1:]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tiff", ".bmp"])
def test_a_cut_picture_is_refused_in_one_line_and_nothing_else_is_said(tmp_path, capfd, suffix):
    path = write(tmp_path / f"a{suffix}", picture(400, 300))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(SourceError, match=r"^[^\n]*: must be a picture, got [^\n]*damaged[^\n]*$"):
        PictureSource(path)
    assert capfd.readouterr() == ("", "")


def test_the_suffix_of_a_source_may_be_wrong(tmp_path):
    source = write(tmp_path / "a.jpg", picture())
    copy(source.rename(tmp_path / "a.png"), tmp_path / "b.png")
    assert (cv2.imread(str(tmp_path / "b.png")) == cv2.imread(str(tmp_path / "a.png"))).all()


def test_a_huge_picture_is_refused_before_it_is_decoded(tmp_path):
    header = struct.pack(">II5B", 60000, 60000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    data = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    with pytest.raises(SourceError, match=r"a\.png: a picture must have at most 268435456 pixels, got 60000x60000"):
        PictureSource(tmp_path / "a.png")


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
