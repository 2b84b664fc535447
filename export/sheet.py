"""Draw a contact sheet: sharp, blurred and restored side by side, one row a picture, with captions.

Knows triples of pictures; nothing of engines or of what blurred them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from .blur import Picture
from .errors import ExportError
from .evaluate import SHARP, Triple
from .metrics import psnr

CAPTION_PX = 22
GAP_PX = 6
CELL_PX = (192, 640)
"""Smaller pictures are enlarged by a whole factor and larger ones scaled down, so that captions fit beneath."""

PAPER, INK = 255, 32
FONT, FONT_SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.42


def write_sheet(target: Path, triples: Iterable[Triple]) -> None:
    """Write a PNG with a row for each triple: captions, then sharp, blurred and restored.

    ExportError if there is none, or the file cannot be written; then one that was there before stands.
    """
    rows = [_row(triple) for triple in triples]
    if not rows:
        raise ExportError(f"{target}: a sheet needs at least one picture")
    width = max(row.shape[1] for row in rows)
    padded = [
        cv2.copyMakeBorder(row, 0, 0, 0, width - row.shape[1], cv2.BORDER_CONSTANT, value=(PAPER,) * 3) for row in rows
    ]
    ok, data = cv2.imencode(".png", np.vstack(padded)[..., ::-1])
    assert ok
    partial = target.with_name(f".{target.name}.partial")
    try:
        partial.write_bytes(data.tobytes())
        partial.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise ExportError(f"{target}: not writable ({error.strerror})") from error


def _row(triple: Triple) -> Picture:
    before, after = psnr(triple.sharp, triple.blurred), psnr(triple.sharp, triple.restored)
    restored = f"restored {after:.2f} dB"
    if triple.case != SHARP:
        restored += f" ({after - before:+.2f})"
    cells = (
        _cell(triple.sharp, f"sharp  {triple.name}"),
        _cell(triple.blurred, "not blurred" if triple.case == SHARP else f"{triple.case}  {before:.2f} dB"),
        _cell(triple.restored, restored),
    )
    gap = np.full((cells[0].shape[0], GAP_PX, 3), PAPER, np.uint8)
    row = np.hstack([cells[0], gap, cells[1], gap, cells[2]])
    return np.vstack([row, np.full((GAP_PX, row.shape[1], 3), PAPER, np.uint8)])


def _cell(picture: Picture, caption: str) -> Picture:
    """The picture under its caption, which is shortened to its width."""
    least, most = CELL_PX
    height, width = picture.shape[:2]
    if width < least:
        factor = -(-least // width)
        picture = picture.repeat(factor, axis=0).repeat(factor, axis=1)  # pixels stay pixels
    elif width > most:
        scaled = cv2.resize(picture, (most, max(1, round(height * most / width))), interpolation=cv2.INTER_AREA)
        picture = np.asarray(scaled, np.uint8)
    strip = np.full((CAPTION_PX, picture.shape[1], 3), PAPER, np.uint8)
    text = caption.encode("ascii", "replace").decode()  # OpenCV's font has no more
    while text and cv2.getTextSize(text, FONT, FONT_SCALE, 1)[0][0] > strip.shape[1] - 8:
        text = text[:-1]
    cv2.putText(strip, text, (4, CAPTION_PX - 7), FONT, FONT_SCALE, (INK,) * 3, 1, cv2.LINE_AA)
    return np.vstack([strip, picture])
