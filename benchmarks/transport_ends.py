"""One end of one way to hand frames to another process, for `transport.py`, which runs this file in its own process.

    python transport_ends.py send|receive WAY ENDPOINT OPTIONS

OPTIONS is a JSON object: `height`, `width`, `fps` (0: as fast as can be), `seconds`; a receiver has `work_s` and `out`.
Knows how frames go out and come in; nothing of what is made of the figures. Imports no more than the way needs, so that
any Python which has that can run it.

A frame carries when it was published in its own pixels, so that no way has to carry it in another manner.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]  # (H, W, 3)
Publish = Callable[[Pixels, int], object]
"""Publishes a picture as the frame of this number."""

GREETING_S = 0.1
"""From one frame to the next before and after what is measured: no receiver is too slow for that."""
MOST_BYTES = 3_000_000_000
"""How far the memory of an end may grow before it stops."""


def mark(pixels: Pixels) -> None:
    """Write the time into the first pixels; the last thing before a frame is published."""
    pixels.reshape(-1)[:8] = np.frombuffer(time.monotonic_ns().to_bytes(8, "little"), np.uint8)


def marked_ns(pixels: Pixels) -> int:
    return int.from_bytes(pixels.reshape(-1)[:8].tobytes(), "little")


def copy_of(picture: Pixels) -> Pixels:
    """A new array: what was published before may still wait in a queue."""
    pixels = np.empty_like(picture)
    np.copyto(pixels, picture)
    return pixels


@contextmanager
def deblurd_sender(endpoint: str) -> Iterator[Publish]:
    from dataclasses import replace

    from daemon.frame import Frame
    from daemon.publisher import Publisher

    publisher = Publisher(endpoint, "benchmark")
    sink, time_base = publisher.stream("bench"), Fraction(1, 30)

    def publish(picture: Pixels, seq: int) -> None:
        frame = Frame("bench", seq, seq, time_base, time.time_ns(), time.monotonic_ns(), picture)
        pixels = sink.lend(frame)
        np.copyto(pixels, picture)
        frame = replace(frame, pixels=pixels)
        mark(pixels)
        sink.send(frame)

    try:
        yield publish
    finally:
        publisher.close()


@contextmanager
def deblurd_receiver(endpoint: str, mode: Any) -> Iterator[Iterator[Any]]:
    from daemon.client import Subscriber

    with Subscriber(endpoint, mode=mode) as subscriber:
        yield (frame.pixels for frame in subscriber)
        if subscriber.mode != mode:
            sys.exit(f"frames came {subscriber.mode}, and not {mode}")


@contextmanager
def pyzmq_sender(endpoint: str) -> Iterator[Publish]:
    import zmq

    socket = zmq.Context().socket(zmq.PUB)
    socket.bind(endpoint)

    def publish(picture: Pixels, seq: int) -> None:
        pixels = copy_of(picture)
        mark(pixels)
        socket.send_json({"seq": seq, "shape": pixels.shape}, zmq.SNDMORE)
        socket.send(pixels.data, copy=False)

    yield publish


@contextmanager
def pyzmq_receiver(endpoint: str) -> Iterator[Iterator[Any]]:
    import zmq

    socket = zmq.Context().socket(zmq.SUB)
    socket.setsockopt(zmq.SUBSCRIBE, b"")
    socket.connect(endpoint)

    def frames() -> Iterator[Any]:
        while True:
            head: Any = socket.recv_json()
            yield np.frombuffer(socket.recv(copy=False).buffer, np.uint8).reshape(head["shape"])

    yield frames()


@contextmanager
def imagezmq_sender(endpoint: str) -> Iterator[Publish]:
    import imagezmq  # type: ignore[import-not-found, unused-ignore]

    sender = imagezmq.ImageSender(connect_to=endpoint, REQ_REP=False)

    def publish(picture: Pixels, seq: int) -> None:
        pixels = copy_of(picture)
        mark(pixels)
        sender.send_image(str(seq), pixels)

    yield publish


@contextmanager
def imagezmq_receiver(endpoint: str) -> Iterator[Iterator[Any]]:
    import imagezmq

    hub = imagezmq.ImageHub(open_port=endpoint, REQ_REP=False)

    def frames() -> Iterator[Any]:
        while True:
            yield hub.recv_image()[1]

    yield frames()


def netgear(endpoint: str, *, receives: bool) -> Any:
    from vidgear.gears import NetGear  # type: ignore[import-not-found, unused-ignore]

    address, port = endpoint.removeprefix("tcp://").split(":")
    # Raw, as all others here: unless told otherwise, it compresses.
    return NetGear(address=address, port=port, pattern=2, receive_mode=receives, jpeg_compression=False)


@contextmanager
def netgear_sender(endpoint: str) -> Iterator[Publish]:
    gear = netgear(endpoint, receives=False)

    def publish(picture: Pixels, _: int) -> None:
        pixels = copy_of(picture)
        mark(pixels)
        gear.send(pixels)

    yield publish


@contextmanager
def netgear_receiver(endpoint: str) -> Iterator[Iterator[Any]]:
    gear = netgear(endpoint, receives=True)

    def frames() -> Iterator[Any]:
        while (pixels := gear.recv()) is not None:
            yield pixels

    yield frames()


SENDERS: dict[str, Callable[[str], AbstractContextManager[Publish]]] = {
    "newest": deblurd_sender,
    "paced": deblurd_sender,
    "shared": deblurd_sender,
    "pyzmq": pyzmq_sender,
    "imagezmq": imagezmq_sender,
    "NetGear": netgear_sender,
}
RECEIVERS: dict[str, Callable[[str], AbstractContextManager[Iterator[Any]]]] = {
    "newest": lambda endpoint: deblurd_receiver(endpoint, "newest"),
    "paced": lambda endpoint: deblurd_receiver(endpoint, "paced"),
    "shared": lambda endpoint: deblurd_receiver(endpoint, "shared"),
    "pyzmq": pyzmq_receiver,
    "imagezmq": imagezmq_receiver,
    "NetGear": netgear_receiver,
}


def resident() -> int:
    """Bytes of memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def say(**words: object) -> None:
    print(json.dumps(words), file=TOLD, flush=True)


def told(within_s: float = 0.0) -> bool:
    """There is a line on standard input, or its end."""
    return bool(select.select([sys.stdin], [], [], within_s)[0])


def send(way: str, endpoint: str, options: dict[str, Any]) -> None:
    """Greet until told to go; then publish what is measured, say how that went, and greet until told to stop."""
    shape = options["height"], options["width"], 3
    picture: Pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    with SENDERS[way](endpoint) as publish:
        say(ready=True)
        seq = 0
        while not told(GREETING_S):
            publish(picture, seq)
            seq += 1
        sys.stdin.readline()
        first, before, most = seq, resident(), resident()
        cpu_s, began_ns = time.process_time(), time.monotonic_ns()
        while (now_ns := time.monotonic_ns()) < began_ns + options["seconds"] * 1e9 and most - before < MOST_BYTES:
            if options["fps"]:
                due_ns = began_ns + round((seq - first) * 1e9 / options["fps"])
                time.sleep(max(0, due_ns - now_ns) / 1e9)
            publish(picture, seq)
            seq += 1
            most = max(most, resident())
        cpu_s = time.process_time() - cpu_s
        say(
            began_ns=began_ns,
            ended_ns=time.monotonic_ns(),
            sent=seq - first,
            cpu_ms=cpu_s * 1000 / (seq - first),
            grew=most - before,
        )
        while not told(GREETING_S):
            publish(picture, seq)
            seq += 1


def receive(way: str, endpoint: str, options: dict[str, Any]) -> None:
    """Say when the first frame has come; receive until told to stop, and write down every frame.

    Each is (sent, in hand, work done: monotonic ns; processor time, ns; memory, bytes).
    """
    taken: list[tuple[int, int, int, int, int]] = []
    with RECEIVERS[way](endpoint) as frames:
        say(ready=True)
        for pixels in frames:
            pixels.reshape(-1)[::64].max()  # every line of the processor's cache
            in_hand_ns = time.monotonic_ns()
            if options["work_s"]:
                time.sleep(options["work_s"])
            done_ns = time.monotonic_ns()
            taken.append((marked_ns(pixels), in_hand_ns, done_ns, time.process_time_ns(), resident()))
            if len(taken) == 1:
                say(first=True)
            if taken[-1][4] - taken[0][4] > MOST_BYTES or told():
                break
    np.save(options["out"], np.array(taken, np.int64))


def main(role: str, way: str, endpoint: str, options: str) -> None:
    {"send": send, "receive": receive}[role](way, endpoint, json.loads(options))
    os._exit(0)  # what still waits in a peer's queue is not delivered


if __name__ == "__main__":
    # Peers write to standard output what comes to their mind.
    TOLD = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    main(*sys.argv[1:])
