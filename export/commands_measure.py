"""What `deblurd evaluate` does: measure, and show a table or JSON.

Knows how figures are shown, and works without torch; the measuring is `export.evaluate` and `export.compare`.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from engine.protocol import Engine

from . import compare, evaluate, report
from .blur import CASES
from .errors import ExportError
from .pictures import find_pictures
from .sheet import write_sheet

SHEET_ROWS = 6


@dataclass(frozen=True)
class Choice:
    """What is measured: which blurs of `CASES` (none named: all), and how the pictures are seen."""

    blurs: tuple[str, ...] = ()
    grey: bool = False
    low_light: bool = False

    @property
    def cases(self) -> evaluate.Cases:
        for name in self.blurs:
            if name not in CASES:
                raise ExportError(f"blur must be one of {', '.join(CASES)}, got {name!r}")
        return {name: CASES[name] for name in self.blurs or CASES}

    @property
    def views(self) -> tuple[str, ...]:
        return ("grey",) * self.grey + ("low light",) * self.low_light


EVERY_BLUR = Choice()


def evaluate_model(
    engine: Engine,
    data: list[Path],
    *,
    everything: bool,
    sheet: Path | None,
    as_json: bool,
    choice: Choice = EVERY_BLUR,
) -> None:
    """Blur, restore and compare the pictures below `data`: the development split's, or all of them."""
    cases, views = choice.cases, choice.views
    pictures = find_pictures(data) if everything else evaluate.development_pictures(data)
    if not pictures:
        raise ExportError(f"{', '.join(map(str, data))}: no picture found")
    scores = evaluate.evaluate_model(engine, pictures, cases=cases, views=views)
    if sheet is not None:
        shown = pictures[:: max(1, len(pictures) // SHEET_ROWS)][:SHEET_ROWS]
        blurred = {name: blur for name, blur in cases.items() if name != evaluate.SHARP} or cases
        write_sheet(sheet, evaluate.restored_triples(engine, shown, cases=blurred, views=views))
    if as_json:
        facts = {"model": engine.spec.model, "engine": engine.spec.backend, "views": views}
        sys.stdout.write(json.dumps({**facts, **report.to_json(scores)}, indent=2) + "\n")
    else:
        Console().print(report.tables(scores))


def evaluate_pair(truth: Path, restored: Path, *, as_json: bool) -> None:
    """Compare two files, or two folders by name."""
    rows = compare.compare(truth, restored)
    if as_json:
        sys.stdout.write(json.dumps(compare.to_json(rows), indent=2) + "\n")
    else:
        Console().print(compare.table(rows))
