"""From a stream's settings to its source.

Knows which kinds of address there are, and which module reads each; a module is imported when its kind is asked for.
"""

from __future__ import annotations

from .file_source import FileSource
from .loop import Looped
from .pace import Paced
from .persistent import OnState, Persistent, Retry
from .settings import StreamConfig
from .source import LiveOptions, LiveSource, Source
from .status import StreamStatus


def open_source(config: StreamConfig, status: StreamStatus) -> Source:
    """The source of a stream. Raises SourceError for what cannot become one; nothing in the network is touched yet.

    status: is told what becomes of a live source.
    """
    address = config.address
    if address.kind in ("file", "folder"):
        return _finite(config)
    if address.kind == "test":
        from .pattern_source import PatternSource

        width, height = address.size
        return PatternSource((height, width), address.rate, stream=config.label, live=config.overload != "block")
    options = LiveOptions(
        timeout_s=config.timeout_s,
        open_timeout_s=config.open_timeout_s,
        transport=config.transport,
        max_pixels=config.max_pixels,
        deinterlace=config.deinterlace,
        tls_verify=config.tls_verify,
        tls_ca_file=config.tls_ca_file,
    )
    retry = Retry(config.retry_min_s, config.retry_max_s, config.retry_attempts)
    return Persistent(lambda on_state: _attempt(config, options, on_state), retry=retry, status=status)


def _finite(config: StreamConfig) -> Source:
    path = config.address.path
    assert path is not None

    def play() -> Source:
        if config.address.kind == "file":
            return FileSource(path, stream=config.label, max_pixels=config.max_pixels)
        from .folder_source import FolderSource

        return FolderSource(path, stream=config.label, rate=config.rate or 25)

    source = Looped(play) if config.loop else play()
    return Paced(source) if config.realtime else source


def _attempt(config: StreamConfig, options: LiveOptions, on_state: OnState) -> LiveSource:
    if config.address.kind == "v4l2":
        from .camera_source import CameraSource

        return CameraSource(
            str(config.address.path),
            options,
            stream=config.label,
            on_state=on_state,
            size=config.frame_size,
            rate=config.rate or None,
            pixel_format=config.pixel_format or None,
        )
    if config.client == "rtp" or config.transport == "udp":  # FFmpeg does not see which packets are lost
        from .rtsp.source import RtspSource

        return RtspSource(config.address, options, stream=config.label, on_state=on_state)
    from .network_source import NetworkSource

    return NetworkSource(config.address, options, stream=config.label, on_state=on_state)
