"""A stream's frames on their way to the engine, where the model needs them whole."""

from __future__ import annotations

import time
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
