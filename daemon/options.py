"""What the commands of `deblurd` share: their options, and how they speak.

Knows words for the terminal; no command.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler

console = Console(stderr=True)

ConfigFile = Annotated[
    Path | None, typer.Option("-c", "--config", help="Settings; `deblurd config` prints a commented file of them.")
]
EngineName = Annotated[
    str | None,
    typer.Option("--engine", help="auto, tensorrt, torch, openvino, or identity (changes nothing: a dry run)."),
]
ModelName = Annotated[
    str | None, typer.Option("--model", help="A shipped model's name, or a path to a .json or .onnx.")
]
StrengthShare = Annotated[
    str | None,
    typer.Option(
        "--strength",
        help="How much of the model's change is let through: 0 to 1, or auto (nothing of sharp frames).",
        metavar="0..1|auto",
    ),
]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Say more.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Say only what went wrong.")]


def given(**values: Any) -> dict[str, Any]:
    """Options that were given; the others leave the settings alone."""
    return {key: value for key, value in values.items() if value is not None}


def share(strength: str | None) -> float | str | None:
    """A number if it is one; the settings say what is wrong with another word."""
    try:
        return strength if strength is None else float(strength)
    except ValueError:
        return strength


def start_logging(level: str) -> None:
    """Log to standard error: with colours on a terminal, with dates into a file."""
    if console.is_terminal:
        handler: logging.Handler = RichHandler(
            console=console, show_path=False, show_level=False, log_time_format="%H:%M:%S"
        )
        logging.basicConfig(level=level.upper(), format="%(message)s", handlers=[handler], force=True)
    else:
        logging.basicConfig(level=level.upper(), format="%(asctime)s %(levelname)s %(message)s", force=True)
