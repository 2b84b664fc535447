"""Claims about the low-latency RTSP source, on a real server with faults."""

from __future__ import annotations

import itertools
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from live_clips import decoded, make_clip, oversized, read_mark
from rtsp_server import Audio, Auth, Faults, RtspServer, Unknown, self_signed

from daemon.address import Address
from daemon.colour import to_rgb
from daemon.errors import SourceError
from daemon.rtsp.source import RtspSource
from daemon.source import LiveOptions

FAST = 100
QUICK = LiveOptions(timeout_s=1.0, open_timeout_s=1.0)


def take(count, server, transport="tcp", url=None, tls_verify=True):
    options = replace(QUICK, transport=transport, tls_verify=tls_verify)
    with RtspSource(Address.parse(url or server.url()), options, stream="cam") as source:
        frames = [frame for _, frame in zip(range(count), source, strict=False)]
    return frames, source


def numbers(frames):
    return [mark and mark.number for mark in (read_mark(frame.pixels) for frame in frames)]


@pytest.mark.parametrize("transport", ["tcp", "udp"])
@pytest.mark.parametrize(
    "shape", [{}, {"codec": "h265"}, {"codec": "mjpeg"}, {"b_frames": 2}, {"codec": "h265", "b_frames": 2}], ids=str
)
def test_frames_come_in_display_order_and_to_the_bit(shape, transport):
    clip = make_clip(rate=FAST, **shape)
    truth = decoded(clip)
    with RtspServer(clip) as server:
        frames, _ = take(60, server, transport)
    assert numbers(frames) == [*range(50), *range(10)]
    assert all(
        (frame.pixels == to_rgb(truth[number])).all() for frame, number in zip(frames, numbers(frames), strict=False)
    )
    assert {b.pts - a.pts for a, b in itertools.pairwise(frames)} == {900}


@pytest.mark.parametrize("codec", ["h264", "h265", "mjpeg"])
def test_no_damaged_frame_comes_out_of_a_lossy_network(codec):
    clip = make_clip(codec, rate=FAST, width=640, height=480)
    truth = decoded(clip)
    with RtspServer(clip, faults=Faults(loss=0.005)) as server:
        frames, source = take(200, server, "udp")
    assert source.counters["lost_packets"] > 0
    assert all(
        (frame.pixels == to_rgb(truth[number])).all() for frame, number in zip(frames, numbers(frames), strict=False)
    )


def test_reordered_and_doubled_packets_lose_nothing():
    faults = Faults(reorder=0.2, reorder_by=3, duplicate=0.2)
    with RtspServer(make_clip(rate=FAST, width=640, height=480), faults=faults) as server:
        frames, source = take(100, server, "udp")
    assert numbers(frames) == [*range(50), *range(50)]
    assert not any(source.counters.values())


@pytest.mark.parametrize(
    ("served", "faults", "text"),
    [
        (make_clip(), Faults(status={"DESCRIBE": 404}), "404"),
        (make_clip(), Faults(refuse=frozenset({"tcp"})), "461"),
        (make_clip(), Faults(mute=frozenset({"DESCRIBE"})), "DESCRIBE"),
        (make_clip(), Faults(die_at=5), "closed"),
        (make_clip(), Faults(freeze_at=5), "frozen"),
        ([Audio()], None, "video"),
        ([Unknown()], None, "VP99"),
        (oversized(make_clip(), 16384, 16384), None, "16384x16384"),
    ],
    ids=str,
)
def test_a_failure_is_one_line_that_says_what(served, faults, text):
    with RtspServer(served, faults=faults) as server, pytest.raises(SourceError, match=text) as caught:
        take(1000, server)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["basic", "digest"])
def test_only_who_knows_the_password_may_watch(scheme):
    with RtspServer(make_clip(rate=FAST), auth=Auth("cam", "p@ss/w:rd", scheme)) as server:
        assert numbers(take(3, server)[0]) == [0, 1, 2]
        with pytest.raises(SourceError, match="401") as caught:
            take(1, server, url=server.url().replace("p%40", "secretpw"))
    assert "secretpw" not in str(caught.value)


def test_a_stream_may_be_encrypted(tmp_path):
    with RtspServer(make_clip(rate=FAST), tls=self_signed(tmp_path)) as server:
        assert numbers(take(30, server, tls_verify=False)[0]) == [*range(30)]


@pytest.mark.parametrize("faults", [Faults(mute=frozenset({"DESCRIBE"})), Faults(freeze_at=3), Faults()], ids=str)
def test_close_ends_it_within_a_second(faults):
    with RtspServer(make_clip(), faults=faults) as server:
        source = RtspSource(Address.parse(server.url()), LiveOptions(30, 30), stream="cam")
        reader = threading.Thread(target=lambda: list(source))
        reader.start()
        server.wait_for_request("DESCRIBE" if faults.mute else "PLAY")
        began = time.monotonic()
        source.close()
        reader.join(5)
        assert time.monotonic() - began < 1


def test_many_connects_leave_nothing_behind():
    with RtspServer(make_clip(rate=FAST)) as server:
        take(1, server)
        server.wait_for_connected(0)
        before = len([*Path("/proc/self/fd").iterdir()]), threading.active_count()
        for number in range(50):
            take(1, server, "udp" if number % 2 else "tcp")
        server.wait_for_connected(0)
        assert (len([*Path("/proc/self/fd").iterdir()]), threading.active_count()) == before
