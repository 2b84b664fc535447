"""A client of the daemon's control endpoint: what the page on the wire format says, and nothing of ours."""

from __future__ import annotations

import json
import mmap
import struct
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import zmq
from numpy.typing import NDArray

WAIT_MS = 30_000


class Answer:
    """An answer taken apart: its header and its payload."""

    def __init__(self, message: bytes) -> None:
        at = message.index(b"\0") + 1
        (length,) = struct.unpack_from("<I", message, at)
        self.topic = message[: at - 1].decode()
        self.header: dict[str, Any] = json.loads(message[at + 4 : at + 4 + length])
        self.payload = message[-(-(at + 4 + length) // 64) * 64 :]
        self.kind: str = self.header["kind"]

    @property
    def seq(self) -> int:
        return int(self.header["seq"])

    @property
    def token(self) -> int:
        return int(self.header["shared"]["token"])

    def pixels(self, folder: str = "/dev/shm") -> NDArray[np.uint8]:
        """(H, W, 3), from the payload or from shared memory."""
        shape = self.header["height"], self.header["width"], 3
        if self.header["encoding"] == "raw":
            return np.frombuffer(self.payload, np.uint8).reshape(shape)
        place = self.header["shared"]
        with (Path(folder) / place["file"]).open("rb") as file:
            memory = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        return np.frombuffer(memory, np.uint8, place["size"], place["offset"]).reshape(shape)


class DeskClient:
    """Asks at a control endpoint; an answer that does not come in time fails the test."""

    def __init__(self, control: str) -> None:
        self.context = zmq.Context()
        self.socket: zmq.Socket[bytes] = self.context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVTIMEO, WAIT_MS)
        self.socket.connect(control)

    def say(self, kind: str, **fields: Any) -> None:
        self.socket.send(json.dumps({"version": 1, "kind": kind, **fields}).encode())

    def hear(self) -> Answer:
        return Answer(self.socket.recv())

    def ask(self, kind: str, **fields: Any) -> Answer:
        self.say(kind, **fields)
        return self.hear()

    def join(self, **fields: Any) -> None:
        """Make the mailbox: frames from now on are for this client too."""
        assert self.ask("next", wait=False, **fields).kind == "none"

    def close(self) -> None:
        self.context.destroy(linger=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
