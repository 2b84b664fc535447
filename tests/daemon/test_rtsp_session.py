"""Claims about a session of the low-latency RTSP source: its times, its ends, and other ends that misbehave."""

from __future__ import annotations

import gc
import socket
import struct
import threading
import time
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from live_clips import decoded, make_clip, read_mark
from live_reading import black_hole, numbers, taken
from rtsp_server import Audio, Auth, Faults, RtspServer, Video, self_signed

from daemon.address import Address
from daemon.colour import to_rgb
from daemon.errors import SourceError
from daemon.rtsp.source import RtspSource
from daemon.source import LiveOptions

FAST = 100
USUAL = LiveOptions()
SOON = LiveOptions(timeout_s=1.0, open_timeout_s=1.0)
UDP = replace(USUAL, transport="udp")
PASSWORD = "s3cret/p@ss"


def source_of(url: str, options: LiveOptions = USUAL, on_state=lambda _: None, **more) -> RtspSource:
    return RtspSource(Address.parse(url), options, stream="cam", on_state=on_state, **more)


def take(count: int, url: str, options: LiveOptions = USUAL):
    return taken(count, source_of(url, options))


def failure(url: str, options: LiveOptions = SOON, on_state=lambda _: None) -> str:
    """The error that a source ends with, whatever it yields before."""
    with source_of(url, options, on_state) as source, pytest.raises(SourceError) as caught:
        for _ in source:
            pass
    address, text = Address.parse(url), str(caught.value)
    assert text.startswith(f"{address}: ")
    assert text.isprintable()
    for secret in {address.password, PASSWORD, "s3cret"} - {None}:
        assert secret not in text + str(caught.value.__cause__)
    return text


# Frames


def test_sound_beside_the_video_changes_nothing():
    with RtspServer([Audio(), Video(make_clip(rate=FAST), absolute_control=True)]) as server:
        for options in (USUAL, UDP):
            assert numbers(take(30, server.url(), options)) == list(range(30))


def test_parameter_sets_may_be_in_the_stream_only_and_in_packets_of_their_own():
    for codec in ("h264", "h265"):
        video = Video(make_clip(codec, rate=FAST), announce_sets=False, aggregate=False)
        with RtspServer([video]) as server:
            assert numbers(take(60, server.url())) == [*range(50), *range(10)]


def test_a_stream_that_begins_between_two_key_frames_is_shown_from_the_next_one():
    clip = make_clip(rate=FAST, frames=100, gop=50)
    late = replace(clip, units=clip.units[20:] + clip.units[:20])
    with RtspServer(late) as server, source_of(server.url()) as source:
        frames = [frame for _, frame in zip(range(10), source, strict=False)]
        assert source.counters["held_frames"] == 30
    assert numbers(frames) == list(range(50, 60))


@pytest.mark.parametrize("codec", ["h264", "h265"])
def test_pictures_of_several_slices_are_one_frame(codec):
    with RtspServer(make_clip(codec, rate=FAST, slices=4)) as server:
        assert numbers(take(60, server.url())) == [*range(50), *range(10)]


def test_another_size_in_mid_stream_goes_on():
    switched = make_clip(rate=FAST, width=480, height=272)
    with RtspServer([Video(make_clip(rate=FAST), switch=(25, switched))]) as server:
        frames = take(60, server.url())
    assert [(frame.width, frame.height) for frame in frames] == [(320, 240)] * 25 + [(480, 272)] * 35


def test_what_becomes_too_large_is_refused():
    options = LiveOptions(max_pixels=320 * 240)
    video = Video(make_clip(rate=FAST), switch=(25, make_clip(rate=FAST, width=480, height=272)))
    frames = []
    with RtspServer([video]) as server, pytest.raises(SourceError, match="got 480x272"):
        frames.extend(source_of(server.url(), options))
    assert len(frames) == 25


def test_rotation_and_the_shape_of_pixels_are_carried():
    with RtspServer(make_clip(rate=FAST, rotation=90, aspect=Fraction(4, 3))) as server:
        frames = take(5, server.url())
    assert {frame.rotation for frame in frames} == {90}
    assert {frame.sample_aspect_ratio for frame in frames} == {Fraction(4, 3)}


def test_interlaced_frames_become_progressive_by_choice():
    with RtspServer(make_clip(rate=FAST, interlaced=True)) as server:
        woven = take(30, server.url())
        whole = take(30, server.url(), LiveOptions(deinterlace=True))
    assert numbers(whole) == numbers(woven) == list(range(30))
    assert [frame.pts for frame in whole] == [frame.pts for frame in woven]
    assert woven[9].origin.interlaced_frame
    assert not whole[9].origin.interlaced_frame


# Damage


def test_frames_before_a_loss_are_given_even_those_that_wait_for_their_turn():
    clip = make_clip(rate=FAST, b_frames=2)
    faults = Faults(loss=1.0, only=frozenset({30}))
    with RtspServer(clip, faults=faults) as server, source_of(server.url(), UDP) as source:
        frames = [frame for _, frame in zip(range(60), source, strict=False)]
        lost = {sent.number for sent in server.sent if sent.damaged}
        assert source.counters["lost_packets"] == 1
    before = {unit.number for unit in clip.units[:30]}
    assert before - lost == set(numbers(frames)[: len(before)])
    assert [frame.seq for frame in frames] == list(range(60))


def test_a_picture_that_ends_in_the_middle_is_not_shown():
    clip = make_clip(rate=FAST)
    units = list(clip.units)
    units[10] = replace(units[10], data=units[10].data[:100])
    with RtspServer(replace(clip, units=tuple(units))) as server, source_of(server.url()) as source:
        frames = [frame for _, frame in zip(range(30), source, strict=False)]
        assert source.counters["damaged_frames"] == 1
    assert numbers(frames) == [*range(10), *range(25, 45)]


def test_lost_jpegs_cost_only_themselves():
    clip = make_clip("mjpeg", rate=FAST)
    with RtspServer(clip, faults=Faults(loss=0.5, only=frozenset({10, 20}))) as server:
        frames = take(40, server.url(), UDP)
        hurt = {sent.number for sent in server.sent[:45] if sent.damaged}
    assert hurt
    assert numbers(frames) == [number for number in range(50) if number not in hurt][:40]


def test_whoever_takes_frames_slowly_loses_no_packets_and_gets_young_frames():
    large = make_clip(frames=25, width=1280, height=720)
    with RtspServer(large) as server, source_of(server.url(), UDP) as source:
        frames = iter(source)
        taken = [next(frames) for _ in range(5)]
        server.wait_for_frames(50)  # two seconds of it are in the way now
        taken += [next(frames) for _ in range(20)]
        counters = source.counters
        age_s = time.time() - taken[-1].captured_ns / 1e9
    assert counters["late_frames"] > 0
    assert {**counters, "late_frames": 0} == dict.fromkeys(counters, 0)
    assert numbers(taken) == [frame.seq % 25 for frame in taken]
    assert taken[-1].seq == 24 + counters["late_frames"]
    assert age_s < 1.5


# Time


@pytest.mark.parametrize("options", [USUAL, UDP], ids=["tcp", "udp"])
def test_the_camera_tells_when_a_frame_was_taken(options):
    with RtspServer(make_clip(rate=FAST, b_frames=2), faults=Faults(clock_offset_s=-3600.0)) as server:
        frames = take(60, server.url(), options)
        captured = {each.number: each.captured_s for each in server.sent[:50]}
    assert {frame.clock for frame in frames[1:]} == {"sender"}
    for number, frame in enumerate(frames[1:45], 1):
        assert frame.captured_ns / 1e9 == pytest.approx(captured[number], abs=2e-3)


def test_without_sender_reports_a_frame_counts_as_taken_when_it_arrives():
    before = time.time_ns()
    with RtspServer(make_clip(rate=FAST), faults=Faults(report_every_s=None)) as server:
        frames = take(30, server.url())
    assert {frame.clock for frame in frames} == {"arrival"}
    assert all(before < sooner.captured_ns <= later.captured_ns for sooner, later in pairwise(frames))


@pytest.mark.parametrize("options", [USUAL, UDP], ids=["tcp", "udp"])
def test_a_jump_of_the_cameras_clock_neither_stalls_nor_reorders(options):
    frames = []
    with RtspServer(make_clip(rate=FAST)) as server, source_of(server.url(), options) as source:
        for frame in source:
            frames.append(frame)
            if len(frames) in (20, 40):
                server.faults.timestamp_jump = 90_000 * 3600 * (1 if len(frames) == 20 else -1)
            if len(frames) == 100:
                break
    assert numbers(frames) == [number % 50 for number in range(100)]
    assert len({round(later.time_s - sooner.time_s, 3) for sooner, later in pairwise(frames)}) == 3


def test_timestamps_and_sequence_numbers_may_wrap_around():
    video = Video(make_clip(rate=FAST), first_timestamp=2**32 - 90_000 // 2, first_sequence=65_500)
    with RtspServer([video]) as server:
        frames = take(100, server.url(), UDP)
    assert {later.pts - sooner.pts for sooner, later in pairwise(frames)} == {900}


# The end


def test_a_stream_that_stops_is_noticed_within_twice_the_set_time():
    for options in (SOON, replace(SOON, transport="udp")):
        states: list[str] = []
        with RtspServer(make_clip(rate=FAST), faults=Faults(freeze_at=30)) as server:
            assert "frozen: no whole frame came for 1 s" in failure(server.url(), options, states.append)
            after_s = time.monotonic() - server.sent[-1].left_s
        assert states == ["connecting", "live", "frozen"]
        assert 0.9 < after_s < 2


def test_a_server_that_dies_or_says_bye_breaks_the_stream_at_once():
    with RtspServer(make_clip(rate=FAST), faults=Faults(die_at=30)) as server:
        assert "the server closed the connection" in failure(server.url(), USUAL)
        assert time.monotonic() - server.sent[-1].left_s < 2
    with RtspServer(make_clip(rate=FAST), faults=Faults(goodbye_at=30)) as server:
        assert "the server ended the stream" in failure(server.url(), UDP)


def test_a_session_is_kept_alive_and_told_of_reception_and_ended():
    with RtspServer(make_clip(), session_timeout_s=2) as server:
        with source_of(server.url(), UDP) as source:
            frames = [frame for _, frame in zip(range(150), source, strict=False)]
        assert numbers(frames) == [number % 50 for number in range(150)]
        server.wait_for_connected(0)
        assert [request.method for request in server.requests].count("GET_PARAMETER") >= 2
        assert server.requests[-1].method == "TEARDOWN"
        reports = [packet for packet in server.control if packet[1] == 201 and packet[0] & 31]
        ssrc, share_and_lost, highest = struct.unpack_from(">III", reports[0], 8)
        assert (ssrc & 0xFFFFFF00, share_and_lost) == (0x1234AB00, 0)
        assert highest > 1000


def test_a_session_is_kept_alive_by_what_the_camera_knows():
    with RtspServer(make_clip(), session_timeout_s=2, faults=Faults(status={"GET_PARAMETER": 501})) as server:
        take(75, server.url())
        methods = [request.method for request in server.requests]
        assert methods.count("GET_PARAMETER") == 1
        assert methods.count("OPTIONS") >= 3


def test_an_encrypted_session_gives_the_same_frames_over_tcp_only(tmp_path):
    with RtspServer(make_clip(rate=FAST), tls=self_signed(tmp_path)) as server:
        frames = take(60, server.url(), replace(USUAL, tls_verify=False))
        assert numbers(frames) == [*range(50), *range(10)]
        assert "transport 'tcp'" in failure(server.url(), UDP)


@pytest.mark.parametrize("auth", ["basic", "digest", "digest with qop"])
def test_users_and_passwords_may_be_of_any_letters(auth):
    who = Auth("op@site", PASSWORD, scheme=auth.split(maxsplit=1)[0], qop="qop" in auth)
    with RtspServer(make_clip(rate=FAST), auth=who) as server:
        assert "%2F" in server.url()
        assert numbers(take(5, server.url())) == list(range(5))
        assert "refuses this user and password" in failure(f"rtsp://cam:s3cret@127.0.0.1:{server.port}/cam")
        assert "asks for a user and password" in failure(f"rtsp://127.0.0.1:{server.port}/cam")


@pytest.mark.parametrize("method", ["OPTIONS", "DESCRIBE", "SETUP", "PLAY"])
def test_requests_that_are_never_answered_are_given_up_in_time(method):
    with RtspServer(make_clip(), faults=Faults(mute=frozenset({method}))) as server:
        began = time.monotonic()
        assert f"must answer {method}" in failure(server.url())
        assert time.monotonic() - began < 2


def test_hosts_that_are_not_there_are_told_apart():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert "refuses the connection" in failure(f"rtsp://cam:s3cret@127.0.0.1:{port}/live")
    assert "no address for its name" in failure("rtsp://cam:s3cret@camera.invalid/live")
    with black_hole() as port:
        began = time.monotonic()
        assert "the host must answer" in failure(f"rtsp://cam:s3cret@127.0.0.1:{port}/live")
        assert time.monotonic() - began < 2


# The end, by choice


def closes_in_time(source: RtspSource, begin) -> None:
    """Iterate in another thread; when `begin` returns, close, and see it end."""
    errors: list[BaseException] = []

    def iterate():
        try:
            for _ in source:
                pass
        except BaseException as error:  # noqa: BLE001 - shown by the test
            errors.append(error)

    thread = threading.Thread(target=iterate)
    thread.start()
    begin()
    source.close()
    thread.join(1.0)
    assert not thread.is_alive()
    assert errors == []


def test_closing_ends_a_connection_to_nowhere():
    connecting = threading.Event()
    with black_hole() as port:
        closes_in_time(source_of(f"rtsp://127.0.0.1:{port}/live", on_state=lambda _: connecting.set()), connecting.wait)


@pytest.mark.parametrize("method", ["OPTIONS", "DESCRIBE", "PLAY"])
def test_closing_ends_a_wait_for_an_answer(method):
    with RtspServer(make_clip(), faults=Faults(mute=frozenset({method}))) as server:
        closes_in_time(source_of(server.url()), lambda: server.wait_for_request(method))


@pytest.mark.parametrize("freeze_at", [30, None], ids=["frozen", "running"])
@pytest.mark.parametrize("options", [USUAL, UDP], ids=["tcp", "udp"])
def test_closing_ends_a_stream(freeze_at, options):
    with RtspServer(make_clip(rate=FAST), faults=Faults(freeze_at=freeze_at)) as server:
        closes_in_time(source_of(server.url(), options), lambda: server.wait_for_frames(30))


def test_closing_before_the_beginning_yields_nothing():
    with RtspServer(make_clip()) as server:
        source = source_of(server.url())
        source.close()
        assert list(source) == []
        assert not server.requests


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_many_sessions_leave_nothing_behind():
    with RtspServer(make_clip(rate=FAST)) as server:
        take(3, server.url(), UDP)
        server.wait_for_connected(0)
        before = descriptors(), threading.active_count()
        for number in range(50):
            take(1, server.url(), UDP if number % 2 else USUAL)
        server.wait_for_connected(0)
        gc.collect()
        assert (descriptors(), threading.active_count()) == before


def test_ten_cameras_at_once_each_lose_only_their_own_packets():
    clip = make_clip()
    truth = {number: to_rgb(frame) for number, frame in decoded(clip).items()}
    wrong: list[int] = []

    def watch(url: str, options: LiveOptions) -> None:
        for frame in take(75, url, options):
            mark = read_mark(frame.pixels)
            if mark is None or not np.array_equal(frame.pixels, truth[mark.number]):
                wrong.append(frame.seq)

    with RtspServer(clip, faults=Faults(loss=0.005)) as lossy, RtspServer(clip) as good:
        threads = [
            threading.Thread(target=watch, args=((lossy.url(), UDP) if number % 2 else (good.url(), USUAL)))
            for number in range(10)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert lossy.connected + good.connected <= 10
    assert wrong == []
