"""Frames one at a time, when they are asked for: by the socket, or in shared memory.

Knows what is asked for when; nothing of what is in a frame but its stream. Has no thread: the one that takes a frame
asks for it.

One frame at most is on its way, so that none gets old on the way. A request that was not answered while `take` waited
stays with the daemon, and so does the one that is made when a daemon is found: the answer may come when nobody waits.
So the next `take`, if it finds such an answer, asks once more whether there is a newer frame, and a ping after that:
whatever else is still on its way comes before the pong.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace

import zmq

from . import control, wire
from .connection import KNOCK_S, Bell, Connection
from .control import Request
from .pulse import Pulse
from .shared import SharedMemory, open_shared

AGAIN_S = 2.0
"""How long a request stays unanswered before it is made anew: a daemon forgets who has been silent for 10 s."""
PATIENCE_S = 10.0
"""How long a pong may take: a whole frame may come before it."""
GLANCE_S = 0.2
"""How long `newest` waits for the daemon's word on whether there is a newer frame."""


UNREADABLE_S = 10.0
"""How long frames come as bytes after one in shared memory could not be read: perhaps it was only too old."""


class RefusedError(ConnectionError):
    """The daemon does not let this client in."""


class Asker:
    """Asks a daemon for the newest frames that it has not given yet, each stream in turn.

    connect: makes a DEALER that is connected to the control endpoint.
    shares: frames may come in shared memory, where the daemon offers it and this process can read it.
    trouble: what `take` is to raise while it waits, or None.
    """

    def __init__(
        self,
        connect: Callable[[], Connection],
        streams: Sequence[str] | None,
        pulse: Pulse,
        trouble: Callable[[], Exception | None],
        *,
        shares: bool,
    ) -> None:
        self._connect, self._pulse, self._trouble, self._shares = connect, pulse, trouble, shares
        self._streams = None if streams is None else tuple(streams)
        control.pack_request(Request("next", self._streams))  # if it does not fit, here is where to say so
        self._waiting: OrderedDict[str, wire.Message] = OrderedDict()
        self._newest: dict[str, wire.Message] = {}
        self._keeps_all = False
        self._using, self._closed = threading.Lock(), False
        self._connection, self._bell = connect(), Bell()
        self._shared: tuple[str, SharedMemory | None] = "", None
        self._unreadable_s = -math.inf
        self._contact = 0
        self._asked_s: float | None = None
        self._pinged_s: float | None = None
        self._ask(wait=False)  # the daemon keeps no frames from before
        self.meet()

    @property
    def mode(self) -> str:
        return "shared" if self._reads_memory() else "paced"

    @property
    def refusal(self) -> str | None:
        return self._connection.refusal

    def meet(self) -> None:
        """A daemon was found: see whether it has shared memory for this process. Called by the pulse's thread."""
        welcome, (run_id, memory) = self._pulse.welcome, self._shared
        if self._shares and welcome is not None and (memory is None or welcome.run_id != run_id):
            self._shared = welcome.run_id, open_shared(welcome.shared)
            self._unreadable_s = -math.inf
        self.wake()
        if self._using.acquire(blocking=False):  # else the one that takes does it
            try:
                self._ask_anew()
            finally:
                self._using.release()

    def _ask_anew(self) -> None:
        """Of a daemon that was found: perhaps it is another one, and what was asked before is forgotten."""
        if self._contact != self._pulse.contacts and not self._closed:
            self._contact, self._pinged_s = self._pulse.contacts, None
            self._look_for_newer()

    def _memory(self) -> SharedMemory | None:
        """That of the daemon which is there: what is still held of an earlier one's is not given back to this one."""
        welcome, (run_id, memory) = self._pulse.welcome, self._shared
        return memory if welcome is not None and welcome.run_id == run_id else None

    def _reads_memory(self) -> bool:
        return self._memory() is not None and time.monotonic() - self._unreadable_s > UNREADABLE_S

    def take(self, timeout_s: float | None, halted: Callable[[], bool]) -> wire.Message | None:
        """The next message; None when `halted`, or when it is closed.

        TimeoutError when none comes within `timeout_s`; WireError for one that is not of the wire format;
        RefusedError when the daemon says that it gives none.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        if not self._using.acquire(timeout=-1 if timeout_s is None else max(0.0, timeout_s)):
            raise TimeoutError
        try:
            asked_before = self._asked_s is not None or self._pinged_s is not None
            if asked_before and self._read():
                self._look_for_newer()
            while True:
                if self._closed or halted():
                    return None
                if self._waiting and (self._pinged_s is None or self._pulse.state != "live"):
                    return self._waiting.popitem(last=False)[1]
                if not self._waiting and (trouble := self._trouble()):
                    raise trouble
                if deadline is not None and time.monotonic() >= deadline:
                    raise TimeoutError
                self._keep_asking()
                self._listen(deadline)
        finally:
            self._using.release()

    def newest(self, stream: str | None) -> list[wire.Message]:
        """The newest message of `stream`, or of each stream, that the daemon has for this client; none is taken."""
        self._keeps_all = True
        if self._using.acquire(blocking=False):  # else somebody takes them, and knows the newest
            try:
                self._glance(time.monotonic() + GLANCE_S)
            finally:
                self._using.release()
        return [message for name, message in list(self._newest.items()) if stream in (None, name)]

    def _glance(self, deadline: float) -> None:
        """Ask until there is nothing newer: each answer is of one stream."""
        heard = True
        while heard and not self._closed and self._pulse.state == "live":
            heard = False
            self._look_for_newer()
            while self._pinged_s is not None:
                if time.monotonic() >= deadline:
                    return
                self._keep_asking()
                heard |= self._listen(deadline)

    def _put(self, message: wire.Message) -> None:
        if not self._keeps_all:  # the daemon lends few at a time
            self._newest.clear()
        self._waiting[message.topic] = self._newest[message.topic] = message

    def _ask(self, *, wait: bool) -> None:
        memory = self._memory()
        released = () if memory is None else memory.released()
        request = Request("next", self._streams, shared=self._reads_memory(), wait=wait, release=released)
        self._connection.socket.send(control.pack_request(request))

    def _look_for_newer(self) -> None:
        """Take back what was asked for, and ask what there is; all of it is here when the pong is."""
        if self._pinged_s is None:
            self._ask(wait=False)
            self._connection.socket.send(control.pack_request(Request("ping")))
            self._asked_s, self._pinged_s = None, time.monotonic()

    def _keep_asking(self) -> None:
        """Make sure that the daemon knows what is wanted, whatever became of it or of the connection."""
        now = time.monotonic()
        if self._pinged_s is not None and now - self._pinged_s > PATIENCE_S and self._pulse.state == "live":
            self._connection.close()
            self._connection = self._connect()
            self._contact = 0
        self._ask_anew()
        if self._pinged_s is None and self._asked_s is None:
            self._ask(wait=True)
            self._asked_s = now
        elif self._asked_s is not None and now - self._asked_s > AGAIN_S and self._pulse.state == "live":
            self._look_for_newer()

    def _listen(self, deadline: float | None) -> bool:
        """Wait for something to happen; True if a frame came."""
        poller = zmq.Poller()
        for waited_for in (self._connection.socket, self._connection.monitor, self._bell.fileno()):
            poller.register(waited_for, zmq.POLLIN)
        left_s = KNOCK_S if deadline is None else min(KNOCK_S, deadline - time.monotonic())
        ready = dict(poller.poll(math.ceil(max(0.0, left_s) * 1000)))
        if self._bell.fileno() in ready:
            self._bell.hush()
        self._connection.look()
        return self._read()

    def _read(self) -> bool:
        """Take all that has come; True if a frame was among it."""
        came = False
        while True:
            try:
                data = self._connection.socket.recv(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return came
            came |= self._hear(data)

    def _hear(self, data: zmq.Frame) -> bool:
        try:
            message = wire.unpack(data.buffer)
            kind = message.header.get("kind", "frame")
            if kind == "refused":
                raise RefusedError(str(message.header.get("reason")))
            if kind == "pong":
                self._pinged_s = None
            if kind != "frame":
                return False
            # The answer to what was asked; after `_look_for_newer`, it may be that to an earlier request.
            self._asked_s = None
            segment = wire.to_segment(message)
            if segment is not None:
                message = self._in_memory(message, segment)
        except (wire.WireError, RefusedError):
            self._asked_s = None
            raise
        except OSError:
            # For a while as bytes: this frame is lost, and the next one is not.
            self._unreadable_s = time.monotonic()
            return False
        self._put(message)
        return True

    def _in_memory(self, message: wire.Message, segment: wire.Segment) -> wire.Message:
        run_id, memory = self._shared
        if memory is None or message.header.get("run_id") != run_id:
            raise OSError("a frame of another daemon than the one that was met")
        return replace(message, payload=memory.view(segment))

    def wake(self) -> None:
        """Let `take` look at its conditions again."""
        self._bell.ring()

    def close(self) -> None:
        """May be called again, and by any thread."""
        self._closed = True
        self.wake()
        with self._using:
            self._connection.close()
            self._bell.close()


def published_unix_ns(message: wire.Message) -> int:
    """When a message was published; 0 where it does not say."""
    value = message.header.get("published_unix_ns")
    return value if isinstance(value, int) else 0
