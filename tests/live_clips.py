"""Encoded clips whose frames say their number and time in a bar code that survives lossy coding.

Knows no server: what it makes, `rtsp_server` serves.
"""

from __future__ import annotations

import binascii
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import cache
from typing import NamedTuple

import av
import numpy as np
from numpy.typing import NDArray
from rtp_payloads import Clip, Codec, LiveFeed, Unit, nal_type, nal_units

CELL = 8
COLUMNS = 32
ROWS = 3
LEAST_WIDTH, LEAST_HEIGHT = CELL * COLUMNS, CELL * ROWS

BLACK, WHITE = 16, 235


class Mark(NamedTuple):
    """What a frame's bar code says: its number, and when it was made in microseconds."""

    number: int
    time_us: int


def draw_mark(luma: NDArray[np.uint8], mark: Mark) -> None:
    """Draw the bar code at the top left of `luma` (H, W): 32 bits of number, 48 of time, 16 of check sum."""
    body = (mark.number & 0xFFFFFFFF).to_bytes(4, "big") + (mark.time_us & (1 << 48) - 1).to_bytes(6, "big")
    word = body + binascii.crc_hqx(body, 0xFFFF).to_bytes(2, "big")
    cells = np.unpackbits(np.frombuffer(word, np.uint8)).reshape(ROWS, COLUMNS)
    block = np.where(cells, WHITE, BLACK).astype(np.uint8).repeat(CELL, 0).repeat(CELL, 1)
    luma[:LEAST_HEIGHT, :LEAST_WIDTH] = block


def read_mark(pixels: NDArray[np.uint8]) -> Mark | None:
    """What the bar code of a picture says: luma (H, W) or RGB (H, W, 3); None where it cannot be read."""
    if pixels.shape[0] < LEAST_HEIGHT or pixels.shape[1] < LEAST_WIDTH:
        return None
    area = pixels[:LEAST_HEIGHT, :LEAST_WIDTH]
    luma = area if area.ndim == 2 else area[..., 1]
    # Only the middle of each cell counts: coding blurs the edges.
    middles = luma.reshape(ROWS, CELL, COLUMNS, CELL)[:, 2:6, :, 2:6].mean(axis=(1, 3))
    word = np.packbits(middles > 126).tobytes()
    if binascii.crc_hqx(word[:10], 0xFFFF).to_bytes(2, "big") != word[10:]:
        return None
    return Mark(int.from_bytes(word[:4], "big"), int.from_bytes(word[4:10], "big"))


def picture(mark: Mark, width: int, height: int, *, fields: bool = False) -> av.VideoFrame:
    """A frame yuv420p with a moving texture and its bar code; with `fields`, odd lines are half a frame later."""
    luma = _moved(mark.number * 2, width, height)
    if fields:
        luma[1::2] = _moved(mark.number * 2 + 1, width, height)[1::2]
    draw_mark(luma, mark)
    chroma = np.full(((height + 1) // 2, (width + 1) // 2), 118, np.uint8)
    frame = av.VideoFrame(width, height, "yuv420p")
    for plane, values in zip(frame.planes, (luma, chroma, chroma + 20), strict=True):
        lines = np.zeros((plane.height, plane.line_size), np.uint8)
        lines[:, : plane.width] = values
        plane.update(lines.tobytes())
    return frame


@cache
def _texture(width: int, height: int) -> NDArray[np.uint8]:
    coarse = np.random.default_rng(0).integers(40, 200, (height // 8 + 2, width // 8 + 2), dtype=np.uint16)
    fine = coarse.repeat(8, 0).repeat(8, 1)
    soft = fine + np.roll(fine, 3, 1) + np.roll(fine, 3, 0) + np.roll(fine, 5, 1)
    return (soft // 4).astype(np.uint8)


def _moved(step: int, width: int, height: int) -> NDArray[np.uint8]:
    return np.roll(_texture(width, height), (step, step * 2), (0, 1))[:height, :width].copy()


@cache
def make_clip(
    codec: Codec = "h264",
    *,
    frames: int = 50,
    width: int = 320,
    height: int = 240,
    rate: int = 25,
    gop: int = 25,
    b_frames: int = 0,
    interlaced: bool = False,
    slices: int = 1,
    aspect: Fraction | None = None,
    rotation: int = 0,
) -> Clip:
    """A clip of frames 0 to `frames` - 1; a frame's time in its bar code is its number / rate.

    gop: frames from one key frame to the next. interlaced, rotation: H.264 only; two fields in a frame, and degrees
    counter-clockwise by which a display is told to turn the picture. slices: of a frame, at most; with H.265 up to 8.
    """
    if codec == "h265" and slices > 8:  # x265 would end the process
        raise ValueError(f"slices of an H.265 clip must be at most 8, got {slices}")
    encoder = _encoder(codec, width, height, rate, gop, b_frames, interlaced, slices, aspect)
    units: list[Unit] = []
    for number in range(frames):
        frame = picture(Mark(number, number * 1_000_000 // rate), width, height, fields=interlaced)
        frame.pts, frame.time_base = number, Fraction(1, rate)
        units += _units(encoder, frame)
    units += _units(encoder, None)
    if rotation:
        units = [replace(unit, data=_turned(unit.data, rotation)) for unit in units]
    return Clip(codec, width, height, Fraction(rate), tuple(units))


def live_feed(
    clock_us: Callable[[], int],
    codec: Codec = "h264",
    *,
    width: int = 320,
    height: int = 240,
    rate: int = 25,
    gop: int = 25,
) -> LiveFeed:
    """Frames made when they are sent; `clock_us` gives the time for the bar code, just before the frame is encoded."""

    def start() -> Callable[[int], bytes]:
        encoder = _encoder(codec, width, height, rate, gop)

        def encode(number: int) -> bytes:
            frame = picture(Mark(number, clock_us()), width, height)
            frame.pts, frame.time_base = number, Fraction(1, rate)
            return b"".join(bytes(packet) for packet in encoder.encode(frame))

        return encode

    return LiveFeed(codec, width, height, Fraction(rate), start)


def decoded(clip: Clip) -> dict[int, av.VideoFrame]:
    """The clip's frames as an undisturbed decoder gives them, by number: what a client must see, to the bit."""
    decoder = av.CodecContext.create({"h264": "h264", "h265": "hevc", "mjpeg": "mjpeg"}[clip.codec], "r")
    assert isinstance(decoder, av.VideoCodecContext)
    decoder.thread_count = 1
    frames = []
    for unit in [*clip.units, None]:
        frames += decoder.decode(av.Packet(unit.data) if unit else None)
    return dict(enumerate(frames))


def oversized(clip: Clip, width: int, height: int) -> Clip:
    """A clip H.264 whose parameter sets say another size, multiples of 16; its pictures cannot be decoded."""
    assert clip.codec == "h264"
    fields = [0, 0, 2, 1]  # id, bits of frame_num - 4, order by decoding, reference frames
    size = [width // 16 - 1, height // 16 - 1]
    bits = "".join(map(_exp_golomb, fields)) + "0" + "".join(map(_exp_golomb, size))
    bits += "1100" + "1"  # frames only, direct 8x8; no cropping, no VUI; stop bit
    body = int(bits.ljust(-len(bits) % 8 + len(bits), "0"), 2).to_bytes((len(bits) + 7) // 8, "big")
    parameters = bytes([0x67, 66, 0xC0, 62]) + body  # baseline, level 6.2
    units = []
    for unit in clip.units:
        nals = [parameters if nal_type(nal, "h264") == 7 else nal for nal in nal_units(unit.data)]
        units.append(replace(unit, data=_annex_b(nals)))
    return replace(clip, width=width, height=height, units=tuple(units))


def _exp_golomb(value: int) -> str:
    return f"{value + 1:0{2 * (value + 1).bit_length() - 1}b}"


def _turned(data: bytes, degrees: int) -> bytes:
    """With the SEI message "display orientation" before the picture: FFmpeg does not let it last beyond its frame."""
    turn = degrees * 65536 // 360 << 5 | 0b01001  # no flips, 16 bits of turn, period 1, no extension, stop bit
    message = bytes([6, 47, 3]) + turn.to_bytes(3, "big") + b"\x80"
    nals = nal_units(data)
    first = next(place for place, nal in enumerate(nals) if nal_type(nal, "h264") in (1, 5))
    return _annex_b([*nals[:first], message, *nals[first:]])


def _annex_b(nals: Sequence[bytes]) -> bytes:
    return b"".join(b"\x00\x00\x00\x01" + nal for nal in nals)


def _encoder(
    codec: Codec,
    width: int,
    height: int,
    rate: int,
    gop: int,
    b_frames: int = 0,
    interlaced: bool = False,
    slices: int = 1,
    aspect: Fraction | None = None,
) -> av.VideoCodecContext:
    name = {"h264": "libx264", "h265": "libx265", "mjpeg": "mjpeg"}[codec]
    encoder = av.CodecContext.create(name, "w")
    assert isinstance(encoder, av.VideoCodecContext)
    encoder.width, encoder.height = width, height
    encoder.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    encoder.framerate, encoder.time_base = Fraction(rate), Fraction(1, rate)
    encoder.thread_count = 1
    if aspect:
        encoder.sample_aspect_ratio = aspect
    if codec == "mjpeg":
        # RFC 2435 sends no Huffman tables.
        encoder.options = {"huffman": "default", "qmin": "3", "qmax": "3"}
    elif codec == "h265":
        shared = f"keyint={gop}:min-keyint={gop}:scenecut=0:open-gop=0:bframes={b_frames}:b-adapt=0"
        pools = "none" if slices == 1 else "1"  # without threads for them, several slices end the process
        threads = f"pools={pools}:frame-threads=1:rc-lookahead={b_frames + 1 if b_frames else 0}:log-level=none"
        parameters = f"{shared}:{threads}:slices={slices}"
        encoder.options = {"preset": "ultrafast", "tune": "zerolatency", "x265-params": parameters}
    else:
        shared = f"keyint={gop}:min-keyint={gop}:scenecut=0:open-gop=0:bframes={b_frames}:b-adapt=0"
        extra = f"slices={slices}" + (":tff=1" if interlaced else "")
        encoder.options = {"preset": "veryfast", "tune": "zerolatency", "x264-params": f"{shared}:{extra}"}
    return encoder


def _units(encoder: av.VideoCodecContext, frame: av.VideoFrame | None) -> Iterator[Unit]:
    for packet in encoder.encode(frame):
        assert packet.pts is not None
        yield Unit(bytes(packet), packet.pts, packet.is_keyframe)
