"""The tables of the study, in Markdown, one for each question.

Knows figures; nothing of how they were measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from .measure import GAUSSIAN, OWN, RESIZE, Results

ARTICLE = ("img2img-male", "restore-male")
ON_ALL = ("img2img-200", "img2img-800", "img2img-all", "pix2pix-200", "pix2pix-all", "cyclegan-all")
RECIPES = ("img2img-male", "img2img-all", "restore-male", "pix2pix-all", "cyclegan-all", "dualgan-all")
TESTED = {"male-test": "male faces", "female-test": "female faces", "scenes-test": "scenes"}

Cells = Sequence[str]

TEXT = {"run", "recipe", "set", "tested on", "view", "blur"}


def report(results: Results) -> str:
    """The whole report: a heading and a table a question."""
    return (
        "# The origin study\n\n"
        + "\n\n".join(f"## {name}\n\n{table}" for name, table in tables(results).items())
        + "\n"
    )


def tables(results: Results) -> dict[str, str]:
    """Markdown tables by name; rows of runs that were not measured are left out."""
    return {name: _table(*make(results)) for name, make in TABLES.items()}


def fill(page: Path, results: Results) -> None:
    """Put the tables into `page`, each between `<!-- table: NAME -->` and `<!-- end -->`."""
    text = page.read_text(encoding="utf-8")
    for name, table in tables(results).items():
        before, mark, rest = text.partition(f"<!-- table: {name} -->\n")
        if mark:
            text = f"{before}{mark}\n{table}\n\n<!-- end -->{rest.partition('<!-- end -->')[2]}"
    page.write_text(text, encoding="utf-8")


def _table(header: Cells, rows: Iterable[Cells]) -> str:
    ruler = ["---" if name in TEXT else "---:" for name in header]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ruler, *rows))


def _figures(results: Results, run: str, tested: str, view: str = "colour", case: str = GAUSSIAN) -> dict[str, Any]:
    figures: dict[str, Any] = results[run]["sets"][tested][view][case]
    return figures


def _scores(figures: dict[str, Any]) -> list[str]:
    return [
        *(f"{figures['blurred_db']:.1f}", f"{figures['restored_db']:.1f}", f"{figures['score_db']:+.1f}"),
        *(f"{figures['ssim'] - figures['ssim_gain']:.3f}", f"{figures['ssim']:.3f}", f"{figures['colour_shift']:.1f}"),
    ]


SCORES = ("blurred dB", "restored dB", "gain dB", "SSIM blurred", "SSIM restored", "colour shift")


def _runs(results: Results) -> tuple[Cells, list[Cells]]:
    rows: list[Cells] = [
        (name, run["recipe"], run["data"], *(f"{run[key]:,}" for key in ("pictures", "batch", "steps", "parameters")))
        for name, run in results.items()
    ]
    return ("run", "recipe", "set", "pictures", "batch", "best at step", "parameters"), rows


def _article(results: Results) -> tuple[Cells, list[Cells]]:
    rows: list[Cells] = [
        (run, title, view, *_scores(_figures(results, run, tested, view)))
        for run in ARTICLE
        if run in results
        for tested, title in TESTED.items()
        for view in ("colour", "grey")
    ]
    return ("run", "tested on", "view", *SCORES), rows


def _blurs(results: Results) -> tuple[Cells, list[Cells]]:
    rows: list[Cells] = [
        (run, title, case, *_scores(_figures(results, run, tested, case=case)))
        for run in ("img2img-male", "img2img-male-both", "restore-male")
        if run in results
        for tested, title in TESTED.items()
        for case in (GAUSSIAN, RESIZE)
    ]
    return ("run", "tested on", "blur", *SCORES), rows


def _sizes(results: Results) -> tuple[Cells, list[Cells]]:
    rows: list[Cells] = []
    for run in ON_ALL:
        if run in results:
            own, test = _figures(results, run, OWN), _figures(results, run, "faces-test")
            gap = own["score_db"] - test["score_db"]
            gains = (f"{own['score_db']:+.2f}", f"{test['score_db']:+.2f}", f"{gap:+.2f}", f"{test['ssim']:.3f}")
            rows.append((run, str(results[run]["pictures"]), *gains))
    return ("run", "pictures", "gain on its own, dB", "gain on others, dB", "gap dB", "SSIM on others"), rows


def _colour(results: Results) -> tuple[Cells, list[Cells]]:
    def of(run: str, figure: Callable[[dict[str, Any]], str]) -> list[str]:
        tested = (("faces-test", "colour"), ("scenes-test", "colour"), ("faces-test", "grey"), ("scenes-test", "grey"))
        return [figure(_figures(results, run, *pair)) for pair in tested]

    rows: list[Cells] = [(run, *of(run, lambda figures: f"{figures['colour_shift']:.1f}")) for run in results]
    return ("run", "faces", "scenes", "grey faces", "grey scenes"), rows


def _recipes(results: Results) -> tuple[Cells, list[Cells]]:
    rows: list[Cells] = [
        (run, title, *_scores(_figures(results, run, tested)))
        for tested, title in (("faces-test", "faces"), ("scenes-test", "scenes"))
        for run in RECIPES
        if run in results
    ]
    return ("run", "tested on", *SCORES), rows


TABLES: dict[str, Callable[[Results], tuple[Cells, list[Cells]]]] = {
    "runs": _runs,
    "the article's question": _article,
    "another blur": _blurs,
    "how many pictures": _sizes,
    "colour shift": _colour,
    "recipes": _recipes,
}
