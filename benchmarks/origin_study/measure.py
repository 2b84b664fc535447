"""What each model does to each set, measured through the engine that ships.

Knows models and pictures; nothing of training or tables.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from engine.backends import open_engine
from engine.protocol import Engine
from export.blur import CASES
from export.evaluate import Triple, evaluate_model, restored_triples
from export.report import by_blur

from .runs import Run
from .sets import TEST_SETS, pictures_of

GAUSSIAN, RESIZE = "gaussian 3", "resize 4"
OWN = "own training pictures"
VIEWS: dict[str, tuple[str, ...]] = {"colour": (), "grey": ("grey",)}

Results = dict[str, dict[str, Any]]
"""By run: what the model is, and `sets`: figures by set, view and case."""


def measure(run: Run, model: Path, data: Path, before: dict[str, Any] | None) -> dict[str, Any]:
    """The entry of `run` in the results; `before`, the one there was, if it is of the same model."""
    digest = hashlib.sha256(model.with_suffix(".onnx").read_bytes()).hexdigest()
    if before is not None and before["sha256"] == digest:
        return before
    print(f"{run.name}: measuring", flush=True)
    manifest = json.loads(model.read_text(encoding="utf-8"))
    own = pictures_of(data, f"{run.data}-seen")
    with open_engine("auto", str(model)) as engine:
        figures = {
            name: {view: _figures(engine, pictures_of(data, name), steps) for view, steps in VIEWS.items()}
            for name in TEST_SETS
        }
        figures[OWN] = {"colour": _figures(engine, own, ())}
        backend = engine.spec.backend
    return {
        "sha256": digest,
        "recipe": run.recipe,
        "data": run.data,
        "batch": run.batch,
        "pictures": manifest["training"]["pictures"],
        "steps": manifest["training"]["steps"],
        "parameters": manifest["parameters"],
        "engine": backend,
        "sets": figures,
    }


def _figures(engine: Engine, pictures: Sequence[Path], views: Sequence[str]) -> dict[str, Any]:
    scores = evaluate_model(engine, pictures, cases=_cases(GAUSSIAN, RESIZE), size=None, views=views)
    return {
        row.name: {key: value for key, value in asdict(row).items() if not key.startswith("worst")}
        for row in by_blur(scores)
    }


def restored(model: Path, pictures: Sequence[Path], case: str, view: str) -> Iterator[Triple]:
    """`pictures` blurred as `case` says and restored, for a sheet."""
    with open_engine("auto", str(model)) as engine:
        yield from restored_triples(engine, pictures, cases=_cases(case), size=None, views=VIEWS[view])


def _cases(*names: str) -> dict[str, Any]:
    return {name: CASES[name] for name in names}
