from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from live_clips import decoded, make_clip, oversized
from live_reading import black_hole, numbers, taken
from rtsp_server import Audio, Auth, Faults, RtspServer, Unknown, Video, self_signed

from daemon.address import Address
from daemon.colour import to_rgb
from daemon.errors import SourceError
from daemon.network_source import NetworkSource
from daemon.source import LiveOptions

FAST = 100
USUAL = LiveOptions()
SOON = LiveOptions(timeout_s=1.0, open_timeout_s=1.0)
PASSWORD = "s3cret/p@ss"


def source_of(url: str, options: LiveOptions = USUAL, on_state=lambda _: None) -> NetworkSource:
    return NetworkSource(Address.parse(url), options, stream="cam", on_state=on_state)


def take(count: int, url: str, options: LiveOptions = USUAL):
    return taken(count, source_of(url, options))


def refusal(url: str, options: LiveOptions = SOON) -> str:
    """The error with which a source ends, whatever it yielded before."""
    with source_of(url, options) as source, pytest.raises(SourceError) as caught:
        for _ in source:
            pass
    return checked(caught.value, url)


def checked(error: BaseException, url: str) -> str:
    address, text = Address.parse(url), str(error)
    assert text.startswith(f"{address}: ")
    assert text.isprintable()
    cause: BaseException | None = error
    while cause is not None:  # what a traceback would show
        for secret in {address.password, PASSWORD, "s3cret"} - {None}:
            assert secret not in str(cause)
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return text


@contextmanager
def silent_port():
    """A port that accepts connections, as a kernel does, and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


# Frames


@pytest.mark.parametrize(
    ("codec", "b_frames"), [("h264", 0), ("h264", 2), ("h265", 0), ("h265", 2), ("mjpeg", 0)], ids=str
)
def test_every_frame_comes_in_display_order_at_its_time(codec, b_frames):
    with RtspServer(make_clip(codec, b_frames=b_frames)) as server:
        frames = take(60, server.url())
    assert numbers(frames) == [*range(50), *range(10)]
    assert [frame.seq for frame in frames] == list(range(60))
    assert [frame.time_s for frame in frames] == pytest.approx([number / 25 for number in range(60)])
    assert {frame.stream for frame in frames} == {"cam"}


def test_pixels_are_those_of_the_decoder():
    clip = make_clip()
    with RtspServer(clip) as server:
        frames = take(3, server.url())
    for number, frame in enumerate(frames):
        assert np.array_equal(frame.pixels, to_rgb(decoded(clip)[number]))


def test_a_camera_may_send_its_parameter_sets_with_the_key_frames_only():
    for codec in ("h264", "h265"):
        with RtspServer([Video(make_clip(codec, rate=FAST), announce_sets=False, announce_rate=False)]) as server:
            assert numbers(take(60, server.url())) == [*range(50), *range(10)]


def test_a_stream_may_begin_anywhere_between_two_key_frames():
    clip = make_clip(rate=FAST, frames=100, gop=50)
    late = replace(clip, units=clip.units[20:] + clip.units[:20])
    for announced in (True, False):
        with RtspServer([Video(late, announce_sets=announced)]) as server:
            assert numbers(take(10, server.url())) == list(range(50, 60))


def test_sound_beside_the_video_changes_nothing():
    with RtspServer([Audio(), Video(make_clip(rate=FAST))]) as server:
        assert numbers(take(30, server.url())) == list(range(30))


@pytest.mark.parametrize("user", ["operator", "op@site"])
@pytest.mark.parametrize("auth", ["basic", "digest", "digest with qop"])
def test_users_and_passwords_may_be_of_any_letters(auth, user):
    who = Auth(user, PASSWORD, scheme=auth.split(maxsplit=1)[0], qop="qop" in auth)
    with RtspServer(make_clip(rate=FAST), auth=who) as server:
        assert "%2F" in server.url()
        assert numbers(take(5, server.url())) == list(range(5))


def test_rtsp_may_be_encrypted(tmp_path):
    with RtspServer(make_clip(rate=FAST), tls=self_signed(tmp_path), auth=Auth("cam", PASSWORD)) as server:
        frames = take(60, server.url(), LiveOptions(tls_verify=False))
        assert numbers(frames) == [*range(50), *range(10)]


# Time


def test_the_camera_tells_when_a_frame_was_taken():
    faults = Faults(clock_offset_s=-3600.0)
    with RtspServer(make_clip(rate=FAST, b_frames=2), faults=faults) as server:
        frames = take(60, server.url())
        captured = {each.number: each.captured_s for each in server.sent[:50]}
    assert {frame.clock for frame in frames} == {"sender"}
    for number, frame in enumerate(frames[:45]):
        assert frame.captured_ns / 1e9 == pytest.approx(captured[number], abs=2e-3)


def test_without_sender_reports_a_frame_counts_as_taken_when_it_arrives():
    before = time.time_ns()
    with RtspServer(make_clip(rate=FAST), faults=Faults(report_every_s=None)) as server:
        frames = take(30, server.url())
    assert {frame.clock for frame in frames} == {"arrival"}
    assert all(before < sooner.captured_ns <= later.captured_ns for sooner, later in pairwise(frames))
    assert frames[-1].captured_ns < time.time_ns()


def test_a_jump_of_the_cameras_clock_neither_stalls_nor_reorders():
    with RtspServer(make_clip(rate=FAST)) as server, source_of(server.url()) as source:
        frames = []
        for frame in source:
            frames.append(frame)
            if len(frames) == 20:
                server.faults.timestamp_jump = 90_000 * 3600
            if len(frames) == 40:
                server.faults.timestamp_jump = -90_000 * 3600
            if len(frames) == 100:
                break
    assert numbers(frames) == [number % 50 for number in range(100)]


def test_timestamps_may_wrap_around():
    video = Video(make_clip(rate=FAST), first_timestamp=2**32 - 90_000 // 2)
    with RtspServer([video]) as server:
        frames = take(100, server.url())
    assert [frame.time_s for frame in frames] == pytest.approx([number / FAST for number in range(100)])


# What is in the picture


def test_another_size_in_mid_stream_goes_on():
    switched = make_clip(rate=FAST, width=480, height=272)
    with RtspServer([Video(make_clip(rate=FAST), switch=(25, switched))]) as server:
        frames = take(60, server.url())
    assert [(frame.width, frame.height) for frame in frames] == [(320, 240)] * 25 + [(480, 272)] * 35
    assert numbers(frames)[:25] == list(range(25))


def test_rotation_and_the_shape_of_pixels_are_carried():
    clip = make_clip(rate=FAST, rotation=90, aspect=Fraction(4, 3))
    with RtspServer(clip) as server:
        frames = take(5, server.url())
    assert {frame.rotation for frame in frames} == {90}
    assert {frame.sample_aspect_ratio for frame in frames} == {Fraction(4, 3)}


def test_interlaced_frames_become_progressive_by_choice():
    clip = make_clip(rate=FAST, interlaced=True)
    with RtspServer(clip) as server:
        woven = take(30, server.url())
        whole = take(30, server.url(), LiveOptions(deinterlace=True))
    assert numbers(whole) == numbers(woven) == list(range(30))
    assert [frame.pts for frame in whole] == [frame.pts for frame in woven]
    assert not whole[9].origin.interlaced_frame

    def comb(frame) -> float:  # how much neighbouring lines differ beyond those of one field
        lines = frame.pixels[64:, :, 1].astype(float)
        return np.abs(lines[1:-1] * 2 - lines[:-2] - lines[2:]).mean() - np.abs(lines[2:] - lines[:-2]).mean()

    assert comb(whole[9]) < comb(woven[9]) / 2


def test_progressive_frames_are_left_as_they_are_by_deinterlacing():
    clip = make_clip()
    with RtspServer(clip) as server:
        frame = take(1, server.url(), LiveOptions(deinterlace=True))[0]
    assert np.array_equal(frame.pixels, to_rgb(decoded(clip)[0]))


@pytest.mark.parametrize("left", [7, 100], ids=["the head", "a part"])
def test_after_damage_nothing_is_shown_until_the_next_key_frame(left):
    clip = make_clip(rate=FAST)
    units = list(clip.units)
    # A picture that ends in the middle of its slice: the next frames build on it.
    units[10] = replace(units[10], data=units[10].data[:left])
    with RtspServer(replace(clip, units=tuple(units))) as server, source_of(server.url()) as source:
        frames = [frame for _, frame in zip(range(30), source, strict=False)]
        assert source.counters["damaged_frames"] == 1
        assert source.counters["held_frames"] >= 14
    assert numbers(frames) == [*range(10), *range(25, 45)]
    assert [frame.seq for frame in frames] == list(range(30))


# What breaks


def states_until_the_end(url: str, options: LiveOptions, meanwhile=lambda frame: None):
    """The states, the error, and how long before it the last frame came."""
    states: list[str] = []
    last = time.monotonic()
    with source_of(url, options, states.append) as source, pytest.raises(SourceError) as caught:
        for frame in source:
            last = time.monotonic()
            meanwhile(frame)
    return states, checked(caught.value, url), time.monotonic() - last


def test_a_stream_that_stops_is_noticed_within_twice_the_set_time():
    with RtspServer(make_clip(rate=FAST), faults=Faults(freeze_at=30)) as server:
        states, error, after_s = states_until_the_end(server.url(), SOON)
    assert states == ["connecting", "live", "frozen"]
    assert "frozen: nothing came for 1 s" in error
    assert 0.9 < after_s < 2


def test_a_short_silence_is_no_freeze_and_loses_nothing():
    with RtspServer(make_clip(rate=FAST)) as server, source_of(server.url(), SOON) as source:
        thaw = threading.Timer(0.6, lambda: setattr(server.faults, "frozen", False))
        frames = []
        for frame in source:
            frames.append(frame)
            if len(frames) == 20:
                server.faults.frozen = True
                thaw.start()
            if len(frames) == 50:
                break
        thaw.join()
    assert numbers(frames) == list(range(50))


def test_a_server_that_dies_breaks_the_stream_at_once():
    with RtspServer(make_clip(rate=FAST), faults=Faults(die_at=30)) as server:
        states, error, after_s = states_until_the_end(server.url(), LiveOptions())
    assert states == ["connecting", "live"]
    assert error.endswith("the server closed the connection")
    assert after_s < 2


def test_whoever_takes_frames_slowly_does_not_see_a_freeze():
    with RtspServer(make_clip(rate=FAST)) as server, source_of(server.url(), SOON) as source:
        frames = iter(source)
        next(frames)
        threading.Event().wait(1.5)
        for _ in range(30):
            next(frames)


def test_nobody_listens():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert "connection refused" in refusal(f"rtsp://cam:s3cret@127.0.0.1:{port}/live")


def test_a_host_has_no_such_name():
    assert "there is no host named camera.invalid" in refusal("rtsp://cam:s3cret@camera.invalid/live")


def test_a_server_that_says_nothing_is_given_up_in_time():
    with silent_port() as port:
        began = time.monotonic()
        assert "no answer within 1 s" in refusal(f"rtsp://cam:s3cret@127.0.0.1:{port}/live")
        assert time.monotonic() - began < 2


def test_a_host_that_does_not_even_connect_is_given_up_in_time():
    with black_hole() as port:
        began = time.monotonic()
        assert "no answer within 1 s" in refusal(f"rtsp://cam:s3cret@127.0.0.1:{port}/live")
        assert time.monotonic() - began < 2


@pytest.mark.parametrize("method", ["OPTIONS", "DESCRIBE", "SETUP", "PLAY"])
def test_requests_that_are_never_answered_are_given_up_in_time(method):
    with RtspServer(make_clip(), faults=Faults(mute=frozenset({method}))) as server:
        began = time.monotonic()
        assert "no answer within 1 s" in refusal(server.url())
        assert time.monotonic() - began < 2


@pytest.mark.parametrize("scheme", ["basic", "digest"])
def test_a_wrong_password_is_told_without_the_password(scheme):
    with RtspServer(make_clip(), auth=Auth("cam", "other", scheme=scheme)) as server:
        url = f"rtsp://cam:s3cret%2Fp%40ss@127.0.0.1:{server.port}/cam"
        assert "refuses this user and password" in refusal(url)
        assert "asks for a user and password" in refusal(f"rtsp://127.0.0.1:{server.port}/cam")


@pytest.mark.parametrize(
    ("status", "what"), [(403, "forbidden"), (404, "check the path"), (461, "refuses"), (503, "refuses")], ids=str
)
def test_refusals_say_what_to_do(status, what):
    with RtspServer(make_clip(), auth=Auth("cam", "s3cret"), faults=Faults(status={"DESCRIBE": status})) as server:
        assert what in refusal(server.url())


def test_a_stream_without_video_is_refused():
    with RtspServer([Audio()]) as server:
        assert "must have a video stream" in refusal(server.url())


def test_a_codec_that_nobody_knows_is_refused():
    with RtspServer([Unknown()]) as server:
        assert "codec" in refusal(server.url())


def test_what_is_too_large_is_refused_before_it_is_decoded():
    with RtspServer(oversized(make_clip(), 16384, 16384)) as server:
        assert "at most 67108864 pixels, got 16384x16384" in refusal(server.url(), LiveOptions())


def test_what_becomes_too_large_is_refused():
    options = LiveOptions(max_pixels=320 * 240)
    video = Video(make_clip(rate=FAST), switch=(25, make_clip(rate=FAST, width=480, height=272)))
    frames = []
    with RtspServer([video]) as server, pytest.raises(SourceError, match="got 480x272"):
        frames.extend(source_of(server.url(), options))
    assert len(frames) == 25


# The end, by choice


def closes_in_time(source: NetworkSource, begin) -> None:
    """Iterate in another thread; when `begin` returns, close, and see it end within a second."""
    ended = threading.Event()
    errors: list[BaseException] = []

    def iterate():
        try:
            for _ in source:
                pass
        except BaseException as error:  # noqa: BLE001 - shown by the test
            errors.append(error)
        ended.set()

    thread = threading.Thread(target=iterate)
    thread.start()
    begin()
    began = time.monotonic()
    source.close()
    assert ended.wait(1.0)
    assert time.monotonic() - began < 1.0
    thread.join()
    assert errors == []


def test_closing_ends_a_connection_to_nowhere():
    connecting = threading.Event()
    with black_hole() as port:
        closes_in_time(source_of(f"rtsp://127.0.0.1:{port}/live", on_state=lambda _: connecting.set()), connecting.wait)


@pytest.mark.parametrize("method", ["DESCRIBE", "PLAY"])
def test_closing_ends_a_wait_for_an_answer(method):
    with RtspServer(make_clip(), faults=Faults(mute=frozenset({method}))) as server:
        asked = lambda: server.wait_for(lambda: method in {request.method for request in server.requests})  # noqa: E731
        closes_in_time(source_of(server.url()), asked)


def test_closing_ends_a_frozen_stream():
    with RtspServer(make_clip(rate=FAST), faults=Faults(freeze_at=30)) as server:
        closes_in_time(source_of(server.url()), lambda: server.wait_for_frames(30))


def test_closing_ends_a_running_stream():
    with RtspServer(make_clip(rate=FAST)) as server:
        closes_in_time(source_of(server.url()), lambda: server.wait_for_frames(30))


def test_closing_before_the_beginning_yields_nothing():
    with RtspServer(make_clip()) as server:
        source = source_of(server.url())
        source.close()
        assert list(source) == []
        assert server.requests == []


def test_thirty_connections_leave_nothing_behind():
    with RtspServer(make_clip(rate=FAST)) as server:
        take(3, server.url())
        server.wait_for_connected(0)
        gone(before := resources())
        for _ in range(30):
            take(3, server.url())
        server.wait_for_connected(0)
        gone(before)


def resources() -> tuple[int, int]:
    readers = [thread for thread in threading.enumerate() if thread.name == "network-reader"]
    return len(os.listdir("/proc/self/fd")), len(readers)  # noqa: PTH208


def gone(before: tuple[int, int]) -> None:
    """Wait until no more descriptors and readers are there than before; abandoned readers end soon after."""
    patience = threading.Event()
    deadline = time.monotonic() + 5
    while any(now > then for now, then in zip(resources(), before, strict=True)):
        assert time.monotonic() < deadline, f"{resources()} descriptors and readers, {before} before"
        patience.wait(0.02)
