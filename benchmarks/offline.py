"""How fast a file is restored from end to end, beside VapourSynth, and beside decoding and encoding alone.

    python benchmarks/offline.py [--clip FILE] [--size 640x360 1280x720] [--seconds 20] [--repeat 3] [--json]

The clip, scaled to each size and repeated until it is so long, in turns by whole processes, each from its start to its
finished file:

deblurd enhance    the command, `--strength 1`: every frame is restored by the OpenVINO engine.
mlrt-ov            VapourSynth with its OpenVINO plugin: the same graph, precision and encoder. PyAV decodes and encodes
                   in the same process, so that it pays for no pipe and no index; it neither looks for damage nor
                   can it go on where it was interrupted. With one stream, and with as many as there are cores.
decode + encode    the same, and nothing between.

fps           frames a second, the start of the process included
steady fps    the same without it: what each frame more adds to the time of a clip of a few frames
start         seconds for that short clip: `deblurd` keeps the compiled model, VapourSynth compiles it each time
CPU s         processor seconds a frame, of the whole run
busy          the share of all cores that the run used
agrees        PSNR of the luma to what `deblurd` wrote; of decode + encode, by how much restoring changed the picture
allowed       cores / (processor seconds a frame of decoder, engine and encoder, each alone with its conversions)
x peer        how many times as fast as the fastest mlrt-ov in the same turn

Medians of all turns. A peer that cannot run is named with the reason. VapourSynth needs a Python of its own where this
one is too old for it:
`pip install VapourSynth vapoursynth-mlrt-ov numpy av` there, and name it with --vapoursynth.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import count, islice
from pathlib import Path
from typing import Any, cast

import av
import cv2
import numpy as np
import onnx
from av.video.codeccontext import VideoCodecContext
from cpu_peers import CORES, float_planes
from offline_ends import pixels_of
from rich.console import Console
from rich.table import Table

from daemon.colour import matrix_of
from daemon.encoding import Encoding
from daemon.errors import DaemonError
from daemon.file_source import FileSource
from daemon.segment_writer import SegmentWriter
from daemon.video_setup import VideoSetup, video_setup
from engine.backends import open_engine
from engine.errors import EngineError
from engine.model import Precision, load_model
from engine.protocol import Engine, EngineOptions, Frames, Ticket

CLIP = Path(__file__).parent.parent / "tests" / "media" / "demo_blurred.mp4"
ENDS = Path(__file__).with_name("offline_ends.py")
OURS, ALONE = "deblurd enhance", "decode + encode"
SHORT = 8
"""Frames of the clip by which the start is measured."""
SAMPLE = 48
"""Frames by which the parts are measured."""


@dataclass
class Case:
    """One thing that is measured. commands: for the short clip and for the long one; both write `target`."""

    name: str
    commands: tuple[list[str], list[str]]
    target: Path
    start_s: list[float] = field(default_factory=list)
    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)


class UnableError(Exception):
    """A command did not end well; the text is its last line."""


def made(clip: Path, target: Path, size: tuple[int, int], frames: int) -> Path:
    """`frames` frames of `clip`, again and again, scaled to `size`: H.264, 4:2:0, no sound."""
    with av.open(str(target), "w") as output:
        with av.open(str(clip)) as source:
            rate = source.streams.video[0].average_rate or Fraction(30)
        stream = output.add_stream("libx264", rate=rate, options={"crf": "17", "preset": "faster"})
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        for number, frame in enumerate(islice(endless(clip), frames)):
            scaled = frame.reformat(*size, format="yuv420p", interpolation="BICUBIC")
            scaled.pts, scaled.time_base, scaled.pict_type = number, 1 / rate, 0
            output.mux(stream.encode(scaled))
        output.mux(stream.encode(None))
    return target


def endless(clip: Path) -> Iterator[av.VideoFrame]:
    for _ in count():
        with av.open(str(clip)) as source:
            yield from source.decode(video=0)


def run(command: list[str]) -> tuple[float, float]:
    """Wall and processor seconds of a command. Raises UnableError."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    try:
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise UnableError(f"{command[0]}: {error.strerror}") from error
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if ended.returncode:
        raise UnableError((ended.stderr.strip().splitlines() or [f"ended with status {ended.returncode}"])[-1])
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def unit_planes(graph: bytes) -> bytes:
    """The graph for what VapourSynth has: planes of floats from 0 to 1, in and out."""
    model = onnx.load_from_string(float_planes(graph))
    nodes = model.graph.node
    for node in nodes:
        for i, name in enumerate(node.input):
            node.input[i] = {"frames": "levels_in"}.get(name, name)
        for i, name in enumerate(node.output):
            node.output[i] = {"restored": "levels_out"}.get(name, name)
    for name, value in (("to_levels", 255), ("to_units", 1 / 255)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(value, np.float32), name))
    nodes.insert(0, onnx.helper.make_node("Mul", ["frames", "to_levels"], ["levels_in"]))
    nodes.append(onnx.helper.make_node("Mul", ["levels_out", "to_units"], ["restored"]))
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def cases(clips: tuple[Path, Path], frames: int, model: str, precision: Precision, vapoursynth: str) -> list[Case]:
    """Everything to measure, of the short clip and the long one, which lie in a folder that will go away."""
    folder = clips[1].parent
    loaded = load_model(model)
    graph = folder / "planes.onnx"
    graph.write_bytes(unit_planes(loaded.graph(precision)))
    known = {
        "graph": str(graph),
        "stride": loaded.manifest.stride,
        "precision": "bf16" if precision == "bf16" else "f32",
    }
    peers = [(f"mlrt-ov, {streams} stream{'s' * (streams > 1)}", streams) for streams in sorted({1, CORES})]

    target = folder / "ours.mp4"
    tool = [sys.executable, "-m", "daemon", "enhance", "--strength", "1", "--engine", "openvino", "--model", model]
    commands = [[*tool, "--overwrite", "--quiet", str(clip), "-o", str(target)] for clip in clips]
    found = [Case(OURS, (commands[0], commands[1]), target)]
    for name, more in (*((name, known | {"streams": streams}) for name, streams in peers), (ALONE, {})):
        target = folder / f"{name}.mp4"
        python = vapoursynth if more else sys.executable
        commands = []
        for clip, length in zip(clips, (SHORT, frames), strict=True):
            task = task_of(clip, target, length) | more
            file = folder / f"{name} {length}.json"
            file.write_text(json.dumps(task), encoding="utf-8")
            commands.append([python, str(ENDS), str(file)])
        found.append(Case(name, (commands[0], commands[1]), target))
    return found


def task_of(clip: Path, target: Path, frames: int) -> dict[str, Any]:
    """What `deblurd enhance` would open its encoder with."""
    video = video_setup(clip, target, Encoding())
    context = av.CodecContext.create(video.encoder, "w")  # not opened: opening takes the options away
    assert isinstance(context, VideoCodecContext)
    video.configure(context)
    return {
        "source": str(clip),
        "target": str(target),
        "frames": frames,
        "encoder": video.encoder,
        "options": dict(context.options),
        "threads": video.setup.threads,
        "pix_fmt": video.setup.pix_fmt,
        "size": video.size,
        "rate": str(video.rate),
        "time_base": str(video.time_base),
        "matrix": matrix_of(video.setup.colour, video.size[1]),
    }


def parts(clip: Path, engine: Engine, video: VideoSetup) -> dict[str, float]:
    """Processor seconds a frame of decoder, engine and encoder, each alone with the conversions that it needs."""
    cpu, number = time.process_time(), 0
    with FileSource(clip) as source:
        for _ in source:
            number += 1
    spent = {"decode": (time.process_time() - cpu) / number}
    with FileSource(clip) as source:
        frames = list(islice(source, SAMPLE))
    height, width = frames[0].pixels.shape[:2]
    border = (0, -height % engine.spec.stride, 0, -width % engine.spec.stride)
    tiles = [cv2.copyMakeBorder(frame.pixels, *border, cv2.BORDER_REFLECT_101)[None] for frame in frames]
    list(through(engine, tiles[:1]))  # the first of a size takes longer
    cpu = time.process_time()
    pictures = [tile[0, :height, :width] for tile in through(engine, tiles)]
    spent["engine"] = (time.process_time() - cpu) / len(frames)
    with tempfile.TemporaryDirectory(prefix="deblurd-") as folder:
        cpu = time.process_time()
        with closing(SegmentWriter(Path(folder) / "alone", clip, video)) as writer:
            for frame, picture in zip(frames, pictures, strict=True):
                writer.send(replace(frame, pixels=picture))
        spent["encode"] = (time.process_time() - cpu) / len(frames)
        writer.discard()
    return spent


def through(engine: Engine, tiles: list[Frames]) -> Iterator[Frames]:
    """The tiles restored, all slots in use."""
    waiting: deque[Ticket] = deque()
    for tile in [*tiles, *[None] * engine.spec.slots]:
        if waiting and (tile is None or len(waiting) == engine.spec.slots):
            with waiting.popleft().result() as result:
                yield result.frames.copy()
        if tile is not None:
            waiting.append(engine.submit(tile))


def luma_psnr_db(one: Path, other: Path) -> float:
    errors = []
    with av.open(str(one)) as first, av.open(str(other)) as second:
        for pair in zip(first.decode(video=0), second.decode(video=0), strict=True):
            left, right = (pixels_of(frame.planes[0]).astype(np.float32) for frame in pair)
            errors.append(float(np.mean(np.square(left - right))))
    error = float(np.mean(errors))
    return 10 * math.log10(255**2 / error) if error else 99.9


def measure(arguments: argparse.Namespace, size: tuple[int, int]) -> dict[str, Any]:
    skipped: dict[str, str] = {}
    with (
        tempfile.TemporaryDirectory(prefix="deblurd-") as folder,
        open_engine("openvino", arguments.model, EngineOptions()) as engine,
    ):
        with FileSource(arguments.clip) as source:
            frames = max(SAMPLE, round(arguments.seconds * source.rate))
        lengths = {"short": SHORT, "long": frames}
        short, long = (made(arguments.clip, Path(folder) / f"{n}.mp4", size, k) for n, k in lengths.items())
        precision = cast("Precision", engine.spec.backend.split()[-1])  # as in `openvino/CPU bf16`
        running = cases((short, long), frames, arguments.model, precision, arguments.vapoursynth)
        for case in running[:]:  # once for the caches, and to see that it runs
            try:
                run(case.commands[0])
            except UnableError as error:
                if case.name == OURS:
                    raise SystemExit(f"{OURS}: {error}") from error
                skipped[case.name] = str(error)
                running.remove(case)
        video = video_setup(long, Path(folder) / "alone.mp4", Encoding())
        spent: dict[str, list[float]] = {}
        load = [os.getloadavg()[0]]
        for _ in range(arguments.repeat):
            for name, seconds in parts(long, engine, video).items():
                spent.setdefault(name, []).append(seconds)
            for case in running:
                case.start_s.append(run(case.commands[0])[0])
                wall, cpu = run(case.commands[1])
                case.wall_s.append(wall)
                case.cpu_s.append(cpu)
        load.append(os.getloadavg()[0])
        return {
            "size": "{}x{}".format(*size),
            "frames": frames,
            "cores": CORES,
            "load": load,
            "model": arguments.model,
            "precision": precision,
            "encoder": " ".join([video.encoder, *(f"{key}={value}" for key, value in video.setup.options.items())]),
            **allowed(running[0], frames, spent),
            "rows": [row(case, running, frames) for case in running],
            "skipped": skipped,
        }


def allowed(ours: Case, frames: int, spent: dict[str, list[float]]) -> dict[str, float]:
    """What the summed processor seconds of the parts allow, and how much of it `ours` reached, turn by turn."""
    limits = [CORES / sum(turn) for turn in zip(*spent.values(), strict=True)]
    shares = [frames / wall / limit for wall, limit in zip(ours.wall_s, limits, strict=True)]
    steady = [fps / limit for fps, limit in zip(steady_fps(ours, frames), limits, strict=True)]
    return {
        **{f"cpu_ms_{name}": round(median(seconds) * 1000, 1) for name, seconds in spent.items()},
        "allowed_fps": round(median(limits), 2),
        "share": round(median(shares), 3),
        "steady_share": round(median(steady), 3),
    }


def steady_fps(case: Case, frames: int) -> list[float]:
    return [(frames - SHORT) / (wall - start) for wall, start in zip(case.wall_s, case.start_s, strict=True)]


def row(case: Case, running: list[Case], frames: int) -> dict[str, Any]:
    figures = {
        "what": case.name,
        "fps": round(median([frames / wall for wall in case.wall_s]), 2),
        "steady_fps": round(median(steady_fps(case, frames)), 2),
        "start_s": round(median(case.start_s), 2),
        "cpu_s_a_frame": round(median(case.cpu_s) / frames, 4),
        "busy": round(median([cpu / wall / CORES for cpu, wall in zip(case.cpu_s, case.wall_s, strict=True)]), 3),
        "mb": round(case.target.stat().st_size / 1e6, 2),
    }
    peers = [other for other in running if other.name not in (OURS, ALONE)]
    if case.name == OURS and peers:
        # Against the fastest in the same turn, so that what else the machine did then weighs on both.
        turns = zip(case.wall_s, *(peer.wall_s for peer in peers), strict=True)
        figures["fastest_peer"] = round(median([min(theirs) / own for own, *theirs in turns]), 2)
    if case.name != OURS:
        figures["agrees_db"] = round(luma_psnr_db(running[0].target, case.target), 1)
    return figures


def median(values: list[float]) -> float:
    return float(np.median(values))


def show(figures: dict[str, Any], console: Console) -> None:
    load = " to ".join(f"{value:.1f}" for value in figures["load"])
    console.print(
        f"{figures['size']}, {figures['frames']} frames, {figures['model']} in {figures['precision']}, "
        f"{figures['encoder']}; {figures['cores']} cores, load {load}"
    )
    heads = ("fps", "steady fps", "start s", "CPU s", "busy", "MB", "x peer", "agrees dB")
    table = Table("", *heads, padding=0)
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    names = ("what", "fps", "steady_fps", "start_s", "cpu_s_a_frame", "busy", "mb", "fastest_peer", "agrees_db")
    for each in figures["rows"]:
        table.add_row(*(str(each.get(name, "")) for name in names))
    console.print(table)
    console.print(
        f"CPU ms a frame: decode {figures['cpu_ms_decode']}, engine {figures['cpu_ms_engine']}, encode "
        f"{figures['cpu_ms_encode']}: allowed {figures['allowed_fps']} fps; {OURS} reaches {figures['share']:.1%} "
        f"of it, {figures['steady_share']:.1%} after its start"
    )
    for name, reason in figures["skipped"].items():
        console.print(f"skipped {name}: {reason}")


def even_size(text: str) -> tuple[int, int]:
    width, height = map(int, text.split("x"))
    if width < 16 or height < 16 or width % 2 or height % 2:  # 4:2:0
        raise ValueError
    return width, height


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clip", type=Path, default=CLIP)
    parser.add_argument("--size", type=even_size, nargs="+", default=[(640, 360), (1280, 720)], metavar="WxH")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long the clip is made")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--model", default="fast")
    parser.add_argument("--vapoursynth", metavar="PYTHON", default=sys.executable, help="a Python that has VapourSynth")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    console = Console()
    every = []
    for size in arguments.size:
        try:
            every.append(measure(arguments, size))
        except (DaemonError, EngineError) as error:
            raise SystemExit(f"{parser.prog}: {error}") from error
        if not arguments.json:
            show(every[-1], console)
    if arguments.json:
        print(json.dumps(every, indent=2))


if __name__ == "__main__":
    main()
