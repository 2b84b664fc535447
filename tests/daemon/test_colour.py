from __future__ import annotations

from dataclasses import replace

import av
import clips
import numpy as np
import pytest

from daemon.colour import colour_of, from_rgb, to_deep_rgb, to_rgb

WEIGHTS = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}  # red and blue


def standard_yuv(rgb: np.ndarray, matrix: int, full: bool) -> np.ndarray:
    red, blue = WEIGHTS[matrix]
    r, g, b = np.moveaxis(rgb / 255, -1, 0)
    y = red * r + (1 - red - blue) * g + blue * b
    u, v = (b - y) / (2 * (1 - blue)), (r - y) / (2 * (1 - red))
    scaled = (y * 255, u * 255 + 128, v * 255 + 128) if full else (y * 219 + 16, u * 224 + 128, v * 224 + 128)
    return np.stack(scaled, -1)


def standard_rgb(yuv: np.ndarray, matrix: int, full: bool) -> np.ndarray:
    red, blue = WEIGHTS[matrix]
    y, u, v = np.moveaxis(yuv.astype(float), -1, 0)
    y, u, v = (
        (y / 255, (u - 128) / 255, (v - 128) / 255) if full else ((y - 16) / 219, (u - 128) / 224, (v - 128) / 224)
    )
    r, b = y + 2 * (1 - red) * v, y + 2 * (1 - blue) * u
    g = (y - red * r - blue * b) / (1 - red - blue)
    return np.clip(np.stack([r, g, b], -1) * 255, 0, 255)


def patches(matrix: int, full: bool, *, pix_fmt: str = "yuv420p", size: int = 16, lines: int = 6):
    """A frame of flat patches and the patches' YUV, (lines, 8, 3); flat, so that chroma's place does not matter."""
    rgb = np.random.default_rng(1).integers(0, 256, (lines, 8, 3))
    yuv = np.rint(standard_yuv(rgb, matrix, full)).astype(np.uint8)
    frame = av.VideoFrame(8 * size, lines * size, pix_fmt)
    for index, plane in enumerate(frame.planes):
        step = plane.height // lines, plane.width // 8
        values = yuv[..., index].repeat(step[0], 0).repeat(step[1], 1)
        np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width] = values
    return frame, yuv


def middles(image: np.ndarray, size: int = 16) -> np.ndarray:
    return image[size // 2 :: size, size // 2 :: size].astype(float)


@pytest.mark.parametrize("matrix", [1, 5, 6, 9])
@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
def test_rgb_is_what_the_standard_says(matrix, full):
    frame, yuv = patches(matrix, full)
    frame.colorspace, frame.color_range = matrix, 2 if full else 1
    error = np.abs(middles(to_rgb(frame)) - standard_rgb(yuv, matrix, full))
    assert error.mean() < 0.3
    assert error.max() < 0.6


def test_an_untagged_small_video_is_taken_for_bt601():
    frame, yuv = patches(6, full=False)
    assert np.abs(middles(to_rgb(frame)) - standard_rgb(yuv, 6, full=False)).mean() < 0.3


def test_an_untagged_video_of_720_lines_is_taken_for_bt709():
    frame, yuv = patches(1, full=False, lines=45)
    assert frame.height == 720
    assert np.abs(middles(to_rgb(frame)) - standard_rgb(yuv, 1, full=False)).mean() < 0.3


def test_yuvj_is_full_range_without_a_tag():
    frame, yuv = patches(6, full=True, pix_fmt="yuvj420p")
    assert colour_of(frame).full_range
    assert np.abs(middles(to_rgb(frame)) - standard_rgb(yuv, 6, full=True)).mean() < 0.3


def test_reading_leaves_the_tags_of_the_frame_alone():
    frame, _ = patches(6, full=False)
    to_rgb(frame)
    assert (frame.colorspace, frame.color_range) == (2, 0)


@pytest.mark.parametrize("matrix", [1, 2, 6])
@pytest.mark.parametrize("color_range", [0, 1, 2])
def test_there_and_back_leaves_luma_as_it_was_and_chroma_to_rounding(matrix, color_range):
    (frame,) = clips.video_frames(1, 64, 48, "yuv420p", matrix=matrix, color_range=color_range)
    back = from_rgb(to_rgb(frame), "yuv420p", colour_of(frame))
    luma, *chroma = (np.abs(now - was) for now, was in zip(clips.planes_of(back), clips.planes_of(frame), strict=True))
    assert luma.max() == 0
    assert max(plane.max() for plane in chroma) <= 1


@pytest.mark.parametrize("pix_fmt", ["yuv422p", "yuv444p", "yuvj420p", "yuv411p", "gray", "gbrp"])
@pytest.mark.parametrize("size", [(64, 48), (33, 17)], ids=["even", "odd"])
def test_pixel_formats_come_back_within_a_level(pix_fmt, size):
    (frame,) = clips.video_frames(1, *size, pix_fmt, color_range=2 if pix_fmt == "gbrp" else 0)
    rgb = to_rgb(frame)
    back = from_rgb(rgb, pix_fmt, colour_of(frame))
    assert rgb.shape == (size[1], size[0], 3)
    for now, was in zip(clips.planes_of(back), clips.planes_of(frame), strict=True):
        assert np.abs(now - was).max() <= 1


@pytest.mark.parametrize("pix_fmt", ["yuv420p10le", "yuv444p12le", "gray16le", "rgb48le", "nv12", "yuva420p", "bgra"])
def test_other_pixel_formats_are_read_as_8_bit_rgb(pix_fmt):
    (frame,) = clips.video_frames(1, 64, 48, pix_fmt)
    reference = clips.smooth(0, 64, 48).astype(float)
    if pix_fmt.startswith("gray"):
        reference = (reference @ [0.299, 0.587, 0.114])[..., None].repeat(3, -1)
    assert np.abs(to_rgb(frame) - reference).mean() < 1.5


def test_a_palette_is_read_as_full_range_rgb(tmp_path):
    path = clips.write_video(tmp_path / "a.gif", count=2, codec="gif", pix_fmt="rgb8")
    frame = clips.frames_of(path)[0]
    assert np.abs(to_rgb(frame) - clips.smooth(0, 64, 48).astype(float)).mean() < 20  # 256 colours


def test_written_frames_carry_the_tags_as_they_were():
    (frame,) = clips.video_frames(1, 64, 48, "yuv420p")
    colour = replace(colour_of(frame), primaries=9, transfer=16)
    back = from_rgb(to_rgb(frame), "yuv420p10le", colour)
    assert (back.color_primaries, back.color_trc, back.colorspace, back.color_range) == (9, 16, 2, 1)


@pytest.mark.parametrize("bits", [10, 12])
@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("matrix", [1, 6, 9])
def test_deep_rgb_is_what_the_standard_says_in_fractions_of_a_level(matrix, full, bits):
    step, most = 2 ** (bits - 8), 2**bits - 1
    scale = most / 255 if full else step
    yuv = standard_yuv(np.random.default_rng(1).integers(0, 256, (6, 8, 3)), matrix, full)
    middle = np.array([0, 128, 128])
    values = np.rint((yuv - middle) * scale + middle * step).astype(np.uint16)
    frame = av.VideoFrame(128, 96, f"yuv444p{bits}le")
    frame.colorspace, frame.color_range = matrix, 2 if full else 1
    for index, plane in enumerate(frame.planes):
        lines = np.frombuffer(plane, np.uint16).reshape(plane.height, -1)[:, : plane.width]
        lines[...] = values[..., index].repeat(16, 0).repeat(16, 1)
    exact = standard_rgb((values - middle * step) / scale + middle, matrix, full)
    assert np.abs(middles(to_deep_rgb(frame)) / 257 - exact).max() < 0.02
    assert np.abs(middles(to_rgb(frame)) - exact).max() < 0.6


@pytest.mark.parametrize("pix_fmt", ["gray10le", "gray12le", "gray16le", "gbrp10le", "gbrp12le", "rgb48le"])
def test_white_is_white_in_16_bits_whatever_the_depth(pix_fmt):
    frame = av.VideoFrame(16, 16, pix_fmt)
    for plane in frame.planes:
        np.frombuffer(plane, np.uint16)[...] = 2 ** frame.format.components[0].bits - 1
    assert np.abs(to_deep_rgb(frame).astype(int) - 65535).max() <= 2
