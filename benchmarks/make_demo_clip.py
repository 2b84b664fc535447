"""Make the blurred demo clip out of the sharp one: the blur changes all the time, as focus and hands do.

    python benchmarks/make_demo_clip.py tests/media/demo_sharp.mp4 tests/media/demo_blurred.mp4

Four parts of equal length, each breathing from weak to strong and back: defocus (disc radius up to 3.5 px),
motion (a straight trace of up to 11 px that turns), Gaussian (sigma up to 2.2 px), and defocus with motion
together. All in linear light, then H.264 at crf 20. Audio and timestamps are those of the sharp clip.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import av
import numpy as np

from daemon.colour import to_rgb
from export.blur import (
    Kernel,
    Light,
    Picture,
    convolve,
    convolve_gaussian,
    defocus_kernel,
    in_linear_light,
    line_kernel,
    to_light,
    to_picture,
)


def blurred(picture: Picture, share: float) -> Picture:
    """`picture` as it is at `share` (0 to 1) of the clip."""
    part, within = divmod(share * 4, 1)
    strength = 0.4 + 0.6 * math.sin(math.pi * within)
    line: Kernel = line_kernel(11 * strength, angle=2 * math.pi * share)

    def blur(light: Light) -> Light:
        if part == 0:
            return convolve(light, defocus_kernel(3.5 * strength))
        if part == 1:
            return convolve(light, line)
        if part == 2:
            return convolve_gaussian(light, 2.2 * strength)
        return convolve(convolve(light, defocus_kernel(2 * strength)), line)

    return to_picture(in_linear_light(blur, to_light(picture)))


def main(source: Path, target: Path) -> None:
    with av.open(str(source)) as sharp, av.open(str(target), "w") as output:
        video, audio = sharp.streams.video[0], sharp.streams.audio[0]
        options = {"crf": "20", "preset": "slow"}
        out = output.add_stream("libx264", rate=video.average_rate, options=options)
        out.width, out.height, out.pix_fmt = video.width, video.height, "yuv420p"
        out.time_base = out.codec_context.time_base = video.time_base
        copied = output.add_stream_from_template(audio)
        frames = video.frames
        for packet in sharp.demux(video, audio):
            if packet.stream is audio:
                if packet.dts is not None:
                    packet.stream = copied
                    output.mux(packet)
                continue
            for frame in packet.decode():
                seq = round(frame.time * float(video.average_rate))
                picture = blurred(to_rgb(frame), min(seq / frames, 1 - 1e-9))
                encoded = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
                encoded = encoded.reformat(format="yuv420p", dst_colorspace="itu601", dst_color_range=1)
                encoded.pts, encoded.time_base = frame.pts, frame.time_base
                output.mux(out.encode(encoded))
        output.mux(out.encode(None))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
