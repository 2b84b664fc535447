"""What the result of a job depends on, as texts that are equal where it is.

Knows files, engines' specs and versions; nothing of jobs.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
from dataclasses import replace
from pathlib import Path
from typing import Final

import av

from engine.protocol import EngineSpec

from .errors import SourceError
from .video_setup import VideoSetup

_HASHED_BYTES: Final = 1 << 20


def file_fingerprint(path: Path) -> str:
    """Tells a file from any other, and from itself when it was changed: size, time, and both ends. SourceError."""
    try:
        with path.open("rb") as file:
            state = os.fstat(file.fileno())
            ends = hashlib.sha256(file.read(_HASHED_BYTES))
            file.seek(max(0, state.st_size - _HASHED_BYTES))
            ends.update(file.read(_HASHED_BYTES))
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror})") from error
    return f"{state.st_size} bytes of {state.st_mtime_ns} ns, sha256 of both ends {ends.hexdigest()}"


def node_fingerprint(spec: EngineSpec) -> dict[str, str]:
    """Of what restores: where all of this is equal, so are the results for the same model."""
    return {
        "engine": f"{spec.backend}, tile {spec.tile}",
        "processor": _processor(),
        "deblurd": _version(),
    }


def encoder_fingerprint(video: VideoSetup) -> str:
    """Of the encoder: its set-up and its version, which is that of PyAV, whose package brings it."""
    versions = ", ".join(f"{name} {'.'.join(map(str, version))}" for name, version in av.library_versions.items())
    return f"{replace(video, setup=replace(video.setup, notes=()))!r}, PyAV {av.__version__}, {versions}"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()


def _version() -> str:
    try:
        return importlib.metadata.version("deblurd")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
