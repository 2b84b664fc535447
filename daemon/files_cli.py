"""The command `deblurd enhance`.

Knows its words; the work is `daemon.files`, which is imported when the command runs.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .options import (
    ConfigFile,
    EngineName,
    ModelName,
    Quiet,
    StrengthShare,
    Verbose,
    given,
    share,
    start_logging,
)
from .signals import stopping

files = typer.Typer()


@files.command()
def enhance(
    inputs: Annotated[
        list[Path], typer.Argument(help="Videos, pictures, or folders of either; - is a pipe.", metavar="INPUT...")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="A file for one input, or - for a pipe; else a folder.")
    ],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist.")] = False,
    codec: Annotated[
        str | None, typer.Option(help="Video encoder, e.g. libx265; by default the source's kind.")
    ] = None,
    crf: Annotated[float | None, typer.Option(min=0, max=63, help="Quality of the encoder; smaller is better.")] = None,
    preset: Annotated[str | None, typer.Option(help="Speed of the encoder, e.g. slow.")] = None,
    lossless: Annotated[bool, typer.Option("--lossless", help="Encode without any loss.")] = False,
    hardware: Annotated[bool, typer.Option("--hw", help="Let the NVIDIA GPU encode H.264, HEVC and AV1.")] = False,
    strength: StrengthShare = None,
    force: Annotated[bool, typer.Option("--force", help="Restore sharp frames, too: --strength 1.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Make nothing that cannot keep all of its source.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Files that are restored side by side.")] = 1,
    span: Annotated[
        str | None, typer.Option("--range", help="Only this part of a video, e.g. 00:10-00:20.", metavar="START-END")
    ] = None,
    compare: Annotated[
        Literal["side", "split"] | None, typer.Option(help="Show before and after in each frame of a video.")
    ] = None,
    preview: Annotated[
        int | None, typer.Option(min=1, max=200, help="Only write a PNG or JPEG of so many moments, before and after.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object an event on standard output (error with -o -).")
    ] = False,
    config: ConfigFile = None,
    engine: EngineName = None,
    model: ModelName = None,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Restore files: video in, video out, and everything else in the file kept.

    Audio, subtitles, chapters, timestamps, colour tags and metadata stay as they are. Outputs appear under their
    final name only when they are complete. What was interrupted or killed goes on when the same command is given
    again.

    **Example**: `deblurd enhance holiday.mp4 -o holiday-clear.mp4`

    The status is 1 if anything could not be restored whole.
    """
    from .config import load_config
    from .events import telling
    from .files import enhance_files, preview_file
    from .pipes import PIPE, piped
    from .timespan import Timespan

    if force and strength is not None:
        raise typer.BadParameter("must not be given with --strength", param_hint="--force")
    if preview and compare:
        raise typer.BadParameter("must not be given with --preview, which compares anyway", param_hint="--compare")
    overrides = {
        "engine": given(name=engine, model=model, goal="throughput"),
        "restore": given(strength=1.0 if force else share(strength)),
    }
    start_logging("debug" if verbose else "error" if quiet else "warning")
    encoding = given(codec=codec, crf=crf, preset=preset, lossless=lossless or None, hardware=hardware or None)
    told = (sys.stderr if output == PIPE else sys.stdout) if as_json else None
    with (
        stopping() as stop,
        telling(told) as events,
        piped(inputs, output, stop.is_set) as (inputs, output),
    ):
        settings = load_config(config, overrides)
        how: dict[str, Any] = {
            "overwrite": overwrite,
            "quiet": quiet,
            "stop": stop,
            "strength": settings.restore.strength,
            "span": Timespan.parse(span) if span else None,
            "events": events,
        }
        if preview:
            whole = preview_file(inputs, output, preview, settings.engine, **how)
        else:
            whole = enhance_files(
                inputs, output, settings.engine, encoding, side_by_side=jobs, comparison=compare, strict=strict, **how
            )
    raise typer.Exit(130 if stop.is_set() else 0 if whole else 1)
