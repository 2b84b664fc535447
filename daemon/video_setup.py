"""How a video's encoder is opened: alike for every segment, and for the file that they are put together in.

Knows encoders and containers; writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Final

import av
import cv2
from av.video.codeccontext import VideoCodecContext

from .compare import Comparison, compared_size
from .encoding import EncoderSetup, Encoding, encoder_for, setup_for
from .errors import SinkError, SourceError
from .file_source import FileSource
from .frame import Frame
from .media import best_video, open_media
from .planes import Original

_FORMATS: Final = {".m4v": "mp4", ".qt": "mov"}  # where FFmpeg's guess by the name is not what is meant
_WANTS_GLOBAL_HEADER: Final = 0x40  # of AVOutputFormat.flags
_GLOBAL_HEADER: Final = 1 << 22  # of AVCodecContext.flags
_AVX_512F: Final = 13  # of cv2.checkHardwareSupport


@dataclass(frozen=True)
class VideoSetup:
    """Everything that an encoder is opened with.

    container: by FFmpeg's name.
    global_header: whether the container keeps the encoder's header in one place for all packets.
    size: (W, H) of the first frame, and so of every frame in the result.
    rate: frames a second, guessed; it steers only the encoder's rate control.
    rotation: degrees counter-clockwise that a player must turn the picture.
    comparison: how before and after are shown in each frame; None shows what is restored only.
    """

    encoder: str
    container: str
    global_header: bool
    setup: EncoderSetup
    size: tuple[int, int]
    time_base: Fraction
    rate: Fraction
    sample_aspect_ratio: Fraction | None
    rotation: int
    comparison: Comparison | None = None

    def configure(self, context: VideoCodecContext) -> None:
        """Set all of it on an encoder that is not open yet."""
        context.width, context.height = compared_size(self.comparison, self.size, self.setup.pix_fmt, self.rotation)
        context.pix_fmt = self.setup.pix_fmt
        context.time_base, context.framerate = self.time_base, self.rate
        context.bit_rate, context.bit_rate_tolerance = 0, 128000  # quality is constant instead
        if self.sample_aspect_ratio:
            context.sample_aspect_ratio = self.sample_aspect_ratio
        context.color_primaries, context.color_trc = self.setup.colour.primaries, self.setup.colour.transfer
        context.colorspace = self.setup.colour.matrix
        context.color_range = self.setup.range_tag
        context.options = self.setup.options | _for_this_processor(self.encoder)
        context.thread_count, context.thread_type = self.setup.threads, "AUTO"
        if self.setup.codec_tag:
            context.codec_tag = self.setup.codec_tag
        if self.global_header:
            context.flags |= _GLOBAL_HEADER

    def open_encoder(self) -> VideoCodecContext:
        """A new encoder, open. Raises FFmpegError for options that it does not take."""
        context = av.CodecContext.create(self.encoder, "w")
        assert isinstance(context, VideoCodecContext)
        self.configure(context)
        context.open()
        return context


def video_setup(source: Path, target: Path, encoding: Encoding, comparison: Comparison | None = None) -> VideoSetup:
    """What `target` is encoded with: by the first frame of `source`, since headers may lie.

    Raises SourceError, or SinkError if there is no such encoder or container.
    """
    container, flags = _container_of(target)
    with open_media(source) as opened:
        video = best_video(opened, source)
        if video.codec_context is None:
            raise SourceError(f"{source}: the video must be of a known codec")
        encoder = encoder_for(encoding, video.codec_context.name)
        rate = video.guessed_rate or video.average_rate or Fraction(25)
        aspect = video.sample_aspect_ratio
    first = first_frame(source)
    origin = first.origin
    assert isinstance(origin, Original)
    return VideoSetup(
        encoder=encoder,
        container=container,
        global_header=bool(flags & _WANTS_GLOBAL_HEADER),
        setup=setup_for(encoding, encoder, container, origin.frame),
        size=(first.width, first.height),
        time_base=first.time_base,
        rate=rate,
        sample_aspect_ratio=aspect or None,
        rotation=first.rotation,
        comparison=comparison,
    )


def first_frame(source: Path) -> Frame:
    """Raises SourceError where there is none."""
    with FileSource(source) as frames:
        for frame in frames:
            return frame
    raise SourceError(f"{source}: must have at least one frame, got none")


def format_for(target: Path) -> str | None:
    """FFmpeg's name of the container for `target`; None leaves it to FFmpeg."""
    return _FORMATS.get(target.suffix.lower())


def _for_this_processor(encoder: str) -> dict[str, str]:
    """Options that make an encoder give what it gives everywhere else.

    x264's AVX-512 code for macroblock-tree rate control reads beyond its rows unless they are a multiple of 128 pixels
    wide: at 848x480, ten of twelve runs with the same frames gave different packets. With AVX2 all were equal.
    """
    return {"x264-params": "asm=avx2"} if encoder.startswith("libx264") and cv2.checkHardwareSupport(_AVX_512F) else {}


def _container_of(target: Path) -> tuple[str, int]:
    try:
        # Opening makes no file: the muxer does, with the header.
        with av.open(f"file:{target.absolute()}", "w", format=format_for(target)) as output:
            return output.format.name, output.format.flags
    except (av.FFmpegError, ValueError) as error:
        known = "a suffix of a video format, e.g. .mp4 or .mkv"
        raise SinkError(f"{target}: the name must have {known}, got {target.suffix!r}") from error
