"""Odd files and broken ones, made on the spot: each with what must become of it.

`ODD_FILES` has all of them. Knows how to make files; nothing of what reads them.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import clips
import numpy as np
from av.stream import Disposition

Ends = Literal["whole", "partial", "refused"]
MILLISECONDS = Fraction(1, 1000)
PERIOD = Fraction(1, 25)
# In MPEG-PS only the first of several frames in one packet has a time: these are too large to share one.
LARGE: dict[str, Any] = {"width": 320, "height": 240}


def even(count: int) -> list[Fraction]:
    """The times of `count` frames, 25 a second."""
    return [PERIOD * number for number in range(count)]


@dataclass(frozen=True)
class OddFile:
    """How to make a file, and how its restoration ends.

    says: what stands in the lines that the user gets; of a file that is refused, in the only one.
    result: the name of the result, where its suffix is not the file's own.
    times: of the result's frames in seconds from the first on, where they are not those of the file's own frames.
    """

    name: str
    make: Callable[[Path], object]
    ends: Ends
    says: str = ""
    result: str = ""
    times: Sequence[Fraction] | None = None
    long: bool = False


ODD_FILES: list[OddFile] = []


def odd(name: str, ends: Ends, **more: Any) -> Callable[[Callable[[Path], object]], Callable[[Path], object]]:
    """A function that makes the file `name` at the path given."""

    def register(make: Callable[[Path], object]) -> Callable[[Path], object]:
        ODD_FILES.append(OddFile(name, make, ends, **more))
        return make

    return register


def video(name: str, *, says: str = "", long: bool = False, **how: Any) -> None:
    """A file from `clips.write_video` that must be kept whole."""
    how = {"count": 8} | how
    odd(name, "whole", says=says, long=long)(lambda path: clips.write_video(path, **how))


# Times.
video("half_a_frame_a_second.mp4", pts=[0, 2, 4, 6, 8, 10, 12, 14], time_base=Fraction(1, 1))
video("240_frames_a_second.mp4", time_base=Fraction(1, 240))
video("ntsc.mp4", pts=range(0, 8008, 1001), time_base=Fraction(1, 30000))
video("variable.mkv", pts=[0, 40, 80, 240, 250, 300, 1000, 1111], time_base=MILLISECONDS)
video("ten_hours_of_nothing.mkv", pts=[0, 40, 80, 36_000_000], count=4, time_base=MILLISECONDS)
video("ten_hours_of_nothing.mp4", pts=[0, 40, 80, 36_000_000], count=4, time_base=MILLISECONDS)
video("late.mkv", pts=range(250, 258), audio="aac")
video("late.mp4", pts=range(250, 258), audio="aac")
video("late.ts", pts=range(250, 258), audio="aac")
video("one_frame.mp4", count=1)
video("b_frames.avi", options={"bf": "2", "qp": "0"})
video("b_frames.flv", options={"bf": "2", "qp": "0"})
video("open_groups.mkv", count=40, options={"g": "10", "bf": "3", "qp": "0", "x264-params": "open-gop=1"})
video("fragments.mp4", container_options={"movflags": "frag_keyframe+empty_moov"})
# Sizes and formats.
video("2x2.mkv", width=2, height=2)
video("1x1.mkv", width=1, height=1, codec="ffv1", pix_fmt="gray")
video("33x17.mp4", width=33, height=17, pix_fmt="yuv444p")
video("35x27.mkv", width=35, height=27, codec="ffv1")
video("35x27_mpeg4.avi", width=35, height=27, codec="mpeg4", says="yuv420p becomes yuv444p")
video("8000x16.mp4", width=8000, height=16, count=2)
video("8192x8192.mkv", width=8192, height=8192, count=1, codec="ffv1", pix_fmt="gray", long=True)
video("rotated.mp4", rotation=90)
video("anamorphic.mp4", aspect=Fraction(64, 45))
video("interlaced.mp4", options={"qp": "0", "x264-params": "tff=1"}, says="interlaced")
video("grey.mp4", pix_fmt="gray")
video("grey_16.mkv", codec="ffv1", pix_fmt="gray16le")
video("444.mp4", pix_fmt="yuv444p")
video("422_10_bit.mp4", pix_fmt="yuv422p10le")
video("full_range.mp4", color_range=2, matrix=1)
video("hlg.mp4", pix_fmt="yuv420p10le", matrix=9)
video("10_bit.hevc", codec="libx265", pix_fmt="yuv420p10le", options={"x265-params": "lossless=1:log-level=none"})
video("alpha.mkv", codec="ffv1", pix_fmt="yuva420p")
video("alpha.mov", codec="qtrle", pix_fmt="argb", says="transparency is lost")
video("rgb.mkv", codec="ffv1", pix_fmt="bgr0")
video("old.mpg", codec="mpeg2video", **LARGE)
odd("old.wmv", "whole", result="old.mkv")(lambda path: clips.write_video(path, count=8, codec="wmv2"))
odd("no_times.wmv", "refused", says=".mkv holds any video")(lambda path: clips.write_video(path, count=8, codec="wmv2"))
video("sound_and_chapters.mkv", audio="flac", chapters=True, metadata={"title": "100% [odd] ü: yes"})
# Streams without times.
for suffix, codec in (("h264", "libx264"), ("mjpeg", "mjpeg"), ("y4m", "rawvideo"), ("hevc", "libx265")):
    how: dict[str, Any] = {"count": 8, "codec": codec, "pix_fmt": "yuvj420p" if codec == "mjpeg" else "yuv420p"}
    if codec == "libx265":
        how["options"] = {"x265-params": "log-level=none"}
    odd(f"raw.{suffix}", "whole", result="raw.mkv", times=even(8))(lambda path, how=how: clips.write_video(path, **how))


@odd("edit_list.mp4", "whole")
def edit_list(path: Path) -> None:
    """The first ten frames are there, and hidden."""
    whole = clips.write_video(path.with_name("whole.mp4"), count=20, options={"g": "20", "qp": "0"})
    with av.open(str(whole)) as source, av.open(str(path), "w") as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.pts -= 10 * 512
                packet.dts -= 10 * 512
                packet.stream = stream
                output.mux(packet)
    whole.unlink()


@odd("clock_wraps.ts", "whole", times=even(8))
def clock_wraps(path: Path) -> None:
    """33 bits of a clock of 90 kHz, after 26 hours."""
    first = 2**33 - 126000 - 4 * 3600
    clips.write_video(path, count=8, pts=range(first, first + 8 * 3600, 3600), time_base=Fraction(1, 90000))


@odd("clock_begins_anew.ts", "whole", says="times that go back are moved on", times=even(60))
def clock_begins_anew(path: Path) -> None:
    """Two recordings in one file."""
    clips.write_video(path, count=30)
    joined(path, path.read_bytes(), path.read_bytes())


@odd("joined.h264", "whole", result="joined.mkv", times=even(16))
def joined_h264(path: Path) -> None:
    clips.write_video(path, count=8)
    joined(path, path.read_bytes(), path.read_bytes())


@odd("joined.mp4", "whole")
def joined_mp4(path: Path) -> None:
    """What players show of it is the first."""
    clips.write_video(path, count=8)
    joined(path, path.read_bytes(), path.read_bytes())


@odd("size_changes.h264", "whole", says="the frame size changes", result="a.mkv", times=even(16))
def size_changes_raw(path: Path) -> None:
    first = clips.write_video(path, count=8).read_bytes()
    joined(path, first, clips.write_video(path, count=8, width=96, height=32).read_bytes())


@odd("size_changes.ts", "whole", says="the frame size changes", times=even(16))
def size_changes(path: Path) -> None:
    first = clips.write_video(path, count=8).read_bytes()
    joined(path, first, clips.write_video(path, count=8, pts=range(8, 16), width=96, height=32).read_bytes())


@odd("depth_changes.h264", "whole", result="a.mkv", times=even(16))
def depth_changes(path: Path) -> None:
    first = clips.write_video(path, count=8).read_bytes()
    joined(path, first, clips.write_video(path, count=8, pix_fmt="yuv420p10le").read_bytes())


@odd("time_goes_back.mkv", "whole", says="times that go back are moved on", times=even(100))
def time_goes_back(path: Path) -> None:
    """The second half has the times of the first."""
    clips.write_video(
        path,
        count=100,
        options={"g": "50", "qp": "0"},
        pts=range(0, 4000, 40),
        time_base=MILLISECONDS,
        container_options={"cluster_time_limit": "2000"},
    )
    data, mark = bytearray(path.read_bytes()), b"\x1f\x43\xb6\x75"
    second = data.index(mark, data.index(mark) + 4)
    time = data.index(b"\xe7", second + 5)
    size = data[time + 1] & 0x7F
    data[time + 2 : time + 2 + size] = bytes(size)
    path.write_bytes(data)


@odd(
    "same_times.mkv",
    "whole",
    says="times that go back are moved on",
    times=[MILLISECONDS * t for t in (0, 40, 41, 120)],
)
def same_times(path: Path) -> None:
    """Two frames at once."""
    whole = clips.write_video(path.with_name("whole.mkv"), count=4, options={"g": "1", "qp": "0", "bf": "0"})
    with av.open(str(whole)) as source, av.open(str(path), "w") as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        for packet, stamp in zip(source.demux(video=0), (0, 40, 40, 120), strict=False):
            packet.pts = packet.dts = stamp
            packet.stream = stream
            output.mux(packet)
    whole.unlink()


@odd("begins_in_the_middle.ts", "whole")
def begins_in_the_middle(path: Path) -> None:
    """As a recorder cuts: between two key frames, and within a packet."""
    clips.write_video(path, count=30, options={"g": "10", "qp": "0", "bf": "2"})
    path.write_bytes(path.read_bytes()[path.stat().st_size // 5 | 1 :])


@odd("several_videos.mkv", "whole")
def several_videos(path: Path) -> None:
    with av.open(str(path), "w") as output:
        streams = [output.add_stream("libx264", rate=25, options=clips.LOSSLESS) for _ in range(3)]
        for stream, width in zip(streams, (32, 64, 96), strict=True):
            stream.width, stream.height, stream.pix_fmt = width, 48, "yuv420p"
            stream.disposition = Disposition.default if width == 64 else Disposition(0)
        for stream in streams:
            for frame in clips.video_frames(4, stream.width, 48, "yuv420p"):
                output.mux(stream.encode(frame))
            output.mux(stream.encode(None))


@odd("cover_and_video.mp4", "whole")
def cover_and_video(path: Path) -> None:
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=25, options=clips.LOSSLESS)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        add_cover(output)
        for frame in clips.video_frames(4, 64, 48, "yuv420p"):
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


@odd("a_picture.mp4", "whole", says="becomes", times=even(1))
def a_picture(path: Path) -> None:
    """A PNG under the name of a video."""
    path.write_bytes(picture_bytes("png", "rgb24"))


@odd("matroska.mp4", "whole", result="a.mkv")
def matroska(path: Path) -> None:
    clips.write_video(path.with_suffix(".mkv"), count=4, pts=range(0, 160, 40), time_base=MILLISECONDS).rename(path)


@odd("transport.txt", "whole", result="a.ts")
def transport(path: Path) -> None:
    clips.write_video(path.with_suffix(".ts"), count=4).rename(path)


# What has no video.
@odd("cover_only.m4a", "refused", says="got only a cover picture", result="a.mp4")
def cover_only(path: Path) -> None:
    with av.open(str(path), "w", format="mp4") as output:
        sound = output.add_stream("aac", rate=48000)
        add_cover(output)
        clips.write_tone(output, sound, seconds=0.2)


@odd("sound_first.mkv", "whole")
def sound_first(path: Path) -> None:
    with av.open(str(path), "w") as output:
        sound = output.add_stream("flac", rate=48000)
        sound.metadata["language"] = "deu"
        stream = output.add_stream("libx264", rate=25, options=clips.LOSSLESS)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for frame in clips.video_frames(8, 64, 48, "yuv420p"):
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        clips.write_tone(output, sound, seconds=0.3)


@odd("no_key_frame.mp4", "refused", says="must have at least one frame, got none")
def no_key_frame(path: Path) -> None:
    whole = clips.write_video(path.with_name("whole.mp4"), count=20, options={"g": "20", "qp": "20", "bf": "0"})
    with av.open(str(whole)) as source, av.open(str(path), "w") as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size and not packet.is_keyframe:
                packet.stream = stream
                output.mux(packet)
    whole.unlink()


@odd("sound_only.mp4", "refused", says="got only audio")
def sound_only(path: Path) -> None:
    clips.write_audio(path)


@odd("empty.mp4", "refused", says="must be a video file")
def empty(path: Path) -> None:
    path.touch()


@odd("folder.mp4", "refused", says="must hold a video or a picture")
def folder(path: Path) -> None:
    path.mkdir()


@odd("pipe.mp4", "refused", says="must be a file, got a device or pipe")
def pipe(path: Path) -> None:
    os.mkfifo(path)


@odd("nowhere.mp4", "refused", says="no such file")
def nowhere(path: Path) -> None:
    path.symlink_to("nothing.mp4")


@odd("itself.mp4", "refused", says="itself.mp4")
def itself(path: Path) -> None:
    path.symlink_to(path)


for name in ("text.mp4", "text.mkv", "text.ts", "text.avi"):
    odd(name, "refused", says="must be a video file")(lambda path: path.write_text("no video\n" * 500))
for name in ("zeros.mp4", "zeros.ts"):
    odd(name, "refused", says=name)(lambda path: path.write_bytes(bytes(50_000)))
for name in ("noise.mp4", "noise.mkv", "noise.mpg"):
    odd(name, "refused", says=name)(lambda path: path.write_bytes(random.Random(3).randbytes(50_000)))


@odd("video.png", "refused", says="video.png")
def video_png(path: Path) -> None:
    clips.write_video(path.with_suffix(".mp4"), count=2).rename(path)


@odd("playlist.mp4", "refused", says="playlist.mp4")
def playlist(path: Path) -> None:
    """Names another file, which nobody gave us."""
    clips.write_video(path.with_name("other.ts"), count=4)
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nother.ts\n#EXT-X-ENDLIST\n")


@odd("list_of_files.mp4", "refused", says="list_of_files.mp4")
def list_of_files(path: Path) -> None:
    clips.write_video(path.with_name("other.mkv"), count=4)
    path.write_text("ffconcat version 1.0\nfile other.mkv\n")


@odd("session.mp4", "refused", says="session.mp4")
def session(path: Path) -> None:
    """Would be listened for on the network."""
    path.write_text(
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=a\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
        "a=rtpmap:96 H264/90000\n"
    )


@odd("16000x2.y4m", "whole", result="a.mkv", times=even(1))
def wide(path: Path) -> None:
    path.write_bytes(b"YUV4MPEG2 W16000 H2 F25:1 C420jpeg\nFRAME\n" + bytes(16000 * 3))


@odd("too_large.y4m", "refused", says="must have at most 67108864 pixels, got 9000x9000", result="a.mkv")
def too_large(path: Path) -> None:
    path.write_bytes(b"YUV4MPEG2 W9000 H9000 F25:1 C420jpeg\nFRAME\n" + bytes(1000))


@odd("unknown_codec.mkv", "refused", says="must be of a known codec")
def unknown_codec(path: Path) -> None:
    clips.write_video(path, count=2)
    path.write_bytes(path.read_bytes().replace(b"V_MPEG4/ISO/AVC", b"V_NOBODY_KNOWS_"))


def joined(path: Path, *parts: bytes) -> None:
    path.write_bytes(b"".join(parts))


def picture_bytes(codec: str, pix_fmt: str) -> bytes:
    context = av.CodecContext.create(codec, "w")
    context.width, context.height, context.pix_fmt, context.time_base = 64, 48, pix_fmt, PERIOD
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(clips.smooth(0, 64, 48)), format="rgb24")
    frame = frame.reformat(format=pix_fmt)
    frame.pts = 0
    return b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)])


def add_cover(output: av.container.OutputContainer) -> None:
    cover = output.add_stream("png")
    cover.width, cover.height, cover.pix_fmt = 64, 48, "rgb24"
    cover.disposition = Disposition.attached_pic
    output.start_encoding()
    packet = av.Packet(picture_bytes("png", "rgb24"))
    packet.stream, packet.pts, packet.dts = cover, 0, 0
    packet.time_base, packet.is_keyframe = PERIOD, True
    output.mux(packet)
