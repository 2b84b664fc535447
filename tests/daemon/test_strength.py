from __future__ import annotations

import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clips import frames_of, planes_of
from models import brighten_onnx, write_model
from shapes import blurred, shapes

from daemon.encoding import Encoding
from daemon.enhance import Job, Settings, enhance
from daemon.frame import Frame
from daemon.restorer import Restorer
from daemon.strength import BLURRED_PX, SHARP_PX, Strength, StrengthSetting, strength_for
from engine.backends import open_engine
from engine.protocol import EngineSpec

SPEC = EngineSpec("mean", "openvino/CPU f32", 8, (512, 512), False, 16, 4, 1, 2, False)
"""Frames of 640 px are two tiles."""


def frame(pixels: np.ndarray, pts: int = 0) -> Frame:
    now = time.monotonic_ns()
    return Frame(
        stream="cam", seq=pts, pts=pts, time_base=Fraction(1, 25), captured_ns=now, arrived_ns=now, pixels=pixels
    )


def restored(restorer: Restorer, given: Frame, change: int = 40) -> np.ndarray:
    """As an engine does that makes everything brighter."""
    prepared = restorer.prepare(given)
    out = np.empty_like(given.pixels)
    merger = prepared.merger(out)
    for index, tile in enumerate(prepared.tiles):
        tile = np.asarray(tile)
        merger.add(index, np.full_like(tile, change) if tile.dtype == np.float32 else tile + np.uint8(change))
    return out


def dim(picture: np.ndarray) -> np.ndarray:
    return np.asarray(picture // 2, np.uint8)


def test_sharp_frames_ask_for_nothing_and_blurred_ones_for_all() -> None:
    assert strength_for(SHARP_PX) == 0
    assert strength_for(BLURRED_PX) == 1
    assert strength_for((SHARP_PX + BLURRED_PX) / 2) == pytest.approx(0.5)


def test_the_first_frame_gets_what_it_asks_for() -> None:
    assert Strength().follow(0.4, 0.0, afresh=True) == 0
    assert Strength().follow(3.0, 0.0, afresh=True) == 1


def test_the_strength_moves_slowly_and_arrives() -> None:
    strength = Strength()
    strength.follow(0.4, 0.0, afresh=True)
    found = [strength.follow(3.0, i / 25, afresh=False) for i in range(1, 31)]
    assert max(np.diff([0.0, *found])) <= 0.0401
    assert found[-1] == 1


def test_blur_that_pulses_moves_it_by_hundredths() -> None:
    strength = Strength()
    found = [strength.follow(0.9 if i % 2 else 1.0, i / 25, afresh=False) for i in range(100)]
    assert max(found[10:]) - min(found[10:]) <= 0.0401


def test_a_new_scene_gets_what_it_asks_for() -> None:
    strength = Strength()
    strength.follow(0.4, 0.0, afresh=True)
    assert strength.follow(3.0, 0.04, afresh=True) == 1


def test_blur_that_cannot_be_told_leaves_it() -> None:
    strength = Strength()
    assert strength.follow(None, 0.0, afresh=True) == 1
    strength.follow(0.4, 0.04, afresh=True)
    assert strength.follow(None, 0.08, afresh=False) == 0


@pytest.mark.parametrize("times", [[None] * 60, [5.0 - i for i in range(60)], [i * 1e6 for i in range(60)]])
def test_times_that_are_missing_go_back_or_leap_do_no_harm(times: list[float | None]) -> None:
    strength = Strength()
    strength.follow(0.4, times[0], afresh=True)
    found = [0.0, *(strength.follow(3.0, time_s, afresh=False) for time_s in times[1:])]
    assert 0 <= min(np.diff(found)) <= max(np.diff(found)) <= 0.2001


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_sharp_frame_stays_bit_for_bit(kind: type) -> None:
    sharp = dim(shapes()).astype(kind) * (1 if kind is np.uint8 else 257)
    assert (restored(Restorer(SPEC, "auto"), frame(sharp)) == sharp).all()


def test_all_of_a_blurred_frame_is_restored() -> None:
    soft = blurred(dim(shapes()), 2)
    assert (restored(Restorer(SPEC, "auto"), frame(soft)) == soft + 40).all()


@pytest.mark.parametrize("floating", [True, False])
def test_a_share_of_the_change_is_let_through(floating: bool) -> None:
    sharp = dim(shapes())
    assert (restored(Restorer(SPEC, 0.25), frame(sharp)) == sharp + 10).all()
    deep = sharp.astype(np.uint16) * 257 + 3
    spec = replace(SPEC, floating=floating)
    assert (np.abs(restored(Restorer(spec, 0.25), frame(deep)) - (deep.astype(int) + 2570)) <= 1).all()


def test_a_fixed_strength_is_that_of_sharp_frames_too() -> None:
    sharp = dim(shapes())
    assert (restored(Restorer(SPEC), frame(sharp)) == sharp + 40).all()
    assert (restored(Restorer(SPEC, 0.0), frame(blurred(sharp, 2))) == blurred(sharp, 2)).all()


def test_a_cut_to_a_sharp_scene_leaves_its_first_frame_alone() -> None:
    restorer = Restorer(SPEC, "auto")
    soft, sharp = blurred(dim(shapes()), 2), dim(shapes()) // 2 + 120
    restored(restorer, frame(soft, 0))
    assert (restored(restorer, frame(sharp, 1)) == sharp).all()


def test_a_reconnect_begins_afresh() -> None:
    restorer = Restorer(SPEC, "auto")
    sharp = dim(shapes())
    restored(restorer, frame(blurred(sharp, 2), 0))
    assert restorer.prepare(frame(sharp, 1)).strength > 0.9
    assert restorer.prepare(replace(frame(sharp, 2), epoch=1)).strength == 0


@pytest.mark.parametrize(("strength", "same"), [("auto", True), (1.0, False), (0.0, True)])
def test_a_sharp_video_comes_out_bit_for_bit_unless_that_is_forced(
    tmp_path: Path, strength: StrengthSetting, same: bool
) -> None:
    with av.open(str(tmp_path / "a.mkv"), "w") as output:
        stream = output.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for i in range(4):
            picture = av.VideoFrame.from_ndarray(np.roll(shapes(240, 320), 3 * i, axis=1), format="rgb24")
            output.mux(stream.encode(picture.reformat(format="yuv420p")))
        output.mux(stream.encode(None))
    settings = Settings(Encoding(lossless=True), strength=strength)
    with open_engine("openvino", str(write_model(tmp_path, brighten_onnx()))) as engine:
        enhance(Job(tmp_path / "a.mkv", tmp_path / "b.mkv"), engine, settings)
    old, new = ([planes_of(each) for each in frames_of(tmp_path / name)] for name in ("a.mkv", "b.mkv"))
    equal = [(a == b).all() for before, after in zip(old, new, strict=True) for a, b in zip(before, after, strict=True)]
    assert all(equal) == same
