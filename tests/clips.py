"""Tiny media files for tests, made on the spot."""

from __future__ import annotations

import hashlib
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.stream import VideoStream

LOSSLESS = {"qp": "0", "preset": "ultrafast"}


def smooth(number: int, width: int, height: int) -> np.ndarray:
    """A picture RGB (H, W, 3) of soft colours that are far from clipping, another one for each number."""
    y, x = np.mgrid[:height, :width].astype(float)
    waves = [np.sin((x * (1 + c) + y * (2 - c)) / 17 + number / 5 + c) for c in range(3)]
    return np.rint(128 + 45 * np.stack(waves, -1)).astype(np.uint8)


def video_frames(
    count: int, width: int, height: int, pix_fmt: str, *, matrix: int = 2, color_range: int = 0
) -> Iterator[av.VideoFrame]:
    """Frames as a camera would give them, tagged as asked; untagged ones are BT.601, limited."""
    for number in range(count):
        rgb = av.VideoFrame.from_ndarray(smooth(number, width, height), format="rgb24")
        full = color_range == 2 or pix_fmt.startswith("yuvj")
        frame = rgb.reformat(
            format=pix_fmt,
            dst_colorspace={1: 1, 9: 9}.get(matrix, 5),
            dst_color_range=2 if full else 1,
            interpolation=0x46004,
        )
        frame.colorspace, frame.color_range = matrix, color_range
        yield frame


def write_video(
    path: Path,
    *,
    count: int = 30,
    width: int = 64,
    height: int = 48,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    pts: Sequence[int] | None = None,
    time_base: Fraction = Fraction(1, 25),
    matrix: int = 2,
    color_range: int = 0,
    rotation: int = 0,
    aspect: Fraction | None = None,
    audio: str | None = None,
    chapters: bool = False,
    metadata: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """A video of `smooth` pictures, by default 25 a second; `audio` names the encoder of a second stream."""
    options = (LOSSLESS if codec == "libx264" else {}) if options is None else options
    with av.open(str(path), "w", container_options=container_options or {}) as output:
        stream = output.add_stream(codec, rate=25, options=options)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.time_base = stream.codec_context.time_base = time_base
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, color_range
        if aspect:
            stream.sample_aspect_ratio = aspect
        if rotation:
            stream.set_display_rotation(rotation)
        sound = output.add_stream(audio, rate=48000) if audio else None
        output.metadata.update(metadata or {})
        if chapters:
            half = {"id": 2, "start": 500, "end": 1000, "time_base": Fraction(1, 1000), "metadata": {"title": "two"}}
            output.set_chapters([half | {"id": 1, "start": 0, "end": 500, "metadata": {"title": "one"}}, half])
        for frame, stamp in zip(
            video_frames(count, width, height, pix_fmt, matrix=matrix, color_range=color_range),
            range(count) if pts is None else pts,
            strict=True,
        ):
            frame.pts, frame.time_base = stamp, time_base
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        if sound is not None:
            write_tone(output, sound, seconds=count / 25)
    return path


def write_audio(path: Path, codec: str = "aac") -> Path:
    with av.open(str(path), "w") as output:
        write_tone(output, output.add_stream(codec, rate=48000), seconds=1)
    return path


def write_tone(output, stream, seconds: float) -> None:
    layout = stream.codec_context.layout.name
    for begin in range(0, int(48000 * seconds), 1024):
        wave = 0.2 * np.sin(np.arange(begin, begin + 1024) / 20)
        samples = np.stack([wave] * stream.codec_context.layout.nb_channels).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = 48000, begin, Fraction(1, 48000)
        output.mux(stream.encode(frame))
    output.mux(stream.encode(None))


def truncated(path: Path, share: float) -> Path:
    """The beginning of a file, beside it."""
    data = path.read_bytes()
    cut = path.with_name(f"truncated{path.suffix}")
    cut.write_bytes(data[: int(len(data) * share)])
    return cut


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file can grow beyond `size` bytes: the nearest to a full disk that needs no root."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def frames_of(path: Path) -> list[av.VideoFrame]:
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


def times_of(path: Path) -> list[Fraction]:
    """Every frame's time in seconds, exactly."""
    return [frame.pts * frame.time_base for frame in frames_of(path)]


def packet_digests(path: Path, kind: str) -> list[str]:
    """The MD5 of every packet of all streams of a kind: audio, subtitle, video."""
    with av.open(str(path)) as container:
        packets = container.demux([stream for stream in container.streams if stream.type == kind])
        return [hashlib.md5(bytes(packet)).hexdigest() for packet in packets if packet.size]


def planes_of(frame: av.VideoFrame) -> list[np.ndarray]:
    """An 8-bit planar frame's planes, (H, W) each."""
    return [
        np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width].astype(int)
        for plane in frame.planes
    ]
