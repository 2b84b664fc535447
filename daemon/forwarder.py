"""The process that sends one restored stream on as video: `python -m daemon.forwarder`.

Knows what to forward, by a line of JSON on its standard input, so that no password is among its arguments; nothing of
who starts it, nor of what is done when it breaks. It is a subscriber of the daemon like any other.

It says how far it has come in lines of JSON on its standard output, at least every `report_s` unless the muxer is
stuck, and ends when its standard input does.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import Any, Final, Self

from .channel import Channel, ClosedError
from .client import Subscriber
from .errors import SinkError
from .frame import Frame
from .keys import Keys
from .target import Target
from .timeline import RATE, Timeline
from .video_output import LastingError, Shape, VideoOptions, VideoOutput
from .wire import WireError

QUEUE: Final = 8
"""Frames that may wait while a file is changed or a key frame takes its time; then the oldest are left out."""
DRAIN_S: Final = 0.5
QUIET_S: Final = 0.2
"""After the order to stop, frames that are on their way already are taken, until none comes for a moment."""

ALONE_S: Final = 5.0
"""How much longer than `stall_s` the process may be stuck if nobody ends it, because who started it is gone."""


@dataclass(frozen=True)
class Order:
    """What to forward, and how.

    endpoint, control, keys: of the daemon, as for a `Subscriber`.
    target: as `Target.parse` takes it; it may hold a password.
    every_s, max_mb: when a file is followed by the next one; 0 is never. `max_mb` are 10^6 bytes.
    stall_s: how long the process may say nothing, as it is when a server takes nothing, until it is ended.
    report_s: how often progress is said; with 0 after every frame.
    """

    endpoint: str
    stream: str
    target: str = field(repr=False)
    control: str | None = None
    keys: Keys | None = None
    video: VideoOptions = field(default_factory=VideoOptions)
    every_s: float = 0.0
    max_mb: float = 0.0
    stall_s: float = 10.0
    report_s: float = 1.0

    def to_json(self) -> str:
        """One line, with all secrets."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Self:
        values: dict[str, Any] = json.loads(line)
        keys = values.pop("keys")
        return cls(**values | {"keys": keys and Keys(**keys), "video": VideoOptions(**values["video"])})


class Forwarding:
    """Puts frames into one video after another at the target. SinkError where that cannot be."""

    def __init__(self, order: Order) -> None:
        self.frames = self.missed = 0
        """Those that are written; and those that the daemon restored but that did not come here in time."""
        self.seq = -1
        """Of the last frame that is written."""
        self.place = ""
        """The server, or the file that is being written."""
        self._order, self._target = order, Target.parse(order.target)
        self._timeline = Timeline()
        self._output: VideoOutput | None = None
        self._began = 0  # ticks
        self._last: tuple[int, int] | None = None  # seq and drops
        self._first: tuple[Frame, int] | None = None  # which waits for the second, to know the rate

    def write(self, frame: Frame) -> None:
        if self._last is not None:
            seq, drops = self._last
            self.missed += max(0, frame.seq - seq - 1 - (frame.drops - drops))
        self._last = frame.seq, frame.drops
        ticks = self._timeline.place(frame)
        if self._timeline.step is None and self._first is None:
            self._first = frame, ticks
            return
        self._write_first()
        self._put(frame, ticks)

    def _write_first(self) -> None:
        if self._first is not None:
            frame, ticks = self._first
            self._first = None
            self._put(frame, ticks)

    def _put(self, frame: Frame, ticks: int) -> None:
        shape = Shape.of(frame)
        if self._output is not None and (shape != self._output.shape or self._is_full(ticks)):
            self._close()
        if self._output is None:
            self._output, self._began = self._open(frame, shape), ticks
        self._output.write(frame, ticks - self._began)
        self.frames += 1
        self.seq = frame.seq

    def _is_full(self, ticks: int) -> bool:
        assert self._output is not None
        if self._target.address is not None:
            return False
        order, size = self._order, self._output.size
        if size is None:  # somebody took the file away
            return True
        long = order.every_s and ticks - self._began >= order.every_s * RATE
        return bool(long or (order.max_mb and size >= order.max_mb * 1e6))

    def _open(self, frame: Frame, shape: Shape) -> VideoOutput:
        place = self._target.address or self._target.create(frame.stream, time.localtime())
        self.place = str(place)
        rate = Fraction(RATE, self._timeline.step or RATE // 25)
        return VideoOutput(place, shape, rate, frame.captured_ns / 1e9, self._order.video)

    def _close(self) -> None:
        if self._output is not None:
            output, self._output = self._output, None
            output.close()

    def close(self) -> None:
        """End the last video."""
        self._write_first()
        self._close()

    def abandon(self) -> None:
        """The same after an error."""
        if self._output is not None:
            self._output.abandon()


class _Intake:
    """Takes the frames from the daemon in a thread of its own, so that they do not pile up while one is encoded."""

    def __init__(self, subscriber: Subscriber, stop: threading.Event) -> None:
        self.changed = threading.Condition()
        self.error: Exception | None = None
        self.frames = Channel[Frame](QUEUE, "drop_oldest", self.changed)
        self._subscriber, self._stop = subscriber, stop
        self._thread = threading.Thread(target=self._run, name="intake")
        self._thread.start()

    def _run(self) -> None:
        try:
            while (frame := self._subscriber.receive_unless(self._stop.is_set)) is not None:
                self.frames.put(frame)
                del frame  # it may lie in the daemon's memory, and is not kept from it while there is no other
            end_s = time.monotonic() + DRAIN_S
            while (left_s := end_s - time.monotonic()) > 0:
                self.frames.put(self._subscriber.receive(min(left_s, QUIET_S)))
        except (TimeoutError, ClosedError):
            pass
        except Exception as error:  # noqa: BLE001 - the thread's edge: the main thread raises it
            self.error = error
        finally:
            self.frames.close()

    def next(self, timeout_s: float) -> Frame | None:
        """The next frame; None if none came within `timeout_s`, or none will."""
        with self.changed:
            self.changed.wait_for(lambda: len(self.frames) or self.frames.exhausted, timeout_s)
            return self.frames.take() if len(self.frames) else None

    def close(self) -> None:
        self.frames.close(discard=True)
        self._stop.set()
        self._subscriber.wake()
        self._thread.join()


def _say(**values: Any) -> None:
    with suppress(OSError):  # nobody listens any more: standard input says so, too
        print(json.dumps(values), flush=True)  # noqa: T201


def _forward(order: Order, forwarding: Forwarding, intake: _Intake) -> None:
    said_s = 0.0
    while not intake.frames.exhausted:
        frame = intake.next(max(order.report_s, 0.1))
        if frame is not None:
            forwarding.write(frame)
            del frame
        if time.monotonic() - said_s >= order.report_s:
            said_s = time.monotonic()
            _report(forwarding)
            # The kernel ends what is stuck: FFmpeg may hold Python's lock meanwhile, so no thread could.
            signal.alarm(math.ceil(order.stall_s + ALONE_S))
    if intake.error is not None:
        raise intake.error
    forwarding.close()
    _report(forwarding)


def _report(forwarding: Forwarding) -> None:
    _say(frames=forwarding.frames, missed=forwarding.missed, seq=forwarding.seq, place=forwarding.place)


def _run(order: Order, on_end_of_input: Callable[[Callable[[], None]], None]) -> int:
    """Forward until standard input ends; the exit status."""
    stop = threading.Event()
    forwarding: Forwarding | None = None
    try:
        forwarding = Forwarding(order)
        with Subscriber(order.endpoint, [order.stream], control=order.control, keys=order.keys) as subscriber:

            def end() -> None:
                stop.set()
                subscriber.wake()

            on_end_of_input(end)
            intake = _Intake(subscriber, stop)
            try:
                _forward(order, forwarding, intake)
            finally:
                intake.close()
    except (SinkError, ConnectionError, WireError, ValueError) as error:
        _say(error=str(error), lasting=isinstance(error, LastingError))
        if forwarding is not None:  # after the word of it: a server may keep this waiting for ever
            forwarding.abandon()
        return 1
    return 0


def _read_line() -> str:
    """Not by `sys.stdin`, whose lock a thread that waits in it would hold at the end of the process."""
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(0, 65536)
        if not part:
            break
        line += part
    return line.decode()


def _on_end_of_input(do: Callable[[], None]) -> None:
    """`do` it at the end of standard input, or at SIGTERM."""

    def wait() -> None:
        while os.read(0, 4096):
            pass
        do()

    signal.signal(signal.SIGTERM, lambda *_: do())
    # A daemon: nothing can end its wait when the process ends before its input.
    threading.Thread(target=wait, name="end of input", daemon=True).start()


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started this process ends it
    line = _read_line()
    _say(frames=0, missed=0, seq=-1, place="")
    if line:
        sys.exit(_run(Order.from_json(line), _on_end_of_input))


if __name__ == "__main__":
    main()
