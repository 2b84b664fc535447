"""Compare restored files with their sharp originals: pictures, clips, or folders of them.

Knows files; nothing of engines or of how a file was restored.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from rich.markup import escape
from rich.table import Table

from .blur import Picture
from .errors import ExportError
from .metrics import SSIM_WINDOW_PX, colour_shift, psnr, ssim
from .pictures import PICTURE_SUFFIXES, read_picture


@dataclass(frozen=True)
class Comparison:
    """One restored file beside its original; the figures are means over its frames, `worst_db` the least PSNR."""

    name: str
    frames: int
    psnr_db: float
    ssim: float
    colour_shift: float
    worst_db: float


def compare(truth: Path, restored: Path) -> tuple[Comparison, ...]:
    """Compare two files, or the files of two folders that have the same name (suffixes may differ).

    ExportError if a file has no partner, does not decode, or differs in size or number of frames.
    """
    return tuple(_compare_files(a, b) for a, b in _pairs(truth, restored))


def _pairs(truth: Path, restored: Path) -> list[tuple[Path, Path]]:
    for path in (truth, restored):
        if not path.exists():
            raise ExportError(f"{path}: no such file or folder")
    if truth.is_dir() != restored.is_dir():
        raise ExportError(f"{truth} and {restored}: must be two files or two folders")
    if not truth.is_dir():
        return [(truth, restored)]
    originals, results = ({p.stem: p for p in sorted(d.iterdir()) if p.is_file()} for d in (truth, restored))
    if not results:
        raise ExportError(f"{restored}: the folder holds no files")
    for stem, path in results.items():
        if stem not in originals:
            raise ExportError(f"{path}: {truth} has no original named {stem!r}")
    return [(originals[stem], path) for stem, path in results.items()]


def _compare_files(truth: Path, restored: Path) -> Comparison:
    figures: list[tuple[float, float, float]] = []
    for a, b in itertools.zip_longest(_frames(truth), _frames(restored)):
        if a is None or b is None:
            more, fewer = (truth, restored) if b is None else (restored, truth)
            raise ExportError(f"{restored}: must have as many frames as its original, but {fewer} ends before {more}")
        if a.shape != b.shape:
            raise ExportError(
                f"{restored}: must be {a.shape[1]}x{a.shape[0]} like its original, got {b.shape[1]}x{b.shape[0]}"
            )
        if min(a.shape[:2]) < (least := SSIM_WINDOW_PX):
            raise ExportError(f"{restored}: must have at least {least}x{least} pixels, got {b.shape[1]}x{b.shape[0]}")
        figures.append((psnr(a, b), ssim(a, b), colour_shift(a, b)))
    if not figures:
        raise ExportError(f"{truth}: no frames")
    psnr_db, likeness, shift = (float(mean) for mean in np.mean(figures, axis=0))
    return Comparison(restored.name, len(figures), psnr_db, likeness, shift, min(figure[0] for figure in figures))


def _frames(path: Path) -> Iterator[Picture]:
    """The frames of a clip, or the one of a picture."""
    if path.suffix.lower() in PICTURE_SUFFIXES:
        yield read_picture(path)
        return
    try:
        with av.open(f"file:{path.absolute()}") as container:
            if not container.streams.video:
                raise ExportError(f"{path}: no video stream")
            for frame in container.decode(video=0):
                yield np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
    except av.FFmpegError as error:
        raise ExportError(f"{path}: neither a picture nor a clip that decodes ({error.strerror})") from error


def table(rows: Sequence[Comparison]) -> Table:
    """The rows for a terminal, and their mean where there are several."""
    result = Table("file", "frames", "PSNR dB", "worst dB", "SSIM", "colour shift")
    for column in result.columns[1:]:
        column.justify = "right"

    def line(name: str, frames: int, figures: Sequence[float]) -> None:
        db, worst, likeness, shift = figures
        result.add_row(escape(name), str(frames), f"{db:.2f}", f"{worst:.2f}", f"{likeness:.4f}", f"{shift:.2f}")

    figures = [(row.psnr_db, row.worst_db, row.ssim, row.colour_shift) for row in rows]
    for row, values in zip(rows, figures, strict=True):
        line(row.name, row.frames, values)
    if len(rows) > 1:
        result.add_section()
        line("mean", sum(row.frames for row in rows), [float(mean) for mean in np.mean(figures, axis=0)])
    return result


def to_json(rows: Sequence[Comparison]) -> list[dict[str, Any]]:
    """The rows as plain values."""
    return [asdict(row) for row in rows]
