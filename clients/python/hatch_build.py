"""Put the daemon's own client files into the package: from the daemon's folder, or where a source archive has them.

Knows where the files lie; nothing of what they do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FILES = (
    "async_client.py",
    "asking.py",
    "client.py",
    "connection.py",
    "control.py",
    "frame.py",
    "keys.py",
    "pulse.py",
    "shared.py",
    "subscription.py",
    "wire.py",
)


class SharedFiles(BuildHookInterface):
    """Adds the files to the wheel and to the source archive, whose package folder is then complete."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        missing = [name for name in FILES if not (root / "deblurd_client" / name).is_file()]
        if missing and version == "editable":
            raise ValueError("deblurd-client cannot be installed editable: its files lie in the daemon's folder")
        for name in missing:
            source = root.parent.parent / "daemon" / name
            build_data["force_include"][str(source)] = f"deblurd_client/{name}"
