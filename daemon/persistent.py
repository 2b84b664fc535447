"""A live source that is tried again whenever it breaks.

Knows attempts and the time between them; nothing of protocols.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Final, Self

from .errors import SourceError
from .frame import Frame
from .source import LiveSource, Progress
from .status import StreamStatus

OnState = Callable[[Progress], None]


@dataclass(frozen=True)
class Retry:
    """When the next attempt comes: after `min_s` to `max_s` seconds, longer with every failure in a row.

    attempts: failures in a row after which it is given up; 0 never gives up.
    settled_s: seconds of frames after which a failure is the first of its row.
    """

    min_s: float = 0.5
    max_s: float = 10.0
    attempts: int = 0
    settled_s: float = 10.0

    def wait_s(self, failures: int, chance: random.Random, *, lasting: bool = False) -> float:
        """Seconds after so many failures in a row. By chance, so that cameras of one recorder do not come at once.

        lasting: as long as there is.
        """
        most = self.max_s if lasting else min(self.max_s, self.min_s * 2 ** min(failures, 60))
        return chance.uniform(max(self.min_s, most / 2), most)


class Persistent:
    """Attempts at a source, one after another, as one stream that goes on; a `daemon.source.LiveSource`.

    make: gives a new attempt, which tells its progress to the function that it is given.

    `seq` goes on from attempt to attempt, and `epoch` counts those after the first that gave frames. A SourceError
    ends its attempt only. The stream ends when an attempt ends without one, which live sources never do, or with
    the last error when `retry.attempts` have failed.
    """

    live: Final = True
    damage: Sequence[str] = ()

    def __init__(
        self,
        make: Callable[[OnState], LiveSource],
        *,
        retry: Retry,
        status: StreamStatus,
        chance: random.Random | None = None,
    ) -> None:
        self._make, self._retry, self._status = make, retry, status
        self._chance = chance or random.Random()
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._source: LiveSource | None = None
        self._counted: Counter[str] = Counter()  # of attempts that are over
        self._seq = 0
        self._epoch = -1

    @property
    def counters(self) -> Mapping[str, int]:
        """Those of all attempts together."""
        with self._lock:
            return self._counted + Counter(self._source.counters if self._source else {})

    def __iter__(self) -> Iterator[Frame]:
        failures = 0
        while not self._closed.is_set():
            live_since_s: float | None = None
            try:
                with self._attempt() as source:
                    for frame in self._numbered(source):
                        live_since_s = live_since_s or time.monotonic()
                        yield frame
                        if self._closed.is_set():
                            break
                self._status.ended()
                return
            except SourceError as error:
                if self._closed.is_set():
                    break
                settled = live_since_s is not None and time.monotonic() - live_since_s >= self._retry.settled_s
                failures = 1 if settled else failures + 1
                if failures == self._retry.attempts:
                    self._status.ended(str(error))
                    raise SourceError(f"{error} (given up after {failures} attempts)") from error
                wait_s = self._retry.wait_s(failures, self._chance, lasting=error.lasting)
                self._status.failed(str(error), wait_s)
            finally:
                self._finish()
            self._closed.wait(wait_s)
        self._status.ended()

    def _attempt(self) -> LiveSource:
        self._status.attempt()
        source = self._make(self._status.progress)
        with self._lock:
            self._source = source
        if self._closed.is_set():  # `close` came before there was something to close
            source.close()
        return source

    def _finish(self) -> None:
        """The attempt is over: what it counted stays, the rest of it goes."""
        with self._lock:
            if self._source is not None:
                self._counted.update(self._source.counters)
                self._source = None

    def _numbered(self, source: LiveSource) -> Iterator[Frame]:
        first = self._seq
        for frame in source:
            if self._seq == first:
                self._epoch += 1
                self._status.progress("live")
            self._seq = first + frame.seq + 1
            yield replace(frame, seq=first + frame.seq, epoch=self._epoch)

    def close(self) -> None:
        self._closed.set()
        with self._lock:
            source = self._source
        if source is not None:
            source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
