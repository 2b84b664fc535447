"""The example of a client in another language while it runs, and a control endpoint that tells it anything.

Knows what the example prints and what the page on the wire format says; nothing of how the example is built.
"""

from __future__ import annotations

import json
import queue
import subprocess
import threading
import time
from fractions import Fraction
from types import TracebackType
from typing import Any, Self

import zmq
from publishing import pixels

from daemon import control, wire
from daemon.frame import Frame, Publication, boot_id
from daemon.gate import Admission, Gate

WAIT_S = 30.0

Command = list[str]


class Watch:
    """The example while it runs; a line that does not come in time fails the test."""

    def __init__(self, command: Command, endpoint: str, *words: str) -> None:
        self.process = subprocess.Popen(
            [*command, endpoint, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def line(self, field: str) -> dict[str, Any]:
        """The next line that has `field`."""
        deadline = time.monotonic() + WAIT_S
        while True:
            line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            assert line, f"it ended: {self.end()}"
            answer: dict[str, Any] = json.loads(line)
            if field in answer:
                return answer

    def frame(self) -> dict[str, Any]:
        return self.line("seq")

    def await_state(self, state: str) -> dict[str, Any]:
        while (line := self.line("state"))["state"] != state:
            pass
        return line

    def end(self) -> str:
        """What it says when it ends by itself, which it does with a non-zero status."""
        assert self.process.stderr is not None
        said = self.process.stderr.read()
        assert self.process.wait(WAIT_S) == 1, said
        return said

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.process.kill()
        self.process.wait()
        self._thread.join()
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()


def a_frame(seq: int = 0) -> Frame:
    return Frame("cam", seq, seq, Fraction(1, 25), time.time_ns(), time.monotonic_ns(), pixels(seq))


def a_message(seq: int = 0, **fields: object) -> bytes:
    """A frame as bytes, with `fields` in its header instead of what is there, or besides."""
    publication = Publication("run", "fast", boot_id(), time.monotonic_ns(), time.time_ns())
    header = wire.frame_header(a_frame(seq), publication, "raw")
    head: bytes = wire.pack_head(b"cam\0", {**header, **fields})
    return head + pixels(seq).tobytes()


class Desk:
    """Control and frames of a daemon that says what it is told to; nobody gets in but by `admission`."""

    def __init__(self, admission: Admission | None = None, shared: dict[str, str] | None = None) -> None:
        self.shared = shared
        self.released: list[int] = []
        self._context = zmq.Context()
        self._frames, self._requests = self._context.socket(zmq.XPUB), self._context.socket(zmq.ROUTER)
        self._gate = Gate(self._context)
        for each in (self._frames, self._requests):
            each.setsockopt(zmq.LINGER, 0)
            self._gate.guard(each, 8, admission)
        self._frames.bind("tcp://127.0.0.1:*")
        self._requests.bind("tcp://127.0.0.1:*")
        self.endpoint, self.control = (
            each.getsockopt_string(zmq.LAST_ENDPOINT) for each in (self._frames, self._requests)
        )

    def _request(self) -> tuple[bytes, dict[str, Any]]:
        assert self._requests.poll(int(WAIT_S * 1000)), "nobody asks"
        identity, request = self._requests.recv_multipart()
        return identity, json.loads(request)

    def give(self, *answers: bytes) -> None:
        """Answer so many requests for a frame with these, and what comes between as a daemon does.

        Who could read shared memory, and does not ask for it, gets nothing.
        """
        for answer in answers:
            while not self._fits(self.answer(answer)):
                pass

    def answer(self, answer: bytes) -> dict[str, Any]:
        """Wait for a request, and give this answer if it fits."""
        identity, request = self._request()
        if not self._fits(request):
            kind = {"hello": "welcome", "ping": "pong", "next": "none"}[request["kind"]]
            answer = control.pack_answer(kind, run_id="run", streams=["cam"], shared=self.shared)
        self.released += request.get("release", [])
        self._requests.send_multipart([identity, answer])
        return request

    def _fits(self, request: dict[str, Any]) -> bool:
        return bool(request["kind"] == "next" and request["shared"] == bool(self.shared))

    def watch(self, client: Command, mode: str = "paced", *words: str) -> Watch:
        return Watch(client, self.endpoint, "cam", "--mode", mode, "--control", self.control, *words)

    def publish(self, message: bytes) -> None:
        """Send to the first that subscribes."""
        assert self._frames.poll(int(WAIT_S * 1000)), "nobody subscribes"
        self._frames.recv()
        self._frames.send(message)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._frames.close()
        self._requests.close()
        self._gate.close()
        self._context.destroy(linger=0)
