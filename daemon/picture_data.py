"""Picture files as arrays and the descriptions that go with them, both ways: PNG, JPEG, WebP, TIFF, BMP.

Knows bytes and arrays; nothing of frames or of files' names but their suffixes.

OpenCV codes the pixels, since it has 16 bits in colour. Pillow looks at a file first, since it tells a picture that is
too large or cut off before anything is decoded, and it knows the tags of TIFF.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

MAX_PIXELS: Final = 16384 * 16384
TIFF: Final = (".tif", ".tiff")
JPEG: Final = (".jpg", ".jpeg")
DEEP: Final = (".png", *TIFF)
WITH_METADATA: Final = (".png", *JPEG, ".webp", *TIFF)

Image.MAX_IMAGE_PIXELS = None  # ours is checked by `inspect`, in our words
# What is wrong with a picture is said by PictureError, once; of EXIF that cannot be read nothing is said.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
warnings.filterwarnings("ignore", module="PIL")

_EXIF, _XMP, _ICC = (int(kind) for kind in (cv2.IMAGE_METADATA_EXIF, cv2.IMAGE_METADATA_XMP, cv2.IMAGE_METADATA_ICCP))
_EXIF_HEADER: Final = b"Exif\0\0"
_XMP_OF_OURS: Final = (".png", *JPEG)
"""Where we write and Pillow reads it: OpenCV drops it, or puts it where others do not look for it."""
_ORIENTATION: Final = 0x112
_DESCRIPTIVE: Final = (
    *(0x10D, 0x10E, 0x10F, 0x110, _ORIENTATION, 0x11A, 0x11B, 0x11D, 0x128, 0x131, 0x132, 0x13B, 0x13C),
    *(0x8298, 0x83BB, 0x8649, 0x8769, 0x8825),
    *(0x830E, 0x8482, 0x85D8, 0x87AF, 0x87B0, 0x87B1, 0xA480, 0xA481),
)
"""TIFF's tags that say something of the picture and not of the file: EXIF's, and those of maps."""
_TIFF_XMP, _TIFF_ICC, _TIFF_STRIPS, _TIFF_EXTRA_SAMPLES = 0x2BC, 0x8773, 0x111, 0x152
_LONG, _UNASSOCIATED_ALPHA = 4, 2

Metadata = tuple[tuple[int, bytes], ...]
"""Pairs of OpenCV's type and the block: EXIF as a TIFF header and what follows, XMP, the colour profile."""


class PictureError(Exception):
    """What is wrong with a picture: a rule and what was got."""


@dataclass(frozen=True)
class Picture:
    """image: (H, W), (H, W, 3) BGR or (H, W, 4) BGRA, uint8 or uint16, as it is stored, or upright.

    pages: that the file has, of which this is the first.
    """

    image: NDArray[Any]
    metadata: Metadata = ()
    pages: int = 1


def inspect(data: bytes) -> Image.Image | None:
    """The picture by its header, nothing decoded; None of a kind that Pillow does not know. PictureError: too large."""
    try:
        picture = Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        return None
    except Exception as error:
        raise PictureError(f"must be a picture, got one that is damaged ({error})") from error
    if picture.width * picture.height > MAX_PIXELS:
        raise PictureError(f"a picture must have at most {MAX_PIXELS} pixels, got {picture.width}x{picture.height}")
    return picture


def frames_of(picture: Image.Image) -> int | None:
    """How many pages or animation frames there are; None where damage hides that."""
    try:
        frames = int(getattr(picture, "n_frames", 1))
        picture.seek(0)
    except Exception:  # noqa: BLE001 - damage raises anything, down to struct.error
        return None
    return frames


def decode(data: bytes, *, upright: bool = False) -> Picture:
    """Raises PictureError. `upright`: turned by its EXIF orientation, which is then no longer among the metadata."""
    picture = inspect(data)
    if picture is not None:
        try:
            picture.load()
        except Exception as error:
            raise PictureError(f"must be a picture, got one that is damaged ({error})") from error
    flags = (cv2.IMREAD_ANYDEPTH | cv2.IMREAD_COLOR) if upright else cv2.IMREAD_UNCHANGED
    image, found = None, []
    if data:
        try:
            image, kinds, blocks = cv2.imdecodeWithMetadata(np.frombuffer(data, np.uint8), flags)
            found = [(int(kind), np.asarray(block).tobytes()) for kind, block in zip(kinds, blocks, strict=True)]
        except cv2.error as error:
            if "CV_IO_MAX_IMAGE" in str(error):
                raise PictureError(f"a picture must have at most {MAX_PIXELS} pixels") from error
    if image is None:
        raise PictureError("must be a picture, got a file that is damaged or of another kind")
    if image.shape[0] * image.shape[1] > MAX_PIXELS:
        raise PictureError(f"a picture must have at most {MAX_PIXELS} pixels, got {image.shape[1]}x{image.shape[0]}")
    if image.dtype not in (np.uint8, np.uint16):
        raise PictureError(f"a picture must have 8 or 16 bits a colour, got {image.dtype}")
    if picture is not None and picture.format == "TIFF":
        found = _tiff_metadata(picture)
    elif picture is not None and picture.format in ("JPEG", "PNG") and (xmp := picture.info.get("xmp")):
        found = [(kind, block) for kind, block in found if kind != _XMP] + [(_XMP, xmp)]
    if upright:
        found = [(kind, _without_orientation(block) if kind == _EXIF else block) for kind, block in found]
    pages = (frames_of(picture) if picture is not None else None) or 1
    return Picture(image, tuple((kind, block) for kind, block in found if _describes_rgb(kind, block)), pages)


def encode(picture: Picture, suffix: str, quality: int) -> bytes:
    """The file's bytes. quality: of JPEG and WebP, 1 to 100. Raises PictureError."""
    parameters = {
        ".jpg": [cv2.IMWRITE_JPEG_QUALITY, quality],
        ".jpeg": [cv2.IMWRITE_JPEG_QUALITY, quality],
        ".webp": [cv2.IMWRITE_WEBP_QUALITY, quality],
    }.get(suffix, [])
    height, width = picture.image.shape[:2]
    try:
        if picture.metadata and suffix in WITH_METADATA and suffix not in TIFF:
            given = [each for each in picture.metadata if each[0] != _XMP or suffix not in _XMP_OF_OURS]
            kinds = [kind for kind, _ in given]
            blocks = [np.frombuffer(block, np.uint8) for _, block in given]
            done, data = cv2.imencodeWithMetadata(suffix, picture.image, kinds, blocks, parameters)
        else:
            done, data = cv2.imencode(suffix, picture.image, parameters)
    except cv2.error as error:
        raise PictureError(f"cannot be encoded, {width}x{height} ({error.err})") from error
    if not done:
        raise PictureError(f"cannot be encoded, {width}x{height}")
    if suffix in TIFF:
        return _with_tags(data.tobytes(), picture)
    return _with_xmp(data.tobytes(), suffix, picture) if suffix in _XMP_OF_OURS else data.tobytes()


def to_8_bits(image: NDArray[Any]) -> NDArray[np.uint8]:
    return np.asarray(cv2.convertScaleAbs(image, alpha=1 / 257), np.uint8) if image.dtype != np.uint8 else image


def _exif_block(exif: Image.Exif) -> bytes:
    return exif.tobytes().removeprefix(_EXIF_HEADER)


def _without_orientation(block: bytes) -> bytes:
    exif = _parsed(block)
    if exif.get(_ORIENTATION, 1) == 1:
        return block  # as it was, maker's notes and all
    exif[_ORIENTATION] = 1
    return _exif_block(exif)


def _parsed(block: bytes) -> Image.Exif:
    exif = Image.Exif()
    try:
        exif.load(_EXIF_HEADER + block)
    except Exception:  # noqa: BLE001 - a damaged block is as good as none
        return Image.Exif()
    return exif


def _tiff_metadata(picture: Image.Image) -> list[tuple[int, bytes]]:
    """Of the tags, those that describe; OpenCV has turned the pixels upright already."""
    found, exif = [], Image.Exif()
    given = picture.getexif()
    for tag in _DESCRIPTIVE:
        if tag in given and tag != _ORIENTATION:
            exif[tag] = dict(given.get_ifd(tag)) if tag in (0x8769, 0x8825) else given[tag]
    if len(exif):
        found.append((_EXIF, _exif_block(exif)))
    for kind, block in ((_XMP, given.get(_TIFF_XMP)), (_ICC, picture.info.get("icc_profile"))):
        if isinstance(block, bytes) and block:
            found.append((kind, block))
    return found


def _with_xmp(data: bytes, suffix: str, picture: Picture) -> bytes:
    """A JPEG or PNG file with the XMP, after the part that must stay first; without it, where it fits no segment."""
    xmp = dict(picture.metadata).get(_XMP)
    if not xmp:
        return data
    if suffix in JPEG:
        place = 4 + int.from_bytes(data[4:6])
        body = b"http://ns.adobe.com/xap/1.0/\0" + xmp
        part = struct.pack(">2sH", b"\xff\xe1", len(body) + 2) + body if len(body) <= 0xFFFF - 2 else b""
    else:
        place = 8 + 25
        body = b"iTXtXML:com.adobe.xmp" + bytes(5) + xmp
        part = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return data[:place] + part + data[place:]


def _with_tags(data: bytes, picture: Picture) -> bytes:
    """A TIFF file with the metadata as tags: another directory at its end, which it begins with from now on."""
    blocks = dict(picture.metadata)
    alpha = picture.image.ndim == 3 and picture.image.shape[2] == 4
    if not blocks and not alpha:
        return data
    directory = TiffImagePlugin.ImageFileDirectory_v2(data[:8])
    file = io.BytesIO(data)
    file.seek(struct.unpack_from("<I" if data[:2] == b"II" else ">I", data, 4)[0])
    directory.load(file)
    dict(directory)  # what was not read is not written
    if alpha:
        directory[_TIFF_EXTRA_SAMPLES] = (_UNASSOCIATED_ALPHA,)
    exif = _parsed(blocks.get(_EXIF, b""))
    for tag in _DESCRIPTIVE:
        if tag in exif:
            directory[tag] = dict(exif.get_ifd(tag)) if tag in (0x8769, 0x8825) else exif[tag]
    for tag, kind in ((_TIFF_XMP, _XMP), (_TIFF_ICC, _ICC)):
        if kind in blocks:
            directory.tagtype[tag] = 1 if kind == _XMP else 7
            directory[tag] = blocks[kind]
    data += bytes(len(data) % 2)  # directories begin on even places
    directory.tagtype[_TIFF_STRIPS] = _LONG
    order = "<" if data[:2] == b"II" else ">"
    written = _with_strips(directory.tobytes(len(data)), len(data), order, directory[_TIFF_STRIPS])
    return data[:4] + struct.pack(f"{order}I", len(data)) + data[8:] + written


def _with_strips(directory: bytes, place: int, order: str, strips: tuple[int, ...]) -> bytes:
    """A directory that lies at `place`, with where its strips really are: Pillow takes them to follow it."""
    written = bytearray(directory)
    (entries,) = struct.unpack_from(f"{order}H", written)
    for entry in range(2, 2 + 12 * entries, 12):
        tag, _, count, value = struct.unpack_from(f"{order}HHII", written, entry)
        if tag == _TIFF_STRIPS:
            struct.pack_into(f"{order}{count}I", written, entry + 8 if count == 1 else value - place, *strips)
    return bytes(written)


def _describes_rgb(kind: int, block: bytes) -> bool:
    """False for the colour profile of a CMYK picture, which is read as RGB."""
    return kind != _ICC or block[16:20] in (b"RGB ", b"GRAY")
