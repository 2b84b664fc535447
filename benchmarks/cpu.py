"""How fast the OpenVINO engine is, beside its peers and beside what the processor can do.

    python benchmarks/cpu.py [--clip FILE] [--size 1280x720] [--repeat 5] [--model fast] [--json]

All in one run, in turns, on the same frames of a real clip; medians of all repeats. For every precision that the
model allows and the processor has:

engine              `open_engine("openvino")`: uint8 frames in, uint8 frames out. `latency` is one frame at a time on
                    all cores; `throughput` keeps as many in flight as there are cores.
onnxruntime         ONNX Runtime's CPU provider on the same graph, all cores, one frame at a time. It has no bf16.
mlrt-ov             VapourSynth's OpenVINO plugin, in a process of its own. It takes float planes, so its graph is
                    the same without the uint8 conversions at both ends: the conversions of 8-bit video are not
                    counted here, and neither is its source, whose frames wait in VapourSynth's cache. `latency` asks
                    for frame after frame with one stream, `throughput` for several with a stream a core.
convolution peak    What a plain 3x3 convolution of 64 channels reaches in OpenVINO at a quarter of the frame's width
                    and height: what each of eight more adds to the time of two.

GMAC/s are those of the model's manifest, whatever a back-end saves. `x fastest peer`: how many times as fast as the
fastest peer of that precision in the same turn. `agrees`: the PSNR to the engine's f32. A peer that cannot run is named
with the reason. VapourSynth needs a Python of its own where this one is too old for it:
`pip install VapourSynth vapoursynth-mlrt-ov numpy` there, and name it with --vapoursynth.

Not `engine.py`: a script of that name would hide the package `engine` from all scripts beside it.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import platform
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openvino as ov
from cpu_peers import CORES, Bench, Case, onnxruntime_case, vapoursynth_cases
from openvino import properties as props
from rich.console import Console
from rich.table import Table

from daemon.file_source import FileSource
from engine.backends import open_engine
from engine.errors import EngineError
from engine.model import Precision, load_model
from engine.openvino.precision import CHANNELS, compute_in, convolutions, features
from engine.protocol import Engine, EngineOptions, Frames, Ticket

CLIP = Path(__file__).parent.parent / "tests" / "media" / "demo_sharp.mp4"
FRAMES = 8
PEAK = "convolution peak"
PRECISIONS: tuple[Precision, ...] = ("f32", "bf16", "int8")


def read_frames(clip: Path, width: int, height: int) -> list[Frames]:
    with FileSource(clip) as source:
        pixels = [cv2.resize(frame.pixels, (width, height)) for frame in islice(source, FRAMES)]
    return [np.ascontiguousarray(frame[None]) for frame in pixels]


def engine_cases(bench: Bench, precision: Precision, stack: ExitStack) -> Iterator[Case]:
    for goal, slots in (("latency", 1), ("throughput", max(2, CORES))):
        options = EngineOptions(device="CPU", precision=precision, goal=goal, slots=slots)
        engine = stack.enter_context(open_engine("openvino", str(bench.model.path), options))
        with engine.submit(bench.frames[0]).result() as result:
            restored = result.frames[0].copy()
        yield Case(f"engine, {goal}", precision, lambda engine=engine: all_slots(engine, bench.frames), restored)


def all_slots(engine: Engine, frames: list[Frames]) -> float:
    """Seconds a frame with all slots in use."""
    waiting: deque[Ticket] = deque()
    began = time.perf_counter()
    for frame in frames:
        if len(waiting) == engine.spec.slots:
            waiting.popleft().result().release()
        waiting.append(engine.submit(frame))
    while waiting:
        waiting.popleft().result().release()
    return (time.perf_counter() - began) / len(frames)


def peak_case(precision: Precision, height: int, width: int) -> Case:
    """Seconds of one convolution."""
    core, requests = ov.Core(), {}
    for count in (2, 10):
        config = {props.hint.performance_mode: props.hint.PerformanceMode.LATENCY, **compute_in(precision)}
        compiled = core.compile_model(convolutions(precision, height, width, count), "CPU", config)
        requests[count] = compiled.create_infer_request()
        requests[count].infer([features(height, width)])

    def run() -> float:
        took = {}
        for count, request in requests.items():
            times = []
            for _ in range(5):
                began = time.perf_counter()
                request.infer()
                times.append(time.perf_counter() - began)
            took[count] = min(times)
        return (took[10] - took[2]) / 8

    return Case(PEAK, precision, run)


def measure(bench: Bench, repeat: int) -> dict[str, Any]:
    _, height, width, _ = bench.frames[0].shape
    precisions = [name for name in PRECISIONS if name in bench.model.manifest.precisions]
    cases: list[Case] = []
    with ExitStack() as stack:
        for precision in precisions:
            try:
                cases += engine_cases(bench, precision, stack)
            except EngineError as error:
                bench.skip(f"engine {precision}", str(error))
                continue
            cases += onnxruntime_case(bench, precision)
            cases += vapoursynth_cases(bench, precision, stack)
            cases.append(peak_case(precision, height // 4, width // 4))
        load = [os.getloadavg()[0]]
        for _ in range(repeat):
            for case in cases:
                case.seconds.append(case.run())
        load.append(os.getloadavg()[0])
    return {
        "processor": processor(),
        "cores": CORES,
        "load": load,
        "versions": {"openvino": importlib.metadata.version("openvino"), **bench.versions},
        "model": bench.model.manifest.id,
        "size": f"{width}x{height}",
        "rows": [row for precision in precisions for row in rows(bench, cases, precision)],
        "skipped": bench.skipped,
    }


def rows(bench: Bench, cases: list[Case], precision: str) -> Iterator[dict[str, Any]]:
    _, height, width, _ = bench.frames[0].shape
    ours = next(case.restored for case in cases if case.restored is not None)
    here = [case for case in cases if case.precision == precision]
    peers = [case for case in here if case.restored is not None and not case.name.startswith("engine")]
    macs = dict.fromkeys((case.name for case in here), bench.model.manifest.mac_per_pixel * height * width)
    macs[PEAK] = CHANNELS**2 * 9 * (height // 4) * (width // 4)
    peak = next((macs[PEAK] / float(np.median(case.seconds)) for case in here if case.name == PEAK), math.nan)
    for case in here:
        seconds = float(np.median(case.seconds))
        row: dict[str, Any] = {"what": case.name, "precision": precision, "ms": round(seconds * 1000, 2)}
        row["gmac_s"] = round(macs[case.name] / seconds / 1e9, 1)
        if case.restored is not None:
            row["share_of_peak"] = round(macs[case.name] / seconds / peak, 3)
            row["agrees_db"] = round(psnr_db(ours, case.restored), 1)
        if case.name.startswith("engine") and peers:
            # Against the fastest in the same turn, so that what else the machine did then weighs on both.
            turns = zip(case.seconds, *(peer.seconds for peer in peers), strict=True)
            row["fastest_peer"] = round(float(np.median([min(theirs) / own for own, *theirs in turns])), 2)
        yield row


def psnr_db(one: Frames, other: Frames) -> float:
    error = float(np.mean(np.square(one.astype(np.float32) - other)))
    return 10 * math.log10(255**2 / error) if error else 99.9


def processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clip", type=Path, default=CLIP)
    parser.add_argument("--size", default="1280x720")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--model", default="fast")
    parser.add_argument("--vapoursynth", metavar="PYTHON", default=sys.executable, help="a Python that has VapourSynth")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    stride = load_model(arguments.model).manifest.stride
    width, height = (-(-int(side) // stride) * stride for side in arguments.size.split("x"))  # as the daemon pads
    model = load_model(arguments.model)
    bench = Bench(model, read_frames(arguments.clip, width, height), arguments.vapoursynth)
    figures = measure(bench, arguments.repeat)
    if arguments.json:
        print(json.dumps(figures, indent=2))
        return
    console = Console()
    load = " to ".join(f"{value:.1f}" for value in figures["load"])
    versions = ", ".join(f"{name} {version}" for name, version in figures["versions"].items())
    console.print(f"{figures['processor']}, {figures['cores']} cores, load {load}; {versions}")
    heads = ("precision", "ms", "GMAC/s", "of peak", "x fastest peer", "agrees, dB")
    table = Table(f"{figures['model']}, {figures['size']}", *heads)
    for column in table.columns[2:]:
        column.justify = "right"
    for row in figures["rows"]:
        share = f"{row['share_of_peak']:.0%}" if "share_of_peak" in row else ""
        cells = [row.get(name, "") for name in ("what", "precision", "ms", "gmac_s", "fastest_peer", "agrees_db")]
        table.add_row(*map(str, [*cells[:4], share, *cells[4:]]))
    console.print(table)
    for name, reason in figures["skipped"].items():
        console.print(f"skipped {name}: {reason}")


if __name__ == "__main__":
    main()
