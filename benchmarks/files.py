"""How much of the slowest of decoder, engine and encoder a file job delivers, and how much memory it takes.

    python benchmarks/files.py [--clip FILE] [--seconds 60] [--fixed-ms 30] [--repeat 3] [--json]

The clip, repeated packet by packet until it is so long, is restored with an engine that takes a fixed time a frame and
no processor, as a GPU would. Beside it, in the same run:

decode     reading and converting every frame, alone
engine     its own rate
encode     encoding every frame as the job does, alone
allowed    the slowest of the three; and what cores / (processor seconds a frame) of decoder and encoder together allow,
           where that is less

All rates are frames a second, medians of all repeats.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Self

import av
import numpy as np
from fixed_engine import FixedEngine
from rich.console import Console
from rich.table import Table

from daemon.encoding import Encoding
from daemon.file_source import FileSource
from daemon.plan import plan_of
from daemon.segment_writer import SegmentWriter
from daemon.video import VideoJob, restore_video
from daemon.video_setup import video_setup

CLIP = Path(__file__).parent.parent / "tests" / "media" / "demo_blurred.mp4"


def lengthened(clip: Path, target: Path, seconds: float) -> Path:
    """The packets of `clip` again and again, one pass after another, until they last so long."""
    with av.open(str(clip)) as source, av.open(str(target), "w") as output:
        streams = {stream.index: output.add_stream_from_template(stream) for stream in source.streams}
        length_s = Fraction(source.duration or 0, av.time_base) + Fraction(1, 5)  # for what was decoded before 0
        for number in range(max(1, round(seconds / length_s))):
            source.seek(0)
            for packet in source.demux():
                if packet.dts is None or packet.pts is None:
                    continue
                shift = round(number * length_s / packet.time_base)
                packet.pts += shift
                packet.dts += shift
                packet.stream = streams[packet.stream_index]
                output.mux(packet)
    return target


class Watch:
    """Wall seconds and processor seconds of a block, and the greatest memory of the process while it ran, in MB."""

    def __enter__(self) -> Self:
        self._began, self._cpu = time.perf_counter(), time.process_time()
        self.peak_mb, self._over = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall_s, self.cpu_s = time.perf_counter() - self._began, time.process_time() - self._cpu
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.2):
            self.peak_mb = max(self.peak_mb, resident_mb())


def resident_mb() -> float:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize() / 1e6
    except OSError:  # not Linux: the greatest so far
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def frames_of(clip: Path) -> Iterator[object]:
    with FileSource(clip) as source:
        yield from source


def measure(clip: Path, seconds: float, fixed_ms: float, repeat: int) -> dict[str, float | str]:
    rows: dict[str, list[float]] = {}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with tempfile.TemporaryDirectory(prefix="deblurd-") as folder:
        source = lengthened(clip, Path(folder) / f"long{clip.suffix}", seconds)
        target = Path(folder) / f"restored{clip.suffix}"
        with Watch() as planning:
            plan = plan_of(source)
        video = video_setup(source, target, Encoding())
        for _ in range(repeat):
            with FixedEngine(fixed_ms / 1000) as engine, Watch() as whole:
                restore_video(VideoJob(source, target, Encoding(), overwrite=True, strength=1.0), engine)
            with Watch() as decoding:
                count = sum(1 for _ in frames_of(source))
            with FileSource(source) as few:
                frames = [frame for _, frame in zip(range(200), few, strict=False)]
            writer = SegmentWriter(Path(folder) / "alone", target, video)
            with Watch() as encoding:
                for number, frame in enumerate(frames):
                    writer.send(replace(frame, pts=frames[0].pts + number * (frames[1].pts - frames[0].pts)))
                writer.close()
            writer.discard()
            sent = len(frames)
            frames.clear()
            figures = {
                "decode_fps": count / decoding.wall_s,
                "engine_fps": 1000 / fixed_ms,
                "encode_fps": sent / encoding.wall_s,
                "cpu_ms_a_frame_decode": decoding.cpu_s / count * 1000,
                "cpu_ms_a_frame_encode": encoding.cpu_s / sent * 1000,
                "cpu_ms_a_frame_job": whole.cpu_s / count * 1000,
                "job_fps": count / whole.wall_s,
                "job_peak_mb": whole.peak_mb,
            }
            slowest = min(figures["decode_fps"], figures["engine_fps"], figures["encode_fps"])
            by_cpu = cores / (decoding.cpu_s / count + encoding.cpu_s / sent)
            figures |= {"allowed_fps": min(slowest, by_cpu), "share": figures["job_fps"] / min(slowest, by_cpu)}
            for name, value in figures.items():
                rows.setdefault(name, []).append(value)
    medians = {name: round(float(np.median(values)), 3) for name, values in rows.items()}
    return {
        "clip": clip.name,
        "frames": count,
        "segments": len(plan.segments),
        "plan_s": round(planning.wall_s, 3),
        "cores": cores,
        "load": round(os.getloadavg()[0], 1),
        **medians,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clip", type=Path, default=CLIP)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the clip is made")
    parser.add_argument("--fixed-ms", type=float, default=30.0, help="duration of the engine for a frame")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    figures = measure(arguments.clip, arguments.seconds, arguments.fixed_ms, arguments.repeat)
    if arguments.json:
        print(json.dumps(figures, indent=2))
        return
    table = Table("file job", f"median of {arguments.repeat}", title_justify="left")
    table.columns[1].justify = "right"
    for name, value in figures.items():
        table.add_row(name.replace("_", " "), f"{value:.1%}" if name == "share" else str(value))
    Console().print(table)


if __name__ == "__main__":
    main()
