"""Claims about the test server itself, made by a client that is not ours: FFmpeg, through PyAV."""

from __future__ import annotations

import re
import socket
import struct
import time
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest
from live_clips import Mark, decoded, draw_mark, live_feed, make_clip, oversized, picture, read_mark
from rtsp_server import Audio, Auth, Faults, RtspServer, Unknown, Video, self_signed

FAST = 100
"""Frames a second, so that the tests wait little."""


def frames(url: str, transport: str = "tcp", timeout_s: float = 5, **options: str) -> Iterator[av.VideoFrame]:
    chosen = {"rtsp_transport": transport, "fpsprobesize": "0", **options}
    with av.open(url, options=chosen, timeout=(timeout_s, timeout_s)) as container:
        container.streams.video[0].thread_type = "SLICE"
        yield from container.decode(container.streams.video[0])


def take(count: int, url: str, transport: str = "tcp", **options: str) -> list[av.VideoFrame]:
    found = []
    for frame in frames(url, transport, **options):
        found.append(frame)
        if len(found) == count:
            break
    return found


def numbers(found: list[av.VideoFrame]) -> list[int | None]:
    marks = [read_mark(frame.to_ndarray(format="gray")) for frame in found]
    return [mark and mark.number for mark in marks]


def refusal(url: str, transport: str = "tcp") -> type[BaseException]:
    with pytest.raises((av.FFmpegError, OSError)) as caught:
        take(1, url, transport, timeout_s=1)
    return caught.type


def test_a_mark_is_read_as_it_was_drawn_and_a_broken_one_is_not():
    luma = np.zeros((24, 256), np.uint8)
    draw_mark(luma, Mark(4_000_000_000, 1 << 47))
    assert read_mark(luma) == Mark(4_000_000_000, 1 << 47)
    luma[:8, :8] ^= 255
    assert read_mark(luma) is None


def test_fields_of_an_interlaced_picture_are_of_different_times():
    woven, plain = (picture(Mark(3, 0), 320, 64, fields=fields).to_ndarray(format="gray") for fields in (True, False))
    assert (woven[24::2] == plain[24::2]).all()
    assert (woven[25::2] != plain[25::2]).any()


@pytest.mark.parametrize("transport", ["tcp", "udp"])
@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"codec": "h265"},
        {"codec": "mjpeg"},
        {"b_frames": 2},
        {"codec": "h265", "b_frames": 2},
        {"slices": 4},
        {"interlaced": True},
    ],
    ids=str,
)
def test_a_clip_is_served_over_and_over_to_the_bit(shape, transport):
    clip = make_clip(frames=20, gop=10, rate=FAST, **shape)
    with RtspServer(clip) as server:
        found = take(50, server.url(), transport)
    assert numbers(found) == [*range(20), *range(20), *range(10)]
    assert {later.pts - sooner.pts for sooner, later in pairwise(found[1:])} == {90_000 // FAST}
    truth = decoded(clip)
    for frame, number in zip(found, numbers(found), strict=True):
        assert (frame.to_ndarray() == truth[number].to_ndarray()).all()
        assert frame.interlaced_frame == shape.get("interlaced", False)


@pytest.mark.parametrize("codec", ["h264", "h265"])
@pytest.mark.parametrize(
    "choice", [{"aggregate": False}, {"announce_sets": False}, {"absolute_control": True}], ids=str
)
def test_what_is_said_in_the_sdp_and_how_packets_are_filled_is_a_choice(codec, choice):
    with RtspServer([Video(make_clip(codec, rate=FAST), **choice)]) as server:
        assert numbers(take(10, server.url())) == [*range(10)]


def test_shape_and_turn_travel_in_the_stream():
    with RtspServer(make_clip(rate=FAST, aspect=Fraction(4, 3), rotation=90)) as server:
        with av.open(server.url(), options={"rtsp_transport": "tcp"}, timeout=5) as container:
            assert container.streams.video[0].codec_context.sample_aspect_ratio == Fraction(4, 3)
        assert {frame.rotation for frame in take(5, server.url())} == {90}


@pytest.mark.parametrize("codec", ["h264", "h265"])
def test_live_frames_are_made_for_each_client(codec):
    feed = live_feed(lambda: time.monotonic_ns() // 1000, codec, rate=FAST)
    with RtspServer(feed) as server:
        for _ in range(2):
            before_us = time.monotonic_ns() // 1000
            found = take(10, server.url())
            assert numbers(found) == [*range(10)]
            mark = read_mark(found[0].to_ndarray(format="gray"))
            assert mark and before_us < mark.time_us < time.monotonic_ns() // 1000


def test_several_paths_are_served_and_others_are_not():
    mounts = {"/low": [Video(make_clip(rate=FAST))], "/a/high": [Video(make_clip(rate=FAST, width=640, height=480))]}
    with RtspServer(mounts) as server:
        assert [take(1, server.url(path))[0].width for path in mounts] == [320, 640]
        assert refusal(server.url("/cam")) is av.HTTPNotFoundError


def test_sound_before_the_picture_and_a_second_picture_are_served_too():
    tracks = [Audio(), Video(make_clip(rate=FAST)), Video(make_clip(rate=FAST, width=640, height=480))]
    with RtspServer(tracks) as server, av.open(server.url(), options={"rtsp_transport": "tcp"}, timeout=5) as container:
        assert [stream.type for stream in container.streams] == ["audio", "video", "video"]
        seen = {packet.stream.index for packet, _ in zip(container.demux(), range(100), strict=False)}
    assert seen == {0, 1, 2}


@pytest.mark.parametrize("tracks", [[Audio()], [Unknown()]], ids=["sound only", "unknown codec"])
def test_a_stream_may_have_no_picture_for_anybody(tracks):
    with RtspServer(tracks) as server, av.open(server.url(), options={"rtsp_transport": "tcp"}, timeout=(2, 2)) as got:
        assert [stream.codec_context for stream in got.streams if stream.type == "video"] in ([], [None])


@pytest.mark.parametrize("password", ["s3cret", "p@ss/w:rd#1 %"])
@pytest.mark.parametrize(("scheme", "qop"), [("basic", False), ("digest", False), ("digest", True)])
def test_only_who_knows_the_password_may_watch(scheme, qop, password):
    with RtspServer(make_clip(rate=FAST), auth=Auth("cam", password, scheme, qop)) as server:
        assert numbers(take(3, server.url())) == [0, 1, 2]
        assert refusal(server.url().replace("//cam:", "//cam:x")) is av.HTTPUnauthorizedError
        assert refusal(f"rtsp://127.0.0.1:{server.port}/cam") is av.HTTPUnauthorizedError


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, av.HTTPUnauthorizedError),
        (403, av.HTTPForbiddenError),
        (404, av.HTTPNotFoundError),
        (503, av.HTTPServerError),
    ],
)
def test_describe_is_answered_as_asked(status, error):
    with RtspServer(make_clip(), faults=Faults(status={"DESCRIBE": status})) as server:
        assert refusal(server.url()) is error
        server.faults.heal()
        assert take(1, server.url())


@pytest.mark.parametrize(
    "faults",
    [Faults(silent=True), *(Faults(mute=frozenset({name})) for name in ("OPTIONS", "DESCRIBE", "SETUP", "PLAY"))],
    ids=["silent", "OPTIONS", "DESCRIBE", "SETUP", "PLAY"],
)
def test_a_mute_server_accepts_and_says_nothing(faults):
    with RtspServer(make_clip(), faults=faults) as server:
        refusal(server.url())
        asked = {request.method for request in server.requests}
    assert asked >= faults.mute


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_a_transport_can_be_refused(transport):
    with RtspServer(make_clip(), faults=Faults(refuse=frozenset({transport}))) as server:
        refusal(server.url(), transport)
        assert take(1, server.url(), {"tcp": "udp", "udp": "tcp"}[transport])


@pytest.mark.parametrize("codec", ["h264", "h265", "mjpeg"])
def test_the_size_changes_within_the_stream(codec):
    track = Video(make_clip(codec, rate=FAST), switch=(20, make_clip(codec, rate=FAST, width=640, height=480)))
    with RtspServer([track]) as server:
        found = take(40, server.url())
    assert [frame.width for frame in found] == [320] * 20 + [640] * 20
    assert numbers(found) == [*range(20), *range(20)]


@pytest.mark.parametrize("size", [(8192, 8192), (16384, 16384)])
def test_a_size_can_be_announced_that_nobody_wants(size):
    sets = oversized(make_clip(), *size).units[0].data
    decoder = av.VideoCodecContext.create("h264", "r")
    if size == (8192, 8192):
        decoder.decode(av.Packet(sets))
        assert (decoder.width, decoder.height) == size
    else:
        with pytest.raises(av.InvalidDataError):  # too large for FFmpeg itself
            decoder.decode(av.Packet(sets))


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_a_frozen_stream_keeps_its_connection_and_goes_on_when_it_thaws(transport):
    options = {"rtsp_transport": transport}
    with (
        RtspServer(make_clip(rate=FAST), faults=Faults(freeze_at=30)) as server,
        av.open(server.url(), options=options, timeout=(5, 1)) as container,
    ):
        seen = 0
        with pytest.raises((av.FFmpegError, OSError)):
            for _ in container.demux(video=0):
                seen += 1
        assert 28 <= seen <= 30
        assert (server.connected, server.playing) == (1, 1)
        server.faults.freeze_at = None
        server.wait_for_frames(20)
        assert [sent.index for sent in server.sent[:50]] == [*range(50)]


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_a_server_that_dies_comes_back_on_the_same_port(transport):
    with RtspServer(make_clip(rate=FAST), faults=Faults(die_at=30)) as server:
        for _ in range(2):
            assert len(take(1000, server.url(), transport)) <= 30  # FFmpeg takes it for the end of the stream
            server.wait_for_connected(0)
            server.die()
            assert refusal(server.url()) is av.ConnectionRefusedError
            server.start()
        server.faults.heal()
        assert len(take(40, server.url(), transport)) == 40


def test_a_connection_may_end_and_the_server_lives():
    with RtspServer(make_clip(rate=FAST), faults=Faults(hang_up_at=10)) as server:
        assert [numbers(take(1000, server.url())) for _ in range(2)] == [[*range(10)]] * 2


def test_a_server_may_get_stuck_within_a_packet():
    with RtspServer(make_clip(rate=FAST), faults=Faults(stuck_at=30)) as server:
        with pytest.raises((av.FFmpegError, OSError)):
            take(31, server.url(), timeout_s=1)
        assert server.sent[-1].index == 29
    with RtspServer(make_clip(rate=FAST), faults=Faults(stuck_at=5)) as server:
        reader = frames(server.url())
        next(reader)
        server.wait_for(lambda: server.stuck)
        assert server.connected == 1
        reader.close()


def test_what_was_sent_and_who_is_there_can_be_waited_for():
    with RtspServer(make_clip(rate=FAST)) as server:
        reader = frames(server.url())
        next(reader)
        server.wait_for_playing(1)
        server.wait_for_frames(10)
        reader.close()
        server.wait_for_connected(0)
        assert server.requests[-1].method == "TEARDOWN"
        assert [(sent.index, sent.number) for sent in server.sent[:3]] == [(0, 0), (1, 1), (2, 2)]
        assert all(later.left_s > sooner.left_s for sooner, later in pairwise(server.sent))
        with pytest.raises(AssertionError, match="not within"):
            server.wait_for_playing(1, timeout_s=0.01)


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_lost_packets_are_told(transport):
    with RtspServer(make_clip("mjpeg", rate=FAST), faults=Faults(loss=1.0, only=frozenset({20, 21}))) as server:
        found = numbers(take(40, server.url(), transport))
        assert 20 not in found
        assert 21 not in found
        assert {sent.index for sent in server.sent if sent.damaged} == {20, 21}


def test_flipped_bits_damage_the_picture():
    clip = make_clip("mjpeg", rate=FAST)
    truth = decoded(clip)
    with RtspServer(clip, faults=Faults(corrupt=1.0, only=frozenset({20}))) as server:
        found = take(30, server.url())
    wrong = [place for place, frame in enumerate(found) if (frame.to_ndarray() != truth[place].to_ndarray()).any()]
    assert set(wrong) <= {20}
    assert {sent.index for sent in server.sent if sent.damaged} == {20}


def test_the_same_seed_loses_the_same_packets():
    lost = []
    for _ in range(2):
        with RtspServer(make_clip(rate=FAST), faults=Faults(loss=0.1)) as server:
            reader = frames(server.url())
            next(reader)
            server.wait_for(lambda server=server: len(server.sent) >= 60)
            reader.close()
            lost.append([sent.damaged for sent in server.sent[:60]])
    assert lost[0] == lost[1]
    assert sum(lost[0]) > 0
    assert lost[0][:3] == [0, 0, 0]


def sequence_numbers(server: RtspServer, count: int) -> list[int]:
    """Of the first RTP packets over UDP, as they come: FFmpeg decodes a packet twice that comes twice."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp, socket.socket() as tcp:
        udp.bind(("127.0.0.1", 0))
        udp.settimeout(5)
        tcp.settimeout(5)
        tcp.connect(("127.0.0.1", server.port))
        port = udp.getsockname()[1]
        track = f"{server.url()}/track0"
        tcp.sendall(f"SETUP {track} RTSP/1.0\r\nCSeq: 1\r\nTransport: RTP/AVP;client_port={port}\r\n\r\n".encode())
        session = re.search(r"Session: (\w+)", tcp.recv(4096).decode())
        assert session
        tcp.sendall(f"PLAY {server.url()} RTSP/1.0\r\nCSeq: 2\r\nSession: {session[1]}\r\n\r\n".encode())
        return [struct.unpack_from(">H", udp.recv(2048), 2)[0] for _ in range(count)]


def test_packets_come_late_or_twice_as_asked():
    clip = make_clip(rate=FAST)
    with RtspServer(clip, faults=Faults(duplicate=1.0, spare=0)) as server:
        assert sequence_numbers(server, 6) == [1000, 1000, 1001, 1001, 1002, 1002]
    with RtspServer(clip, faults=Faults(reorder=0.3, reorder_by=2, spare=0)) as server:
        came = sequence_numbers(server, 60)
    assert came != sorted(came)
    assert sorted(came)[:55] == [*range(1000, 1055)]
    assert max(abs(number - 1000 - place) for place, number in enumerate(came)) <= 8


@pytest.mark.parametrize("faults", [{"reorder": 0.2}, {"reorder": 0.1, "reorder_by": 3}], ids=str)
def test_packets_that_come_late_are_put_right_by_a_client_that_waits(faults):
    clip = make_clip(rate=50, width=640, height=480)
    truth = decoded(clip)
    with RtspServer(clip, faults=Faults(**faults)) as server:
        found = take(30, server.url(), "udp", reorder_queue_size="50", max_delay="500000")
    assert len(found) == 30
    for frame, number in zip(found, numbers(found), strict=True):
        assert (frame.to_ndarray() == truth[number].to_ndarray()).all()


def test_counters_may_wrap():
    track = Video(make_clip(rate=FAST), first_sequence=65530, first_timestamp=2**32 - 9000)
    with RtspServer([track]) as server:
        found = take(40, server.url())
        assert server.sent[39].timestamp < server.sent[0].timestamp
    assert numbers(found) == [*range(40)]
    assert {later.pts - sooner.pts for sooner, later in pairwise(found[1:])} == {900}


def captured(url: str, count: int) -> list[float]:
    """Capture times in Unix seconds as FFmpeg has them from sender reports."""
    with av.open(url, options={"rtsp_transport": "tcp"}, timeout=5) as container:
        times = []
        for packet in container.demux(video=0):
            if side := packet.get_sidedata("prft"):
                times.append(struct.unpack_from("<q", bytes(side))[0] / 1e6)
            if len(times) == count or (not times and (packet.pts or 0) > 90_000):
                break
        return times


def test_sender_reports_tell_the_cameras_clock():
    with RtspServer(make_clip(rate=FAST), faults=Faults(clock_offset_s=3600.0)) as server:
        times = captured(server.url(), 10)
        sent = [each.captured_s for each in server.sent]
    assert len(times) == 10
    assert all(min(abs(each - other) for other in sent) < 1e-3 for each in times)
    assert 3500 < times[0] - time.time() < 3600


def test_a_camera_may_send_no_reports():
    with RtspServer(make_clip(rate=FAST), faults=Faults(report_every_s=None)) as server:
        assert captured(server.url(), 10) == []


def test_a_clock_that_is_set_while_it_runs_is_reported_at_once():
    with RtspServer(make_clip(rate=FAST)) as server:
        reader = frames(server.url())
        next(reader)
        server.faults.clock_offset_s = -100.0
        server.wait_for_frames(5)
        reader.close()
        steps = [later.captured_s - sooner.captured_s for sooner, later in pairwise(server.sent)]
    assert min(steps) == pytest.approx(-100, abs=0.1)


def test_timestamps_may_jump():
    with RtspServer(make_clip(rate=FAST)) as server:
        reader = frames(server.url())
        next(reader)
        server.faults.timestamp_jump = 900_000
        server.wait_for_frames(5)
        reader.close()
        steps = {(later.timestamp - sooner.timestamp) for sooner, later in pairwise(server.sent)}
    assert steps == {900, 900_900}


def test_a_client_that_keeps_its_session_alive_stays_and_another_is_dropped():
    with RtspServer(make_clip(rate=FAST), session_timeout_s=2) as server:
        assert len(take(3 * FAST, server.url())) == 3 * FAST
        assert "GET_PARAMETER" in {request.method for request in server.requests}
        server.wait_for_connected(0)
        idle = frames(server.url())
        next(idle)
        server.wait_for_connected(0, timeout_s=10)
        idle.close()


def test_a_goodbye_is_the_last_that_is_heard():
    with RtspServer(make_clip(rate=FAST), faults=Faults(goodbye_at=20)) as server:
        reader = frames(server.url())
        assert 18 <= len(list(reader)) <= 20  # FFmpeg ends at BYE
        assert server.sent[-1].index == 19


def test_clients_tell_what_they_received():
    with RtspServer(make_clip(rate=FAST)) as server:
        assert len(take(100, server.url(), "udp")) == 100
        server.wait_for_connected(0)
        assert server.control
        assert {packet[1] for packet in server.control} <= {200, 201, 202, 203}


def test_connections_are_closed_and_clients_may_come_back_at_once():
    with RtspServer(make_clip(rate=FAST)) as server:
        reader = frames(server.url())
        next(reader)
        server.hang_up()
        assert server.connected == 0
        assert len(list(reader)) < 1000
        assert take(1, server.url())


def test_a_stream_may_be_encrypted(tmp_path):
    with RtspServer(make_clip(rate=FAST), tls=self_signed(tmp_path), auth=Auth("cam", "s3cret")) as server:
        assert server.url().startswith("rtsps://")
        assert numbers(take(60, server.url())) == [*range(50), *range(10)]


def test_ten_clients_are_served_at_once():
    with RtspServer(make_clip()) as server:
        readers = [frames(server.url(), "tcp" if place % 2 else "udp") for place in range(10)]
        for reader in readers:
            next(reader)
        assert server.playing == 10
        for reader in readers:
            assert numbers([next(reader) for _ in range(5)]) == [1, 2, 3, 4, 5]
            reader.close()
