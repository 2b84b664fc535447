"""How frames reach another process: how old, how many, at what cost, and what one slow receiver does to all that.

    python benchmarks/transport.py [--peers PYTHON] [--turns 3] [--seconds 10] [--only REGEX] [--json]

A publisher and its receivers, each in a process of its own on this host, exchange raw frames of 1280x720 and 1920x1080:
at 30 frames a second, and flat out. A receiver is fast (it reads all pixels), or slow (and then works 66 ms on the
frame, without the processor, as with a GPU).

deblurd     `newest`, `paced` and `shared`, the modes of `Subscriber`, over TCP and ipc, with all settings at their
            defaults.
pyzmq       PUB and SUB over ipc as they come, with `copy=False`.
imagezmq    ImageSender and ImageHub with `REQ_REP=False`.
NetGear     vidgear's, with `pattern=2`, and `jpeg_compression=False` as all others here send raw pixels.

The last two want a Python of their own:

    python -m venv peers && peers/bin/pip install imagezmq==1.2.0 vidgear==0.3.6 opencv-python-headless pyzmq simplejpeg
    python benchmarks/transport.py --peers peers/bin/python

A frame's pixels are copied from a picture into what is published, as a network would write them there: deblurd lends
the memory for that, the others get a new array each time. The copy counts as processor time of the sender, and not as
latency.

latency     From the call that publishes to when the receiver has read all pixels; p50 and p99 of those that came.
frames/s    That came.
CPU         Processor time of each side for a frame that it sent or received, in ms.
grew        Resident memory of each side, the most of it since the measurement began, in MB; Linux only. Who grows by
            3 GB is stopped there.
age         Of the frame in work when the work on it is done, with the 66 ms: the last one, and the worst.

five        Four fast receivers, and the same four beside a slow one: 1280x720 at 30 frames a second.

Ways take turns, in another order each time; medians of all turns.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import zmq
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

ENDS = Path(__file__).with_name("transport_ends.py")
PATIENCE_S = 30.0
SETTLING_S = 0.5
"""What comes in the beginning is not counted."""
WORK_S = 0.066
FPS = 30


class BenchmarkError(Exception):
    """An end could not run."""


@dataclass(frozen=True)
class Way:
    """mode: in `transport_ends.py`; transport: `tcp` or `ipc`."""

    mode: str
    transport: str

    @property
    def peer(self) -> bool:
        return self.mode in ("imagezmq", "NetGear")

    @property
    def name(self) -> str:
        return f"{self.mode}, {self.transport}"


WAYS = [
    *(Way(mode, transport) for mode in ("newest", "paced", "shared") for transport in ("tcp", "ipc")),
    Way("pyzmq", "ipc"),
    Way("imagezmq", "tcp"),
    Way("NetGear", "tcp"),
]


@dataclass(frozen=True)
class Case:
    """fps: 0 is flat out. receivers: how long each works on a frame."""

    height: int
    fps: int
    receivers: tuple[float, ...]
    seconds: float

    @property
    def width(self) -> int:
        return self.height * 16 // 9

    @property
    def title(self) -> str:
        pace = f"{self.fps} frames/s" if self.fps else "flat out"
        if len(self.receivers) > 1:
            return f"{self.height}p, {pace}, {len(self.receivers)} receivers"
        return f"{self.height}p, {pace}, {'slow' if self.receivers[0] else 'fast'} receiver"


class End:
    """A process that runs `transport_ends.py`. BenchmarkError, with what it said last, when it does not go on."""

    def __init__(self, python: str, role: str, way: str, endpoint: str, options: dict[str, Any]) -> None:
        command = [python, str(ENDS), role, way, endpoint, json.dumps(options)]
        environment = {**os.environ, "PYTHONPATH": str(ENDS.parents[1])}
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        pipe = subprocess.PIPE
        try:
            self._process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=self._errors, text=True, env=environment
            )
        except OSError as error:
            self._errors.close()
            raise BenchmarkError(f"{python}: {error.strerror}") from None

    def hear(self) -> dict[str, Any]:
        """What it says next."""
        assert self._process.stdout
        watch = threading.Timer(PATIENCE_S, self._process.kill)
        watch.start()
        line = self._process.stdout.readline()
        watch.cancel()
        if not line:
            raise self._failure()
        words: dict[str, Any] = json.loads(line)
        return words

    def tell(self) -> None:
        """To begin, or to stop."""
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # it has stopped by itself, or failed: `finish` says which
            print("go on", file=self._process.stdin, flush=True)

    def finish(self) -> None:
        try:
            if self._process.wait(PATIENCE_S) == 0:
                return
        except subprocess.TimeoutExpired:
            self._process.kill()
        raise self._failure()

    def _failure(self) -> BenchmarkError:
        status = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        return BenchmarkError(lines[-1] if lines else f"ended with status {status}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()


def free_port() -> int:
    """A port of which the next one is free, too."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            try:
                second.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port


@contextlib.contextmanager
def place(way: Way) -> Iterator[tuple[str, Path]]:
    """An endpoint, and a folder for files."""
    with tempfile.TemporaryDirectory(prefix="deblurd-") as folder:
        yield f"ipc://{folder}/socket" if way.transport == "ipc" else f"tcp://127.0.0.1:{free_port()}", Path(folder)


def run(way: Way, case: Case, python: str) -> dict[str, Any]:
    """One turn of one way."""
    options = {"height": case.height, "width": case.width, "fps": case.fps, "seconds": case.seconds}
    with place(way) as (endpoint, folder), contextlib.ExitStack() as ends:
        outs = [folder / f"{number}.npy" for number in range(len(case.receivers))]
        sender = ends.enter_context(End(python, "send", way.mode, endpoint, options))
        receivers = [
            ends.enter_context(
                End(python, "receive", way.mode, endpoint, {**options, "work_s": work_s, "out": str(out)})
            )
            for work_s, out in zip(case.receivers, outs, strict=True)
        ]
        for end in (sender, *receivers, *receivers):  # receivers: that they are there, that a frame came
            end.hear()
        sender.tell()
        sent = sender.hear()
        for end in receivers:
            end.tell()
        for end in receivers:
            end.finish()
        sender.tell()
        return figures(sent, [np.load(out) for out in outs], case)


def figures(sent: dict[str, Any], taken: list[NDArray[np.int64]], case: Case) -> dict[str, Any]:
    """taken: of each receiver, a row for each frame as `transport_ends.receive` writes it."""
    sides = [received(rows, sent) for rows in taken]
    fast = [side for side, work_s in zip(sides, case.receivers, strict=True) if not work_s] or sides
    slow = [side for side, work_s in zip(sides, case.receivers, strict=True) if work_s]
    latency_ms = np.concatenate([side["latency_ms"] for side in fast])
    result = {
        "latency_p50_ms": float(np.percentile(latency_ms, 50)),
        "latency_p99_ms": float(np.percentile(latency_ms, 99)),
        "fps": float(np.mean([side["fps"] for side in fast])),
        "sent_fps": sent["sent"] / (sent["ended_ns"] - sent["began_ns"]) * 1e9,
        "cpu_sender_ms": sent["cpu_ms"],
        "cpu_receiver_ms": float(np.mean([side["cpu_ms"] for side in fast])),
        "grew_sender_mb": sent["grew"] / 1e6,
        "grew_receiver_mb": max(side["grew"] for side in sides) / 1e6,
    }
    if slow:
        result |= {"age_ms": slow[0]["age_ms"], "worst_age_ms": slow[0]["worst_age_ms"]}
    return result


def received(rows: NDArray[np.int64], sent: dict[str, Any]) -> dict[str, Any]:
    began_ns, settled_ns = sent["began_ns"], sent["began_ns"] + SETTLING_S * 1e9
    rows = rows[(rows[:, 0] >= began_ns) & (rows[:, 2] <= sent["ended_ns"])]
    settled = rows[rows[:, 1] >= settled_ns]
    if len(settled) < 2:
        raise BenchmarkError("no two frames came")
    sent_ns, in_hand_ns, done_ns, cpu_ns = settled.T[:4]
    return {
        "latency_ms": (in_hand_ns - sent_ns) / 1e6,
        "fps": (len(settled) - 1) / (in_hand_ns[-1] - in_hand_ns[0]) * 1e9,
        "cpu_ms": (cpu_ns[-1] - cpu_ns[0]) / (len(settled) - 1) / 1e6,
        "grew": int(rows[:, 4].max() - rows[0, 4]),
        "age_ms": (done_ns[-1] - sent_ns[-1]) / 1e6,
        "worst_age_ms": float((done_ns - sent_ns).max() / 1e6),
    }


def cases(seconds: float) -> list[Case]:
    """One receiver in all sizes, paces and speeds; then four fast ones, alone and beside a slow one."""
    single = [
        Case(height, fps, (work_s,), seconds) for height in (720, 1080) for fps in (FPS, 0) for work_s in (0.0, WORK_S)
    ]
    return [*single, Case(720, FPS, (0.0,) * 4, seconds), Case(720, FPS, (0.0,) * 4 + (WORK_S,), seconds)]


def measure(cases: list[Case], only: str, turns: int, peers: str | None, console: Console) -> dict[str, Any]:
    taken: dict[tuple[str, str], list[dict[str, Any]]] = {}
    left_out: dict[str, str] = {}
    load = [os.getloadavg()[0]]
    for turn in range(turns):
        for case in cases:
            start = turn % len(WAYS)
            for way in WAYS[start:] + WAYS[:start]:
                place = case.title, way.name
                if not re.search(only, ": ".join(place)):
                    continue
                if way.peer and peers is None:
                    left_out[way.name] = "no --peers PYTHON that has it"
                elif way.mode == "NetGear" and len(case.receivers) > 1:
                    left_out[f"{way.name}, five"] = "in PUB/SUB it has one receiver"
                else:
                    try:
                        result = run(way, case, peers if way.peer and peers else sys.executable)
                    except BenchmarkError as error:
                        left_out[f"{way.name}: {case.title}"] = str(error)
                        continue
                    taken.setdefault(place, []).append(result)
                    console.print(f"{turn + 1}/{turns} {', '.join(place)}", style="dim")
        load.append(os.getloadavg()[0])
    return {
        "machine": f"{processor()}, {os.cpu_count()} cores",
        "versions": {"python": platform.python_version(), "pyzmq": zmq.__version__, "libzmq": zmq.zmq_version()},
        "turns": turns,
        "load": load,
        "rows": [
            {"case": case, "way": way, "turns": len(results), **medians(results)}
            for (case, way), results in sorted(taken.items(), key=lambda item: order(cases, item[0]))
        ],
        "left_out": left_out,
    }


def order(cases: list[Case], place: tuple[str, str]) -> tuple[int, int]:
    return [case.title for case in cases].index(place[0]), [way.name for way in WAYS].index(place[1])


def medians(results: list[dict[str, Any]]) -> dict[str, float]:
    return {name: round(float(np.median([each[name] for each in results])), 2) for name in results[0]}


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())


COLUMNS = {
    "latency_p50_ms": "latency p50",
    "latency_p99_ms": "p99",
    "fps": "frames/s",
    "sent_fps": "sent",
    "cpu_sender_ms": "CPU, sender",
    "cpu_receiver_ms": "receiver",
    "grew_sender_mb": "grew, sender",
    "grew_receiver_mb": "receiver",
    "age_ms": "age at the end",
    "worst_age_ms": "worst",
}


def table(title: str, rows: list[dict[str, Any]]) -> Table:
    names = [name for name in COLUMNS if name in rows[0]]
    made = Table("way", *(COLUMNS[name] for name in names), title=title, title_justify="left")
    for column in made.columns[1:]:
        column.justify = "right"
    for row in rows:
        made.add_row(row["way"], *(f"{row[name]:.2f}" if row[name] < 100 else f"{row[name]:.0f}" for name in names))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peers", metavar="PYTHON", help="a Python that has imagezmq and vidgear")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each way in each case, in each turn")
    parser.add_argument("--only", metavar="REGEX", default="", help="of CASE: WAY, e.g. '^720p, 30.*: shared'")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    all_cases = cases(arguments.seconds)
    console = Console()
    result = measure(all_cases, arguments.only, arguments.turns, arguments.peers, Console(stderr=True))
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    load = " to ".join(f"{value:.1f}" for value in (min(result["load"]), max(result["load"])))
    console.print(f"{result['machine']}; medians of {result['turns']} turns, load {load}")
    for case in all_cases:
        rows = [row for row in result["rows"] if row["case"] == case.title]
        if rows:
            console.print(table(case.title, rows))
    for name, reason in result["left_out"].items():
        console.print(f"left out {name}: {reason}")


if __name__ == "__main__":
    main()
