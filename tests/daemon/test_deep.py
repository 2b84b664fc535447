"""Video of more than 8 bits through a whole job: nothing is lost to 8 bits, and nothing of bright highlights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import clips
import models
import numpy as np
import pytest
from av.video.stream import VideoStream
from numpy.typing import NDArray

from daemon.encoding import Encoding
from daemon.file_source import FileSource
from daemon.video import VideoJob, VideoResult, restore_video
from engine.backends import open_engine
from engine.identity import IdentityEngine
from engine.model import Manifest, Model
from engine.protocol import Engine, EngineOptions

SIDE_PX = 1024
F32 = EngineOptions(precision="f32")
Codes = NDArray[np.uint16]


def identity() -> Engine:
    manifest = Manifest(id="none", file="none.onnx", sha256="0" * 64, stride=16, overlap_px=32)
    return IdentityEngine(Model(manifest, Path("none.json"), b""), EngineOptions(tile_px=512))


def fast() -> Engine:
    return open_engine("openvino", "fast", replace(F32, tile_px=512))


def write(path: Path, lines: Callable[[int, int], Codes], pix_fmt: str = "yuv420p10le", transfer: int = 1) -> Path:
    """Two frames; `lines` gives the codes (H, W) of a plane from its index and its width."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("ffv1", rate=25)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = SIDE_PX, 64, pix_fmt
        stream.codec_context.colorspace, stream.codec_context.color_range = 9, 1
        stream.codec_context.color_primaries, stream.codec_context.color_trc = 9, transfer
        for number in range(2):
            frame = av.VideoFrame(SIDE_PX, 64, pix_fmt)
            for index, plane in enumerate(codes(frame)):
                plane[...] = lines(index, plane.shape[1])
            frame.pts, frame.time_base = number, Fraction(1, 25)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def codes(frame: av.VideoFrame) -> list[NDArray[np.generic]]:
    kind = np.uint16 if frame.format.components[0].bits > 8 else np.uint8
    return [
        np.frombuffer(memoryview(plane), kind).reshape(plane.height, -1)[:, : plane.width] for plane in frame.planes
    ]


def gradient(index: int, width: int) -> Codes:
    """A ramp over 128 of the 1024 codes; an 8-bit copy of it would have 32 steps."""
    ramp = 400 + np.arange(width) // 8
    return (ramp if index == 0 else np.full(width, 512)).astype(np.uint16)


def restored(source: Path, engine: Engine, suffix: str = ".mkv") -> tuple[list[av.VideoFrame], VideoResult]:
    target = source.with_name(f"restored{suffix}")
    with engine:
        result = restore_video(VideoJob(source, target, Encoding(lossless=True)), engine)
    return clips.frames_of(target), result


def middle_line(frame: av.VideoFrame) -> NDArray[np.int64]:
    """Luma of the middle line, but for its ends, where a model sees the border."""
    return codes(frame)[0][32, 64:-64].astype(np.int64)


@pytest.mark.parametrize("transfer", [1, 16, 18], ids=["SDR", "PQ", "HLG"])
def test_a_gradient_has_all_its_steps_after_an_engine_that_changes_nothing(tmp_path: Path, transfer: int) -> None:
    frames, result = restored(write(tmp_path / "a.mkv", gradient, transfer=transfer), identity())
    assert result.warnings == ()
    assert np.array_equal(codes(frames[0])[0][32], gradient(0, SIDE_PX))


@pytest.mark.parametrize("transfer", [1, 16, 18], ids=["SDR", "PQ", "HLG"])
def test_a_model_leaves_no_bands_in_a_gradient(tmp_path: Path, transfer: int) -> None:
    frames, _ = restored(write(tmp_path / "a.mkv", gradient, transfer=transfer), fast())
    before, after = gradient(0, SIDE_PX).astype(np.int64)[64:-64], middle_line(frames[0])
    assert len(np.unique(after)) >= len(np.unique(before))
    assert np.abs(np.diff(after)).max() <= 2
    assert np.abs(after - before).max() <= 2  # a gradient is sharp


def test_without_levels_the_bits_of_the_frame_are_kept_and_that_is_said(tmp_path: Path) -> None:
    path = models.write_model(tmp_path, models.brighten_half_onnx())
    frames, result = restored(write(tmp_path / "a.mkv", gradient), open_engine("openvino", str(path), F32))
    (line,) = result.warnings
    assert line.startswith("restored at 8 bits: model 'tiny' takes no more")
    added = middle_line(frames[0]) - gradient(0, SIDE_PX)[64:-64]
    assert np.abs(added - models.BRIGHTER * 219 / 255 * 4).max() <= 1


@pytest.mark.parametrize(("codec", "suffix", "pix_fmt"), [
    *(("ffv1", ".mkv", f"{kind}{bits}") for kind in ("yuv420p", "yuv422p", "yuv444p", "gray", "gbrp")
      for bits in ("", "10le", "12le") if (kind, bits) != ("gbrp", "")),
    *(("ffv1", ".mkv", name) for name in ("yuva420p", "yuva444p10le", "bgra", "gbrap12le", "gray16le")),
    *(("libx264", ".mp4", name) for name in ("yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv422p10le")),
    *(("libx265", ".mp4", name) for name in ("yuv420p", "gray", "yuv420p10le", "yuv422p12le", "yuv444p12le")),
    *(("libvpx-vp9", ".webm", name) for name in ("yuv420p", "yuva420p", "yuv444p")),
])  # fmt: skip
def test_without_a_change_every_plane_is_the_same(tmp_path: Path, codec: str, suffix: str, pix_fmt: str) -> None:
    options = {"libx265": {"x265-params": "log-level=none:lossless=1"}, "libvpx-vp9": {"lossless": "1"}}
    source = clips.write_video(
        tmp_path / f"a{suffix}", count=4, codec=codec, pix_fmt=pix_fmt, options=options.get(codec), color_range=1
    )
    frames, result = restored(source, identity(), suffix)
    assert result.warnings == ()
    with FileSource(source) as reader:
        originals = [frame.origin.frame for frame in reader]
    with FileSource(source.with_name(f"restored{suffix}")) as reader:
        frames = [frame.origin.frame for frame in reader]
    for now, was in zip(frames, originals, strict=True):
        assert now.format.name == was.format.name == pix_fmt
        for plane, other in zip(now.planes, was.planes, strict=True):
            size = plane.height, plane.width
            assert size == (other.height, other.width)
            assert bytes(plane) == bytes(other)


def test_transparency_survives_what_a_model_changes(tmp_path: Path) -> None:
    source = write(tmp_path / "a.mkv", lambda index, width: 300 + 40 * index + np.arange(width) % 256, "yuva444p10le")
    before = codes(clips.frames_of(source)[0])
    after = codes(restored(source, fast())[0][0])
    assert np.array_equal(after[3], before[3])
    assert not np.array_equal(after[0], before[0])


@pytest.mark.parametrize("transfer", [16, 18], ids=["PQ", "HLG"])
def test_highlights_of_hdr_are_not_clipped_and_its_tags_stay(tmp_path: Path, transfer: int) -> None:
    def lamps(index: int, width: int) -> Codes:
        # Lamps on a grey wall; the brightest are beyond the nominal peak, at 940.
        line = np.where(np.arange(width) // 64 % 2, 600 + np.arange(width) // 64 * 28, 300)
        return (line if index == 0 else np.full(width, 512)).astype(np.uint16)

    source = write(tmp_path / "a.mkv", lamps, transfer=transfer)
    frames, _ = restored(source, fast())
    assert (frames[0].color_primaries, frames[0].color_trc, frames[0].colorspace) == (9, transfer, 9)
    line, wanted = codes(frames[0])[0][32].astype(int), lamps(0, SIDE_PX).astype(int)
    middles = np.arange(96, SIDE_PX, 128)
    assert wanted[middles].max() > 1000
    assert np.abs(line[middles] - wanted[middles]).max() <= 8
