"""When an engine will begin another batch, foretold from how long its last batches took.

Knows when batches were handed over and when they were ready; nothing of frames or streams.

A live frame handed over while the engine is busy grows old behind the batches before it. One handed over just before
they end is as new as can be, and still the engine is never idle.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass

from engine.protocol import Engine

LOOK_BACK = 8
"""Batches of a kind that are remembered. The shortest of them counts: an engine that waits costs throughput."""

SLACK_NS = 700_000
"""How late a thread may wake up."""


@dataclass
class _Batch:
    kind: Hashable
    began_ns: int | None = None  # None: it waits for those before it


class Forecast:
    """What is in an engine, which begins batches in the order they came. Not thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._batches: list[_Batch] = []
        self._durations_ns: dict[Hashable, deque[int]] = {}
        self._preparations_ns = deque([0], LOOK_BACK)

    def prepared(self, took_ns: int) -> None:
        """A frame was prepared for the engine."""
        self._preparations_ns.append(took_ns)

    def submitted(self, kind: Hashable, now_ns: int) -> object:
        """A batch was handed over; what is returned goes to `ready`. Batches of one kind take about as long."""
        batch = _Batch(kind)
        self._batches.append(batch)
        self._begin(now_ns)
        return batch

    def ready(self, batch: object, now_ns: int) -> None:
        """The engine is done with a batch."""
        assert isinstance(batch, _Batch)
        if batch.began_ns is not None:
            self._durations_ns.setdefault(batch.kind, deque(maxlen=LOOK_BACK)).append(now_ns - batch.began_ns)
        self._batches.remove(batch)
        self._begin(now_ns)

    def wait_ns(self, now_ns: int) -> int:
        """How long a live frame had better wait before it is prepared; nothing if not above 0."""
        if len(self._batches) < self._engine.spec.concurrent:
            return 0
        # Those that are overdue end now; those that wait begin as soon as one ends.
        ends = [max(now_ns, b.began_ns + self._takes_ns(b)) for b in self._batches if b.began_ns is not None]
        heapq.heapify(ends)
        for batch in self._batches:
            if batch.began_ns is None:
                heapq.heapreplace(ends, ends[0] + self._takes_ns(batch))
        return ends[0] - max(self._preparations_ns) - SLACK_NS - now_ns

    def _begin(self, now_ns: int) -> None:
        for batch in self._batches[: self._engine.spec.concurrent]:
            batch.began_ns = batch.began_ns or now_ns

    def _takes_ns(self, batch: _Batch) -> int:
        return min(self._durations_ns.get(batch.kind, [0]))
