"""Claims about cutting frames into tiles and blending them back."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.errors import DaemonError
from daemon.tiles import TilePlan

sizes = st.integers(1, 300)


@given(height=sizes, width=sizes, stride=st.sampled_from([1, 8, 16]), side=st.sampled_from([64, 96, 128]),
       overlap=st.integers(0, 60), fixed=st.booleans())  # fmt: skip
def test_what_is_split_merges_to_what_it_was(
    height: int, width: int, stride: int, side: int, overlap: int, fixed: bool
) -> None:
    pixels = np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    plan = TilePlan.for_frame(height, width, stride=stride, limit=(side, side), fixed=fixed, overlap=overlap)
    tiles = plan.split(pixels)
    assert tiles.shape == (plan.count, *plan.tile, 3)
    assert plan.tile[0] % stride == plan.tile[1] % stride == 0
    assert max(plan.tile) <= side
    assert not fixed or plan.tile == (side, side)
    assert all(origin % stride == 0 for axis in (plan.rows, plan.columns) for origin in axis.origins)
    np.testing.assert_array_equal(plan.merge(tiles), pixels)


@given(length=st.integers(100, 2000), overlap=st.integers(0, 60))
def test_neighbouring_tiles_overlap_by_what_was_asked(length: int, overlap: int) -> None:
    axis = TilePlan.for_frame(length, 64, stride=16, limit=(128, 64), overlap=overlap).rows
    for origin, following in pairwise(axis.origins):
        assert origin + axis.tile - following >= overlap


def test_a_frame_that_fits_is_one_tile_and_is_not_copied() -> None:
    pixels = np.zeros((64, 96, 3), np.uint8)
    plan = TilePlan.for_frame(64, 96, stride=16, limit=(2048, 2048), overlap=64)
    assert plan.count == 1
    assert np.shares_memory(plan.split(pixels), pixels)


def test_weights_of_all_tiles_sum_to_one_everywhere() -> None:
    axis = TilePlan.for_frame(700, 64, stride=16, limit=(256, 64), overlap=48).rows
    total = np.zeros(axis.padded)
    for origin, line in zip(axis.origins, axis.weights, strict=True):
        total[origin : origin + axis.tile] += line
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_the_rim_of_a_tile_does_not_count_where_a_neighbour_covers_it() -> None:
    axis = TilePlan.for_frame(700, 64, stride=16, limit=(256, 64), overlap=64).rows
    shared = axis.origins[0] + axis.tile - axis.origins[1]
    assert shared >= 64
    assert not axis.weights[1, : shared // 4].any()
    assert not axis.weights[0, -(shared // 4) :].any()


def test_an_error_at_a_tiles_rim_leaves_no_seam() -> None:
    pixels = np.full((400, 400, 3), 100, np.uint8)
    plan = TilePlan.for_frame(400, 400, stride=16, limit=(160, 160), overlap=64)
    tiles = plan.split(pixels).copy()
    for i in range(plan.count):
        row, column = divmod(i, len(plan.columns.origins))
        if row:
            tiles[i, :8] = 255
        if column:
            tiles[i, :, :8] = 255
    np.testing.assert_array_equal(plan.merge(tiles), pixels)


def test_merging_writes_into_the_buffer_that_is_lent() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (200, 180, 3), dtype=np.uint8)
    out = np.empty_like(pixels)
    plan = TilePlan.for_frame(200, 180, stride=16, limit=(96, 96), overlap=32)
    assert plan.merge(plan.split(pixels), out) is out
    np.testing.assert_array_equal(out, pixels)


def test_an_empty_frame_is_refused() -> None:
    with pytest.raises(DaemonError, match="at least 1x1 pixels, got 0x10"):
        TilePlan.for_frame(10, 0, stride=16, limit=(64, 64))
