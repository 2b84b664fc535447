"""A stream's frames on their way to the engine, where the model needs them whole."""

from __future__ import annotations

import time
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from daemon.errors import DaemonError
from daemon.frame import Frame
from daemon.restorer import Restorer
from engine.protocol import EngineSpec

WHOLE = EngineSpec("mean", "openvino/CPU f32", 8, (128, 128), False, 0, 4, 1, 2, False, whole_frame=True)


def frame(height: int, width: int) -> Frame:
    now = time.monotonic_ns()
    pixels = np.zeros((height, width, 3), np.uint8)
    return Frame(stream="cam", seq=0, pts=0, time_base=Fraction(1), captured_ns=now, arrived_ns=now, pixels=pixels)


def test_a_frame_that_fits_goes_in_one_piece() -> None:
    assert Restorer(WHOLE).prepare(frame(121, 90)).tiles.shape == (1, 128, 96, 3)


def test_a_frame_too_large_for_one_piece_is_refused_each_time_and_others_still_pass() -> None:
    restorer = Restorer(WHOLE)
    for _ in range(2):
        with pytest.raises(DaemonError, match=r"^frames must be at most 128x128 for model 'mean', .* got 60x129$"):
            restorer.prepare(frame(129, 60))
    assert restorer.prepare(frame(64, 64)).plan.count == 1


FLOATING = EngineSpec("fast", "openvino/CPU f32", 8, (96, 96), False, 16, 4, 1, 2, True, floating=True)


def deep(height: int, width: int, seq: int = 0) -> Frame:
    pixels = np.random.default_rng(seq).integers(0, 1 << 16, (height, width, 3), np.uint16)
    return replace(frame(height, width), seq=seq, pixels=pixels)


@pytest.mark.parametrize("size", [(64, 80), (150, 203)], ids=["one tile", "many"])
def test_what_an_engine_would_add_is_added_to_the_frame_as_it_came(size: tuple[int, int]) -> None:
    prepared = Restorer(FLOATING).prepare(deep(*size))
    pixels = prepared.frame.pixels
    assert prepared.tiles.dtype == np.float32
    assert 254 < prepared.tiles.max() <= 255
    merger = prepared.merger(np.empty_like(pixels))
    for index in reversed(range(prepared.plan.count)):
        merger.add(index, np.full(prepared.tiles.shape[1:], 0.5, np.float32))
    assert np.abs(merger.out - np.minimum(pixels + 128.5, 65535)).max() <= 0.6


@pytest.mark.parametrize("size", [(64, 80), (150, 203)], ids=["one tile", "many"])
def test_an_engine_of_bytes_leaves_the_further_bits_alone(size: tuple[int, int]) -> None:
    prepared = Restorer(replace(FLOATING, floating=False)).prepare(deep(*size))
    pixels = prepared.frame.pixels
    assert prepared.tiles.dtype == np.uint8
    merger = prepared.merger(np.empty_like(pixels))
    for index, tile in enumerate(prepared.tiles):
        merger.add(index, np.where(tile > 250, tile, tile + 3).astype(np.uint8))
    wanted = np.where(np.rint(pixels / 257) > 250, pixels, np.minimum(pixels.astype(int) + 3 * 257, 65535))
    assert np.array_equal(merger.out, wanted)


def test_a_history_of_bytes_does_not_go_on_in_levels() -> None:
    restorer = Restorer(FLOATING)
    restorer.prepare(frame(64, 64))
    restorer.remember(["of bytes"])
    assert restorer.prepare(deep(64, 64)).states == (None,)
    restorer.remember(["of levels"])
    assert restorer.prepare(deep(64, 64)).states == ("of levels",)
