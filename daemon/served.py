"""A stream that is served, and the line that says how it is doing.

Knows what is counted of a stream; nothing of who asks, or how often.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .ages import AgeCounts, AgedSink
from .persistent import Persistent
from .source import Source
from .status import StreamStatus
from .stream import Stream


@dataclass(frozen=True)
class Counted:
    """What a stream had counted when it was last looked at."""

    restored: int = 0
    ages: AgeCounts = field(default_factory=AgeCounts)


@dataclass(frozen=True)
class Served:
    """A stream that is served: how it is read, how it is doing, and what it counts."""

    status: StreamStatus
    source: Source
    sink: AgedSink
    stream: Stream

    def counted(self) -> Counted:
        return Counted(self.stream.restored, self.sink.ages())

    def line(self, before: Counted, now: Counted, seconds: float) -> str:
        """The statistics of the `seconds` between two looks."""
        stream, status = self.stream, self.status.snapshot()
        state: str = status.state
        error, counters = status.error, getattr(self.source, "counters", {})
        if not isinstance(self.source, Persistent):  # it is not connected to: what it does shows in its frames
            state = "ended" if stream.ended else "live" if stream.restored else "starting"
            error, counters = str(stream.error or ""), {"damaged_parts": len(stream.damage), **counters}
        parts = [state, f"{(now.restored - before.restored) / seconds:.1f} fps"]
        ages = now.ages.since(before.ages)
        middle, late = ages.quantile_s(0.5), ages.quantile_s(0.99)
        if middle is not None and late is not None:
            parts += [f"age p50 {_ms(middle)}, p99 {_ms(late)}"]
        parts += [f"{now.restored} restored", f"{stream.drops} dropped"]
        parts += [f"{count} {name.replace('_', ' ')}" for name, count in counters.items() if count]
        parts += [f"{status.reconnects} reconnects"] if status.reconnects else []
        return ", ".join(parts) + (f"; {error}" if error and state != "live" else "")


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.{0 if seconds >= 0.01 else 1}f} ms"
