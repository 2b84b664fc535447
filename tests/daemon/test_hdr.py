"""The curves between code values of high dynamic range and a model's levels."""

from __future__ import annotations

import numpy as np
import pytest

from daemon.hdr import HLG, LEAST_SLOPE, PQ, Curve, curve_of

CODES = np.arange(1 << 16, dtype=np.uint16)


@pytest.fixture(params=[PQ, HLG], ids=["PQ", "HLG"])
def curve(request: pytest.FixtureRequest) -> Curve:
    found = curve_of(request.param)
    assert found is not None
    return found


def test_standard_range_needs_no_curve() -> None:
    assert [curve_of(transfer) for transfer in (1, 2, 6, 13, 14)] == [None] * 5


def test_a_curve_rises_everywhere_so_that_nothing_is_clipped(curve: Curve) -> None:
    assert np.diff(curve.levels(CODES)).min() > 0


def test_black_is_black_and_1000_candela_are_white() -> None:
    for transfer, white in ((PQ, 0.7518), (HLG, 1.0)):
        curve = curve_of(transfer)
        assert curve is not None
        levels = curve.levels(np.array([0, round(white * 65535)], np.uint16))
        np.testing.assert_allclose(levels, [0, 255], atol=0.1)


def test_where_a_model_changes_nothing_nothing_changes(curve: Curve) -> None:
    assert not curve.change(CODES, np.zeros(CODES.shape, np.float32)).any()


@pytest.mark.parametrize("step", [-20000, -700, 64, 5000, 30000])
def test_the_way_back_is_the_inverse(curve: Curve, step: int) -> None:
    codes = CODES[(CODES.astype(int) + step >= 0) & (CODES.astype(int) + step < 1 << 16)]
    residual = curve.levels((codes.astype(int) + step).astype(np.uint16)) - curve.levels(codes)
    assert np.abs(curve.change(codes, residual) - step).max() < 3  # a twentieth of a step of 10 bits


def test_a_change_is_never_made_much_stronger(curve: Curve) -> None:
    one_level = np.ones(CODES.shape, np.float32)
    assert (curve.change(CODES, one_level) / 257).max() < 1.01 / LEAST_SLOPE


def test_what_goes_beyond_black_and_the_peak_stops_there(curve: Curve) -> None:
    for level in (-1000, 1000):
        ends = CODES + curve.change(CODES, np.full(CODES.shape, level, np.float32))
        assert np.abs(ends - (0 if level < 0 else 65535)).max() < 3
