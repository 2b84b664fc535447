"""Claims about the parts of the RTSP client that know no sockets: literal bytes, real clips, and bytes of an enemy."""

from __future__ import annotations

import random
import struct
from contextlib import suppress
from hashlib import md5
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from live_clips import make_clip, oversized
from rtp_payloads import media_lines, nal_type, nal_units, parameter_sets, payloads

from daemon.rtsp.assembly import AccessUnit, Assembly
from daemon.rtsp.auth import Login, best_challenge
from daemon.rtsp.errors import RtpError, RtspError
from daemon.rtsp.messages import MAX_BODY, MAX_HEAD, Answer, Interleaved, MessageParser, ServerRequest
from daemon.rtsp.rtp import ReorderBuffer, TimeUnwrapper, parse_rtp
from daemon.rtsp.sdp import VideoTrack, first_video
from daemon.rtsp.sps import h264_size, h265_size

BASE = "rtsp://cam/live"
SSRC = 7


def packet(sequence: int, payload: bytes = b"x", *, marker: bool = False, timestamp: int = 0, kind: int = 96) -> bytes:
    return struct.pack(">BBHII", 0x80, marker << 7 | kind, sequence & 0xFFFF, timestamp & 0xFFFFFFFF, SSRC) + payload


def track_of(codec: str) -> VideoTrack:
    unit = make_clip(codec).units[0].data
    sets = [] if codec == "mjpeg" else parameter_sets(unit, codec)
    return first_video("\r\n".join([*media_lines(codec, sets), "a=control:track0"]).encode(), BASE)


def packets_of(codec: str, first: int = 65_500) -> list[bytes]:
    found = []
    kind = track_of(codec).payload_type
    for number, unit in enumerate(make_clip(codec).units):
        pieces = list(payloads(unit.data, codec, aggregate=True))
        for place, piece in enumerate(pieces):
            last = place == len(pieces) - 1
            found.append(
                packet(first + len(found), piece, marker=last, timestamp=2**32 - 9000 + 3600 * number, kind=kind)
            )
    return found


def assembled(codec: str, packets: list[bytes]) -> tuple[list[AccessUnit], Assembly]:
    assembly = Assembly(track_of(codec), reorder=True)
    units = [unit for place, data in enumerate(packets) for unit in assembly.rtp(data, 10 + place / 10_000)]
    return [*units, *assembly.tick(1000.0)], assembly


@pytest.mark.parametrize("codec", ["h264", "h265", "mjpeg"])
def test_every_access_unit_comes_out_whole_with_its_time_over_wrapping_counters(codec):
    units, assembly = assembled(codec, packets_of(codec))
    clip = make_clip(codec)
    assert all(unit.complete for unit in units)
    assert [unit.key for unit in units] == [unit.key for unit in clip.units]
    assert {later.rtp_time - sooner.rtp_time for sooner, later in pairwise(units)} == {3600}
    assert (assembly.lost, assembly.malformed) == (0, 0)
    if codec != "mjpeg":
        assert [nal_units(unit.data) for unit in units] == [nal_units(unit.data) for unit in clip.units]
    assert units[0].size == (320, 240)


@pytest.mark.parametrize("codec", ["h264", "h265", "mjpeg"])
def test_packets_that_come_late_or_twice_change_nothing(codec):
    packets = packets_of(codec)
    source = random.Random(1)
    order = sorted(range(3, len(packets)), key=lambda place: place + source.uniform(0, 3))
    mixed = packets[:3] + [packets[place] for place in order for _ in range(source.choice([1, 1, 2]))]
    units, assembly = assembled(codec, mixed)
    assert assembly.lost == 0
    assert [unit.data for unit in units] == [unit.data for unit in assembled(codec, packets)[0]]


@pytest.mark.parametrize("codec", ["h264", "h265", "mjpeg"])
def test_no_access_unit_is_called_complete_that_is_not(codec):
    packets = packets_of(codec)
    whole = {unit.data for unit in assembled(codec, packets)[0]}
    for seed in range(20):
        source = random.Random(seed)
        left = [each for place, each in enumerate(packets) if place < 3 or source.random() > 0.05]
        units, assembly = assembled(codec, left)
        assert all(unit.data in whole for unit in units if unit.complete)
        assert assembly.lost <= len(packets) - len(left)


def test_a_lost_packet_is_counted_and_told_once():
    buffer = ReorderBuffer(0)
    found = [gap for number in (1, 2, 4, 5) for _, gap in buffer.push(parse_rtp(packet(number)), 0.0)]
    assert (found, buffer.lost) == ([False, False, True, False], 1)


def test_time_goes_on_where_timestamps_wrap():
    unwrap = TimeUnwrapper()
    assert [unwrap(value) for value in (2**32 - 10, 5, 2**32 - 5)] == [2**32 - 10, 2**32 + 5, 2**32 - 5]


def test_parameter_sets_say_their_size():
    large = nal_units(oversized(make_clip(), 16384, 16384).units[0].data)
    assert h264_size(next(nal for nal in large if nal_type(nal, "h264") == 7)) == (16384, 16384)
    nals = nal_units(make_clip("h265", width=640, height=480).units[0].data)
    assert h265_size(next(nal for nal in nals if nal_type(nal, "h265") == 33)) == (640, 480)


def test_messages_are_told_apart_however_they_arrive():
    data = b"RTSP/1.0 200 OK\r\nCSeq: 2\r\nContent-Length: 3\r\n\r\nabc"
    data += b"$\x01\x00\x02hi" + b"OPTIONS * RTSP/1.0\r\nCSeq: 9\r\n\r\n"
    parser = MessageParser()
    found = [message for byte in data for message in parser.feed(bytes([byte]))]
    answer = Answer(200, "OK", {"cseq": ("2",), "content-length": ("3",)}, b"abc")
    assert found == [answer, Interleaved(1, b"hi"), ServerRequest("OPTIONS", 9)]


@pytest.mark.parametrize(
    "data",
    [
        b"A" * (MAX_HEAD + 1),
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"\x16\x03\x01",
        f"RTSP/1.0 200 OK\r\nContent-Length: {MAX_BODY + 1}\r\n\r\n".encode(),
    ],
    ids=["endless head", "http", "tls", "huge body"],
)
def test_what_is_no_rtsp_is_refused(data):
    with pytest.raises(RtspError):
        list(MessageParser().feed(data))


def test_digest_is_that_of_rfc_2617():
    challenge = best_challenge(['Basic realm="x"', 'Digest realm="testrealm@host.com", nonce="dcd98b"'])
    assert challenge is not None
    login = Login("Mufasa", "Circle Of Life")
    login.meet(challenge)
    header = login.authorization("DESCRIBE", BASE) or ""
    who = md5(b"Mufasa:testrealm@host.com:Circle Of Life").hexdigest()
    what = md5(f"DESCRIBE:{BASE}".encode()).hexdigest()
    assert f'response="{md5(f"{who}:dcd98b:{what}".encode()).hexdigest()}"' in header
    assert "Circle" not in repr(login) + header


@pytest.mark.parametrize(
    "body", [b"m=audio 0 RTP/AVP 0\r\n", b"m=video 0 RTP/AVP 97\r\na=rtpmap:97 VP99/90000\r\n", b""]
)
def test_a_stream_without_video_that_is_known_is_refused(body):
    with pytest.raises(RtspError, match="must"):
        first_video(body, BASE)


@given(st.lists(st.binary(max_size=200), max_size=20))
def test_hostile_bytes_of_a_server_raise_nothing_else(chunks):
    parser = MessageParser()
    with suppress(RtspError):
        for chunk in chunks:
            list(parser.feed(chunk))
    for text in chunks:
        with suppress(RtspError):
            first_video(b"m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\n" + text, BASE)
        best_challenge([text.decode("latin-1")])
        for size in (h264_size, h265_size):
            with suppress(RtpError):
                size(text)


@given(
    st.sampled_from(["h264", "h265", "mjpeg"]), st.lists(st.tuples(st.binary(max_size=60), st.booleans()), max_size=30)
)
def test_hostile_packets_raise_nothing_else(codec, items):
    track = track_of(codec)
    assembly = Assembly(track, reorder=True)
    with suppress(RtspError):
        for number, (payload, marker) in enumerate(items):
            list(assembly.rtp(packet(number, payload, marker=marker, kind=track.payload_type), number / 25))
            list(assembly.rtp(payload, number / 25))
            assembly.rtcp(payload, number / 25)
            assert assembly.report(number / 25)
