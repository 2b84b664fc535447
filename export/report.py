"""Sum up scores by blur and by folder, for a terminal, as JSON and for a manifest.

Knows scores; nothing of pictures or engines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from .evaluate import SHARP, Score


@dataclass(frozen=True)
class Row:
    """Means over `scores` scores that have `name`, a blur or a folder, in common.

    score_db: the mean gain over the blurred input; where all were `sharp`, the PSNR at which they are kept.
    ssim: of the restored pictures, and `ssim_gain` over the blurred ones.
    colour_shift: how far the mean colour of a restored picture lies from its original's.
    worst: the picture that scored least, as folder/name, and the blur it had; `worst_db`, its score.
    """

    name: str
    scores: int
    blurred_db: float
    restored_db: float
    score_db: float
    ssim: float
    ssim_gain: float
    colour_shift: float
    worst: str
    worst_case: str
    worst_db: float


def by_blur(scores: Sequence[Score]) -> tuple[Row, ...]:
    """One row a blur, over all folders."""
    return _rows(scores, lambda score: score.case)


def by_folder(scores: Sequence[Score]) -> tuple[Row, ...]:
    """One row a folder, over all blurs but `sharp`, whose PSNR would drown the others."""
    return _rows([score for score in scores if score.case != SHARP] or scores, lambda score: score.folder)


def _rows(scores: Sequence[Score], key: Callable[[Score], str]) -> tuple[Row, ...]:
    groups: dict[str, list[Score]] = {}
    for score in scores:
        groups.setdefault(key(score), []).append(score)
    return tuple(_row(name, group) for name, group in groups.items())


def _row(name: str, scores: Sequence[Score]) -> Row:
    def mean(figure: Callable[[Score], float]) -> float:
        return float(np.mean([figure(score) for score in scores]))

    worst = min(scores, key=lambda score: (score.score_db, score.folder, score.name))
    return Row(
        name=name,
        scores=len(scores),
        blurred_db=mean(lambda score: score.blurred_db),
        restored_db=mean(lambda score: score.restored_db),
        score_db=mean(lambda score: score.score_db),
        ssim=mean(lambda score: score.restored_ssim),
        ssim_gain=mean(lambda score: score.restored_ssim - score.blurred_ssim),
        colour_shift=mean(lambda score: score.colour_shift),
        worst=f"{worst.folder}/{worst.name}",
        worst_case=worst.case,
        worst_db=worst.score_db,
    )


def gains(scores: Sequence[Score]) -> dict[str, float]:
    """Blur to `score_db`, rounded to hundredths, as a manifest holds them."""
    return {row.name: round(row.score_db, 2) for row in by_blur(scores)}


def tables(scores: Sequence[Score]) -> Group:
    """The scores for a terminal: by blur, and by folder where there are several."""
    blurs, folders = by_blur(scores), by_folder(scores)
    shown = [_table("blur", "pictures", blurs, sharp={SHARP})]
    if len(folders) > 1:
        sharp = {row.name for row in folders if row.worst_case == SHARP}  # nothing else was measured
        shown.append(_table("folder", "scores", folders, sharp=sharp))
    return Group(*shown)


def _table(kind: str, counted: str, rows: Sequence[Row], *, sharp: set[str]) -> Table:
    """`sharp` names the rows that show how sharp pictures are kept: they have no gain."""
    headings = ("blurred dB", "restored dB", "gain dB", "SSIM", "SSIM gain", "colour shift", "worst", "worst dB")
    table = Table(kind, counted, *headings)
    for column in table.columns:
        column.justify = "left" if column.header in (kind, "worst") else "right"
        column.no_wrap = column.header == kind
    for row in rows:
        kept = row.name in sharp
        table.add_row(
            escape(row.name),
            str(row.scores),
            "" if kept else f"{row.blurred_db:.2f}",
            f"{row.restored_db:.2f}",
            "kept" if kept else f"{row.score_db:+.2f}",
            f"{row.ssim:.4f}",
            f"{row.ssim_gain:+.4f}",
            f"{row.colour_shift:.2f}",
            escape(row.worst if kind == "blur" else f"{row.worst.partition('/')[2]}, {row.worst_case}"),
            f"{row.worst_db:.2f}" if kept else f"{row.worst_db:+.2f}",
        )
    return table


def to_json(scores: Sequence[Score]) -> dict[str, Any]:
    """Plain values: `blurs`, `folders` (each with its own `blurs`) and `pictures`, the scores themselves."""
    by_name: dict[str, list[Score]] = {}
    for score in scores:
        by_name.setdefault(score.folder, []).append(score)
    return {
        "blurs": [asdict(row) for row in by_blur(scores)],
        "folders": [
            {**asdict(row), "blurs": [asdict(part) for part in by_blur(by_name[row.name])]} for row in by_folder(scores)
        ],
        "pictures": [{**asdict(score), "score_db": score.score_db} for score in scores],
    }
