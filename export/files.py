"""Write a model's files so that all of them get their names, or none.

Knows files; nothing of what is in them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from .errors import ExportError


def write_together(folder: Path, files: Mapping[str, bytes], *, stale: Iterable[str] = ()) -> None:
    """Write `files`, name to content, into `folder`, the last one last, and remove those of `stale` that are there.

    ExportError if the disk refuses; then no partial file is left, and no folder that was not there before.
    """
    partials = {folder / name: folder / f".{name}.partial" for name in files}
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for partial, data in zip(partials.values(), files.values(), strict=True):
            partial.write_bytes(data)
        for path, partial in partials.items():
            partial.replace(path)
        for name in set(stale) - set(files):
            (folder / name).unlink(missing_ok=True)
    except BaseException as error:  # Ctrl-C too
        with contextlib.suppress(OSError):  # a folder that holds something stays
            for partial in partials.values():
                partial.unlink(missing_ok=True)
            for parent in made:
                parent.rmdir()
        if isinstance(error, OSError):
            raise ExportError(f"{folder}: the model cannot be written ({error.strerror})") from error
        raise
