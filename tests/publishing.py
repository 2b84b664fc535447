"""A daemon's publisher in a process of its own, which does what it is told; and the frames that it publishes.

Who tells it needs NumPy only, so that the client's tests also run where nothing of the daemon is installed.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

SIZE = (48, 64)
REPOSITORY = Path(os.environ.get("DEBLURD_REPOSITORY", Path(__file__).parents[1]))
PYTHON = os.environ.get("DEBLURD_PYTHON", sys.executable)
"""Where the daemon is, if not here."""


def pixels(seq: int) -> NDArray[np.uint8]:
    """What frame `seq` shows, (H, W, 3)."""
    return np.random.default_rng(seq).integers(0, 200, (*SIZE, 3), dtype=np.uint8)


def free_endpoint() -> str:
    """A free port with a free one above it, neither of those that the system gives to whoever connects.

    Of those, one may be somebody else's when a daemon that was killed is started again.
    """
    while True:
        port = random.randrange(10_000, 32_000)
        with socket.socket() as first, socket.socket() as second, contextlib.suppress(OSError):
            first.bind(("127.0.0.1", port))
            second.bind(("127.0.0.1", port + 1))
            return f"tcp://127.0.0.1:{port}"


class PublisherProcess:
    """Publishes at `endpoint`, with what `PublisherOptions` takes, or with files of `keys` and of those to `allow`.

    `endpoint`, `control` and `run_id` say where it is and who; `start` begins another daemon at the same place.
    """

    def __init__(self, endpoint: str | None = None, **options: object) -> None:
        self._options = options
        self.endpoint = free_endpoint() if endpoint is None else endpoint
        self.start()

    def start(self) -> None:
        command = [PYTHON, str(REPOSITORY / "tests" / "publishing.py"), self.endpoint, json.dumps(self._options)]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY, env=environment
        )
        at = self._answer()
        self.endpoint, self.control, self.run_id = at["endpoint"], at["control"], at["run_id"]

    def _tell(self, **command: object) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the publisher ended"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def publish(
        self, first: int, last: int | None = None, *, stream: str = "cam", size: tuple[int, int] = SIZE
    ) -> None:
        """The frames from `first` to `last`, both included, as fast as can be."""
        self._tell(first=first, last=first if last is None else last, stream=stream)

    def await_receivers(self, count: int = 1) -> None:
        """Wait until so many want frames."""
        self._tell(receivers=count)

    def kill(self) -> None:
        """As a power cut does."""
        self.process.kill()
        self._reap()

    def freeze(self) -> None:
        """It answers no more, and its sockets stay open."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End as a daemon does that is told to."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)
        self._reap()

    def _reap(self) -> None:
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.process.kill()
        self._reap()


def serve(endpoint: str, options: dict[str, Any]) -> None:
    """Publish what the lines of standard input ask for, until they end."""
    import threading
    import time
    from dataclasses import replace
    from fractions import Fraction

    from daemon.allow_list import AllowList
    from daemon.frame import Frame
    from daemon.gate import Admission
    from daemon.keys import Keys
    from daemon.publisher import Publisher, PublisherOptions

    if "keys" in options:
        options["admission"] = Admission(Keys.load(options.pop("keys")), AllowList(Path(options.pop("allow"))))
    publisher = Publisher(endpoint, "fast", PublisherOptions(**options))
    at = {"endpoint": publisher.endpoint, "control": publisher.control, "run_id": publisher.publication().run_id}
    print(json.dumps(at), flush=True)
    sinks: dict[str, Any] = {}
    for line in sys.stdin:
        command = json.loads(line)
        if "receivers" in command:
            publisher.await_subscribers(command["receivers"], threading.Event())
        else:
            stream = command["stream"]
            sink = sinks.setdefault(stream, None) or publisher.stream(stream)
            sinks[stream] = sink
            for seq in range(command["first"], command["last"] + 1):
                times = Fraction(1, 25), time.time_ns(), time.monotonic_ns()
                frame = Frame(stream, seq, seq, *times, pixels(seq))
                buffer = sink.lend(frame)
                buffer[:] = frame.pixels
                sink.send(replace(frame, pixels=buffer))
        print("{}", flush=True)
    publisher.close()


if __name__ == "__main__":
    serve(sys.argv[1], json.loads(sys.argv[2]))
