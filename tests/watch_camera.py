"""Reads a camera in a process of its own, and tells in lines of JSON what came: the fake camera must be preloaded.

Arguments: the device, and JSON of options: `options` for LiveOptions, `source` for CameraSource, `frames` after which
to take no more, `close_on`: a state or a frame's number at which another thread closes, `attempts`: how often to do
all this, `folder`: where to look for cameras.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

from daemon.camera_source import CameraSource
from daemon.errors import SourceError
from daemon.source import LiveOptions
from daemon.v4l2 import cameras


def tell(**event: object) -> None:
    print(json.dumps(event), flush=True)


def attempt(device: str, plan: dict) -> None:
    reached, closed_at = threading.Event(), []

    def on_state(state: str) -> None:
        tell(state=state)
        if plan.get("close_on") == state:
            reached.set()

    source = CameraSource(
        device, LiveOptions(**plan.get("options", {})), stream="cam", on_state=on_state, **plan.get("source", {})
    )

    def close() -> None:
        reached.wait()
        closed_at.append(time.monotonic())
        source.close()

    closer = threading.Thread(target=close, daemon=True)  # most attempts end without it
    closer.start()
    seen, began = 0, time.monotonic()
    try:
        with source:
            for frame in source:
                now_ns = time.time_ns()
                tell(
                    seq=frame.seq,
                    time_s=frame.time_s,
                    shape=frame.pixels.shape,
                    left=frame.pixels[0, 0].tolist(),
                    right=frame.pixels[0, -1].tolist(),
                    below=frame.pixels[-1, -1].tolist(),
                    clock=frame.clock,
                    captured_ago_s=(now_ns - frame.captured_ns) / 1e9,
                )
                if isinstance(plan.get("close_on"), int) and frame.seq >= plan["close_on"]:
                    reached.set()
                seen += 1
                if seen == plan.get("frames"):
                    break
    except SourceError as error:
        tell(error=str(error))
    ended = time.monotonic()
    tell(
        took_s=ended - began,
        closing_s=ended - closed_at[0] if closed_at else None,
        threads=[thread.name for thread in threading.enumerate() if thread.name.startswith("camera")],
        counters=dict(source.counters),
        descriptors=len(list(Path("/proc/self/fd").iterdir())),
        cameras=[asdict(found) | {"path": str(found.path)} for found in cameras(Path(plan.get("folder", "/dev")))],
    )


def main() -> None:
    device, plan = sys.argv[1], json.loads(sys.argv[2])
    for _ in range(plan.get("attempts", 1)):
        attempt(device, plan)


if __name__ == "__main__":
    main()
