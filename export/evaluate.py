"""Measure what a model does to pictures whose sharp original is known.

Knows pictures, blurs and engines; nothing of networks, so it measures exactly what ships.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.markup import escape
from rich.table import Table

from engine.protocol import Engine

from .blur import CASES, MARGIN_PX, Picture, Rng
from .errors import ExportError
from .metrics import psnr, ssim
from .pictures import find_pictures, read_picture, read_split, split_by_origin

log = logging.getLogger(__name__)

Cases = Mapping[str, Callable[[Picture, Rng], Picture]]
SHARP = "sharp"


@dataclass(frozen=True)
class CaseRow:
    """One blur over all pictures; PSNR and SSIM are means over the pictures, against the sharp originals.

    worst: the picture that gained least (for `sharp`: that was kept worst), and `worst_db`, its score.
    """

    case: str
    pictures: int
    blurred_db: float
    restored_db: float
    ssim_gain: float
    worst: str
    worst_db: float

    @property
    def score_db(self) -> float:
        """The gain over the blurred input; for `sharp`, the PSNR at which the picture is kept."""
        return self.restored_db if self.case == SHARP else self.restored_db - self.blurred_db


@dataclass(frozen=True)
class _Score:
    picture: str
    blurred_db: float
    restored_db: float
    ssim_gain: float

    def score_db(self, case: str) -> float:
        return self.restored_db if case == SHARP else self.restored_db - self.blurred_db


def development_pictures(folders: Sequence[Path]) -> list[Path]:
    """The pictures of the development split below `folders`, or all pictures there if the split names none."""
    found = find_pictures(folders)
    chosen = split_by_origin(found, read_split())[1]
    if not chosen:
        log.warning("the development split names none of these pictures: all are used, also those trained on")
        chosen = found
    if not chosen:
        raise ExportError(f"{', '.join(map(str, folders))}: no picture found")
    return chosen


def evaluate_model(
    engine: Engine, pictures: Sequence[Path], *, cases: Cases = CASES, size: int | None = 256
) -> tuple[CaseRow, ...]:
    """Blur each picture in every way of `cases`, restore it, and compare: one row a case.

    Crops of `size` px at the centre are compared, or whole pictures if None. The random part of a blur depends
    on the picture's name and folder and on the case alone. ExportError for a picture that does not decode or
    is smaller than `size`.
    """
    scores: dict[str, list[_Score]] = {name: [] for name in cases}
    for path in pictures:
        sharp = _read(path, size)
        for name in cases:
            truth, blurred, restored = _triple(engine, path, sharp, name, cases, size)
            score = _Score(
                picture=f"{path.parent.name}/{path.name}",
                blurred_db=psnr(truth, blurred),
                restored_db=psnr(truth, restored),
                ssim_gain=ssim(truth, restored) - ssim(truth, blurred),
            )
            scores[name].append(score)
    return tuple(_row(name, column) for name, column in scores.items() if column)


def _row(case: str, scores: Sequence[_Score]) -> CaseRow:
    worst = min(scores, key=lambda score: (score.score_db(case), score.picture))
    return CaseRow(
        case=case,
        pictures=len(scores),
        blurred_db=float(np.mean([score.blurred_db for score in scores])),
        restored_db=float(np.mean([score.restored_db for score in scores])),
        ssim_gain=float(np.mean([score.ssim_gain for score in scores])),
        worst=worst.picture,
        worst_db=worst.score_db(case),
    )


def _read(path: Path, size: int | None) -> Picture:
    """The picture, or its centre with a margin for the blur where the picture has one."""
    picture = read_picture(path)
    if size is None:
        return picture
    if min(picture.shape[:2]) < size:
        raise ExportError(
            f"{path}: pictures must be at least {size} px on each side, got {picture.shape[1]}x{picture.shape[0]}"
        )
    return _centre(picture, size + 2 * MARGIN_PX)


def _centre(picture: Picture, size: int | None) -> Picture:
    """The middle `size` x `size` px, or as much of that as there is."""
    if size is None:
        return picture
    top, left = (max(0, (side - size) // 2) for side in picture.shape[:2])
    return np.ascontiguousarray(picture[top : top + size, left : left + size])


def _triple(
    engine: Engine, path: Path, sharp: Picture, case: str, cases: Cases, size: int | None
) -> tuple[Picture, Picture, Picture]:
    """(sharp, blurred, restored), cut to `size`."""
    seed = [zlib.crc32(text.encode()) for text in (f"{path.parent.name}/{path.name}", case)]
    blurred = _centre(cases[case](sharp, np.random.default_rng(seed)), size)
    return _centre(sharp, size), blurred, restore(engine, blurred)


def restore(engine: Engine, picture: Picture) -> Picture:
    """`picture` (H, W, 3) as `engine` restores it in one piece; EngineError if it is larger than a tile."""
    height, width = picture.shape[:2]
    spec = engine.spec
    padded = spec.tile if spec.fixed_tile else tuple(-(-side // spec.stride) * spec.stride for side in (height, width))
    bottom, right = max(0, padded[0] - height), max(0, padded[1] - width)
    frame = cv2.copyMakeBorder(picture, 0, bottom, 0, right, cv2.BORDER_REFLECT_101)
    with engine.submit(np.asarray(frame, np.uint8)[None]).result() as result:
        return result.frames[0, :height, :width].copy()


def sheet(
    target: Path,
    engine: Engine,
    pictures: Sequence[Path],
    *,
    case: str = "motion 9",
    cases: Cases = CASES,
    size: int = 256,
) -> None:
    """Write a PNG with one row a picture: sharp, blurred, restored."""
    if case not in cases:
        raise ExportError(f"case must be one of {', '.join(cases)}, got {case!r}")
    if not pictures:
        raise ExportError(f"{target}: a sheet needs at least one picture")
    rows = [np.hstack(_triple(engine, path, _read(path, size), case, cases, size)) for path in pictures]
    ok, data = cv2.imencode(".png", np.vstack(rows)[..., ::-1])
    assert ok
    partial = target.with_name(f".{target.name}.partial")
    try:
        partial.write_bytes(data.tobytes())
        partial.replace(target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ExportError(f"{target}: not writable ({error.strerror})") from error


def gains(rows: Sequence[CaseRow]) -> dict[str, float]:
    """Case to `score_db`, rounded to hundredths, as a manifest holds them."""
    return {row.case: round(row.score_db, 2) for row in rows}


def table(rows: Sequence[CaseRow]) -> Table:
    """The rows for a terminal."""
    result = Table("blur", "pictures", "blurred dB", "restored dB", "gain dB", "SSIM gain", "worst", "worst dB")
    for column in result.columns[1:6] + result.columns[7:]:
        column.justify = "right"
    for row in rows:
        result.add_row(
            row.case,
            str(row.pictures),
            "" if row.case == SHARP else f"{row.blurred_db:.2f}",
            f"{row.restored_db:.2f}",
            "kept" if row.case == SHARP else f"{row.score_db:+.2f}",
            f"{row.ssim_gain:+.4f}",
            escape(row.worst),
            f"{row.worst_db:.2f}" if row.case == SHARP else f"{row.worst_db:+.2f}",
        )
    return result


def to_json(rows: Sequence[CaseRow]) -> list[dict[str, Any]]:
    """The rows as plain values, with their `score_db`."""
    return [{**asdict(row), "score_db": row.score_db} for row in rows]
