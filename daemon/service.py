"""The daemon itself: from settings to a running pipeline, and a clean end.

Knows which kinds of source and sink there are; the work is done by their modules.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field

from engine.backends import open_engine
from engine.protocol import Build, Engine, EngineOptions

from .ages import AgeCounts, AgedSink
from .config import Config
from .errors import ConfigError
from .persistent import Persistent
from .pipeline import Pipeline
from .publisher import Endpoint, Publisher, PublisherOptions
from .settings import EngineConfig, PublishConfig
from .source import Source
from .sources import open_source
from .status import StreamStatus
from .stream import Stream

log = logging.getLogger(__name__)

STOP_POLL_S = 0.1
"""How soon a request to stop is noticed."""


def engine_from(config: EngineConfig, build: Build = "wait") -> Engine:
    """Open the engine that the settings ask for. Raises EngineError.

    Where all frames must come from one engine, as those of a file do, `build` is `wait`.
    """
    options = EngineOptions(
        device=config.device,
        precision=config.precision,
        slots=config.slots,
        tile_px=config.tile_px,
        goal=config.goal,
        cache=config.cache,
        build=build,
    )
    return open_engine(config.name, config.model, options)


@dataclass(frozen=True)
class _Counted:
    """What a stream had counted when it was last looked at."""

    restored: int = 0
    ages: AgeCounts = field(default_factory=AgeCounts)


@dataclass(frozen=True)
class _Served:
    """A stream that is served: how it is read, how it is doing, and what it counts."""

    status: StreamStatus
    source: Source
    sink: AgedSink
    stream: Stream

    def counted(self) -> _Counted:
        return _Counted(self.stream.restored, self.sink.ages())

    def line(self, before: _Counted, now: _Counted, seconds: float) -> str:
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


def run(config: Config, stop: threading.Event) -> int:
    """Serve until every stream has ended or `stop` is set; the number of streams that were not whole.

    Raises ConfigError, EngineError, SinkError or SourceError before anything runs; later, EngineError only. What is
    live is no error while it cannot be reached: it is tried again.
    """
    if not config.streams:
        raise ConfigError("'streams' must name at least one source; give one on the command line or in config.toml")
    statuses = [StreamStatus(stream.label) for stream in config.streams]
    sources = [open_source(stream, status) for stream, status in zip(config.streams, statuses, strict=True)]
    with ExitStack() as stack:
        engine = stack.enter_context(engine_from(config.engine, config.engine.build))
        publisher = Publisher([_endpoint(each, len(sources)) for each in config.publish], engine.spec.model)
        stack.callback(publisher.close)
        where = ", ".join(outlet.address for outlet in publisher.outlets)
        log.info("model %s on %s, publishing at %s", engine.spec.model, engine.spec.backend, where)
        sinks = [AgedSink(publisher.stream(stream.label)) for stream in config.streams]
        publisher.await_subscribers(max(each.await_subscribers for each in config.publish), stop)
        if stop.is_set():
            return 0
        pipeline = stack.enter_context(Pipeline(engine))
        served = [
            _Served(status, source, sink, pipeline.add(stream.label, source, sink, stream.overload))
            for stream, status, source, sink in zip(config.streams, statuses, sources, sinks, strict=True)
        ]
        _watch(pipeline, served, config.log.statistics_s, stop)
    for each in served:
        _report(each.stream)
    return sum(each.stream.error is not None or bool(each.stream.damage) for each in served)


def _endpoint(config: PublishConfig, streams: int) -> Endpoint:
    options = PublisherOptions(
        high_water_mark=config.high_water_mark,
        streams=streams,
        encoding=config.encoding,
        jpeg_quality=config.jpeg_quality,
        pixel_format=config.pixel_format,
        control=config.control,
        shared_memory=config.shared_memory,
        max_clients=config.max_clients,
    )
    return Endpoint(config.endpoint, options)


def _watch(pipeline: Pipeline, served: list[_Served], statistics_s: float, stop: threading.Event) -> None:
    """Wait for the end of all streams, or for `stop`; a line for each stream now and then."""
    counted = [_Counted()] * len(served)
    since = time.monotonic()
    while not stop.is_set() and not pipeline.wait(STOP_POLL_S):
        for each in served:
            each.status.report()
        passed = time.monotonic() - since
        if not statistics_s or passed < statistics_s:
            continue
        for number, (each, before) in enumerate(zip(served, counted, strict=True)):
            counted[number] = each.counted()
            log.info("%s: %s", each.stream.name, each.line(before, counted[number], passed))
        since += passed


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.{0 if seconds >= 0.01 else 1}f} ms"


def _report(stream: Stream) -> None:
    for line in stream.damage:
        log.error("%s: lost: %s", stream.name, line)
    if stream.error is not None:
        log.error("%s: ended after %d frames: %s", stream.name, stream.restored, stream.error)
    else:
        log.info("%s: ended, %d frames restored, %d dropped", stream.name, stream.restored, stream.drops)
