"""How much a model gains on the kinds of blur it was trained for, each with a random strength for every picture.

    python benchmarks/blurs.py PICTURES [--model fast]

Every kind once on display levels and once in linear light, as in a camera, without noise, and their mean; then one
kind drawn for each picture, with the noise and JPEG of training. That draw is made ten times: a single one is off by
0.2 dB and more. 256x256 crops of the development
split. `deblurd evaluate` has blurs of fixed strength instead.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console

from engine.backends import open_engine
from export.blur import Light, Picture, Rng, in_linear_light, to_light, to_picture
from export.degradation import Blur, Degradation
from export.evaluate import development_pictures, evaluate_model
from export.report import by_blur, tables

DRAWS = 10
BLURS: dict[str, Blur] = {"gaussian": "random_gaussian", "resize": "resize", "motion": "motion", "defocus": "defocus"}
"""As shown, and as trained for. Random strengths depend on the names shown: renamed, they would be others."""

Case = Callable[[Picture, Rng], Picture]


def on_display_levels(name: Blur) -> Case:
    return lambda picture, rng: to_picture(Degradation().blur(name, to_light(picture), rng))


def in_a_camera(name: Blur) -> Case:
    def blur(picture: Picture, rng: Rng) -> Picture:
        def expose(light: Light) -> Light:
            return Degradation().blur(name, light, rng)

        return to_picture(in_linear_light(expose, to_light(picture)))

    return blur


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("pictures", type=Path, nargs="+")
    parser.add_argument("--model", default="fast")
    arguments = parser.parse_args()
    cases: dict[str, Case] = {}
    for name, blur in BLURS.items():
        cases |= {name: on_display_levels(blur), f"{name}, linear light": in_a_camera(blur)}
    drawn = Degradation(weights=dict.fromkeys(BLURS.values(), 1.0))
    cases |= {f"drawn {i}, with noise and JPEG": drawn.apply for i in range(1, DRAWS + 1)}
    with open_engine("auto", arguments.model) as engine:
        scores = evaluate_model(engine, development_pictures(arguments.pictures), cases=cases)
    console = Console()
    console.print(tables(scores))
    rows = by_blur(scores)
    plain, mixed = ([row.score_db for row in part] for part in (rows[:-DRAWS], rows[-DRAWS:]))
    spread = f"{min(mixed):+.2f} to {max(mixed):+.2f} over {DRAWS} draws"
    console.print(f"mean gain without noise: {np.mean(plain):+.2f} dB", highlight=False)
    console.print(
        f"mean gain with the noise and JPEG of training: {np.mean(mixed):+.2f} dB ({spread})", highlight=False
    )


if __name__ == "__main__":
    main()
