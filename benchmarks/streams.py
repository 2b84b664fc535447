"""Many live streams on an engine that is too slow for them: throughput, fairness, and the age of frames.

    python benchmarks/streams.py [--repeat 5] [--seconds 10] [--json]

Two engines of fixed cost, which use no processor, as a GPU would not:

single   20 ms a frame, one frame a batch.
batch    15 ms a batch and 2 ms for each frame in it, at most 4: one frame takes 17 ms, four take 23 ms.

Cameras give 25 frames a second each, or as many more as it takes that all together give at least 1.2 times what the
engine can do; where in its interval each one begins is drawn anew in every turn. What is counted begins a second after
the streams.

of engine   Frames a second of all streams, of what the engine alone does in the same turn with full batches.
worst       Frames of the stream that got least, of an equal share. Frames are whole: with few of them, one makes a
            difference.
age         From the decoded frame to when it is handed to the sink. `bound` is the engine's time for a frame times
            the streams, and one interval of a camera.
grew        Resident memory, from the beginning to the end of what is counted; Linux only.

Medians of all repeats.
"""

from __future__ import annotations

import argparse
import json
import math
import mmap
import os
import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from fixed_engine import FixedEngine
from numpy.typing import NDArray
from pipeline import bare
from rich.console import Console
from rich.table import Table

from daemon.frame import Frame
from daemon.pipeline import Pipeline

SIZE = (352, 640)  # (H, W)
SLOWEST_CAMERA = 25.0
OVERLOAD = 1.2
WARM_UP_S = 1.0


@dataclass(frozen=True)
class Case:
    engine: str
    base_s: float
    per_frame_s: float
    best_batch: int
    streams: int

    def open(self) -> FixedEngine:
        return FixedEngine(self.base_s, self.per_frame_s, best_batch=self.best_batch)

    @property
    def frame_s(self) -> float:
        """The engine's time for a frame, at best."""
        return self.base_s / self.best_batch + self.per_frame_s

    @property
    def rate(self) -> float:
        """Frames a second of each camera."""
        return max(SLOWEST_CAMERA, OVERLOAD / self.frame_s / self.streams)

    @property
    def bound_s(self) -> float:
        return self.frame_s * self.streams + 1 / self.rate


CASES = [
    *(Case("single", 0.020, 0.0, 1, streams) for streams in (1, 2, 4, 16)),
    *(Case("batch", 0.015, 0.002, 4, streams) for streams in (4, 16)),
]


class Camera:
    """The same picture at a steady rate, from `phase` of an interval on; a `daemon.source.Source`."""

    live: Final = True
    damage: Final = ()

    def __init__(self, name: str, rate: float, phase: float) -> None:
        self._name, self._rate, self._phase = name, rate, phase
        self._pixels = np.zeros((*SIZE, 3), np.uint8)
        self._closed = threading.Event()

    def __iter__(self) -> Iterator[Frame]:
        began_s, seq = time.monotonic(), 0
        while not self._closed.wait(max(0.0, began_s + (seq + self._phase) / self._rate - time.monotonic())):
            now_ns = time.monotonic_ns()
            yield Frame(self._name, seq, seq, 1 / Fraction(self._rate), time.time_ns(), now_ns, self._pixels)
            seq += 1

    def close(self) -> None:
        self._closed.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class Clock:
    """A sink that notes when it was handed each frame, and how old the frame was then."""

    def __init__(self) -> None:
        self.handed: list[tuple[int, int]] = []  # (monotonic ns, age in ns)

    def lend(self, frame: Frame) -> NDArray[np.uint8]:
        return np.empty((frame.height, frame.width, 3), np.uint8)

    def send(self, frame: Frame) -> None:
        now_ns = time.monotonic_ns()
        self.handed.append((now_ns, now_ns - frame.arrived_ns))

    def close(self) -> None:
        pass


def turn(case: Case, seconds: float, phases: random.Random) -> dict[str, float]:
    with case.open() as engine:
        batch = np.zeros((case.best_batch, *SIZE, 3), np.uint8)
        count = max(1, round(1 / engine.seconds(case.best_batch)))  # `bare` makes several passes: a few seconds
        alone = bare(engine, [batch] * count)[0] * case.best_batch
        sinks = [Clock() for _ in range(case.streams)]
        with Pipeline(engine) as pipeline:
            for number, sink in enumerate(sinks):
                pipeline.add(f"cam{number}", Camera(f"cam{number}", case.rate, phases.random()), sink)
            pipeline.wait(WARM_UP_S)
            memory, began_ns = resident_mb(), time.monotonic_ns()
            pipeline.wait(seconds)
            memory, ended_ns = resident_mb() - memory, time.monotonic_ns()
    counted = [[age for at, age in sink.handed if began_ns <= at < ended_ns] for sink in sinks]
    fps = sum(map(len, counted)) / ((ended_ns - began_ns) / 1e9)
    ages_ms = np.concatenate([np.asarray(ages) for ages in counted]) / 1e6
    return {
        "engine_fps": alone,
        "fps": fps,
        "of_engine": fps / alone,
        "worst_stream": min(map(len, counted)) * case.streams / ages_ms.size,
        "age_p50_ms": float(np.percentile(ages_ms, 50)),
        "age_p99_ms": float(np.percentile(ages_ms, 99)),
        "grew_mb": memory,
    }


def resident_mb() -> float:
    """NaN where the system does not tell."""
    with suppress(OSError):
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * mmap.PAGESIZE / 1e6
    return math.nan


def measure(cases: Sequence[Case], repeat: int, seconds: float) -> dict[str, Any]:
    turns: dict[Case, list[dict[str, float]]] = {case: [] for case in cases}
    load = [os.getloadavg()[0]]
    for number in range(repeat):
        phases = random.Random(number)
        for case in cases:
            turns[case].append(turn(case, seconds, phases))
    load.append(os.getloadavg()[0])
    rows = []
    for case, figures in turns.items():
        row = {"engine": case.engine, "streams": case.streams, "rate": case.rate, "bound_ms": case.bound_s * 1000}
        row |= {name: float(np.median([each[name] for each in figures])) for name in figures[0]}
        rows.append({name: round(value, 3) if isinstance(value, float) else value for name, value in row.items()})
    return {"load": load, "repeat": repeat, "seconds": seconds, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each case, in each turn")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    figures = measure(CASES, arguments.repeat, arguments.seconds)
    if arguments.json:
        print(json.dumps(figures, indent=2))
        return
    console = Console()
    console.print(f"median of {arguments.repeat}, load " + " to ".join(f"{value:.1f}" for value in figures["load"]))
    table = Table(
        "engine", "streams", "of engine", "worst", "age p50", "p99", "bound", "grew", title="times in ms, memory in MB"
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for row in figures["rows"]:
        numbers = [f"{row[name]:.1f}" for name in ("age_p50_ms", "age_p99_ms", "bound_ms", "grew_mb")]
        shares = [f"{row[name]:.1%}" for name in ("of_engine", "worst_stream")]
        streams = f"{row['streams']} at {row['rate']:.0f}/s"
        table.add_row(row["engine"], streams, *shares, *numbers)
    console.print(table)


if __name__ == "__main__":
    main()
