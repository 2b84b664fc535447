"""One way to read a camera, for `ingest.py`, which runs this file in a process of its own.

    python ingest_readers.py READER URL FRAMES OUT.npz

Knows when frames came and what their corner looks like; nothing of what stands there. Imports no more than the reader
needs, so that any Python which has that can run it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

CORNER = (24, 256)  # (H, W) of the bar code


class Taken(NamedTuple):
    """decoded_ns, handed_ns: monotonic time when the frame was decoded (0: cannot be seen), and when a program had it.

    pixels: RGB or BGR (H, W, 3).
    """

    decoded_ns: int
    handed_ns: int
    pixels: NDArray[Any]


Reader = Callable[[str], Iterator[Taken]]


def network_source() -> Reader:
    from daemon.address import Address
    from daemon.network_source import NetworkSource
    from daemon.source import LiveOptions

    def read(url: str) -> Iterator[Taken]:
        with NetworkSource(Address.parse(url), LiveOptions(), stream="bench") as source:
            for frame in source:
                yield Taken(frame.arrived_ns, time.monotonic_ns(), frame.pixels)

    return read


def rtsp_source(transport: str) -> Reader:
    from daemon.address import Address
    from daemon.rtsp.source import RtspSource
    from daemon.source import LiveOptions

    options = LiveOptions(transport="udp" if transport == "udp" else "tcp")

    def read(url: str) -> Iterator[Taken]:
        with RtspSource(Address.parse(url), options, stream="bench") as source:
            for frame in source:
                yield Taken(frame.arrived_ns, time.monotonic_ns(), frame.pixels)

    return read


def pyav() -> Reader:
    import av

    def read(url: str) -> Iterator[Taken]:
        with av.open(url, options={"rtsp_transport": "tcp", "fpsprobesize": "0"}, timeout=10) as container:
            video = container.streams.video[0]
            video.thread_type = "SLICE"
            for frame in container.decode(video):
                decoded_ns = time.monotonic_ns()
                pixels = frame.to_ndarray(format="rgb24")
                yield Taken(decoded_ns, time.monotonic_ns(), pixels)

    return read


def opencv(threads: int | None) -> Reader:
    import cv2

    parameters = [] if threads is None else [cv2.CAP_PROP_N_THREADS, threads]

    def read(url: str) -> Iterator[Taken]:
        capture = cv2.VideoCapture(url, cv2.CAP_FFMPEG, parameters)
        try:
            while (took := capture.read())[0]:
                yield Taken(0, time.monotonic_ns(), took[1])
        finally:
            capture.release()

    return read


def roboflow(*, eager: bool) -> Reader:
    os.environ.setdefault("TELEMETRY_OPT_OUT", "True")
    from inference import InferencePipeline  # type: ignore[import-not-found, unused-ignore]
    from inference.core.interfaces.camera.video_source import (  # type: ignore[import-not-found, unused-ignore]
        BufferConsumptionStrategy,
    )

    newest = {"source_buffer_consumption_strategy": BufferConsumptionStrategy.EAGER} if eager else {}

    def read(url: str) -> Iterator[Taken]:
        taken: SimpleQueue[Taken] = SimpleQueue()

        def model(frames: list[Any]) -> list[None]:
            taken.put(Taken(0, time.monotonic_ns(), frames[0].image))
            return [None] * len(frames)

        pipeline = InferencePipeline.init_with_custom_logic(url, model, on_prediction=lambda *_: None, **newest)
        pipeline.start(use_main_thread=False)
        try:
            while True:
                yield taken.get()
        finally:
            pipeline.terminate()
            pipeline.join()

    return read


READERS: dict[str, Callable[[], Reader]] = {
    "NetworkSource": network_source,
    "RtspSource, TCP": lambda: rtsp_source("tcp"),
    "RtspSource, UDP": lambda: rtsp_source("udp"),
    "PyAV": pyav,
    "OpenCV": lambda: opencv(None),
    "OpenCV, 1 thread": lambda: opencv(1),
    "Roboflow": lambda: roboflow(eager=False),
    "Roboflow, eager": lambda: roboflow(eager=True),
}


def main(name: str, url: str, count: int, out: str) -> None:
    read = READERS[name]()
    times: list[tuple[int, int]] = []
    corners: list[NDArray[Any]] = []
    cpu_s = 0.0
    began_ns = time.monotonic_ns()
    frames = read(url)
    for taken in frames:
        if not times:
            cpu_s = time.process_time()
        times.append((taken.decoded_ns, taken.handed_ns))
        corners.append(taken.pixels[: CORNER[0], : CORNER[1], 1].copy())
        if len(times) == count:
            break
    cpu_s = time.process_time() - cpu_s
    if len(times) < count:
        sys.exit(f"the stream ended after {len(times)} frames")
    np.savez(out, began_ns=began_ns, times_ns=times, corners=corners, cpu_s=cpu_s)
    frames.close()  # type: ignore[attr-defined]


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
