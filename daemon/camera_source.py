"""Frames of a camera at this machine, through OpenCV's V4L2 backend.

Knows one camera from plugging in to unplugging; trying again is not its matter. What kind of device a path is,
`daemon.v4l2` tells.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from .channel import Channel, ClosedError
from .errors import SourceError
from .frame import Frame
from .source import LiveOptions, Progress
from .v4l2 import check_camera, is_gone

_POLL_S: Final = 0.2
_PAUSE_S: Final = 0.01
_JOIN_S: Final = 0.5
# With one buffer the driver has none to fill while a frame is converted, and loses every other frame.
_BUFFERS: Final = 2
_JPEGS: Final = (cv2.VideoWriter.fourcc(*"MJPG"), cv2.VideoWriter.fourcc(*"JPEG"))
_JPEG_END: Final = b"\xff\xd9"
_MICROSECONDS: Final = Fraction(1, 1_000_000)
_OLDEST_STAMP_NS: Final = 10**9


class CameraSource:
    """One attempt at a camera; a `daemon.source.LiveSource`.

    device: its number, or its path, as /dev/video0 or /dev/v4l/by-id/...
    size: (H, W), rate: frames a second, pixel_format: four letters of V4L2, as MJPG or YUYV; what OpenCV and the
    camera choose if None. A size or a format that the camera does not have is a SourceError; of rates it takes the
    nearest.

    `pts` is the driver's time of the frame, in microseconds, and `captured_ns` follows from it where the driver's
    clock is this host's monotonic one. If frames come faster than they are taken the newest wins, and `seq` has a
    gap. A JPEG that is damaged is left out, and counted. Of interlacing OpenCV says nothing: `deinterlace` changes
    nothing.
    """

    live: Final = True

    def __init__(
        self,
        device: int | str,
        options: LiveOptions,
        *,
        stream: str,
        on_state: Callable[[Progress], None],
        size: tuple[int, int] | None = None,
        rate: float | None = None,
        pixel_format: str | None = None,
    ) -> None:
        self.path = Path(f"/dev/video{device}" if str(device).isdecimal() else str(device))
        self.name = stream
        self.damage: Sequence[str] = ()
        if pixel_format is not None and not (len(pixel_format) == 4 and pixel_format.isascii()):
            raise SourceError(f"camera {self.path}: the pixel format must be four letters, got '{pixel_format}'")
        self._options, self._on_state = options, on_state
        self._size, self._rate, self._pixel_format = size, rate, pixel_format
        self._closed = threading.Event()
        self._changed = threading.Condition()
        self._frames: Channel[Frame] = Channel(1, "drop_oldest", self._changed)
        self._error: Exception | None = None
        self._damaged = 0
        self._jpeg_ends = False  # some cameras never write JPEG's mark of the end

    @property
    def counters(self) -> Mapping[str, int]:
        return {"damaged_frames": self._damaged, "skipped_frames": self._frames.drops}

    def __iter__(self) -> Iterator[Frame]:
        self._on_state("connecting")
        # A driver can keep any call for as long as it likes, and nothing wakes it: what touches the device has a
        # thread of its own, which must not keep the process from ending.
        reader = threading.Thread(target=self._run, name=f"camera-{self.name}", daemon=True)
        reader.start()
        timeout_s, live = self._options.open_timeout_s, False
        try:
            while (frame := self._next(timeout_s, live)) is not None:
                if not live:
                    self._on_state("live")
                timeout_s, live = self._options.timeout_s, True
                yield frame
        finally:
            self.close()
            reader.join(_JOIN_S)

    def _next(self, timeout_s: float, live: bool) -> Frame | None:
        """The newest frame; None once closed."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._frames) or self._frames.exhausted, timeout_s)
            if len(self._frames):
                return self._frames.take()
        if self._closed.is_set():
            return None
        if self._error is not None:
            raise self._error
        if not live:
            raise SourceError(f"camera {self.path}: gave no first frame within {timeout_s:g} s")
        self._on_state("frozen")
        raise SourceError(f"camera {self.path}: gave no frame for {timeout_s:g} s; if it stays so, plug it in anew")

    def close(self) -> None:
        self._closed.set()
        self._frames.close(discard=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _run(self) -> None:
        try:
            check_camera(self.path)
            # OpenCV waits for the first frame by itself, in whole seconds, for 10 unless told otherwise: not at all,
            # for `_is_ready` does. Also, a thread that comes back from C++ while Python ends aborts the process.
            os.environ.setdefault("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", "0")
            with _silent():
                capture = cv2.VideoCapture(str(self.path), cv2.CAP_V4L2)
            try:
                self._set_up(capture)
                self._read(capture)
            finally:
                with _silent():
                    capture.release()
        except ClosedError:
            pass
        except Exception as error:  # noqa: BLE001 - raised again where the frames are taken
            self._error = error
        finally:
            self._frames.close()

    def _set_up(self, capture: cv2.VideoCapture) -> None:
        if not capture.isOpened():
            raise SourceError(f"camera {self.path}: cannot be opened; OpenCV reads none of its pixel formats")
        with _silent():
            if self._pixel_format is not None:
                wanted = cv2.VideoWriter.fourcc(*self._pixel_format)
                capture.set(cv2.CAP_PROP_FOURCC, wanted)
                if (got := int(capture.get(cv2.CAP_PROP_FOURCC))) != wanted:
                    self._refuse("pixel format", self._pixel_format, got.to_bytes(4, "little").decode("latin-1"))
            if self._size is not None:
                height, width = self._size
                capture.set(cv2.CAP_PROP_FRAME_WIDTH, width)
                capture.set(cv2.CAP_PROP_FRAME_HEIGHT, height)
                given = [int(capture.get(p)) for p in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)]
                if given != [width, height]:
                    self._refuse("size", f"{width}x{height}", f"{given[0]}x{given[1]}")
            if self._rate is not None:
                capture.set(cv2.CAP_PROP_FPS, self._rate)
            capture.set(cv2.CAP_PROP_BUFFERSIZE, _BUFFERS)
            if int(capture.get(cv2.CAP_PROP_FOURCC)) in _JPEGS:
                # Of one that does not decode OpenCV would give the frame before, as if it were new.
                capture.set(cv2.CAP_PROP_CONVERT_RGB, 0)
        if not capture.isOpened():
            raise SourceError(f"camera {self.path}: cannot be set up; another program took it meanwhile")

    def _refuse(self, what: str, wanted: str, got: str) -> None:
        raise SourceError(
            f"camera {self.path}: has no {what} {wanted}, offers {got}; 'v4l2-ctl --list-formats-ext' lists all",
            lasting=True,
        )

    def _read(self, capture: cv2.VideoCapture) -> None:
        seq, first = 0, True
        while not self._closed.is_set():
            if not self._is_ready(capture):
                if is_gone(self.path):
                    raise SourceError(f"camera {self.path}: was unplugged")
                continue
            began_ns = time.monotonic_ns()
            image: NDArray[Any] | None
            given, image = capture.retrieve()
            if first:  # which cameras often give torn
                first = False
                continue
            if given and image is not None and image.ndim == 2:
                image = self._decoded_jpeg(image)
            if not given or image is None:
                self._damaged += 1
                continue
            self._frames.put(self._frame(seq, image, capture.get(cv2.CAP_PROP_POS_MSEC), began_ns))
            seq += 1

    def _decoded_jpeg(self, data: NDArray[Any]) -> NDArray[Any] | None:
        """BGR (H, W, 3) of a JPEG's bytes; None if it is damaged or cut off."""
        ended = data.tobytes().rstrip(b"\0").endswith(_JPEG_END)
        self._jpeg_ends |= ended
        if self._jpeg_ends and not ended:
            return None
        try:
            return cv2.imdecode(data, cv2.IMREAD_COLOR)
        except cv2.error:  # of an absurd size
            return None

    def _is_ready(self, capture: cv2.VideoCapture) -> bool:
        """Whether a frame can be retrieved at once. Waits for it a little, unlike `read`, which would for seconds."""
        try:
            with _silent():
                _, ready = cv2.VideoCapture.waitAny([capture], round(_POLL_S * 1e9))
        except cv2.error:  # unplugged, or the device was only started by this
            self._closed.wait(_PAUSE_S)
            return False
        return len(ready) > 0

    def _frame(self, seq: int, image: NDArray[Any], stamp_ms: float, began_ns: int) -> Frame:
        height, width = image.shape[:2]
        if height * width > self._options.max_pixels:
            most = self._options.max_pixels
            raise SourceError(
                f"camera {self.path}: a frame must have at most {most} pixels, got {width}x{height}", lasting=True
            )
        pixels = np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)
        now_ns = time.monotonic_ns()
        age_ns = now_ns - round(stamp_ms * 1e6)
        return Frame(
            stream=self.name,
            seq=seq,
            pts=round(stamp_ms * 1e3) if stamp_ms > 0 else None,
            time_base=_MICROSECONDS,
            # A driver may use another clock, or none.
            captured_ns=time.time_ns() - (age_ns if 0 <= age_ns < _OLDEST_STAMP_NS else 0),
            arrived_ns=now_ns,
            pixels=pixels,
            spent_ns={"decode": now_ns - began_ns},
        )


_silencers = 0
_level = 0
_silencers_lock = threading.Lock()


@contextmanager
def _silent() -> Iterator[None]:
    """OpenCV's own messages, which name no stream, left out; its level is one for the process."""
    global _silencers, _level
    with _silencers_lock:
        if not _silencers:
            _level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        _silencers += 1
    try:
        yield
    finally:
        with _silencers_lock:
            _silencers -= 1
            if not _silencers:
                cv2.utils.logging.setLogLevel(_level)
