"""Which encoder writes a restored video, and how: codec, pixel format, quality, tags.

Knows FFmpeg's encoders and their rules; writes nothing.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Final, cast

import av
from av.sidedata.sidedata import SideData

from engine.driver import why_no_gpu

from .colour import assumed_matrix, colour_of
from .errors import SinkError
from .frame import Colour

_ENCODERS: Final = {
    "h264": "libx264",
    "hevc": "libx265",
    "av1": "libsvtav1",
    "vp8": "libvpx-vp9",
    "vp9": "libvpx-vp9",
    "prores": "prores_ks",
    "ffv1": "ffv1",
    # What was kept without loss is kept so.
    "ffvhuff": "ffv1",
    "huffyuv": "ffv1",
    "rawvideo": "ffv1",
    "utvideo": "ffv1",
}
_HARDWARE: Final = {"libx264": "h264_nvenc", "libx265": "hevc_nvenc", "libsvtav1": "av1_nvenc"}
_LOSSLESS: Final[dict[str, dict[str, str]]] = {
    "libx264": {"qp": "0"},
    "libx265": {"x265-params": "lossless=1"},
    "libvpx-vp9": {"lossless": "1"},
    "ffv1": {},
    "h264_nvenc": {"tune": "lossless"},
    "hevc_nvenc": {"tune": "lossless"},
}
# Visually lossless, at the step from which more time buys nothing to see: at crf 17, 960x540 cost x264 22 ms a frame
# with `faster`, 43 ms with `medium`, for 0.2 dB more in the same size; `veryfast` saved 4 ms and lost 1 dB.
_CRF: Final = {"libx264": 17, "libx265": 15, "libsvtav1": 15, "libvpx-vp9": 15}
_CQ: Final = {"h264_nvenc": 17, "hevc_nvenc": 17, "av1_nvenc": 20}  # of the same meaning
# What an encoder makes may depend on how many threads it has, and must not depend on the machine: these make the same
# packets in every run with so many threads, on one core too. Of others nobody knows that (mjpeg, for one, does not).
THREADS: Final = 4
_OPTIONS: Final[dict[str, dict[str, str]]] = {
    "libx264": {"preset": "faster"},
    "libx265": {"preset": "veryfast"},
    "libsvtav1": {"preset": "8", "svtav1-params": f"lp={THREADS}"},
    "libvpx-vp9": {"b": "0", "deadline": "good", "cpu-used": "5", "row-mt": "1"},
    "ffv1": {"level": "3", "slicecrc": "1", "g": "1"},
    **{encoder: {"preset": "p6", "tune": "hq", "rc": "vbr", "b": "0"} for encoder in _HARDWARE.values()},
}
_TAKES_CAPTIONS: Final = ("libx264", "libx265")
_EVEN_CHROMA_ONLY: Final = ("libx264", "libx265")
_WITHOUT_ALPHA: Final = ("libx265",)  # offers it, and then does not open
_MATROSKA: Final = ("matroska", "webm")  # where VP9 has its transparency beside it
_MP4: Final = ("mp4", "mov", "ipod")


@dataclass(frozen=True)
class Encoding:
    """How to encode.

    codec: `same` as the source where it can be written, else H.264; or a codec, or a name of an FFmpeg encoder.
    crf: constant quality on the encoder's own scale; None is visually lossless.
    preset: speed against size, on the encoder's own scale.
    lossless: the encoder changes nothing at all.
    hardware: the NVIDIA GPU encodes H.264, HEVC and AV1.
    """

    codec: str = "same"
    crf: float | None = None
    preset: str | None = None
    lossless: bool = False
    hardware: bool = False


@dataclass(frozen=True)
class EncoderSetup:
    """What an encoder is opened with.

    colour: by which pixels are converted, and tagged.
    range_tag: of AVColorRange; 0 where the source has none.
    threads: of the encoder, whatever the machine has.
    codec_tag: None leaves it to the container.
    notes: one line for each thing that the encoder cannot keep.
    """

    pix_fmt: str
    colour: Colour
    range_tag: int
    options: dict[str, str]
    threads: int
    codec_tag: str | None
    notes: tuple[str, ...]


def encoder_for(encoding: Encoding, source_codec: str) -> str:
    """The name of the encoder; SinkError if there is none, or it has no lossless mode but must."""
    if encoding.codec == "same":
        encoder = _ENCODERS.get(source_codec, "libx264")
    else:
        encoder = _ENCODERS.get(encoding.codec, encoding.codec)
    if encoding.hardware:
        if encoder not in _HARDWARE:
            raise SinkError(f"an NVIDIA GPU encodes h264, hevc and av1, got {encoder}; choose one of them")
        if why := why_no_gpu():
            raise SinkError(f"encoding by the hardware needs an NVIDIA GPU: {why}")
        encoder = _HARDWARE[encoder]
    try:
        if av.Codec(encoder, "w").type != "video":
            raise SinkError(f"codec must be one for video, got {encoding.codec!r}")
    except ValueError as error:
        known = ", ".join(dict.fromkeys(("same", *_ENCODERS)))
        raise SinkError(f"codec must be one of {known} or an FFmpeg encoder, got {encoding.codec!r}") from error
    if encoding.lossless and encoder not in _LOSSLESS:
        raise SinkError(f"lossless needs h264, hevc, vp9 or ffv1, got {encoder}")
    return encoder


def setup_for(encoding: Encoding, encoder: str, container: str, first: av.VideoFrame) -> EncoderSetup:
    """How to open `encoder` for frames like the source's `first`, in a `container` by FFmpeg's name."""
    if container == "asf":  # one time a packet: B-frames come out of order, and without them all are a step late
        raise SinkError("exact times of frames cannot be kept in ASF and WMV; .mkv holds any video")
    # SVT-AV1 can be kept from printing by no option, and calls it an error when work is stopped.
    os.environ.setdefault("SVT_LOG", "0")
    notes = []
    source = first.format.name.replace("yuvj", "yuv")  # yuvj is yuv with a range, which travels as a tag
    alpha = encoder not in _WITHOUT_ALPHA and (encoder != "libvpx-vp9" or container in _MATROSKA)
    pix_fmt = _nearest(source, encoder, first.width, first.height, alpha=alpha)
    if _Shape.of(source).alpha and not _Shape.of(pix_fmt).alpha:
        notes.append(f"transparency is lost: {source} becomes {pix_fmt}")
    elif pix_fmt != source:
        notes.append(f"pixel format {source} becomes {pix_fmt}, the nearest that {encoder} has")
    colour = colour_of(first)
    range_tag = 2 if colour.full_range else int(first.color_range)
    if first.format.is_rgb and not av.VideoFormat(pix_fmt).is_rgb:
        colour = replace(colour, matrix=assumed_matrix(first.height), full_range=False)
        range_tag = 1

    options = dict(_OPTIONS.get(encoder, {}))
    x265 = ["log-level=none", f"pools={THREADS}", "frame-threads=2"]
    if encoding.lossless:
        options |= _LOSSLESS[encoder]
        x265 += [options.pop("x265-params")] if encoder == "libx265" else []
    elif encoder in _CRF:
        options["crf"] = str(_CRF[encoder] if encoding.crf is None else encoding.crf)
    elif encoder in _CQ:
        options["cq"] = str(_CQ[encoder] if encoding.crf is None else encoding.crf)
    if container == "avi":
        options["bf"] = "0"  # AVI has no times of presentation: players would show B-frames late
    if encoding.preset is not None:
        options["cpu-used" if encoder == "libvpx-vp9" else "preset"] = encoding.preset
    static_hdr = _static_hdr(first)
    if encoder == "libx265":
        options["x265-params"] = ":".join(x265 + static_hdr)
    elif static_hdr:
        notes.append(f"HDR10 mastering data is lost: {encoder} does not take it")
    if encoder not in _TAKES_CAPTIONS and any(data.type.name == "A53_CC" for data in _side_data(first)):
        notes.append("closed captions inside the video are lost")
    tag = (
        "hvc1" if encoder in ("libx265", "hevc_nvenc") and container in _MP4 else None
    )  # Apple's players know no other
    threads = THREADS if encoder in _ENCODERS.values() else 1
    return EncoderSetup(pix_fmt, colour, range_tag, options, threads, tag, tuple(notes))


def _nearest(source: str, encoder: str, width: int, height: int, *, alpha: bool) -> str:
    """The encoder's pixel format that loses least of `source`, then adds least; `alpha`: whether that can be kept."""
    formats = av.Codec(encoder, "w").video_formats or ()
    offered = [pixel.name for pixel in formats if pixel.components]  # the others lie in a GPU
    shapes = {name: _Shape.of(name) for name in offered if not name.startswith(("yuvj", "nv", "p0"))}
    if encoder in _EVEN_CHROMA_ONLY:
        fitting = {name: shape for name, shape in shapes.items() if shape.divides(width, height)}
        shapes = fitting or shapes
    wanted = _Shape.of(source)
    if not alpha:
        wanted = replace(wanted, alpha=False)
        shapes = {name: shape for name, shape in shapes.items() if not shape.alpha} or shapes
    if not offered or (source in shapes and shapes[source] == wanted):
        return source
    return min(shapes, key=lambda name: wanted.distance(shapes[name]))


@dataclass(frozen=True)
class _Shape:
    """What a pixel format can hold; chroma is subsampled by 2 ** (wide, high)."""

    rgb: bool
    grey: bool
    alpha: bool
    depth: int
    floating: bool
    wide: int
    high: int

    @classmethod
    def of(cls, name: str) -> _Shape:
        pixel = av.VideoFormat(name)
        colours = [component for component in pixel.components if not component.is_alpha]
        rgb = pixel.is_rgb or pixel.has_palette
        return cls(
            rgb=rgb,
            grey=not rgb and len(colours) == 1,
            alpha=any(component.is_alpha for component in pixel.components),
            depth=max((component.bits for component in pixel.components), default=8),
            floating="f16" in name or "f32" in name,
            wide=0 if rgb else (64 // pixel.chroma_width(64)).bit_length() - 1,
            high=0 if rgb else (64 // pixel.chroma_height(64)).bit_length() - 1,
        )

    def divides(self, width: int, height: int) -> bool:
        return self.grey or not (width % 2**self.wide or height % 2**self.high)

    def distance(self, other: _Shape) -> tuple[int, ...]:
        """What a picture of this shape loses in `other`, the worst first; then what `other` has too much."""
        chroma_lost = max(0, other.wide - self.wide) + max(0, other.high - self.high)
        chroma_extra = max(0, self.wide - other.wide) + max(0, self.high - other.high)
        return (
            not self.grey and other.grey,
            self.alpha and not other.alpha,
            0 if self.grey else chroma_lost,
            max(0, self.depth - other.depth),
            self.rgb != other.rgb,
            self.grey != other.grey,
            other.floating and not self.floating,
            other.alpha and not self.alpha,
            chroma_extra,
            max(0, other.depth - self.depth),
        )


def _side_data(frame: av.VideoFrame) -> list[SideData]:
    return list(cast("Iterable[SideData]", frame.side_data))  # PyAV's own types say otherwise


def _static_hdr(frame: av.VideoFrame) -> list[str]:
    """HDR10's static metadata (SMPTE ST 2086 and CTA-861.3), as parameters of x265."""
    parameters = []
    for data in _side_data(frame):
        raw = bytes(data)
        if data.type.name == "MASTERING_DISPLAY_METADATA":
            values = [Fraction(*struct.unpack_from("<ii", raw, 8 * i)) for i in range(10)]
            has_primaries, has_luminance = struct.unpack_from("<ii", raw, 80)
            if has_primaries and has_luminance:
                red, green, blue, white = (
                    f"({round(x * 50000)},{round(y * 50000)})"
                    for x, y in zip(values[0:8:2], values[1:8:2], strict=True)
                )
                luminance = f"({round(values[9] * 10000)},{round(values[8] * 10000)})"
                parameters.append(f"master-display=G{green}B{blue}R{red}WP{white}L{luminance}")
        elif data.type.name == "CONTENT_LIGHT_LEVEL":
            parameters.append("max-cll={},{}".format(*struct.unpack_from("<II", raw)))
    return parameters
