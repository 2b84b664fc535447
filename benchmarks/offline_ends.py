"""What `offline.py` measures beside `deblurd enhance`: a video decoded and encoded, with VapourSynth between or not.

    python benchmarks/offline_ends.py TASK.json

Knows PyAV and VapourSynth; nothing of our project: it runs in whatever Python has these.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np


def decoded(task: dict[str, Any]) -> Iterator[av.VideoFrame]:
    with av.open(task["source"]) as source:
        source.streams.video[0].thread_type = "AUTO"
        yield from source.decode(video=0)


def encode(task: dict[str, Any], frames: Iterable[av.VideoFrame]) -> None:
    """Write `frames` with the very settings that the task names."""
    with av.open(task["target"], "w") as output:
        stream = output.add_stream(task["encoder"], rate=Fraction(task["rate"]), options=task["options"])
        stream.width, stream.height = task["size"]
        stream.pix_fmt = task["pix_fmt"]
        stream.time_base = Fraction(task["time_base"])
        stream.codec_context.time_base = Fraction(task["time_base"])
        stream.codec_context.bit_rate = 0
        stream.codec_context.thread_count, stream.codec_context.thread_type = task["threads"], "AUTO"
        for frame in frames:
            frame.pict_type = 0  # else the encoder makes a key frame wherever the source had one
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


def restored(task: dict[str, Any]) -> Iterator[av.VideoFrame]:
    """The frames that VapourSynth's OpenVINO plugin makes of the source.

    PyAV is its source and its encoder, in the same process: there is no pipe to pay for, and no index to make first.
    Its own threads convert to planes of floats and back, and keep several frames in flight.
    """
    import vapoursynth as vs

    core = vs.core
    width, height = task["size"]
    stride, streams = task["stride"], task["streams"]
    source, ready, times = decoded(task), {}, []

    def fill(n: int, f: Any) -> Any:
        while n not in ready:  # frames are asked for about in order
            frame = next(source)
            times.append((frame.pts, frame.time_base))
            ready[len(times) - 1] = frame
        filled = f.copy()
        for number, plane in enumerate(ready.pop(n).planes):
            np.copyto(np.asarray(filled[number]), pixels_of(plane))
        return filled

    blank = core.std.BlankClip(None, width, height, vs.YUV420P8, task["frames"], keep=True)
    clip = core.std.ModifyFrame(blank, blank, fill)
    clip = core.resize.Bicubic(clip, format=vs.RGBS, matrix_in=task["matrix"])
    right, below = -width % stride, -height % stride
    if right or below:
        sides = {"src_width": width + right, "src_height": height + below}
        clip = core.resize.Point(clip, width + right, height + below, **sides)
    config = {"INFERENCE_PRECISION_HINT": task["precision"]}
    clip = core.ov.Model(clip, network_path=task["graph"], num_streams=streams, config=lambda: config)
    clip = core.std.Crop(clip, right=right, bottom=below)
    clip = core.resize.Bicubic(clip, format=vs.YUV420P8, matrix=task["matrix"])
    for number, frame in enumerate(clip.frames(prefetch=streams + core.num_threads, close=True)):
        picture = av.VideoFrame(width, height, "yuv420p")
        for index, plane in enumerate(picture.planes):
            np.copyto(pixels_of(plane), np.asarray(frame[index]))
        picture.pts, picture.time_base = times[number]
        yield picture


def pixels_of(plane: Any) -> Any:
    """A view (H, W), without the padding at the end of each line."""
    return np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, -1)[:, : plane.width]


def main() -> None:
    task = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    encode(task, restored(task) if "graph" in task else decoded(task))


if __name__ == "__main__":
    main()
