"""The command line `deblurd`.

Knows every command's words and how its results are shown; what a command needs is imported when it runs, so
that `deblurd run` never loads the training stage.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer
from rich.console import Console

from .files_cli import files
from .keys_cli import keys as keys_app
from .options import (
    ConfigFile,
    EngineName,
    ModelName,
    Quiet,
    StrengthShare,
    Verbose,
    console,
    given,
    share,
    start_logging,
)
from .signals import stopping
from .training_cli import training

app = typer.Typer(
    name="deblurd",
    help="Blurred video becomes clear while it streams.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def run(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            help="Cameras and files: rtsp://…, http://…, /dev/video0, a file, a folder of pictures, or test:. "
            "NAME=SOURCE gives the stream a name.",
            metavar="SOURCE",
        ),
    ] = None,
    config: ConfigFile = None,
    publish: Annotated[str | None, typer.Option(help="Where subscribers connect, e.g. tcp://127.0.0.1:5555.")] = None,
    realtime: Annotated[bool, typer.Option("--realtime", help="Play files at their own speed, like a camera.")] = False,
    loop: Annotated[bool, typer.Option("--loop", help="Play files again and again.")] = False,
    transport: Annotated[
        str | None, typer.Option(help="How the RTP of SOURCE comes: tcp, or udp.", metavar="tcp|udp")
    ] = None,
    client: Annotated[
        str | None,
        typer.Option(help="What reads the RTSP of SOURCE: ffmpeg, or rtp, with less delay.", metavar="auto|ffmpeg|rtp"),
    ] = None,
    await_subscribers: Annotated[int | None, typer.Option(help="Start when this many have subscribed.")] = None,
    strength: StrengthShare = None,
    engine: EngineName = None,
    model: ModelName = None,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Start the daemon: restore streams and publish their frames over ZeroMQ.

    **Examples**: `deblurd run porch=rtsp://192.168.1.20/stream`, `deblurd run porch.mp4 --realtime --loop`, and in
    another terminal `deblurd watch tcp://127.0.0.1:5555`.

    A camera that cannot be reached is tried again, for ever. Ends when all sources have ended, which cameras never
    do; the status is 1 if one of them ended in an error. Ctrl-C ends it cleanly,
    a second one at once.
    """
    from .config import load_config
    from .errors import ConfigError
    from .service import run as serve

    overrides: dict[str, Any] = {
        "engine": given(name=engine, model=model),
        "restore": given(strength=share(strength)),
        "publish": given(endpoint=publish, await_subscribers=await_subscribers),
        "log": given(level="debug" if verbose else "error" if quiet else None),
    }
    read = given(realtime=realtime or None, loop=loop or None, transport=transport, client=client)
    if read and not sources:
        raise ConfigError(
            f"--{next(iter(read))} is for sources on the command line, got none; for those of a file it stands there"
        )
    streams = [_named(source) | read for source in sources or []]
    settings = load_config(config, overrides, streams)
    start_logging(settings.log.level)
    with stopping() as stop:
        failed = serve(settings, stop)
    _leave(1 if failed else 0)


@app.command()
def watch(
    endpoint: Annotated[str, typer.Argument(help="Where the daemon publishes, e.g. tcp://127.0.0.1:5555.")],
    stream: Annotated[list[str] | None, typer.Option(help="Receive this stream only; may be given again.")] = None,
    save: Annotated[Path | None, typer.Option(help="Write every frame as a PNG into this folder.")] = None,
    count: Annotated[int | None, typer.Option(min=1, help="End after this many frames.")] = None,
    timeout: Annotated[float | None, typer.Option(min=0.0, help="End when no frame comes for so many seconds.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a frame on standard output.")] = False,
    mode: Annotated[
        Literal["auto", "newest", "queued", "paced", "shared"] | None,
        typer.Option(help="How frames come; queued by default where each of them counts, else auto."),
    ] = None,
    control: Annotated[
        str | None, typer.Option(help="The daemon's control endpoint, if it is not the next port.")
    ] = None,
    keys: Annotated[Path | None, typer.Option(help="Our NAME.key_secret, for a daemon that asks for keys.")] = None,
    server_key: Annotated[Path | None, typer.Option(help="The daemon's NAME.key, with --keys.")] = None,
    quiet: Quiet = False,
) -> None:
    """Subscribe to a daemon: live statistics of every stream, and its frames if you want them.

    **Example**: `deblurd watch tcp://127.0.0.1:5555 --save frames --count 100`
    """
    from .keys import Keys
    from .watch import watch as receive

    if (keys is None) != (server_key is None):
        raise typer.BadParameter("must be given together", param_hint="--keys, --server-key")
    ours = Keys.load(keys, server_key) if keys else None
    with stopping() as stop:
        receive(
            endpoint,
            stream,
            save=save,
            count=count,
            timeout_s=timeout,
            as_json=as_json,
            quiet=quiet,
            stop=stop,
            mode=mode,
            control=control,
            keys=ours,
        )


app.add_typer(files)  # without a name of its own, as the training stage: its commands stand beside the others
app.add_typer(keys_app, name="keys")
app.add_typer(training)


@app.command()
def config() -> None:
    """Print every setting at its default, with a comment each."""
    from .config import shipped_config

    sys.stdout.write(shipped_config())


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="JSON on standard output.")] = False,
) -> None:
    """Say what this machine can do: engines, processor, GPU, codecs; what is missing, and how to get it."""
    from .doctor import examine, render

    report = examine()
    if as_json:
        import json

        sys.stdout.write(json.dumps([check.__dict__ for check in report], indent=2) + "\n")
    else:
        Console().print(render(report))
    raise typer.Exit(0 if all(check.ok for check in report if check.required) else 1)


def _leave(status: int) -> NoReturn:
    """End at once where a reader was left behind in FFmpeg: it could crash the interpreter while that is taken down."""
    if any(thread.daemon for thread in threading.enumerate()):
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    raise typer.Exit(status)


def _named(source: str) -> dict[str, Any]:
    name, separator, rest = source.partition("=")
    try:
        is_file = Path(source).exists()  # one whose own name holds a "="
    except OSError:  # too long for a name
        is_file = False
    if separator and rest and "/" not in name and not is_file:
        return {"name": name, "source": rest}
    return {"source": source}


def main() -> None:
    """Run the command line; what a user can cause ends in one line and a status that is not zero."""
    from engine.errors import EngineError

    from .errors import DaemonError
    from .keys import KeysError
    from .wire import WireError

    expected: list[type[Exception]] = [DaemonError, EngineError, KeysError, WireError, _export_error()]
    try:
        app()
    except tuple(expected) as error:
        console.print(f"[bold red]deblurd:[/] {_one_line(error)}", highlight=False, soft_wrap=True)
        raise SystemExit(1) from None
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except OSError as error:  # a path too long, a folder that may not be read, a full disk
        text = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
        console.print(f"[bold red]deblurd:[/] {_one_line(text)}", highlight=False, soft_wrap=True)
        raise SystemExit(1) from None


def _export_error() -> type[Exception]:
    from export.errors import ExportError

    return ExportError


def _one_line(error: Exception | str) -> str:
    from rich.markup import escape

    return escape(" ".join(str(error).split()))
