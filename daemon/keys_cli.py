"""The commands `deblurd keys new` and `deblurd keys show`.

Knows their words; what a key is, `daemon.keys` knows.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from .options import console

keys = typer.Typer(help="Make the keys with which a daemon and its clients know each other.", no_args_is_help=True)


@keys.command()
def new(
    name: Annotated[Path, typer.Argument(help="A name for the two files, with or without a folder.", metavar="NAME")],
) -> None:
    """Make a pair of CURVE keys: NAME.key, to give away, and NAME.key_secret, to keep.

    Prints the public key. Files that exist are never replaced.

    **Example**: `deblurd keys new keys/daemon`
    """
    from .keys import new_keys, public_key

    public, secret = new_keys(name)
    console.print(f"{public}: give it away", f"{secret}: keep it to yourself", sep="\n", soft_wrap=True, markup=False)
    sys.stdout.write(public_key(public) + "\n")


@keys.command()
def show(
    name: Annotated[Path, typer.Argument(help="NAME, or one of its two files.", metavar="NAME")],
) -> None:
    """Print the public key, as a line for a list of those who may connect.

    **Example**: `deblurd keys show keys/porch >> allowed`
    """
    from .keys import PUBLIC, public_key

    sys.stdout.write(public_key(name if name.is_file() else f"{name}{PUBLIC}") + "\n")
