"""What `deblurd evaluate` does: measure, and show a table or JSON.

Knows how figures are shown, and works without torch; the measuring is `export.evaluate` and `export.compare`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rich.console import Console

from engine.protocol import Engine

from . import compare, evaluate
from .pictures import find_pictures

SHEET_ROWS = 6


def evaluate_model(engine: Engine, data: list[Path], *, everything: bool, sheet: Path | None, as_json: bool) -> None:
    """Blur, restore and compare the pictures below `data`: the development split's, or all of them."""
    pictures = find_pictures(data) if everything else evaluate.development_pictures(data)
    rows = evaluate.evaluate_model(engine, pictures)
    if sheet is not None:
        evaluate.sheet(sheet, engine, pictures[:: max(1, len(pictures) // SHEET_ROWS)][:SHEET_ROWS])
    if as_json:
        sys.stdout.write(json.dumps(evaluate.to_json(rows), indent=2) + "\n")
    else:
        Console().print(evaluate.table(rows))


def evaluate_pair(truth: Path, restored: Path, *, as_json: bool) -> None:
    """Compare two files, or two folders by name."""
    rows = compare.compare(truth, restored)
    if as_json:
        sys.stdout.write(json.dumps(compare.to_json(rows), indent=2) + "\n")
    else:
        Console().print(compare.table(rows))
