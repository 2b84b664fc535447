"""Claims about the hand-off between threads."""

from __future__ import annotations

import threading

import pytest

from daemon.channel import Channel, ClosedError


def test_items_come_out_in_the_order_they_went_in() -> None:
    channel: Channel[int] = Channel(8)
    for i in range(5):
        channel.put(i)
    channel.close()
    assert list(channel) == [0, 1, 2, 3, 4]


def test_a_full_channel_that_drops_keeps_the_newest_and_counts_the_rest() -> None:
    channel: Channel[int] = Channel(2, "drop_oldest")
    for i in range(10):
        channel.put(i)
    channel.close()
    assert list(channel) == [8, 9]
    assert channel.drops == 8


def test_a_full_channel_that_blocks_loses_nothing() -> None:
    channel: Channel[int] = Channel(1)

    def produce() -> None:
        for i in range(200):
            channel.put(i)
        channel.close()

    producer = threading.Thread(target=produce)
    producer.start()
    received = list(channel)
    producer.join()
    assert received == list(range(200))
    assert channel.drops == 0


def test_closing_wakes_a_producer_that_waits_for_room() -> None:
    channel: Channel[int] = Channel(1)
    channel.put(0)
    outcome: list[str] = []

    def produce() -> None:
        try:
            channel.put(1)
        except ClosedError:
            outcome.append("closed")

    producer = threading.Thread(target=produce)
    producer.start()
    channel.close(discard=True)
    producer.join(10)
    assert outcome == ["closed"]
    assert channel.exhausted


def test_closing_wakes_a_consumer_that_waits_for_an_item() -> None:
    channel: Channel[int] = Channel(1)
    received: list[int] = []
    consumer = threading.Thread(target=lambda: received.extend(channel))
    consumer.start()
    channel.put(7)
    channel.close()
    consumer.join(10)
    assert received == [7]


def test_channels_with_one_condition_can_be_waited_on_together() -> None:
    changed = threading.Condition()
    first, second = Channel[int](1, changed=changed), Channel[int](1, changed=changed)
    with changed:
        threading.Thread(target=second.put, args=(5,)).start()
        assert changed.wait_for(lambda: len(first) or len(second), timeout=10)
    assert second.take() == 5


def test_a_capacity_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        Channel(0)
