"""The daemon itself: from settings to a running pipeline, and a clean end.

Knows which kinds of source and sink there are; the work is done by their modules.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from urllib.request import url2pathname

from engine.backends import open_engine
from engine.protocol import Build, Engine, EngineOptions

from .config import Config, EngineConfig, StreamConfig
from .errors import ConfigError
from .file_source import FileSource
from .pace import Paced
from .pipeline import Pipeline
from .publisher import Publisher, PublisherOptions
from .source import Source
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


def open_source(config: StreamConfig) -> Source:
    """The source of a stream. Raises SourceError."""
    is_url = config.source.startswith("file://")
    path = Path(url2pathname(config.source.removeprefix("file://")) if is_url else config.source)
    source = FileSource(path, stream=config.label)
    return Paced(source) if config.realtime else source


def run(config: Config, stop: threading.Event) -> int:
    """Serve until every stream has ended or `stop` is set; the number of streams that were not whole.

    Raises ConfigError, EngineError, SinkError or SourceError before anything runs; later, EngineError only.
    """
    if not config.streams:
        raise ConfigError("'streams' must name at least one source; give one on the command line or in config.toml")
    sources = [(stream.label, open_source(stream)) for stream in config.streams]
    with ExitStack() as stack:
        engine = stack.enter_context(engine_from(config.engine, config.engine.build))
        publisher = Publisher(
            config.publish.endpoint,
            engine.spec.model,
            PublisherOptions(
                high_water_mark=config.publish.high_water_mark,
                encoding=config.publish.encoding,
                jpeg_quality=config.publish.jpeg_quality,
                streams=len(sources),
            ),
        )
        stack.callback(publisher.close)
        log.info("model %s on %s, publishing at %s", engine.spec.model, engine.spec.backend, publisher.endpoint)
        sinks = [publisher.stream(name) for name, _ in sources]
        publisher.await_subscribers(config.publish.await_subscribers, stop)
        if stop.is_set():
            return 0
        pipeline = stack.enter_context(Pipeline(engine))
        streams = [pipeline.add(name, source, sink) for (name, source), sink in zip(sources, sinks, strict=True)]
        _watch(pipeline, streams, config.log.statistics_s, stop)
    for stream in streams:
        _report(stream)
    return sum(stream.error is not None or bool(stream.damage) for stream in streams)


def _watch(pipeline: Pipeline, streams: list[Stream], statistics_s: float, stop: threading.Event) -> None:
    """Wait for the end of all streams, or for `stop`; a line for each stream now and then."""
    counted = {stream.name: 0 for stream in streams}
    since = time.monotonic()
    while not stop.is_set() and not pipeline.wait(STOP_POLL_S):
        passed = time.monotonic() - since
        if not statistics_s or passed < statistics_s:
            continue
        for stream in streams:
            rate = (stream.restored - counted[stream.name]) / passed
            counted[stream.name] = stream.restored
            log.info("%s: %.1f fps, %d restored, %d dropped", stream.name, rate, stream.restored, stream.drops)
        since += passed


def _report(stream: Stream) -> None:
    for line in stream.damage:
        log.error("%s: lost: %s", stream.name, line)
    if stream.error is not None:
        log.error("%s: ended after %d frames: %s", stream.name, stream.restored, stream.error)
    else:
        log.info("%s: ended, %d frames restored, %d dropped", stream.name, stream.restored, stream.drops)
