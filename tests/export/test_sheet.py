"""Contact sheets: their geometry, their captions, and that pixels are shown as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from export.errors import ExportError
from export.evaluate import Triple
from export.leaves import dead_leaves
from export.pictures import read_picture
from export.sheet import CAPTION_PX, CELL_PX, GAP_PX, PAPER, write_sheet


def triple(height: int, width: int, case: str = "motion 9", seed: int = 0) -> Triple:
    sharp = dead_leaves(height, width, np.random.default_rng(seed))
    return Triple("street", f"crossing{seed}.png", case, sharp, sharp // 2, sharp // 4 * 3)


def drawn(path: Path, *triples: Triple) -> NDArray[np.uint8]:
    write_sheet(path, triples)
    return read_picture(path)


def test_a_row_holds_sharp_blurred_and_restored_under_their_captions(tmp_path: Path) -> None:
    first, second = triple(200, 256), triple(200, 256, seed=1)
    sheet = drawn(tmp_path / "sheet.png", first, second)
    high = CAPTION_PX + 200 + GAP_PX
    assert sheet.shape == (2 * high, 3 * 256 + 2 * GAP_PX, 3)
    for top, shown in ((0, first), (high, second)):
        for column, picture in enumerate((shown.sharp, shown.blurred, shown.restored)):
            left = column * (256 + GAP_PX)
            cell = sheet[top + CAPTION_PX : top + CAPTION_PX + 200, left : left + 256]
            np.testing.assert_array_equal(cell, picture)
            caption = sheet[top : top + CAPTION_PX, left : left + 256]
            assert 100 < (caption < 128).sum() < caption.size / 4  # ink, on paper
            assert (caption[:, -4:] == PAPER).all()
    assert (sheet[:, 256 : 256 + GAP_PX] == PAPER).all()


def test_captions_tell_blurs_and_figures_apart(tmp_path: Path) -> None:
    """The same pixels under another blur differ above the blurred picture alone."""
    one, other = (drawn(tmp_path / f"{case}.png", triple(200, 256, case)) for case in ("motion 9", "defocus 3"))
    differs = (one != other).any(axis=(0, 2))
    assert differs[256 + GAP_PX : 2 * 256 + GAP_PX].any()
    assert not differs[:256].any()
    assert not differs[2 * (256 + GAP_PX) :].any()


def test_small_pictures_are_enlarged_by_a_whole_factor_and_large_ones_fitted(tmp_path: Path) -> None:
    small = triple(50, 64)
    sheet = drawn(tmp_path / "small.png", small)
    assert sheet.shape == (CAPTION_PX + 150 + GAP_PX, 3 * 192 + 2 * GAP_PX, 3)
    np.testing.assert_array_equal(sheet[CAPTION_PX : CAPTION_PX + 150 : 3, 1:192:3], small.sharp)
    large = drawn(tmp_path / "large.png", triple(300, 2 * CELL_PX[1]))
    assert large.shape == (CAPTION_PX + 150 + GAP_PX, 3 * CELL_PX[1] + 2 * GAP_PX, 3)


def test_rows_of_different_widths_stand_on_one_sheet(tmp_path: Path) -> None:
    sheet = drawn(tmp_path / "sheet.png", triple(200, 200), triple(100, 300))
    assert sheet.shape == (2 * (CAPTION_PX + GAP_PX) + 300, 3 * 300 + 2 * GAP_PX, 3)


def test_a_name_beyond_the_font_or_the_width_is_drawn_as_far_as_it_goes(tmp_path: Path) -> None:
    plain = triple(32, 200)
    named = Triple("street", "Straße" * 30, "sharp", plain.sharp, plain.blurred, plain.restored)
    assert drawn(tmp_path / "sheet.png", named).shape[1] == 3 * 200 + 2 * GAP_PX


def test_a_sheet_of_nothing_or_to_nowhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="at least one picture"):
        write_sheet(tmp_path / "sheet.png", [])
    with pytest.raises(ExportError, match=r"sheet.png: not writable \(No such file"):
        write_sheet(tmp_path / "absent" / "sheet.png", [triple(32, 32)])
    assert list(tmp_path.iterdir()) == []
