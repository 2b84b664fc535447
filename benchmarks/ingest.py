"""How old a camera's frames are when a program has them, beside other ways to read the same camera.

    python benchmarks/ingest.py [--repeat 5] [--seconds 8] [--roboflow PYTHON] [--json]

The tests' RTSP server, in a process of its own, serves 1280x720 at 25 frames a second, H.264 with a key frame each
second; it draws and encodes each picture when it is due, and writes the time into it. Readers take turns, each in a
process of its own; medians of all repeats.

NetworkSource       What `deblurd run` uses unless told otherwise (FFmpeg).
RtspSource          Our own client (`client = "rtp"`), over TCP and UDP.
PyAV                A bare loop over `container.decode` with `thread_type="SLICE"` and `fpsprobesize=0`.
OpenCV              `cv2.VideoCapture` with as many threads as FFmpeg likes, which each delay frames by one, and with
                    one.
Roboflow            Its InferencePipeline with a model that does nothing, as it comes, and told to take the newest
                    frame (`BufferConsumptionStrategy.EAGER`). It needs a Python of its own: `pip install
                    "inference-cpu<0.51"` there (later ones bring CUDA with them), and name it with --roboflow.

first     From connecting to the first frame in hand. A session of this server begins with a key frame.
decoded   Age of frames when the decoder gave them, where that can be seen.
age       Age of frames when a program has their RGB (or BGR) pixels. What the server takes of it is named above the
          table. The first second of frames, which FFmpeg needs to catch up, is left out.
CPU       Processor time of the reader's process for each frame, with the conversion to RGB.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from bisect import bisect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from ingest_readers import READERS
from rich.console import Console
from rich.table import Table

REPOSITORY = Path(__file__).parents[1]
RATE = 25
SETTLING = RATE  # frames
PATIENCE_S = 30.0
OURS, BARE = "NetworkSource", "PyAV"
ROBOFLOW = [name for name in READERS if name.startswith("Roboflow")]


class BenchmarkError(Exception):
    """A reader or the server could not run."""


@dataclass(frozen=True)
class Reading:
    """One reader's turn. decoded_ms is empty where it cannot be seen."""

    first_s: float
    decoded_ms: list[float]
    age_ms: list[float]
    cpu_ms: float


def serve(pipe: Connection) -> None:
    """Serve until `pipe` says something; then answer with how long pictures took from their drawing to having left."""
    from live_clips import live_feed
    from rtsp_server import RtspServer

    drawn_us: list[int] = []

    def clock_us() -> int:
        drawn_us.append(time.monotonic_ns() // 1000)
        return drawn_us[-1]

    with RtspServer(live_feed(clock_us, width=1280, height=720, rate=RATE, gop=RATE)) as server:
        pipe.send(server.url())
        pipe.recv()
        # Some were drawn and never sent, to clients that had gone.
        left_us = [round(sent.left_s * 1e6) for sent in server.sent]
        pipe.send([(left - drawn_us[bisect(drawn_us, left) - 1]) / 1000 for left in left_us])


@contextmanager
def served() -> Iterator[tuple[str, list[float]]]:
    """The address, and a list that holds at the end how many milliseconds each picture took in the server."""
    sys.path.insert(0, str(REPOSITORY / "tests"))  # also for the server's process
    try:
        import rtsp_server  # noqa: F401
    except ModuleNotFoundError as error:
        raise BenchmarkError(f"the tests' RTSP server needs {error.name}, which is not installed") from None
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs,), name="rtsp-server")
    process.start()
    theirs.close()
    took_ms: list[float] = []
    try:
        yield ours.recv(), took_ms
        ours.send("stop")
        took_ms += ours.recv()
    finally:
        ours.close()
        process.join()


def read(name: str, python: str, url: str, frames: int) -> Reading:
    from live_clips import read_mark

    with tempfile.TemporaryDirectory(prefix="deblurd-") as folder:
        out = f"{folder}/taken.npz"
        command = [python, str(Path(__file__).with_name("ingest_readers.py")), name, url, str(frames), out]
        try:
            ran = subprocess.run(command, capture_output=True, text=True, timeout=frames / RATE + PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise BenchmarkError(f"no {frames} frames within {frames / RATE + PATIENCE_S:g} s") from None
        except OSError as error:
            raise BenchmarkError(f"{python}: {error.strerror}") from None
        if not Path(out).exists():
            raise BenchmarkError((ran.stderr.strip().splitlines() or [f"ended with status {ran.returncode}"])[-1])
        with np.load(out) as taken:
            began_ns, cpu_s = int(taken["began_ns"]), float(taken["cpu_s"])
            times_ns, marks = taken["times_ns"], [read_mark(corner) for corner in taken["corners"]]
    # What cannot be read came damaged, and has no age.
    settled = [(*times, mark.time_us * 1000) for times, mark in zip(times_ns, marks, strict=True) if mark][SETTLING:]
    if not settled:
        raise BenchmarkError("no frame shows when it was made")
    return Reading(
        first_s=(int(times_ns[0, 1]) - began_ns) / 1e9,
        decoded_ms=[(decoded - made) / 1e6 for decoded, _, made in settled if decoded],
        age_ms=[(handed - made) / 1e6 for _, handed, made in settled],
        cpu_ms=cpu_s * 1000 / (len(times_ns) - 1),
    )


def measure(repeat: int, seconds: float, roboflow: str | None) -> dict[str, Any]:
    left_out: dict[str, str] = {}
    pythons = dict.fromkeys(READERS, sys.executable)
    for name in ROBOFLOW:
        if roboflow is None:
            left_out[name] = "no --roboflow PYTHON that has it"
        else:
            pythons[name] = roboflow
    readings: dict[str, list[Reading]] = {name: [] for name in READERS}
    load = [os.getloadavg()[0]]
    with served() as (url, server_ms):
        for turn in range(repeat):
            names = list(READERS)
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                if name in left_out:
                    continue
                try:
                    readings[name].append(read(name, pythons[name], url, SETTLING + round(seconds * RATE)))
                except BenchmarkError as error:
                    left_out[name] = str(error)
    load.append(os.getloadavg()[0])
    return {
        "repeat": repeat,
        "load": load,
        "server_ms": round(float(np.median(server_ms)), 1),
        "beyond_pyav_ms": beyond(readings[OURS], readings[BARE]),
        "rows": [row(name, turns) for name, turns in readings.items() if name not in left_out],
        "left_out": left_out,
    }


def row(name: str, turns: list[Reading]) -> dict[str, Any]:
    def median(values: list[float]) -> float:
        return round(float(np.median(values)), 2)

    figures = {"reader": name, "first_s": median([turn.first_s for turn in turns])}
    for figure in ("decoded", "age"):
        for percent in (50, 95):
            values = [getattr(turn, f"{figure}_ms") for turn in turns]
            if all(values):
                figures[f"{figure}_p{percent}_ms"] = median([float(np.percentile(each, percent)) for each in values])
    return {**figures, "cpu_ms": median([turn.cpu_ms for turn in turns])}


def beyond(ours: list[Reading], bare: list[Reading]) -> float | None:
    """How much older frames of ours are than those of the bare loop in the same turn, when decoded; median."""
    pairs = list(zip(ours, bare, strict=False))
    differences = [np.median(one.decoded_ms) - np.median(other.decoded_ms) for one, other in pairs]
    return round(float(np.median(differences)), 2) if differences else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each reader, in each turn")
    parser.add_argument("--roboflow", metavar="PYTHON", help="a Python that has the package inference")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    try:
        figures = measure(arguments.repeat, arguments.seconds, arguments.roboflow)
    except BenchmarkError as error:
        sys.exit(f"ingest.py: {error}")
    if arguments.json:
        print(json.dumps(figures, indent=2))
        return
    console = Console()
    load = " to ".join(f"{value:.1f}" for value in figures["load"])
    console.print(
        f"median of {figures['repeat']}, load {load}; of every age, {figures['server_ms']} ms are the server's"
    )
    heads = ("first, s", "decoded p50", "p95", "age p50", "p95", "CPU, ms")
    table = Table("reader", *heads)
    for column in table.columns[1:]:
        column.justify = "right"
    for each in figures["rows"]:
        names = ("decoded_p50_ms", "decoded_p95_ms", "age_p50_ms", "age_p95_ms", "cpu_ms")
        cells = [f"{each[name]:.1f}" if name in each else "" for name in names]
        table.add_row(each["reader"], f"{each['first_s']:.2f}", *cells)
    console.print(table)
    if figures["beyond_pyav_ms"] is not None:
        console.print(f"{OURS} beyond {BARE} in the same turn, decoded: {figures['beyond_pyav_ms']:+.1f} ms")
    for name, reason in figures["left_out"].items():
        console.print(f"left out {name}: {reason}")


if __name__ == "__main__":
    main()
