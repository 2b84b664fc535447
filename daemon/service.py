"""The daemon itself: from settings to a running pipeline, and a clean end.

Knows which kinds of source and sink there are; the work is done by their modules.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import ExitStack
from dataclasses import replace

from engine.backends import open_engine
from engine.protocol import Build, Engine, EngineOptions

from .ages import AgedSink
from .config import Config
from .errors import ConfigError
from .forward import Forward
from .pipeline import Pipeline
from .publisher import Publisher
from .publishing import endpoint_of, orders_of, private_endpoint
from .served import Counted, Served
from .settings import EngineConfig
from .sources import open_source
from .status import StreamStatus
from .stream import Stream

log = logging.getLogger(__name__)

STOP_POLL_S = 0.1
"""How soon a request to stop is noticed."""
FORWARD_START_S = 10.0
"""How long the streams wait for the processes that send them on: one that does not begin must not keep the others."""


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
        endpoints = [endpoint_of(each, len(sources)) for each in config.publish]
        orders = [order for stream in config.streams for order in orders_of(stream, config.forward)]
        if orders:
            endpoints.append(stack.enter_context(private_endpoint(len(sources))))
        engine = stack.enter_context(engine_from(config.engine, config.engine.build))
        publisher = Publisher(endpoints, engine.spec.model)
        stack.callback(publisher.close)
        where = ", ".join(outlet.address for outlet in publisher.outlets[: len(config.publish)])
        log.info("model %s on %s, publishing at %s", engine.spec.model, engine.spec.backend, where)
        sinks = [AgedSink(publisher.stream(stream.label)) for stream in config.streams]
        inside = publisher.outlets[-1]
        forwards = [stack.enter_context(Forward(replace(order, endpoint=inside.address))) for order in orders]
        for forward in forwards:
            stack.callback(forward.stop)  # all of them before the first is waited for
        publisher.await_subscribers(len(forwards), stop, FORWARD_START_S)
        if awaited := max(each.await_subscribers for each in config.publish):
            publisher.await_subscribers(awaited + len(forwards), stop)
        if stop.is_set():
            return 0
        pipeline = stack.enter_context(Pipeline(engine))
        served = [
            Served(
                status, source, sink, pipeline.add(stream.label, source, sink, stream.overload, config.restore.strength)
            )
            for stream, status, source, sink in zip(config.streams, statuses, sources, sinks, strict=True)
        ]
        _watch(pipeline, served, forwards, config.log.statistics_s, stop)
    for each in served:
        _report(each.stream)
    return sum(each.stream.error is not None or bool(each.stream.damage) for each in served)


def _watch(
    pipeline: Pipeline, served: list[Served], forwards: list[Forward], statistics_s: float, stop: threading.Event
) -> None:
    """Wait for the end of all streams, or for `stop`; a line for each stream now and then."""
    counted = [Counted()] * len(served)
    since = time.monotonic()
    while not stop.is_set() and not pipeline.wait(STOP_POLL_S):
        for status in (*(each.status for each in served), *(each.status for each in forwards)):
            status.report()
        passed = time.monotonic() - since
        if not statistics_s or passed < statistics_s:
            continue
        for number, (each, before) in enumerate(zip(served, counted, strict=True)):
            counted[number] = each.counted()
            log.info("%s: %s", each.stream.name, each.line(before, counted[number], passed))
        for forward in forwards:
            log.info("%s: %s", forward.status.name, forward.line())
        since += passed


def _report(stream: Stream) -> None:
    for line in stream.damage:
        log.error("%s: lost: %s", stream.name, line)
    if stream.error is not None:
        log.error("%s: ended after %d frames: %s", stream.name, stream.restored, stream.error)
    else:
        log.info("%s: ended, %d frames restored, %d dropped", stream.name, stream.restored, stream.drops)
