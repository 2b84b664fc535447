"""Claims about payload formats and session descriptions, on literal bytes."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from daemon.rtsp.errors import RtpError, RtspError
from daemon.rtsp.jpeg import JpegPayload
from daemon.rtsp.payload import H264Payload, H265Payload
from daemon.rtsp.sdp import address_of, first_video
from daemon.rtsp.transport import Agreed, agreed

START = b"\0\0\0\1"
IDR, SLICE = b"\x65\x88abc", b"\x41\x9aabc"
BASE = "rtsp://cam/live/"


def taken(payload, *pieces: bytes):
    for piece in pieces:
        payload.add(piece)
    return payload.take()


def test_h264_comes_in_single_aggregated_and_fragmented_units():
    stap = b"\x78\0\5" + IDR + b"\0\5" + SLICE
    assert taken(H264Payload(), IDR).data == START + IDR
    assert taken(H264Payload(), stap).data == START + IDR + START + SLICE
    picture = taken(H264Payload(), b"\x7c\x85\x88a", b"\x7c\x05b", b"\x7c\x45c")
    assert (picture.data, picture.key, picture.intact) == (START + IDR, True, True)


@pytest.mark.parametrize(
    "pieces",
    [
        [b"\x7c\x05b", b"\x7c\x45c"],
        [b"\x7c\x85\x88a"],
        [b"\x7c\x85\x88a", SLICE],
        [b"\x7c\x85\x88a", b"\x7c\x85\x88a", b"\x7c\x45c"],
        [b"\x41\x1aabc"],
    ],
    ids=["no beginning", "no end", "another unit in between", "begun twice", "not the first slice"],
)
def test_what_is_not_whole_is_not_called_intact(pieces):
    assert not taken(H264Payload(), *pieces).intact


@pytest.mark.parametrize("kind", [25, 26, 27, 29])
def test_interleaved_mode_is_refused_in_words(kind):
    with pytest.raises(RtspError, match="mode 2"):
        H264Payload().add(bytes([0x60 | kind]) + bytes(20))


@pytest.mark.parametrize("piece", [b"", b"\x65", b"\xe5abc", b"\x7eabc", b"\x78\0\x09abc", b"\x78\0\0", b"\x60abc"])
def test_h264_that_makes_no_sense_is_an_error(piece):
    with pytest.raises(RtpError):
        H264Payload().add(piece)


@pytest.mark.parametrize("donl", [b"", b"\0\7"], ids=["plain", "with order numbers"])
def test_h265_comes_in_single_aggregated_and_fragmented_units(donl):
    cra, trail = b"\x2a\1\x80abc", b"\2\1\x80def"
    whole = START + cra + START + trail

    def payload():
        return H265Payload(donl=bool(donl))

    singles = [unit[:2] + donl + unit[2:] for unit in (cra, trail)]
    assert taken(payload(), *singles).data == whole
    aggregated = b"\x60\1" + donl + b"\0\6" + cra + donl[:1] + b"\0\6" + trail
    assert taken(payload(), aggregated).data == whole
    picture = taken(payload(), b"\x62\1\x95" + donl + b"\x80a", b"\x62\1\x15b", b"\x62\1\x55c")
    assert (picture.data, picture.key, picture.intact) == (START + cra, True, True)


def test_an_access_unit_without_end_is_given_up():
    payload = H264Payload()
    payload.add(b"\x7c\x85\x88a")
    with pytest.raises(RtpError, match="at most"):
        for _ in range(20_000_000 // 60_000):
            payload.add(b"\x7c\x05" + bytes(60_000))
    assert not payload.take().intact


def jpeg_pieces(file: bytes, quality: int, interval: int, size: int = 700) -> list[bytes]:
    """RFC 2435 payloads of a JPEG with the standard tables."""
    at = file.index(b"\xff\xda")
    scan = file[at + 2 + int.from_bytes(file[at + 2 : at + 4], "big") :]
    frame = file.index(b"\xff\xc0")
    kind = {0x21: 0, 0x22: 1}[file[frame + 11]] | (64 if interval else 0)
    pieces = []
    for offset in range(0, len(scan), size):
        head = bytes([0]) + offset.to_bytes(3, "big") + bytes([kind, quality, 320 // 8, 240 // 8])
        restart = interval.to_bytes(2, "big") + b"\xff\xff" if interval else b""
        pieces.append(head + restart + scan[offset : offset + size])
    return pieces


@pytest.mark.parametrize("quality", [10, 50, 90])
@pytest.mark.parametrize("interval", [0, 4])
@pytest.mark.parametrize("sampling", [cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422])
def test_jpeg_gets_the_headers_back_that_it_was_sent_without(quality, interval, sampling):
    picture = np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_RST_INTERVAL, interval]
    file = cv2.imencode(".jpg", picture, [*options, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling])[1].tobytes()
    made = taken(JpegPayload(), *jpeg_pieces(file, quality, interval))
    assert (made.intact, made.size) == (True, (320, 240))
    before, after = (cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) for data in (file, made.data))
    assert np.array_equal(before, after)


def test_jpeg_with_a_piece_missing_is_not_intact():
    file = cv2.imencode(".jpg", np.zeros((240, 320, 3), np.uint8))[1].tobytes()
    pieces = jpeg_pieces(file, 95, 0, 300)
    payload = JpegPayload()
    payload.add(pieces[0])
    with pytest.raises(RtpError, match="must go on at byte 300"):
        payload.add(pieces[2])
    assert not payload.take().intact
    assert taken(payload, *pieces).intact


def test_jpeg_too_large_for_its_format_is_refused_in_words():
    with pytest.raises(RtspError, match="2040x2040"):
        JpegPayload().add(bytes([0, 0, 0, 0, 1, 50, 0, 0]) + bytes(20))


@pytest.mark.parametrize(
    ("control", "full"),
    [
        ("track1", "rtsp://cam/live/track1"),
        ("*", BASE),
        ("", BASE),
        ("rtsp://admin:s3cret@cam:554/live/track1", "rtsp://cam:554/live/track1"),
        ("track 1?x=é", "rtsp://cam/live/track%201?x=%C3%A9"),
    ],
)
def test_control_addresses_may_be_whole_or_the_end_of_one(control, full):
    body = f"v=0\r\na=control:*\r\nm=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=control:{control}\r\n"
    for base in (BASE, BASE.rstrip("/")):
        track = first_video(body.encode(), base)
        assert track.control == (base if full == BASE else full)
        assert track.session == base


def test_the_first_track_that_can_be_decoded_is_taken():
    lines = ["m=audio 0 RTP/AVP 0", "m=video 0 RTP/AVP 97", "a=rtpmap:97 VP8/90000", "m=video 0 RTP/AVP 26 98"]
    sets = "sprop-vps=QAE=; sprop-sps=QgE=; sprop-pps=!; sprop-max-don-diff=2"
    lines += ["m=video 0 RTP/AVP 99 98", "a=rtpmap:98 H265/90000", f"a=fmtp:98 {sets}"]
    jpeg = first_video("\n".join(lines).encode(), BASE)
    assert (jpeg.codec, jpeg.payload_type, jpeg.clock_rate) == ("mjpeg", 26, 90_000)
    hevc = first_video("\n".join(lines).replace("RTP/AVP 26 98", "RTP/SAVP 98").encode(), BASE)
    assert (hevc.codec, hevc.payload_type, hevc.donl) == ("hevc", 98, True)
    assert hevc.parameter_sets[:2] == (b"\x40\1", b"\x42\1")


def test_addresses_are_asked_for_without_user_and_password():
    assert address_of("rtsp://cam:p%40ss@[::1]:8554/a b?x=1#y") == "rtsp://[::1]:8554/a%20b?x=1"
    assert address_of("http://cam/") is None
    assert address_of("rtsp://[::1/") is None


def test_a_server_must_send_as_it_was_asked_to():
    assert agreed("RTP/AVP/TCP;unicast;interleaved=2-3", "tcp") == Agreed(channels=(2, 3))
    answer = "RTP/AVP;unicast;client_port=5000-5001;server_port=6000-6001;source=10.0.0.7"
    assert agreed(answer, "udp") == Agreed(ports=(6000, 6001), source="10.0.0.7")
    assert agreed(None, "tcp") == Agreed()
    for header, transport in ((answer, "tcp"), ("RTP/AVP/TCP;interleaved=0-1", "udp"), ("RTP/AVP;multicast", "udp")):
        with pytest.raises(RtspError, match="as it was asked to"):
            agreed(header, transport)
