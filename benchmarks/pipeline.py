"""How much of the engine's speed the daemon delivers, and how old its frames are.

    python benchmarks/pipeline.py [--clip FILE] [--repeat 5] [--json]

Three cases, each beside the bare engine on the same frames in the same run, medians of all repeats:

fixed     An engine that takes a fixed time a frame and no processor at all, as a GPU would. The pipeline
          (decode, convert, tile, merge, publish, and a subscriber in another process) against the engine alone.
real      The shipped model. Decoding shares the cores with the engine here, so the frames per second are held
          against what the summed processor time of the parts allows: cores / seconds of processor a frame.
age       The clip at its own speed through the shipped model: age of frames as the subscriber gets them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from fixed_engine import FixedEngine
from rich.console import Console
from rich.table import Table

from daemon.file_source import FileSource
from daemon.frame import Frame
from daemon.pace import Paced
from daemon.pipeline import Pipeline
from daemon.publisher import Publisher, PublisherOptions
from daemon.source import Source
from engine.backends import open_engine
from engine.protocol import Engine, EngineOptions, Frames, Ticket

CLIP = Path(__file__).parent.parent / "tests" / "media" / "demo_blurred.mp4"
PASSES = 4

SUBSCRIBER = """
import json, sys, time
from daemon.client import Subscriber
ages, times = [], []
with Subscriber(sys.argv[1], mode="queued") as subscriber:
    try:
        while len(ages) < int(sys.argv[2]):
            frame = subscriber.receive(60 if not ages else 3)
            ages.append(frame.age_s()); times.append(time.monotonic())
    except TimeoutError:
        pass
print(json.dumps({"frames": len(ages), "seconds": times[-1] - times[0], "cpu_s": time.process_time(), "ages": ages}))
"""


class Passes:
    """A clip, several times over, as one stream."""

    live = False
    damage = ()

    def __init__(self, clip: Path) -> None:
        self._clip, self._closed = clip, False

    def __iter__(self) -> Iterator[Frame]:
        seq = 0
        for _ in range(PASSES):
            with FileSource(self._clip) as source:
                for frame in source:
                    if self._closed:
                        return
                    yield replace(frame, seq=seq)
                    seq += 1

    def close(self) -> None:
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def bare(engine: Engine, tiles: list[Frames]) -> tuple[float, float]:
    """(frames a second, processor seconds a frame) of the engine alone, all slots in use."""
    waiting: deque[Ticket] = deque()
    cpu, began = time.process_time(), time.perf_counter()
    for _ in range(PASSES):
        for tile in tiles:
            if len(waiting) == engine.spec.slots:
                waiting.popleft().result().release()
            waiting.append(engine.submit(tile))
    while waiting:
        waiting.popleft().result().release()
    count = PASSES * len(tiles)
    return count / (time.perf_counter() - began), (time.process_time() - cpu) / count


def piped(engine: Engine, source: Source, count: int) -> dict[str, Any]:
    """What a subscriber in another process got of `source`, restored by `engine`."""
    with tempfile.TemporaryDirectory(prefix="deblurd-") as folder:
        publisher = Publisher(f"ipc://{folder}/frames", "bench", PublisherOptions(high_water_mark=64))
        command = [sys.executable, "-c", SUBSCRIBER, publisher.endpoint, str(count)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as subscriber:
            publisher.await_subscribers(1, threading.Event())
            with Pipeline(engine) as pipeline:
                pipeline.add("bench", source, publisher.stream("bench"))
                pipeline.wait()
            output, _ = subscriber.communicate(timeout=120)
        publisher.close()
    received: dict[str, Any] = json.loads(output)
    received["fps"] = (received["frames"] - 1) / received["seconds"]
    return received


def decode_cpu(clip: Path) -> float:
    """Processor seconds a frame of decoding and converting."""
    cpu, count = time.process_time(), 0
    for _ in Passes(clip):
        count += 1
    return (time.process_time() - cpu) / count


def delivery_cpu(frames: list[Frame]) -> float:
    """Processor seconds a frame of publishing (with the copy that merging is) and of receiving."""
    with tempfile.TemporaryDirectory(prefix="deblurd-") as folder:
        publisher = Publisher(f"ipc://{folder}/frames", "bench", PublisherOptions(high_water_mark=64))
        count = PASSES * len(frames)
        command = [sys.executable, "-c", SUBSCRIBER, publisher.endpoint, str(count)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as subscriber:
            publisher.await_subscribers(1, threading.Event())
            sink = publisher.stream("bench")
            cpu = time.process_time()
            for _ in range(PASSES):
                for frame in frames:
                    buffer = sink.lend(frame)
                    np.copyto(buffer, frame.pixels)
                    sink.send(replace(frame, pixels=buffer))
            spent = time.process_time() - cpu
            output, _ = subscriber.communicate(timeout=120)
        publisher.close()
    received = json.loads(output)
    return float(spent / count + received["cpu_s"] / received["frames"])


def measure(clip: Path, repeat: int, fixed_ms: float) -> dict[str, Any]:
    with FileSource(clip) as source:
        rate = float(source.rate)
        frames = [replace(frame, origin=None) for frame in source]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = PASSES * len(frames)
    rows: dict[str, list[float]] = {}

    def note(**figures: float) -> None:
        for name, value in figures.items():
            rows.setdefault(name, []).append(value)

    stride = 16
    height, width = frames[0].height // stride * stride, frames[0].width // stride * stride
    tiles = [np.ascontiguousarray(frame.pixels[None, :height, :width]) for frame in frames]
    for _ in range(repeat):
        with FixedEngine(fixed_ms / 1000) as engine:
            alone, _ = bare(engine, tiles)
            through = piped(engine, Passes(clip), count)
            note(fixed_engine_fps=alone, fixed_pipeline_fps=through["fps"], fixed_share=through["fps"] / alone)
        with open_engine("auto", "fast", EngineOptions()) as engine:
            backend = engine.spec.backend
            engine.submit(tiles[0]).result().release()
            alone, engine_cpu = bare(engine, tiles)
            through = piped(engine, Passes(clip), count)
            allowed = cores / (decode_cpu(clip) + engine_cpu + delivery_cpu(frames))
            note(
                real_engine_fps=alone,
                real_pipeline_fps=through["fps"],
                real_allowed_fps=min(alone, allowed),
                real_share=through["fps"] / min(alone, allowed),
            )
            live = piped(engine, Paced(FileSource(clip)), len(frames))
            latency = []
            for tile in tiles:
                began = time.perf_counter()
                engine.submit(tile).result().release()
                latency.append(time.perf_counter() - began)
            note(
                engine_latency_ms=float(np.median(latency)) * 1000,
                age_p50_ms=float(np.percentile(live["ages"], 50)) * 1000,
                age_p99_ms=float(np.percentile(live["ages"], 99)) * 1000,
                live_received=live["frames"] / len(frames),
            )
    medians = {name: round(float(np.median(values)), 3) for name, values in rows.items()}
    size = f"{frames[0].width}x{frames[0].height}"
    return {"clip": clip.name, "size": size, "rate": rate, "cores": cores, "engine": backend, **medians}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clip", type=Path, default=CLIP)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--fixed-ms", type=float, default=20.0, help="duration of the fixed engine")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    figures = measure(arguments.clip, arguments.repeat, arguments.fixed_ms)
    if arguments.json:
        print(json.dumps(figures, indent=2))
        return
    table = Table("pipeline", f"median of {arguments.repeat}", title_justify="left")
    table.columns[1].justify = "right"
    for name, value in figures.items():
        table.add_row(name.replace("_", " "), f"{value:.1%}" if name.endswith("share") else str(value))
    Console().print(table)


if __name__ == "__main__":
    main()
