"""Sends a stream on as video, from a process of its own that is watched, and started again when it breaks.

Knows the process and the lines that it writes; nothing of video. It has a process of its own because a server that
stands still keeps FFmpeg waiting for ever, where nothing but the end of the process helps.
"""

from __future__ import annotations

import json
import logging
import os
import random
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from .address import redact
from .forwarder import Order
from .persistent import Retry
from .status import StreamStatus
from .target import Target

log = logging.getLogger(__name__)

STOP_S: Final = 2.0
"""How long a file may take to be closed at the end."""
KILL_S: Final = 1.0
"""How long the end of it may take then; a process that hangs in a broken file system does not end."""
START_S: Final = 60.0
"""How long the process may take until it first speaks: a loaded machine loads its libraries slowly."""

_PROGRAM: Final = "import sys; sys.path.append(sys.argv[1]); from daemon.forwarder import main; main()"
"""As `-m daemon.forwarder`, but without the current folder, where a file may have the name of a module."""
_PROGRESS: Final = {"frames", "missed", "seq", "place"}
_LONGEST_LINE: Final = 65536


@dataclass(frozen=True)
class Progress:
    """How far a forward has come.

    frames: written by all its processes together.
    missed: frames that were restored but came too late to be written.
    seq: of the last frame that was written; -1 before the first.
    restarts: processes after the first.
    place: the server or file that is written now.
    pid: of the process that writes; None while there is none.
    """

    frames: int = 0
    missed: int = 0
    seq: int = -1
    restarts: int = 0
    place: str = ""
    pid: int | None = None


@dataclass(frozen=True)
class _Failure:
    text: str
    lasting: bool = False


class Forward:
    """One stream on its way to one target, until it is closed. SinkError for a target that is none.

    Whatever goes wrong there is tried again, for ever; nobody waits for it. The state of it is in `status`.

    retry: when; its `attempts` are not counted.
    """

    def __init__(self, order: Order, status: StreamStatus | None = None, *, retry: Retry | None = None) -> None:
        self._order, self.target = order, Target.parse(order.target)
        self.status = status or StreamStatus(f"{order.stream} to {self.target}")
        self._retry = retry or Retry()
        self._chance = random.Random()
        self._closed = threading.Event()
        self._stopped_s = 0.0
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._before = self._now = Progress()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"forward {order.stream}")
        self._thread.start()

    @property
    def progress(self) -> Progress:
        return self._now

    def line(self) -> str:
        """How it is doing, for the statistics."""
        now, status = self._now, self.status.snapshot()
        parts = [status.state, f"{now.frames} frames written"]
        parts += [f"{now.missed} missed"] if now.missed else []
        parts += [f"{now.restarts} restarts"] if now.restarts else []
        return ", ".join(parts) + (f"; {status.error}" if status.error and status.state != "live" else "")

    def wait_for(self, reached: Callable[[Progress], bool], timeout_s: float) -> bool:
        """Wait until `reached` is true of the progress, as far as the process has told it."""
        with self._changed:
            return self._changed.wait_for(lambda: reached(self._now), timeout_s)

    def _run(self) -> None:
        failures = 0
        while not self._closed.is_set():
            self.status.attempt()
            began_s, failure = time.monotonic(), self._attempt()
            if self._closed.is_set():
                break
            wrote = self._now.frames > self._before.frames
            settled = wrote and time.monotonic() - began_s >= self._retry.settled_s
            failures = 1 if settled else failures + 1
            wait_s = self._retry.wait_s(failures, self._chance, lasting=failure.lasting)
            self.status.failed(failure.text, wait_s)
            self._closed.wait(wait_s)
        self.status.ended()

    def _attempt(self) -> _Failure:
        """Run the process until it ends, and say why."""
        self._before = self._now
        try:
            process = self._start()
        except OSError as error:
            return _Failure(f"no process can be started ({error.strerror})")
        if process is None:
            return _Failure("closed")
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with suppress(OSError, ValueError):  # it ended at once, and says why; or `stop` closed its input
                process.stdin.write(f"{self._order.to_json()}\n".encode())
                process.stdin.flush()
            failure, last_words = self._watch(process)
        finally:
            self._end(process)
        return failure or _Failure(_how_it_ended(process.returncode, last_words))

    def _start(self) -> subprocess.Popen[bytes] | None:
        with self._lock:
            if self._closed.is_set():
                return None
            root = Path(__file__).parents[1]
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _PROGRAM, str(root)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                process_group=0,  # Ctrl-C is for this process, which then ends that one
            )
            self._tell(pid=self._process.pid, place="")
            return self._process

    def _watch(self, process: subprocess.Popen[bytes]) -> tuple[_Failure | None, str]:
        """Read what the process says until it ends: why it broke, if it says so or stands still, and its last words."""
        assert process.stdout is not None
        lines = _Lines(process.stdout.fileno())
        failure, last_words, begun = None, "", False
        try:
            for line in lines.read():
                said = _parsed(line)
                if said is None:  # of a library, or the end of a traceback
                    last_words = self._redacted(line.decode(errors="replace"))
                    log.debug("%s: %s", self.status.name, last_words)
                elif "error" in said:
                    failure = _Failure(self._redacted(str(said["error"])), said.get("lasting") is True)
                else:
                    lines.patience_s, begun = self._order.stall_s, True
                    self._hear(said)
        except TimeoutError:
            if failure is None:
                doing = "takes no video" if begun else "the process does not begin"
                failure = _Failure(f"{doing} for {lines.patience_s:g} s")
        return failure, last_words

    def _hear(self, said: dict[str, Any]) -> None:
        frames, missed, place = int(said["frames"]), int(said["missed"]), str(said["place"])
        if frames:
            self.status.progress("live")
        if place and place != self._now.place:
            log.debug("%s: writes %s", self.status.name, place)
        seq = int(said["seq"]) if frames else self._before.seq
        self._tell(frames=self._before.frames + frames, missed=self._before.missed + missed, seq=seq, place=place)

    def _tell(self, **changes: Any) -> None:
        with self._changed:
            self._now = replace(self._now, **changes)
            self._changed.notify_all()

    def _redacted(self, text: str) -> str:
        return redact(text, self.target.address)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """End the process, if it has not ended. One that hangs in a broken file system cannot be: wait for it, at most
        until this is stopped.
        """
        process.kill()
        while True:
            try:
                process.wait(STOP_S)
                break
            except subprocess.TimeoutExpired:
                if self._closed.is_set():
                    break
        with self._lock:
            for pipe in (process.stdin, process.stdout):
                with suppress(OSError):
                    pipe.close()  # type: ignore[union-attr]
            self._process = None
            self._tell(pid=None, restarts=self._now.restarts + (not self._closed.is_set()))

    def stop(self) -> None:
        """Begin to end: what was sent is written, and the file closed."""
        with self._lock:
            if self._closed.is_set():
                return
            self._stopped_s = time.monotonic()
            self._closed.set()
            if self._process is not None and self._process.stdin is not None:
                with suppress(OSError):
                    self._process.stdin.close()

    def close(self) -> None:
        """End, within two seconds of `stop`; may be called again."""
        self.stop()
        self._thread.join(max(0.0, self._stopped_s + STOP_S - time.monotonic()))
        if self._thread.is_alive():
            with self._lock:
                if self._process is not None:
                    log.warning("%s: does not end by itself, and is ended", self.status.name)
                    self._process.kill()
            self._thread.join(KILL_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class _Lines:
    """The lines of a pipe, each within a time."""

    def __init__(self, descriptor: int) -> None:
        self.patience_s = START_S
        self._descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)

    def read(self) -> Iterator[bytes]:
        """Until the other end closes the pipe; TimeoutError when it is silent for `patience_s`."""
        rest = b""
        while True:
            if not self._poll.poll(self.patience_s * 1000):
                raise TimeoutError
            data = os.read(self._descriptor, _LONGEST_LINE)
            if not data:
                break
            *lines, rest = (rest + data).split(b"\n")
            yield from lines
            rest = rest[-_LONGEST_LINE:]
        if rest:
            yield rest


def _parsed(line: bytes) -> dict[str, Any] | None:
    """What the forwarder says; None for what others say."""
    try:
        said = json.loads(line)
    except ValueError:
        return None
    return said if isinstance(said, dict) and ("error" in said or said.keys() >= _PROGRESS) else None


def _how_it_ended(status: int | None, last_words: str) -> str:
    if status is not None and status < 0:
        return f"the process was ended by signal {-status}"
    return last_words or f"the process ended (status {status})"
