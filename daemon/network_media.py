"""Opening video over the network with FFmpeg, by those protocols and formats only that belong to the address.

Knows addresses and containers; nothing of frames or time.
"""

from __future__ import annotations

import errno
import re
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import av
from av.codec.context import Flags
from av.container import InputContainer
from av.stream import Discard, Disposition
from av.video.stream import VideoStream

from .address import Address
from .errors import SourceError
from .http_files import HttpFiles
from .network_errors import failure, no_answer
from .rtsp.errors import RtpError
from .rtsp.sps import h264_size, h265_size
from .source import LiveOptions
from .tls import ffmpeg_options, why_distrusted

# What a description names is opened by these only: no file, no pipe, nothing inside another protocol.
_PROTOCOLS: Final = {"rtsp": "rtsp,rtp,tcp", "rtsps": "rtsp,rtp,tls,tcp"}

_RTSP: Final = {
    "format_whitelist": "rtsp,mpegts",
    "rtsp_transport": "tcp",
    "allowed_media_types": "video",
    # 5 frames at 25 fps instead of 28, until the first one comes. A camera that sends its parameter sets later loses
    # nothing: the decoder finds them whenever they come.
    "fpsprobesize": "0",
    "analyzeduration": "200000",
}
_HTTP: Final = {
    # None that fetches from places of its own: not SDP, DASH or a list of files.
    "format_whitelist": "mpjpeg,mjpeg,mpegts,mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,flv,avi,ogg,h264,hevc",
    "fpsprobesize": "0",
    "analyzeduration": "1000000",
    # What is of no format that has a mark at its beginning is known to be so after this much, not after 5 MB.
    "formatprobesize": "300000",
}
_HLS: Final = {
    "format_whitelist": "hls,mpegts,mov,mp4,m4a,3gp,3g2,mj2,aac,mp3,ac3,eac3,webvtt",
    # Also what has another name than usual. FFmpeg's own HTTP, which opens nothing here, could keep connections.
    "extension_picky": "0",
    "http_persistent": "0",
    "http_multiple": "0",
    "fpsprobesize": "0",
    "analyzeduration": "1000000",
}
_RTSPS_PORT: Final = 322
_UNTIMED: Final = ("mpjpeg", "mjpeg")
_FREEZES_LATER_S: Final = 0.5  # than whoever waits says so: an interrupted parser first gives what it has, as if alive
_NAL: Final = re.compile(rb"\x00\x00\x01(.{2,1024})", re.DOTALL)


@dataclass(frozen=True)
class Media:
    """An open container and the video in it.

    timed: frames have times of their own.
    from_zero: times count from the first packet, which FFmpeg gives without one.
    finite: the end of the data is the end of the video, not a broken connection.
    paced: frames come as fast as they are read, and must be shown by their times.
    """

    container: InputContainer
    video: VideoStream
    timed: bool
    from_zero: bool
    finite: bool
    paced: bool


@contextmanager
def open_network(address: Address, options: LiveOptions, stopped: threading.Event) -> Iterator[Media]:
    """Connect, and find the video; blocks for as long as name servers do. Raises SourceError.

    stopped: once set, what reads over HTTP ends.
    """
    with closing(HttpFiles(address, options, stopped)) as files:
        began_s = time.monotonic()
        try:
            container = _open_rtsp(address, options) if _is_rtsp(address) else _open_http(options, files)
        except av.FFmpegError as error:
            if time.monotonic() - began_s >= options.open_timeout_s:  # interrupted, whatever FFmpeg makes of it
                raise no_answer(address, options) from None
            raise files.error or _distrusted(address, options) or failure(error, address, options) from None
        with closing(container):
            yield _media(container, address, options)
        if files.error and container.format.name != "hls":  # which goes on after a segment that is missing
            raise files.error


def check_size(address: Address, width: int, height: int, options: LiveOptions) -> None:
    if width * height > options.max_pixels:
        raise SourceError(
            f"{address}: a frame must have at most {options.max_pixels} pixels, got {width}x{height}; "
            "choose a smaller stream of this camera, or raise max_pixels",
            lasting=True,
        )


def check_declared_size(address: Address, data: bytes, codec: str, options: LiveOptions) -> None:
    """Refuse parameter sets in `data`, Annex B, of frames too large for the decoder, which calls them invalid."""
    for nal in _NAL.findall(data):
        width = height = 0
        with suppress(RtpError):  # not a whole one
            if codec == "h264" and nal[0] & 31 == 7:
                width, height = h264_size(nal)
            elif codec == "hevc" and nal[0] >> 1 & 63 == 33:
                width, height = h265_size(nal)
        if width * height > _most_coded_pixels(options):
            check_size(address, width, height, options)


def _open_rtsp(address: Address, options: LiveOptions) -> InputContainer:
    rtsp = _RTSP | {"protocol_whitelist": _PROTOCOLS[address.kind]}
    if address.kind == "rtsps":
        rtsp |= ffmpeg_options(options)
    try:
        return _av_open(address.url, options, "rtsp", rtsp)
    except av.error.HTTPOtherClientError:
        # So servers answer a client that wants none of what they have: see what that is.
        container = _av_open(address.url, options, "rtsp", rtsp | {"allowed_media_types": "audio"})
        if not container.streams:
            container.close()
            raise
        return container


def _open_http(options: LiveOptions, files: HttpFiles) -> InputContainer:
    look = files.look()
    if look.beginning.removeprefix(b"\xef\xbb\xbf").startswith(b"#EXTM3U"):
        return _av_open(look.url, options, "hls", _HLS, files)
    try:
        return _av_open(look.url, options, None, _HTTP, files)
    except av.FFmpegError as error:
        # Of no format, or of one that is not allowed, or it ended while its format was looked for.
        if not isinstance(error, av.InvalidDataError | av.ArgumentError) and error.errno != errno.EIO:
            raise
        return _open_pictures(look.url, options, files)


def _open_pictures(url: str, options: LiveOptions, files: HttpFiles) -> InputContainer:
    """Some cameras send bare JPEG pictures, or parts between boundaries of their own: this finds them in anything."""
    container = _av_open(url, options, "mjpeg", _HTTP, files)
    if not any(stream.codec_context.width for stream in container.streams.video):
        container.close()
        raise av.InvalidDataError(0, "no picture found")
    return container


def _av_open(
    url: str, options: LiveOptions, container_format: str | None, more: dict[str, str], files: HttpFiles | None = None
) -> InputContainer:
    return av.open(
        url,
        format=container_format,
        options={"max_pixels": str(_most_coded_pixels(options)), **more},
        timeout=(options.open_timeout_s, options.timeout_s + _FREEZES_LATER_S),
        io_open=files.open_for_ffmpeg if files else None,
        metadata_errors="replace",
    )


def _most_coded_pixels(options: LiveOptions) -> int:
    """Beyond this the decoder refuses, before it makes room. Coded frames are larger than what is shown of them."""
    return min(2 * options.max_pixels + 65536, 2**31 - 1)


def _media(container: InputContainer, address: Address, options: LiveOptions) -> Media:
    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not streams:
        kinds = " and ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        raise SourceError(f"{address}: must have a video stream, got only {kinds}", lasting=True)
    best = container.streams.best("video")
    video = next((stream for stream in streams if best is not None and stream.index == best.index), streams[0])
    context: Any = video.codec_context
    if context is None:
        raise SourceError(
            f"{address}: the video is of a codec that is not known here; set the camera to H.264 or H.265", lasting=True
        )
    check_size(address, context.width, context.height, options)
    check_declared_size(address, context.extradata or b"", context.name, options)
    for stream in container.streams:
        if stream.index != video.index:
            stream.discard = Discard.all  # of HLS, what is not wanted is not fetched either
    # Each frame thread would delay by a frame; more threads a camera would starve the other cameras.
    context.thread_type, context.thread_count = "SLICE", 1
    context.flags |= Flags.copy_opaque
    name, rtsp = container.format.name, _is_rtsp(address)
    finite = not rtsp and bool(container.duration)
    return Media(container, video, name not in _UNTIMED, from_zero=rtsp, finite=finite, paced=finite or name == "hls")


def _distrusted(address: Address, options: LiveOptions) -> SourceError | None:
    """FFmpeg says of a certificate that it does not trust no more than that it could not connect."""
    if address.kind != "rtsps" or address.host is None:
        return None
    why = why_distrusted(address.host, address.port or _RTSPS_PORT, options)
    return SourceError(f"{address}: {why}", lasting=True) if why else None


def _is_rtsp(address: Address) -> bool:
    return address.kind in ("rtsp", "rtsps")
