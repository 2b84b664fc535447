"""The subscriber for asyncio.

    async with AsyncSubscriber("tcp://127.0.0.1:5555") as subscriber:
        async for frame in subscriber:
            print(frame.stream, frame.seq, frame.age_s(), frame.pixels.shape)

Knows how a thread and an event loop meet; nothing of how frames come.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from .client import Mode, OnLost, Subscriber
from .frame import Frame
from .keys import Keys
from .pulse import State


class AsyncSubscriber:
    """As `Subscriber`, whose arguments and errors it has; frames are waited for in a thread of its own.

    A `receive` that is cancelled, or that `asyncio.timeout` ends, loses no frame. Tasks may share a subscriber: each
    frame goes to one of them.
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
        self._timeout_s = timeout_s
        self._subscriber = Subscriber(
            endpoint, streams, mode=mode, queue=queue, control=control, keys=keys, on_lost=on_lost
        )
        # One thread: calls of `receive` are answered in turn.
        self._executor = ThreadPoolExecutor(1, "receive")
        self._left: deque[Frame] = deque()

    @property
    def mode(self) -> str:
        """How frames come now: `newest`, `queued`, `paced` or `shared`."""
        return self._subscriber.mode

    @property
    def state(self) -> State:
        """`connecting` until the daemon first answers, then `live`, or `lost` while it does not answer."""
        return self._subscriber.state

    @property
    def run_id(self) -> str | None:
        """Changes when the daemon restarts; None before it first answers."""
        return self._subscriber.run_id

    async def receive(self, timeout_s: float | None = None) -> Frame:
        """The next frame; TimeoutError when none comes within `timeout_s` (None waits for ever)."""
        cancelled = threading.Event()

        def next_frame() -> Frame | None:
            return self._left.popleft() if self._left else self._subscriber.receive_unless(cancelled.is_set, timeout_s)

        def keep(call: Future[Frame | None]) -> None:
            if not call.cancelled() and call.exception() is None and (frame := call.result()) is not None:
                self._left.append(frame)

        try:
            call = self._executor.submit(next_frame)
        except RuntimeError as error:
            raise ValueError("the subscriber is closed") from error
        try:
            frame = await asyncio.wrap_future(call)
        except asyncio.CancelledError:
            # The thread ends its wait. A frame that it had at this moment is there for the next call.
            cancelled.set()
            self._subscriber.wake()
            call.add_done_callback(keep)
            raise
        assert frame is not None
        return frame

    async def latest(self, stream: str | None = None) -> Frame | None:
        """The newest frame of `stream`, or of all, that there is, without waiting for one; None before the first."""
        return await asyncio.to_thread(self._subscriber.latest, stream)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Frame:
        return await self.receive(self._timeout_s)

    async def close(self) -> None:
        """Disconnect; may be called again, and by any task."""
        await asyncio.to_thread(self._subscriber.close)
        self._executor.shutdown()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()
