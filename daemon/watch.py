"""What `deblurd watch` does: receive frames, count and show them, save them.

Knows the client only, as any other subscriber would.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import cv2
import numpy as np
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from .client import Mode, RefusedError, Subscriber
from .errors import SinkError, SourceError
from .frame import Frame
from .keys import Keys
from .wire import WireError

STOP_POLL_S = 0.1
RECENT = 300
"""Frames that the statistics look back on."""


@dataclass
class StreamStatistics:
    """What came of one stream."""

    frames: int = 0
    missed: int = 0
    """Frames that the daemon published and this subscriber never got, or that the daemon dropped."""
    last_seq: int | None = None
    run_id: str = ""
    """Of the daemon: one that restarted counts from 0 again."""
    size: str = ""
    epoch: int = 0
    clock: str = ""
    ages_s: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    times_s: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))

    def count(self, frame: Frame) -> None:
        run_id = frame.publication.run_id if frame.publication else ""
        if self.last_seq is not None and run_id == self.run_id and frame.seq > self.last_seq:
            self.missed += frame.seq - self.last_seq - 1
        self.last_seq, self.run_id = frame.seq, run_id
        self.frames += 1
        self.size = f"{frame.width}x{frame.height}"
        self.epoch, self.clock = frame.epoch, frame.clock
        self.ages_s.append(frame.age_s())
        self.times_s.append(time.monotonic())

    @property
    def fps(self) -> float:
        passed = self.times_s[-1] - self.times_s[0] if len(self.times_s) > 1 else 0.0
        return (len(self.times_s) - 1) / passed if passed else 0.0

    def age_ms(self, percentile: float) -> float:
        return float(np.percentile(self.ages_s, percentile)) * 1000


def watch(
    endpoint: str,
    streams: Sequence[str] | None,
    *,
    save: Path | None,
    count: int | None,
    timeout_s: float | None,
    as_json: bool,
    quiet: bool,
    stop: threading.Event,
    mode: Mode | None = None,
    control: str | None = None,
    keys: Keys | None = None,
) -> None:
    """Receive until `count` frames are there, none comes for `timeout_s`, or `stop` is set.

    mode, control, keys: as a Subscriber has them; by default every frame that is saved, printed or counted is queued.

    Raises SourceError if no frame comes at all, or if the daemon does not let this client in.
    """
    if save is not None:
        try:
            save.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SinkError(f"{save}: not a folder that can be written ({error.strerror})") from error
    statistics: dict[str, StreamStatistics] = {}
    console = Console(stderr=True)
    if mode is None:  # saving wants every frame; looking wants the newest
        mode = "queued" if save is not None or as_json or count is not None else "auto"
    try:
        subscriber = Subscriber(endpoint, streams, mode=mode, control=control, keys=keys)
    except ValueError as error:
        raise SourceError(str(error)) from error
    shows = console.is_terminal and not quiet
    live = Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False)
    with subscriber, live if shows else nullcontext():
        received, waiting_since, shown = 0, time.monotonic(), 0.0
        while not stop.is_set() and (count is None or received < count):
            now = time.monotonic()
            if shows and now - shown > 0.25:
                live.update(_table(endpoint, subscriber, statistics), refresh=True)
                shown = now
            try:
                frame = subscriber.receive(STOP_POLL_S)
            except TimeoutError:
                if timeout_s is None or time.monotonic() - waiting_since < timeout_s:
                    continue
                if not received:
                    raise SourceError(f"{endpoint}: no frame came for {timeout_s:g} s") from None
                break
            except (RefusedError, WireError) as error:
                raise SourceError(str(error)) from error
            waiting_since, received = time.monotonic(), received + 1
            statistics.setdefault(frame.stream, StreamStatistics()).count(frame)
            if save is not None:
                _save(frame, save)
            if as_json:
                _print(frame)
    if not quiet:
        console.print(_table(endpoint, subscriber, statistics))


def _save(frame: Frame, folder: Path) -> None:
    name = f"{quote(frame.stream, safe=' ')}-{frame.seq:08d}.png"
    ok, data = cv2.imencode(".png", frame.pixels[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])
    try:
        if not ok:
            raise OSError("it does not encode")
        (folder / name).write_bytes(data.tobytes())
    except OSError as error:
        raise SinkError(f"{folder / name}: not written ({error.strerror or error})") from error


def _print(frame: Frame) -> None:
    publication = frame.publication
    line = {
        "stream": frame.stream,
        "seq": frame.seq,
        "epoch": frame.epoch,
        "time_s": frame.time_s,
        "captured_ns": frame.captured_ns,
        "clock": frame.clock,
        "width": frame.width,
        "height": frame.height,
        "age_s": round(frame.age_s(), 6),
        "drops": frame.drops,
        "spent_ns": dict(frame.spent_ns),
        "model": publication.model if publication else None,
        "run_id": publication.run_id if publication else None,
    }
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def _table(endpoint: str, subscriber: Subscriber, statistics: dict[str, StreamStatistics]) -> Table:
    table = Table(title=f"{escape(endpoint)} ({subscriber.mode}, {subscriber.state})", title_justify="left")
    table.add_column("stream")
    for name in ("size", "frames", "missed", "fps", "age p50", "age p99", "epoch", "clock"):
        table.add_column(name, justify="right")
    for name, one in sorted(statistics.items()):
        ages = (f"{one.age_ms(50):.0f} ms", f"{one.age_ms(99):.0f} ms")
        counts = (str(one.frames), str(one.missed), f"{one.fps:.1f}")
        table.add_row(escape(name), one.size, *counts, *ages, str(one.epoch), one.clock)
    if not statistics:
        table.caption = "waiting for the first frame"
    return table
