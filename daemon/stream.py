"""One stream of a pipeline: its three threads, its counts, and how it ended.

Knows its neighbours in the pipeline; nothing of any kind of source or sink.

Merging frees an engine slot as soon as its batch is done, even while a slow sink still holds earlier frames:
a sink can delay its own stream only.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from engine.protocol import State

from .blend import AnyMerger
from .channel import Channel, ClosedError
from .errors import DaemonError
from .frame import Frame
from .restorer import Restorer
from .sink import Sink
from .source import Source
from .strength import StrengthSetting
from .work import Work

if TYPE_CHECKING:
    from .pipeline import Pipeline

FILE_READ_AHEAD = 4
"""Decoded frames that may wait where nothing is dropped; where the newest counts, it is one."""


Overload = Literal["auto", "newest", "block"]
"""What happens to frames that the engine is too slow for: `newest` passes over the older ones, `block` lets the source
wait; `auto` is `newest` for what is live."""


class Stream:
    """A stream in a pipeline. Everything public may be read at any time by any thread."""

    def __init__(
        self,
        name: str,
        source: Source,
        sink: Sink,
        pipeline: Pipeline,
        overload: Overload = "auto",
        strength: StrengthSetting = 1.0,
    ) -> None:
        self.name = name
        self.decoded = 0
        self.restored = 0
        self.ended = False
        self.error: DaemonError | None = None
        """Why the stream ended, if not because its source did."""
        self.blur_px: float | None = None
        """The blur of the last frame that was restored; None where it is not measured, or cannot be told."""
        self.strength = 1.0
        """The share of the engine's change that was let through there."""
        spec = pipeline.engine.spec
        self._source, self._sink, self._pipeline = source, sink, pipeline
        self._restorer, self._recurrent = Restorer(spec, strength), spec.recurrent
        # Enough to keep every slot busy while one frame is merged and one is sent.
        self._most_unsent = spec.slots + 2
        self._in_engine = self._unsent = 0
        self._undeliverable = False
        self._newest = overload == "newest" or (overload == "auto" and source.live)
        self._frames: Channel[Frame] = (
            Channel(1, "drop_oldest", pipeline.changed)
            if self._newest
            else Channel(FILE_READ_AHEAD, "block", pipeline.changed)
        )
        # Never full, since no more frames are started than fit: merging never waits for sending.
        self._works: Channel[Work] = Channel(self._most_unsent)
        self._restored: Channel[Frame] = Channel(self._most_unsent)
        self._threads = [
            threading.Thread(target=pipeline.guarded(loop), name=f"{loop.__name__.strip('_')} {name}")
            for loop in (self._read, self._merge, self._send)
        ]

    @property
    def drops(self) -> int:
        """Decoded frames that were passed over for newer ones."""
        return self._frames.drops

    @property
    def damage(self) -> Sequence[str]:
        """What of the source could not be read, one line each."""
        return self._source.damage

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End soon: what is decoded but not yet in the engine is forgotten."""
        self._frames.close(discard=True)
        self._source.close()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    # For the scheduler, which holds the pipeline's condition while it asks.

    @property
    def newest_counts(self) -> bool:
        """Frames are passed over for newer ones."""
        return self._newest

    @property
    def exhausted(self) -> bool:
        """No frame will come any more."""
        return self._frames.exhausted

    @property
    def ready(self) -> bool:
        """The next frame is there, and may be started."""
        if not self._frames or self._unsent >= self._most_unsent or (self._recurrent and self._in_engine > 0):
            return False
        # Where the newest counts, none is started while a restored one waits for a slow sink: it would only grow old.
        return not self._newest or self._unsent - self._in_engine <= 1

    def start_next(self) -> Frame:
        self._in_engine += 1
        self._unsent += 1
        return self._frames.take()

    # For the scheduler, on its own.

    def prepare(self, frame: Frame) -> Work | None:
        """None for a frame that the model cannot take, which ends the stream."""
        try:
            return Work(self._restorer.prepare(frame))
        except DaemonError as error:
            self._account(in_engine=-1, unsent=-1)
            self._fail(error)
            return None

    def hand_over(self, work: Work) -> None:
        self._works.put(work)

    def no_more_work(self) -> None:
        self._works.close()

    # The three threads.

    def _read(self) -> None:
        try:
            with self._source as source:
                for frame in source:
                    self.decoded += 1
                    self._frames.put(frame)
        except ClosedError:
            pass
        except DaemonError as error:
            self.error = self.error or error  # what came before it is still restored and sent
        finally:
            self._frames.close()

    def _merge(self) -> None:
        try:
            for work in self._works:
                frame = self._merge_one(work)
                self._account(in_engine=-1, unsent=0 if frame else -1)
                if frame:
                    self._restored.put(frame)
        finally:
            self._restored.close()

    def _send(self) -> None:
        try:
            for frame in self._restored:
                self._sink.send(frame)
                self.restored += 1
                self._account(unsent=-1)
        except DaemonError as error:
            self._fail(error)
        finally:
            try:
                self._sink.close()
            except DaemonError as error:
                self._fail(error)
            finally:
                with self._pipeline.changed:
                    self.ended = True
                    self._pipeline.changed.notify_all()

    def _merge_one(self, work: Work) -> Frame | None:
        """The restored frame; None if the stream, or the whole pipeline, failed before it was whole.

        Whatever happens, every part is taken and given back: the slots belong to all streams.
        """
        frame, plan = work.prepared.frame, work.prepared.plan
        states: list[State | None] = [None] * plan.count
        merger: AnyMerger | None = None
        submitted_ns: int | None = None
        merge_ns = 0
        for part in work.parts():
            submitted_ns = submitted_ns or part.submitted_ns
            try:
                result = part.batch.result()
                arrived_ns = time.monotonic_ns()
                if not self._undeliverable:
                    merger = merger or work.prepared.merger(self._sink.lend(frame))
                    for i in range(part.count):
                        merger.add(part.tile + i, result.frames[part.item + i])
                        states[part.tile + i] = result.states[part.item + i]
                merge_ns += time.monotonic_ns() - arrived_ns
            except DaemonError as error:
                self._fail(error)
            except Exception as error:  # noqa: BLE001 - the engine failed: the thread lives on to give parts back
                self._pipeline.fail(error)
                self._fail(DaemonError(f"stream {self.name!r} ended with the engine"))
            finally:
                part.batch.done()
        if merger is None or submitted_ns is None or not work.complete or self._undeliverable:
            return None
        self._restorer.remember(states)
        self.blur_px, self.strength = work.prepared.blur_px, work.prepared.strength
        spent_ns = {
            **frame.spent_ns,
            "wait": submitted_ns - frame.arrived_ns,
            "engine": time.monotonic_ns() - submitted_ns - merge_ns,
            "merge": merge_ns,
        }
        return replace(frame, pixels=merger.out, spent_ns=spent_ns, drops=self.drops)

    def _account(self, *, in_engine: int = 0, unsent: int = 0) -> None:
        with self._pipeline.changed:
            self._in_engine += in_engine
            self._unsent += unsent
            self._pipeline.changed.notify_all()

    def _fail(self, error: DaemonError) -> None:
        """End this stream, and only this one: its frames cannot be delivered."""
        self.error = self.error or error
        self._undeliverable = True
        self.stop()
