"""Sources to engine to sinks: every stream in order, all streams sharing the engine's slots.

Knows no kind of source or sink, and no back-end.

A stream has three threads (`daemon.stream`), and all streams share one scheduler:

    read  --frames-->  schedule  --works-->  merge  --restored-->  send

The scheduler takes one frame of each stream in turn, so every stream gets its share; `frames` is where a live
stream drops what is too old, and where a file waits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from engine.protocol import Engine

from .errors import DaemonError
from .forecast import Forecast
from .frame import Frame
from .sink import Sink
from .source import Source
from .stream import Overload, Stream
from .strength import StrengthSetting
from .work import Batch, Part, Work


class Pipeline:
    """A running engine and the streams that share it; streams may be added while others run.

    An error of a source or sink ends that stream only, and stays in `Stream.error`. An error of the engine, or
    of the program, stops all of them and is raised by `wait`.

    most: tiles that are submitted together, where it is fewer than what is best for the engine. With one, a frame
        becomes the same whatever is restored beside it: engines may compute a batch of two otherwise than two of one.
    """

    def __init__(self, engine: Engine, most: int | None = None) -> None:
        self.engine = engine
        self._limit = most
        self.changed = threading.Condition()
        """Held to look at or change what the scheduler decides by."""
        self.streams: list[Stream] = []
        self._active: list[Stream] = []  # in order of turns: who was served goes to the end
        self._in_engine = 0  # batches
        self._forecast = Forecast(engine)
        self._closing = False
        self._error: Exception | None = None
        self._scheduler = threading.Thread(target=self.guarded(self._schedule), name="schedule")
        self._scheduler.start()

    def add(
        self,
        name: str,
        source: Source,
        sink: Sink,
        overload: Overload = "auto",
        strength: StrengthSetting = 1.0,
    ) -> Stream:
        """Start a stream; the pipeline enters and leaves `source`, and closes `sink`.

        strength: the share of the engine's change that is let through, or `auto`: as each frame's blur asks for.
        """
        stream = Stream(name, source, sink, self, overload, strength)
        with self.changed:
            if self._error is not None:
                raise self._error
            if self._closing:
                raise DaemonError(f"stream {name!r} comes too late: the pipeline is stopping")
            self.streams.append(stream)
            self._active.append(stream)
        stream.start()
        return stream

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until every stream has ended; False if `timeout_s` ran out first. Raises what stopped them all."""

        def finished() -> bool:
            return self._error is not None or all(stream.ended for stream in self.streams)

        with self.changed:
            done = self.changed.wait_for(finished, timeout_s)
        if self._error is not None:
            raise self._error
        return done

    def stop(self) -> None:
        """End all streams and join all threads; what is in the engine is still delivered."""
        with self.changed:
            self._closing = True
            streams = list(self.streams)
            self.changed.notify_all()
        for stream in streams:
            stream.stop()
        for stream in streams:
            stream.join()
        self._scheduler.join()

    def fail(self, error: Exception) -> None:
        """Stop everything, because of `error`."""
        with self.changed:
            self._error = self._error or error
            self._closing = True
            streams = list(self.streams)
            self.changed.notify_all()
        for stream in streams:
            stream.stop()

    def guarded(self, work: Callable[[], None]) -> Callable[[], None]:
        """A thread's outermost function: whatever escapes `work` stops the pipeline instead of one thread."""

        def run() -> None:
            try:
                work()
            except Exception as error:  # noqa: BLE001 - the thread's edge
                self.fail(error)

        return run

    def _schedule(self) -> None:
        try:
            while picked := self._pick(self._most()):
                began_ns = time.monotonic_ns()
                prepared = [(stream, stream.prepare(frame)) for stream, frame in picked]
                self._forecast.prepared(time.monotonic_ns() - began_ns)
                works = [(stream, work) for stream, work in prepared if work]
                for stream, work in works:
                    stream.hand_over(work)
                try:
                    self._submit([work for _, work in works])
                finally:
                    for _, work in works:
                        work.no_more_parts()
        finally:
            with self.changed:
                self._closing = True
                for stream in self._active:
                    stream.no_more_work()

    def _most(self) -> int:
        best = self.engine.spec.best_batch
        return best if self._limit is None else min(best, self._limit)

    def _pick(self, most: int) -> list[tuple[Stream, Frame]]:
        """Wait for frames and take the next of up to `most` streams in turn; none when all is over."""
        with self.changed:
            while True:
                for stream in [stream for stream in self._active if stream.exhausted]:
                    self._active.remove(stream)
                    stream.no_more_work()
                free = self._in_engine < self.engine.spec.slots
                ready = [stream for stream in self._active if stream.ready][:most]
                # Turns count: were others to go ahead of a live frame that waits, they would take every free slot.
                wait_ns = self._forecast.wait_ns(time.monotonic_ns()) if ready and ready[0].newest_counts else 0
                if free and ready and wait_ns <= 0:
                    picked = [(stream, stream.start_next()) for stream in ready]
                    for stream in ready:
                        self._active.remove(stream)
                        self._active.append(stream)
                    return picked
                if self._closing and not self._active:
                    return []
                self.changed.wait(wait_ns / 1e9 if free and ready else None)

    def _submit(self, works: list[Work]) -> None:
        """Send the tiles of all works to the engine, those of one shape and type together."""
        most = self._most()
        by_shape: dict[tuple[Any, ...], list[tuple[Work, int]]] = {}
        for work in works:
            plan, kind = work.prepared.plan, work.prepared.tiles.dtype
            by_shape.setdefault((plan.tile, kind), []).extend((work, tile) for tile in range(plan.count))
        for items in by_shape.values():
            for begin in range(0, len(items), most):
                self._submit_batch(items[begin : begin + most])

    def _submit_batch(self, items: list[tuple[Work, int]]) -> None:
        runs: list[tuple[Work, int, int]] = []  # (work, first tile, tiles): neighbours of one frame stay a view
        for work, tile in items:
            if runs and runs[-1][0] is work:
                runs[-1] = (work, runs[-1][1], runs[-1][2] + 1)
            else:
                runs.append((work, tile, 1))
        pieces: list[NDArray[Any]] = [work.prepared.tiles[first : first + count] for work, first, count in runs]
        tiles = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        states = [work.prepared.states[tile] for work, tile in items]
        ticket = self.engine.submit(tiles, states)
        submitted_ns, item = time.monotonic_ns(), 0
        with self.changed:
            self._in_engine += 1
            foretold = self._forecast.submitted(tiles.shape, submitted_ns)
        batch = Batch(ticket, len(runs), partial(self._batch_is_ready, foretold), self._slot_is_free)
        for work, first, count in runs:
            work.give(Part(submitted_ns, batch, item, first, count))
            item += count

    def _batch_is_ready(self, foretold: object) -> None:
        with self.changed:
            self._forecast.ready(foretold, time.monotonic_ns())
            self.changed.notify_all()

    def _slot_is_free(self) -> None:
        with self.changed:
            self._in_engine -= 1
            self.changed.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()
