"""How much a model gains on the kinds of blur it was trained for, each with a random strength for every picture.

    python benchmarks/blurs.py PICTURES [--model fast]

Every kind once on display levels and once in linear light, as in a camera, without noise; 256x256 crops of the
development split. `deblurd evaluate` has blurs of fixed strength, and noise and JPEG, instead.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console

from engine.backends import open_engine
from export.blur import BLURS, Light, Picture, Rng, in_linear_light, to_light, to_picture
from export.evaluate import development_pictures, evaluate_model, table

Case = Callable[[Picture, Rng], Picture]


def on_display_levels(blur: Callable[[Light, Rng], Light]) -> Case:
    return lambda picture, rng: to_picture(blur(to_light(picture), rng))


def in_a_camera(blur: Callable[[Light, Rng], Light]) -> Case:
    return lambda picture, rng: to_picture(in_linear_light(lambda light: blur(light, rng), to_light(picture)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("pictures", type=Path, nargs="+")
    parser.add_argument("--model", default="fast")
    arguments = parser.parse_args()
    cases: dict[str, Case] = {}
    for name, blur in BLURS.items():
        if name != "sharp":
            cases |= {name: on_display_levels(blur), f"{name}, linear light": in_a_camera(blur)}
    with open_engine("auto", arguments.model) as engine:
        rows = evaluate_model(engine, development_pictures(arguments.pictures), cases=cases)
    console = Console()
    console.print(table(rows))
    console.print(f"mean gain {np.mean([row.score_db for row in rows]):+.2f} dB")


if __name__ == "__main__":
    main()
