"""From settings to endpoints: those that clients connect to, and the one of the daemon's own processes.

Knows settings, keys and folders; opens no socket.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from .allow_list import AllowList
from .credentials import filled
from .forwarder import Order
from .gate import Admission
from .keys import Keys
from .publisher import Endpoint, PublisherOptions
from .settings import ForwardConfig, PublishConfig, StreamConfig
from .video_output import VideoOptions

FORWARD_QUEUE = 8
"""Frames of each stream that may wait for a process that sends it on, while it changes from one file to the next."""


def endpoint_of(config: PublishConfig, streams: int) -> Endpoint:
    """Where and how a `[publish]` has `streams` streams published. KeysError for keys that cannot be used."""
    options = PublisherOptions(
        high_water_mark=config.high_water_mark,
        streams=streams,
        encoding=config.encoding,
        jpeg_quality=config.jpeg_quality,
        pixel_format=config.pixel_format,
        control=config.control,
        shared_memory=config.shared_memory,
        max_clients=config.max_clients,
        admission=Admission(Keys.load(config.keys), AllowList(config.allow)) if config.keys else None,
    )
    return Endpoint(config.endpoint, options)


@contextmanager
def private_endpoint(streams: int) -> Iterator[Endpoint]:
    """One in a folder that only this user can enter, whatever other endpoints ask for."""
    with tempfile.TemporaryDirectory(prefix="deblurd-") as folder:
        yield Endpoint(f"ipc://{folder}/frames", PublisherOptions(high_water_mark=FORWARD_QUEUE, streams=streams))


def orders_of(stream: StreamConfig, config: ForwardConfig) -> list[Order]:
    """How a stream is sent on as video; the endpoint is still missing."""
    video = VideoOptions(config.encoder, config.crf)
    order = Order(
        "", stream.label, "", video=video, every_s=config.every_s, max_mb=config.max_mb, stall_s=config.stall_s
    )
    return [replace(order, target=filled(target)) for target in stream.forward]
