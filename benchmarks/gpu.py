"""What the engines do on an NVIDIA GPU: built, checked and measured in one go.

    python benchmarks/gpu.py [--model fast] [--engine tensorrt torch] [--size 1280x720 ...] [--json FILE]

For each engine that opens here, and each frame size, on frames of the demo clip:

build s       opening it the first time: building a plan, or tuning; a second time comes from the cache
PSNR dB       against the f32 graph on the processor; below 55 the script fails
GPU ms        a frame on the device, from before its upload to after its download, by CUDA events, nothing else running
copy ms       of that, upload and download, measured on their own on the same buffers
fps           frames a second with all slots in use, batches of one, from host memory to host memory
fps batched   the same in batches of the engine's best size
of matmul     share of the device's own matrix multiplication peak (float16, 8192 x 8192), measured here
of copy       share of its copy bandwidth between page-locked and device memory, both directions, that the frames take

Exits with a status that is not zero where there is no GPU, or where an engine computes something else.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

from daemon.file_source import FileSource
from engine.backends import open_engine
from engine.driver import why_no_gpu
from engine.errors import EngineError
from engine.model import load_model
from engine.protocol import Engine, EngineOptions, Frames, Ticket

CLIP = Path(__file__).parents[1] / "tests" / "media" / "demo_blurred.mp4"
SIZES = ("640x360", "1280x720", "1920x1080", "3840x2160")
LEAST_PSNR_DB = 55.0
REPEATS = 50
SECONDS = 3.0
"""How long each rate of frames is measured."""

Timed = Callable[[Callable[[], None]], float]
"""Runs something that queues work for the device, and gives the milliseconds that the device took."""


def clip_frames(width: int, height: int, stride: int) -> list[Frames]:
    """Frames of the clip at a size, padded to whole strides, each (1, H, W, 3)."""
    bottom, right = -height % stride, -width % stride
    frames = []
    with FileSource(CLIP) as source:
        for frame in source:
            scaled = cv2.resize(frame.pixels, (width, height), interpolation=cv2.INTER_CUBIC)
            frames.append(cv2.copyMakeBorder(scaled, 0, bottom, 0, right, cv2.BORDER_REFLECT_101)[None])
            if len(frames) == 8:
                break
    return [np.ascontiguousarray(frame) for frame in frames]


def restored(engine: Engine, frames: list[Frames]) -> list[Frames]:
    results = []
    for frame in frames:
        with engine.submit(frame).result() as result:
            results.append(result.frames.copy())
    return results


def psnr_db(truth: list[Frames], got: list[Frames]) -> float:
    error = np.mean([np.mean(np.square(a.astype(np.float32) - b)) for a, b in zip(truth, got, strict=True)])
    return 10 * math.log10(255**2 / float(error)) if error else 100.0


def rate(engine: Engine, frames: list[Frames], count: int) -> float:
    """Frames a second through all slots, in batches of `count`."""
    batches = [np.concatenate([frames[(i + k) % len(frames)] for k in range(count)]) for i in range(len(frames))]
    waiting: deque[Ticket] = deque()
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < SECONDS:
        if len(waiting) == engine.spec.slots:
            waiting.popleft().result().release()
            done += count
        waiting.append(engine.submit(batches[done // count % len(batches)]))
    while waiting:
        waiting.popleft().result().release()
        done += count
    return done / (time.perf_counter() - began)


@contextmanager
def on_device(engine: Engine) -> Iterator[tuple[Timed, Callable[[Frames], None], Callable[[Frames], None]]]:
    """How to time the device under `engine`, what restores a frame of some shape, and what only copies it."""
    slot: Any = engine._slots.take()  # type: ignore[attr-defined] # nothing else measures one batch inside the device
    give = engine._slots.give  # type: ignore[attr-defined]
    try:
        if engine.spec.backend.startswith("tensorrt"):
            device = engine._device  # type: ignore[attr-defined]
            with device.current() as cuda:
                yield (
                    lambda work: _pycuda_ms(cuda, slot._stream, work),
                    lambda frame: slot.lane(frame.shape[:3]).run(),
                    lambda frame: _pycuda_copies(cuda, slot, frame),
                )
        else:
            with slot._here():
                yield (
                    lambda work: _torch_ms(slot._stream, work),
                    lambda frame: _torch_run(slot, frame),
                    lambda frame: _torch_copies(slot, frame),
                )
    finally:
        give(slot)


def _pycuda_ms(cuda: Any, stream: Any, work: Callable[[], None]) -> float:
    before, after = cuda.Event(), cuda.Event()
    before.record(stream)
    work()
    after.record(stream)
    after.synchronize()
    return float(before.time_till(after))


def _pycuda_copies(cuda: Any, slot: Any, frame: Frames) -> None:
    lane = slot.lane(frame.shape[:3])
    cuda.memcpy_htod_async(int(lane.memory["frames"]), lane.frames, slot._stream)
    cuda.memcpy_dtoh_async(lane.restored, int(lane.memory["restored"]), slot._stream)


def _torch_ms(stream: Any, work: Callable[[], None]) -> float:
    import torch

    before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    before.record(stream)
    work()
    after.record(stream)
    after.synchronize()
    return float(before.elapsed_time(after))


def _torch_run(slot: Any, frame: Frames) -> None:
    plan = slot._plan(frame.shape[:3])
    plan.inputs["frames"].copy_(plan.host_in, non_blocking=True)
    if plan.graph is not None:
        plan.graph.replay()
    else:
        plan.outputs = slot._network.run(plan.inputs)
    plan.host_out.copy_(plan.outputs["restored"], non_blocking=True)


def _torch_copies(slot: Any, frame: Frames) -> None:
    plan = slot._plan(frame.shape[:3])
    plan.inputs["frames"].copy_(plan.host_in, non_blocking=True)
    plan.host_out.copy_(plan.inputs["frames"], non_blocking=True)


def device_ms(engine: Engine, frames: list[Frames]) -> tuple[float, float]:
    """(milliseconds of a frame, of which copies), medians."""
    with on_device(engine) as (timed, restore, copy):
        whole, copies = [], []
        for i in range(REPEATS + 5):
            frame = frames[i % len(frames)]
            whole.append(timed(lambda frame=frame: restore(frame)))  # type: ignore[misc]
            copies.append(timed(lambda frame=frame: copy(frame)))  # type: ignore[misc]
    return statistics.median(whole[5:]), statistics.median(copies[5:])


def peaks() -> dict[str, float]:
    """The device's own peaks, by torch: multiply-accumulates and bytes a second. Empty without it."""
    try:
        import torch
    except ImportError:
        return {}
    if not torch.cuda.is_available():
        return {}
    side = 8192
    a = torch.randn(side, side, dtype=torch.float16, device="cuda")
    stream = torch.cuda.current_stream()
    matmul = [_torch_ms(stream, lambda: torch.mm(a, a)) for _ in range(20)]
    host = torch.empty(1 << 28, dtype=torch.uint8, pin_memory=True)
    device = torch.empty_like(host, device="cuda")
    up = [_torch_ms(stream, lambda: device.copy_(host, non_blocking=True)) for _ in range(10)]
    down = [_torch_ms(stream, lambda: host.copy_(device, non_blocking=True)) for _ in range(10)]
    copied = 2 * host.numel() / ((statistics.median(up) + statistics.median(down)) / 1000)
    return {"mac_per_s": side**3 / (min(matmul) / 1000), "copy_bytes_per_s": copied}


def measure(name: str, model: str, size: str, cache: Path, peak: dict[str, float]) -> dict[str, Any]:
    """One engine at one frame size. Raises EngineError if it does not open."""
    manifest = load_model(model).manifest
    width, height = map(int, size.split("x"))
    frames = clip_frames(width, height, manifest.stride)
    tile = frames[0].shape[1], frames[0].shape[2]
    options = EngineOptions(device="cuda", tile_px=max(tile), sizes=(tile,), cache=cache)
    began = time.perf_counter()
    open_engine(name, model, options).close()
    first_s = time.perf_counter() - began
    began = time.perf_counter()
    with open_engine(name, model, options) as engine:
        again_s = time.perf_counter() - began
        with open_engine("openvino", model, EngineOptions(precision="f32", tile_px=max(tile))) as processor:
            psnr = psnr_db(restored(processor, frames[:3]), restored(engine, frames[:3]))
        gpu_ms, copy_ms = device_ms(engine, frames)
        single, batched = rate(engine, frames, 1), rate(engine, frames, engine.spec.best_batch)
        mac = manifest.mac_per_pixel * tile[0] * tile[1]
        return {
            "engine": engine.spec.backend,
            "size": size,
            "build_s": round(first_s, 2),
            "again_s": round(again_s, 2),
            "psnr_db": round(psnr, 1),
            "gpu_ms": round(gpu_ms, 3),
            "copy_ms": round(copy_ms, 3),
            "copy_share": round(copy_ms / gpu_ms, 3),
            "fps": round(single, 1),
            "fps_batched": round(batched, 1),
            "best_batch": engine.spec.best_batch,
            "of_matmul": round(mac / ((gpu_ms - copy_ms) / 1000) / peak["mac_per_s"], 3) if peak else None,
            "of_copy": round(2 * frames[0].nbytes * single / peak["copy_bytes_per_s"], 3) if peak else None,
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="fast")
    parser.add_argument("--engine", nargs="+", default=["tensorrt", "torch"])
    parser.add_argument("--size", nargs="+", default=list(SIZES), metavar="WIDTHxHEIGHT")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    arguments = parser.parse_args()
    reason = why_no_gpu()
    if reason:
        sys.exit(f"gpu.py: needs an NVIDIA GPU: {reason}")
    rows, refused, peak = [], [], peaks()
    with tempfile.TemporaryDirectory(prefix="deblurd-") as cache:
        for name in arguments.engine:
            for size in arguments.size:
                try:
                    rows.append(measure(name, arguments.model, size, Path(cache) / "engines", peak))
                except EngineError as error:
                    refused.append({"engine": name, "size": size, "reason": str(error)})
    report = {"date": datetime.datetime.now(datetime.UTC).date().isoformat(), "model": arguments.model, "peak": peak}
    report |= {"rows": rows, "refused": refused}
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    show(report)
    return 0 if rows and all(row["psnr_db"] >= LEAST_PSNR_DB for row in rows) else 1


def show(report: dict[str, Any]) -> None:
    console = Console()
    table = Table(title=f"{report['model']}, {report['date']}", title_justify="left")
    for column in report["rows"][0] if report["rows"] else ():
        table.add_column(column.replace("_", " "), justify="left" if column in ("engine", "size") else "right")
    for row in report["rows"]:
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    console.print(table)
    if report["peak"]:
        mac, copied = report["peak"]["mac_per_s"] / 1e12, report["peak"]["copy_bytes_per_s"] / 1e9
        console.print(f"peak: {mac:.0f} TMAC/s float16, {copied:.1f} GB/s between host and device")
    for line in report["refused"]:
        console.print(f"refused: {line['engine']} at {line['size']}: {line['reason']}", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
