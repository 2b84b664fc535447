"""Claims about receiving with asyncio, from a publisher in another process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from publishing import PublisherProcess, pixels

try:
    from deblurd_client import AsyncSubscriber, PublisherLostError
except ImportError:
    from daemon.async_client import AsyncSubscriber
    from daemon.client import PublisherLostError

WAIT_S = 30.0
MODES = ["newest", "queued", "paced", "shared", "auto"]


@pytest.fixture
def publisher() -> Iterator[PublisherProcess]:
    """A publisher at a free port."""
    with PublisherProcess() as publisher:
        yield publisher


async def until(subscriber: AsyncSubscriber, **attributes: object) -> None:
    async with asyncio.timeout(WAIT_S):
        while {name: getattr(subscriber, name) for name in attributes} != attributes:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("mode", MODES)
def test_frames_come_in_turn_while_the_loop_does_other_things(publisher: PublisherProcess, mode: Any) -> None:
    async def receive() -> list[int]:
        async with AsyncSubscriber(publisher.endpoint, mode=mode, timeout_s=WAIT_S) as subscriber:
            await asyncio.to_thread(publisher.await_receivers)
            publishing = asyncio.create_task(asyncio.to_thread(publisher.publish, 0))
            received = []
            async for frame in subscriber:
                np.testing.assert_array_equal(frame.pixels, pixels(frame.seq))
                received.append(frame.seq)
                await publishing
                if frame.seq == 9:
                    break
                publishing = asyncio.create_task(asyncio.to_thread(publisher.publish, frame.seq + 1))
            await until(subscriber, state="live", run_id=publisher.run_id)
            return received

    assert asyncio.run(receive()) == list(range(10))


@pytest.mark.parametrize("mode", ["queued", "paced", "shared"])
def test_a_receive_that_is_cancelled_loses_no_frame(publisher: PublisherProcess, mode: Any) -> None:
    async def receive() -> list[int]:
        received = []
        async with AsyncSubscriber(publisher.endpoint, mode=mode) as subscriber:
            await asyncio.to_thread(publisher.await_receivers)
            for seq in range(30):
                waiting = asyncio.create_task(subscriber.receive(WAIT_S))
                # Cancelled before, while and after the frame comes, as it happens.
                publishing = asyncio.create_task(asyncio.to_thread(publisher.publish, seq))
                await asyncio.sleep(seq * 1e-4)
                waiting.cancel()
                try:
                    frame = await waiting
                except asyncio.CancelledError:
                    frame = await subscriber.receive(WAIT_S)
                received.append(frame.seq)
                await publishing
        return received

    assert asyncio.run(receive()) == list(range(30))


def test_a_receive_ends_when_its_time_is_over(publisher: PublisherProcess) -> None:
    async def receive() -> int:
        async with AsyncSubscriber(publisher.endpoint, mode="queued") as subscriber:
            await asyncio.to_thread(publisher.await_receivers)
            with pytest.raises(TimeoutError, match="no frame came within"):
                await subscriber.receive(0.05)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await subscriber.receive()
            assert await subscriber.latest() is None
            publisher.publish(4)
            frame = await subscriber.receive(WAIT_S)
            assert (await subscriber.latest()) is not None
            return frame.seq

    assert asyncio.run(receive()) == 4


def test_a_lost_daemon_is_an_error_by_choice(publisher: PublisherProcess) -> None:
    async def receive() -> None:
        async with AsyncSubscriber(publisher.endpoint, on_lost="raise") as subscriber:
            await until(subscriber, state="live")
            publisher.kill()
            with pytest.raises(PublisherLostError, match="has not answered"):
                await subscriber.receive(WAIT_S)

    asyncio.run(receive())


def test_closing_ends_a_receive_of_another_task(publisher: PublisherProcess) -> None:
    async def receive() -> None:
        subscriber = AsyncSubscriber(publisher.endpoint)
        waiting = asyncio.create_task(subscriber.receive())
        await until(subscriber, state="live")
        await subscriber.close()
        await subscriber.close()
        with pytest.raises(ValueError, match="the subscriber is closed"):
            await waiting
        with pytest.raises(ValueError, match="the subscriber is closed"):
            await subscriber.receive()

    asyncio.run(receive())


def test_an_impossible_wish_is_refused() -> None:
    with pytest.raises(ValueError, match="mode must be"):
        AsyncSubscriber("tcp://127.0.0.1:5555", mode="fastest")  # type: ignore[arg-type]
