"""What a V4L2 device is, whether it can be used, and which ones there are.

Knows Linux's device files; reads no frames from them.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .errors import SourceError

_CAPABILITY: Final = struct.Struct("=16s32s32sIII3I")  # struct v4l2_capability
_REQUEST_BUFFERS: Final = struct.Struct("=5I")  # struct v4l2_requestbuffers
_QUERYCAP: Final = 0x80685600
_REQBUFS: Final = 0xC0145608
_CAPTURE: Final = 0x1
_CAPTURE_MPLANE: Final = 0x1000
_DEVICE_CAPS: Final = 0x80000000
_TYPE_CAPTURE: Final = 1
_TYPE_CAPTURE_MPLANE: Final = 9
_MEMORY_MMAP: Final = 1
_GONE: Final = (errno.ENOENT, errno.ENODEV, errno.ENXIO)
_FORBIDDEN: Final = (errno.EACCES, errno.EPERM)
_OF_ANOTHER_KIND: Final = (errno.ENOTTY, errno.EINVAL, errno.EISDIR)


@dataclass(frozen=True)
class Device:
    """name: what the camera calls itself. capabilities: of this node, not of all that the camera has."""

    path: Path
    name: str
    capabilities: int

    @property
    def captures(self) -> bool:
        return bool(self.capabilities & (_CAPTURE | _CAPTURE_MPLANE))


def check_camera(path: Path) -> None:
    """SourceError, in one line that says what to do, if `path` is no camera that frames can be had from now.

    OpenCV tells none of this: what it cannot use is merely not opened.
    """
    try:
        device = _device(path)
        if not device.captures:
            raise SourceError(f"camera {path}: gives no video ({device.name}); {_those_there()}", lasting=True)
        if _is_busy(device):
            raise SourceError(f"camera {path}: another program uses it ({device.name}); end that first")
    except OSError as error:
        lasting = error.errno in _FORBIDDEN + _OF_ANOTHER_KIND
        raise SourceError(f"camera {path}: {_reason(error)}", lasting=lasting) from error


def is_gone(path: Path) -> bool:
    """Whether the device was unplugged."""
    try:
        _device(path)
    except OSError as error:
        return error.errno in _GONE
    return False


def cameras(folder: Path = Path("/dev")) -> list[Device]:
    """Every device that gives video, by number. One that cannot be asked is left out."""
    found = []
    for path in folder.glob("video*"):
        try:
            found.append(_device(path))
        except OSError:
            continue
    return sorted((device for device in found if device.captures), key=lambda device: _number(device.path))


def _device(path: Path) -> Device:
    handle = _open(path)
    try:
        answer = fcntl.ioctl(handle, _QUERYCAP, bytes(_CAPABILITY.size))
    finally:
        os.close(handle)
    _, card, _, _, of_all, of_this, *_ = _CAPABILITY.unpack(answer)
    name = card.split(b"\0")[0].decode(errors="replace")
    # Many webcams have a second node that gives metadata only; `of_all` says that it gives video.
    return Device(path, name, of_this if of_all & _DEVICE_CAPS else of_all)


def _is_busy(device: Device) -> bool:
    """Asking for no buffers changes nothing, and is refused while somebody else has some."""
    kind = _TYPE_CAPTURE if device.capabilities & _CAPTURE else _TYPE_CAPTURE_MPLANE
    handle = _open(device.path)
    try:
        fcntl.ioctl(handle, _REQBUFS, _REQUEST_BUFFERS.pack(0, kind, _MEMORY_MMAP, 0, 0))
    except OSError as error:
        return error.errno == errno.EBUSY
    finally:
        os.close(handle)
    return False


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)


def _reason(error: OSError) -> str:
    if error.errno in _GONE:
        return f"no such device; {_those_there()}"
    if error.errno in _FORBIDDEN:
        return "no permission to open it; the user must be in the group that owns it, mostly 'video'"
    if error.errno == errno.EBUSY:
        return "another program uses it; end that first"
    if error.errno in _OF_ANOTHER_KIND:
        return f"must be a V4L2 camera, got something else; {_those_there()}"
    return f"cannot be opened ({error.strerror})"


def _those_there() -> str:
    there = [f"{device.path} ({device.name})" for device in cameras()]
    return f"there is {', '.join(there)}" if there else "there is no camera"


def _number(path: Path) -> tuple[int, str]:
    digits = re.search(r"[0-9]+$", path.name)
    return (int(digits[0]) if digits else -1, path.name)
