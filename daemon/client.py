"""Receive restored frames in another process.

    from daemon.client import Subscriber

    for frame in Subscriber("tcp://127.0.0.1:5555"):
        print(frame.stream, frame.seq, frame.age_s(), frame.pixels.shape)

Knows which way frames come, and changes it; needs numpy and pyzmq, and nothing else of the project.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Literal, Self, get_args

import zmq

from . import wire
from .asking import Asker, RefusedError, published_unix_ns
from .connection import Connection
from .control import control_endpoint
from .frame import Frame
from .keys import Keys
from .pulse import LOST_S, Pulse, State
from .shared import open_shared
from .subscription import Subscription

__all__ = ["Mode", "OnLost", "PublisherLostError", "RefusedError", "Subscriber"]

Mode = Literal["auto", "newest", "queued", "paced", "shared"]
OnLost = Literal["wait", "raise"]

_BURST = 16
"""Frames that may come while the thread that takes them off their socket cannot run; they are memory, too."""


class PublisherLostError(ConnectionError):
    """The daemon was there, and answers no more."""


class Subscriber:
    """Frames from a daemon, as an iterator.

    endpoint: where the daemon publishes, e.g. `tcp://127.0.0.1:5555`. The daemon may start later, or restart.
    streams: names of the streams to receive; None for all.
    mode: how frames come.
        `newest` gives the newest frame of each stream, each stream in turn, and passes over those that were replaced
        meanwhile;
        `queued` gives all in the order in which they came, while up to `queue` may wait;
        `paced` asks for each frame: it is never older than the time since the last one was taken plus one frame
        interval, nothing travels in vain, and a receiver that keeps up gets all;
        `shared` is the same, with frames read where the daemon wrote them; where that cannot be, they come as `paced`;
        `auto` is `shared` where that can be, and else `newest`, when the daemon first answers.
    timeout_s: how long iteration waits for a frame before it raises TimeoutError; None waits for ever.
    control: the daemon's control endpoint; None for the one that belongs to `endpoint`.
    keys: of this client and the daemon, where the daemon asks for them.
    on_lost: what `receive` does when the daemon answers no more, which is noticed within 2 s: `raise`
    PublisherLostError, or `wait` for it. Either way a daemon that is there again is found again.

    A message that is not of this wire format raises `wire.WireError`; the next call goes on after it. A daemon that
    does not let this client in is a RefusedError, again and again until it does.

    A frame's pixels are read-only, and stay as they are for as long as they are kept.
    """

    def __init__(
        self,
        endpoint: str,
        streams: Sequence[str] | None = None,
        *,
        mode: Mode = "auto",
        timeout_s: float | None = None,
        queue: int = 64,
        control: str | None = None,
        keys: Keys | None = None,
        on_lost: OnLost = "wait",
    ) -> None:
        if mode not in get_args(Mode):
            raise ValueError(f"mode must be {', '.join(get_args(Mode))}, got {mode!r}")
        if on_lost not in get_args(OnLost):
            raise ValueError(f"on_lost must be {' or '.join(get_args(OnLost))}, got {on_lost!r}")
        if isinstance(streams, str) or (streams is not None and not streams):
            raise ValueError(f"streams must be a list of at least one name, or None for all, got {streams!r}")
        if queue < 1:
            raise ValueError(f"queue must be at least 1, got {queue}")
        self._endpoint, self._streams, self._chooses = endpoint, streams, mode == "auto"
        self._timeout_s, self._raises = timeout_s, on_lost == "raise"
        self._seen: dict[str, wire.Message] = {}
        self._shown: dict[str, tuple[object, Frame]] = {}
        self._swapping, self._closed = threading.Lock(), False
        control = control_endpoint(endpoint) if control is None else control
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._ask = partial(Connection, self._context, zmq.DEALER, control, keys)
        waiting = queue if mode == "queued" else _BURST
        listen = partial(Connection, self._context, zmq.SUB, endpoint, keys, [(zmq.RCVHWM, waiting)])
        try:
            self._pulse = Pulse(partial(self._ask, [(zmq.SNDHWM, 2)]), self._changed)
            try:
                self._receiver: Subscription | Asker
                if mode in ("paced", "shared"):
                    self._receiver = Asker(self._ask, streams, self._pulse, self._trouble, shares=mode == "shared")
                else:
                    size = queue if mode == "queued" else None
                    self._receiver = Subscription(listen, streams, size, self._trouble, begins=not self._chooses)
            except ValueError:
                self._pulse.close()
                raise
        except ValueError:
            self._context.destroy(linger=0)
            raise
        self._pulse.start()

    @property
    def mode(self) -> str:
        """How frames come now: `newest`, `queued`, `paced` or `shared`."""
        return self._receiver.mode

    @property
    def state(self) -> State:
        """`connecting` until the daemon first answers, then `live`, or `lost` while it does not answer."""
        return self._pulse.state

    @property
    def run_id(self) -> str | None:
        """Changes when the daemon restarts; None before it first answers."""
        return self._pulse.welcome.run_id if self._pulse.welcome else None

    def receive(self, timeout_s: float | None = None) -> Frame:
        """The next frame; TimeoutError when none comes within `timeout_s` (None waits for ever)."""
        frame = self.receive_unless(lambda: False, timeout_s)
        assert frame is not None
        return frame

    def receive_unless(self, halted: Callable[[], bool], timeout_s: float | None = None) -> Frame | None:
        """The same, or None as soon as `halted` is true; call `wake` when that changes."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._closed:
            if self._pulse.refusal and (trouble := self._trouble()):
                raise trouble
            receiver = self._receiver
            left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                message = receiver.take(left_s, halted)
            except TimeoutError:
                raise TimeoutError(f"no frame came within {timeout_s} s") from None
            if message is None:
                if halted():
                    return None
            elif message.header.get("kind", "frame") == "frame":
                return wire.to_frame(message)
        raise ValueError("the subscriber is closed")

    def latest(self, stream: str | None = None) -> Frame | None:
        """The newest frame of `stream`, or of all, that there is, without waiting for one; None before the first.

        The same frame as before while there is no newer one. `receive` does not miss it.
        """
        if self._closed:
            raise ValueError("the subscriber is closed")
        if trouble := self._trouble():
            raise trouble
        self._seen.update((message.topic, message) for message in self._receiver.newest(stream))
        seen = [message for name, message in self._seen.items() if stream in (None, name)]
        if not seen:
            return None
        message = max(seen, key=published_unix_ns)
        key = [message.header.get(name) for name in ("run_id", "epoch", "seq")]
        if message.topic not in self._shown or self._shown[message.topic][0] != key:
            self._shown[message.topic] = key, wire.to_frame(message)
        return self._shown[message.topic][1]

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Frame:
        return self.receive(self._timeout_s)

    def wake(self) -> None:
        """Let a `receive` that waits look at its conditions again."""
        self._receiver.wake()

    def _trouble(self) -> Exception | None:
        """What a `receive` that waits is to raise."""
        if refusal := self._pulse.refusal or self._receiver.refusal:
            return RefusedError(refusal)
        if self._raises and self._pulse.state == "lost":
            return PublisherLostError(f"{self._endpoint}: the daemon has not answered for {LOST_S} s")
        return None

    def _changed(self) -> None:
        """Called by the pulse."""
        with self._swapping:
            if isinstance(self._receiver, Asker):
                self._receiver.meet()
            elif self._chooses and not self._closed:
                self._choose(self._receiver)
        self.wake()

    def _choose(self, subscription: Subscription) -> None:
        """At the first contact: shared memory where that can be."""
        welcome = self._pulse.welcome
        if welcome is None or subscription.subscribes:
            return
        if open_shared(welcome.shared) is None:
            subscription.subscribe()
        else:
            self._receiver = Asker(self._ask, self._streams, self._pulse, self._trouble, shares=True)
            subscription.close()

    def close(self) -> None:
        """Disconnect; may be called again, and by any thread."""
        with self._swapping:
            if self._closed:
                return
            self._closed = True
        self._pulse.close()
        self._receiver.close()
        self._context.destroy(linger=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
