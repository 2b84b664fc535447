"""RTSP servers that a stream can be published to.

Knows RTSP, FFmpeg and GStreamer; nothing of the project.
"""

from __future__ import annotations

import socket
import subprocess
import threading
from contextlib import suppress
from pathlib import Path
from typing import Self

import av
import pytest
from live_clips import read_mark

GST_PYTHON = Path("/usr/bin/python3")  # Debian's GStreamer is there for Debian's own
GST_PROGRAM = Path(__file__).with_name("gst_server.py")
GST_MISSING = 3


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Listener:
    """FFmpeg as the server of one publisher: it keeps the number and the time in ticks of each frame."""

    def __init__(self, port: int) -> None:
        self.url = f"rtsp://127.0.0.1:{port}/live"
        self.numbers: list[int | None] = []
        self.ticks: list[int | None] = []
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        options = {"rtsp_flags": "listen", "listen_timeout": "30", "rtsp_transport": "tcp"}
        with av.open(self.url, options=options) as container, suppress(av.FFmpegError):
            for frame in container.decode(video=0):
                mark = read_mark(frame.to_ndarray()[: frame.height])
                with self._changed:
                    self.numbers.append(mark.number if mark else None)
                    self.ticks.append(frame.pts)
                    self._changed.notify_all()

    def wait_for(self, count: int, timeout_s: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: len(self.numbers) >= count, timeout_s)

    def close(self) -> None:
        """Wait for the publisher to go."""
        self._thread.join()


class GstRecorder:
    """GStreamer's server, which writes what is published into a file."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.file = folder / "recorded.h264"
        units, errors = folder / "units", folder / "errors"
        units.mkdir()
        if not GST_PYTHON.exists():
            pytest.skip(f"GStreamer's RTSP server runs with {GST_PYTHON}, which is not there")
        command = [GST_PYTHON, GST_PROGRAM, units, "--record", self.file, *options]
        with errors.open("w") as file:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True)
        assert self._process.stdout is not None
        self._port = self._process.stdout.readline().strip()
        if not self._port:
            self._process.communicate()
            give_up = pytest.skip if self._process.returncode == GST_MISSING else pytest.fail
            give_up(f"GStreamer's RTSP server does not start: {errors.read_text().strip()}")

    def url(self, login: str = "") -> str:
        return f"rtsp://{login}127.0.0.1:{self._port}/record"

    def numbers(self) -> list[int | None]:
        """Of the frames that are in the file so far."""
        if not self.file.exists() or not self.file.stat().st_size:
            return []
        with av.open(str(self.file), format="h264") as container, suppress(av.FFmpegError):
            marks = [read_mark(frame.to_ndarray()[: frame.height]) for frame in container.decode(video=0)]
            return [mark.number if mark else None for mark in marks]
        return []

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class YesServer:
    """Says 200 to everything, and throws packets away.

    freezes_at: the request after which it reads no more: RECORD, which it still answers, or an earlier one.
    """

    def __init__(self, freezes_at: str = "") -> None:
        self._freezes_at = freezes_at
        self.publishers = 0
        """How many came."""
        self._changed = threading.Condition()
        self._server = socket.create_server(("127.0.0.1", 0))
        self._server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # of connections, so that they are soon full
        self.url = f"rtsp://127.0.0.1:{self._server.getsockname()[1]}/live"
        self._connections: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                self._connections.append(connection)
                self._threads.append(threading.Thread(target=self._serve, args=(connection,)))
                self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        stream = connection.makefile("rwb")
        with suppress(OSError, ValueError):
            while first := stream.read(1):
                if first == b"$":
                    stream.read(int.from_bytes(stream.read(3)[1:], "big"))
                    continue
                request = (first + stream.readline()).decode()
                lines = [line.decode().strip() for line in iter(stream.readline, b"\r\n")]
                headers = dict(line.split(": ", 1) for line in lines)
                length = int(headers.get("Content-Length", 0))
                stream.read(length)
                if request.startswith("OPTIONS"):
                    with self._changed:
                        self.publishers += 1
                        self._changed.notify_all()
                freezes = request.split()[0] == self._freezes_at
                if freezes and self._freezes_at != "RECORD":
                    return
                answer = ["RTSP/1.0 200 OK", f"CSeq: {headers['CSeq']}", "Session: 1"]
                if "Transport" in headers:
                    answer.append(f"Transport: {headers['Transport']}")
                stream.write("".join(f"{line}\r\n" for line in [*answer, ""]).encode())
                stream.flush()
                if freezes:
                    return

    def wait_for(self, publishers: int, timeout_s: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self.publishers >= publishers, timeout_s)

    def close(self) -> None:
        for each in [self._server, *self._connections]:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
