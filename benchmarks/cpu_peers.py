"""What `cpu.py` measures the engine beside: ONNX Runtime, and VapourSynth's OpenVINO plugin.

Knows how to run a model's graph in each; nothing of our engine.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx

from engine.model import Model, Precision
from engine.protocol import Frames

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

VAPOURSYNTH = """
import json, sys, time
import numpy as np
import vapoursynth as vs

frames = np.load(sys.argv[1])  # (T, 3, H, W) float32
core = vs.core
blank = core.std.BlankClip(None, frames.shape[3], frames.shape[2], vs.RGBS, len(frames))

def fill(n, f):
    filled = f.copy()
    for plane in range(3):
        np.copyto(np.asarray(filled[plane]), frames[n, plane])
    return filled

source = core.std.ModifyFrame(blank, blank, fill)
core.std.SetVideoCache(source, mode=1, fixedsize=True, maxsize=len(frames))
for n in range(len(frames)):
    source.get_frame(n).close()
endless = core.std.Loop(source)

def model(streams):
    config = lambda: {"INFERENCE_PRECISION_HINT": sys.argv[3]}
    return core.ov.Model(endless, network_path=sys.argv[2], num_streams=streams, config=config)

clips = {"latency": model(1), "throughput": model(int(sys.argv[4]))}
asked = 0
with clips["latency"].get_frame(0) as frame:
    np.save(sys.argv[5], np.stack([np.asarray(frame[plane]) for plane in range(3)]))
print(json.dumps(dict(core.ov.Version(), vapoursynth=str(core.core_version))), flush=True)
for mode in sys.stdin:
    mode = mode.strip()
    part = clips[mode][asked:asked + len(frames)]
    asked += len(frames)  # no frame twice: it could come from a cache
    began = time.perf_counter()
    if mode == "latency":
        for n in range(len(frames)):
            part.get_frame(n).close()
    else:
        for frame in part.frames(prefetch=2 * int(sys.argv[4]), close=True):
            pass
    print((time.perf_counter() - began) / len(frames), flush=True)
"""


@dataclass
class Case:
    """One thing that is measured: `run` takes all frames and gives seconds a frame."""

    name: str
    precision: str
    run: Callable[[], float]
    restored: Frames | None = None
    seconds: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Bench:
    """What all cases share. `skipped`: peers that cannot run, and why; `versions`: what did."""

    model: Model
    frames: list[Frames]
    vapoursynth: str
    skipped: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def skip(self, name: str, reason: str) -> None:
        self.skipped[name] = reason


def onnxruntime_case(bench: Bench, precision: Precision) -> Iterator[Case]:
    try:
        import onnxruntime
    except ImportError:
        bench.skip("onnxruntime", "not installed (pip install onnxruntime)")
        return
    if precision == "bf16":
        bench.skip("onnxruntime bf16", "its CPU provider has no bf16")
        return
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = CORES
    session = onnxruntime.InferenceSession(bench.model.graph(precision), options, providers=["CPUExecutionProvider"])
    bench.versions["onnxruntime"] = onnxruntime.__version__
    (restored,) = session.run(["restored"], {"frames": bench.frames[0]})

    def run() -> float:
        began = time.perf_counter()
        for frame in bench.frames:
            session.run(["restored"], {"frames": frame})
        return (time.perf_counter() - began) / len(bench.frames)

    yield Case("onnxruntime", precision, run, restored[0])


def float_planes(graph: bytes) -> bytes:
    """The graph without the uint8 conversions at both ends: float levels (N, 3, H, W) in and out."""
    model = onnx.load_from_string(graph)
    nodes = model.graph.node
    cast = next(node for node in nodes if "frames" in node.input)
    enter = next(node for node in nodes if cast.output[0] in node.input)
    uncast = next(node for node in nodes if "restored" in node.output)
    leave = next(node for node in nodes if uncast.input[0] in node.output)
    if [node.op_type for node in (cast, enter, leave, uncast)] != ["Cast", "Transpose", "Transpose", "Cast"]:
        raise ValueError("the graph does not begin with Cast, Transpose and end with Transpose, Cast")
    levels, rounded = enter.output[0], leave.input[0]
    for node in nodes:
        for i, name in enumerate(node.input):
            node.input[i] = "frames" if name == levels else name
        for i, name in enumerate(node.output):
            node.output[i] = "restored" if name == rounded else name
    for node in (cast, enter, leave, uncast):
        nodes.remove(node)
    shape = ["N", 3, "H", "W"]
    for values, name in ((model.graph.input, "frames"), (model.graph.output, "restored")):
        values[0].CopyFrom(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
    del model.graph.value_info[:]
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def vapoursynth_cases(bench: Bench, precision: Precision, stack: ExitStack) -> Iterator[Case]:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="deblurd-")))
    planes = np.concatenate(bench.frames).transpose(0, 3, 1, 2).astype(np.float32)
    np.save(folder / "frames.npy", planes)
    (folder / "planes.onnx").write_bytes(float_planes(bench.model.graph(precision)))
    hint = "bf16" if precision == "bf16" else "f32"
    arguments = [folder / "frames.npy", folder / "planes.onnx", hint, str(CORES), folder / "restored.npy"]
    command = [bench.vapoursynth, "-c", VAPOURSYNTH, *map(str, arguments)]
    try:
        pipe = subprocess.PIPE
        worker = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    except OSError as error:
        bench.skip("mlrt-ov", f"{bench.vapoursynth}: {error.strerror}")
        return
    assert worker.stdin and worker.stdout and worker.stderr
    first = worker.stdout.readline()
    if not first:
        reason = worker.stderr.read().strip().splitlines() or ["it ended at once"]
        worker.communicate()
        bench.skip("mlrt-ov", reason[-1])
        return
    stack.callback(worker.wait)
    stack.callback(worker.stdin.close)
    version = json.loads(first)
    bench.versions["vapoursynth"] = version["vapoursynth"]
    bench.versions["vapoursynth-mlrt-ov"] = f"{version['version']} with openvino {version['openvino_version_build']}"
    restored = np.load(folder / "restored.npy").transpose(1, 2, 0).round().astype(np.uint8)

    def run(mode: str) -> float:
        assert worker.stdin and worker.stdout
        print(mode, file=worker.stdin, flush=True)
        return float(worker.stdout.readline())

    for mode in ("latency", "throughput"):
        yield Case(f"mlrt-ov, {mode}", precision, lambda mode=mode: run(mode), restored)
