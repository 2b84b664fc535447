"""Claims about the bytes on the wire."""

from __future__ import annotations

import contextlib
import json
import struct
from dataclasses import replace
from fractions import Fraction

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon import wire
from daemon.frame import Colour, Frame, Publication

PUBLICATION = Publication("run", "fast", "boot", 30, 40)
FRAME = Frame(
    stream="cam1",
    seq=7,
    pts=3003,
    time_base=Fraction(1, 90000),
    captured_ns=10,
    clock="sender",
    arrived_ns=20,
    epoch=2,
    pixels=np.arange(24, dtype=np.uint8).reshape(2, 4, 3),
    colour=Colour(1, 1, 1, False),
    sample_aspect_ratio=Fraction(4, 3),
    rotation=90,
    spent_ns={"decode": 5},
    drops=3,
)

# Written down once by hand: a change of these bytes is a change of the format.
HEADER = (
    b'{"version":1,"kind":"frame","stream":"cam1","seq":7,"epoch":2,"pts":3003,"time_base":[1,90000],'
    b'"captured_ns":10,"clock":"sender","arrived_ns":20,"published_ns":30,"published_unix_ns":40,'
    b'"boot_id":"boot","run_id":"run","model":"fast","spent_ns":{"decode":5},"drops":3,"width":4,"height":2,'
    b'"pixel_format":"rgb24","encoding":"raw","colour":[1,1,1,0],"sample_aspect_ratio":[4,3],"rotation":90}'
)
LITERAL = b"cam1\0" + struct.pack("<I", len(HEADER)) + HEADER
LITERAL += bytes(-len(LITERAL) % 64) + bytes(range(24))


def message(header: dict[str, object] | None = None, **changes: object) -> bytes:
    """The literal message with some header fields changed, or with another header."""
    values = {**json.loads(HEADER), **changes} if header is None else header
    return wire.pack_head(b"cam1\0", values) + bytes(range(24))


def test_a_frame_becomes_these_bytes() -> None:
    head = wire.pack_head(wire.topic_bytes("cam1"), wire.frame_header(FRAME, PUBLICATION, "raw"))
    assert head + FRAME.pixels.tobytes() == LITERAL


def test_these_bytes_become_the_frame() -> None:
    frame = wire.to_frame(wire.unpack(LITERAL))
    np.testing.assert_array_equal(frame.pixels, FRAME.pixels)
    assert replace(frame, pixels=FRAME.pixels) == replace(FRAME, publication=PUBLICATION)


def test_the_payload_begins_at_a_multiple_of_64_and_is_a_view() -> None:
    data = bytearray(LITERAL)
    payload = wire.unpack(data).payload
    data[-24] = 99
    assert payload[0] == 99
    assert (len(LITERAL) - 24) % 64 == 0


def test_a_head_of_a_given_size_reads_the_same() -> None:
    header = wire.frame_header(FRAME, PUBLICATION, "raw")
    head = wire.pack_head(b"cam1\0", header, 1024)
    assert len(head) == 1024
    assert wire.unpack(head + bytes(24)).header == header


def test_a_head_that_does_not_fit_its_size_is_refused() -> None:
    with pytest.raises(wire.WireError, match="does not fit in 55"):
        wire.pack_head(b"cam1\0", wire.frame_header(FRAME, PUBLICATION, "raw"), 64)


def test_a_topic_ends_so_that_no_other_stream_matches_it() -> None:
    assert not wire.topic_bytes("cam10").startswith(wire.topic_bytes("cam1"))


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 256, "\1"])
def test_a_name_that_cannot_be_a_topic_is_refused(name: str) -> None:
    with pytest.raises(wire.WireError, match="1 to 255 bytes"):
        wire.topic_bytes(name)


def test_unknown_header_fields_are_ignored() -> None:
    assert wire.to_frame(wire.unpack(message(weather="fine"))).seq == 7


def test_a_newer_version_is_refused_by_name() -> None:
    with pytest.raises(wire.WireError, match="wire format 2, this client 1: update the client"):
        wire.unpack(message(version=2))


def test_a_received_frame_cannot_be_written_to() -> None:
    frame = wire.to_frame(wire.unpack(bytearray(LITERAL)))
    with pytest.raises(ValueError, match="read-only"):
        frame.pixels[0, 0, 0] = 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"width": 5}, "must be 30 bytes, got 24"),
        ({"width": -1}, "1 to 65536, got -1"),
        ({"width": 1 << 40}, "1 to 65536"),
        ({"width": True}, "1 to 65536, got True"),
        ({"encoding": "png"}, "raw, jpeg or shared, got 'png'"),
        ({"encoding": "jpeg"}, "does not decode"),
        ({"pixel_format": "yuv420p"}, "must be rgb24, bgr24 or gray8, got 'yuv420p'"),
        ({"pixel_format": "gray8"}, "must be 8 bytes, got 24"),
        ({"pixel_format": []}, "must be rgb24, bgr24 or gray8"),
        ({"time_base": [1, 0]}, "wrong kind"),
        ({"time_base": "fast"}, "wrong kind"),
        ({"seq": None}, "wrong kind"),
        ({"spent_ns": []}, "wrong kind"),
        ({"colour": [1]}, "wrong kind"),
    ],
)
def test_a_malformed_header_field_is_refused(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(wire.WireError, match=reason):
        wire.to_frame(wire.unpack(message(**changes)))


def test_a_missing_header_field_is_named() -> None:
    header = json.loads(HEADER)
    del header["epoch"]
    with pytest.raises(wire.WireError, match="must hold 'epoch'"):
        wire.to_frame(wire.unpack(message(header)))


def test_bgr_pixels_are_rgb_without_a_copy_and_contiguous_again_the_other_way_round() -> None:
    frame = wire.to_frame(wire.unpack(message(pixel_format="bgr24")))
    sent = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    np.testing.assert_array_equal(frame.pixels, sent[..., ::-1])
    assert frame.pixels[..., ::-1].flags.c_contiguous
    assert not frame.pixels.flags.writeable


def test_gray_pixels_are_rgb_without_a_copy_and_contiguous_in_one_channel() -> None:
    values = {**json.loads(HEADER), "pixel_format": "gray8"}
    frame = wire.to_frame(wire.unpack(wire.pack_head(b"cam1\0", values) + bytes(range(8))))
    np.testing.assert_array_equal(frame.pixels, np.arange(8).reshape(2, 4, 1).repeat(3, axis=2))
    assert frame.pixels[..., 0].flags.c_contiguous
    assert not frame.pixels.flags.writeable


@pytest.mark.parametrize(
    ("pixel_format", "flags"), [("rgb24", cv2.IMREAD_COLOR_RGB), ("bgr24", cv2.IMREAD_COLOR_RGB), ("gray8", 0)]
)
def test_a_jpeg_is_rgb_whatever_its_pixel_format(pixel_format: str, flags: int) -> None:
    ramp = np.linspace(0, 255, 64 * 48 * 3).reshape(48, 64, 3).astype(np.uint8)
    jpeg = cv2.imencode(".jpg", ramp)[1]
    values = {**json.loads(HEADER), "encoding": "jpeg", "pixel_format": pixel_format, "width": 64, "height": 48}
    frame = wire.to_frame(wire.unpack(wire.pack_head(b"cam1\0", values) + jpeg.tobytes()))
    expected = cv2.imdecode(jpeg, flags)
    assert frame.pixels.shape == (48, 64, 3)
    np.testing.assert_array_equal(frame.pixels, expected if flags else expected[..., None].repeat(3, axis=2))


def test_a_frame_in_shared_memory_becomes_these_bytes_and_the_place_again() -> None:
    segment = wire.Segment("deblurd-run-1", 128, 24, 5)
    head = wire.pack_head(b"cam1\0", wire.frame_header(FRAME, PUBLICATION, "raw", segment=segment))
    shared = HEADER.replace(b'"raw"', b'"shared"')[:-1]
    shared += b',"shared":{"file":"deblurd-run-1","offset":128,"size":24,"token":5}}'
    literal = b"cam1\0" + struct.pack("<I", len(shared)) + shared
    assert head == literal + bytes(-len(literal) % 64)
    received = wire.unpack(head)
    assert wire.to_segment(received) == segment
    there = replace(received, payload=memoryview(bytes(range(24))))
    np.testing.assert_array_equal(wire.to_frame(there).pixels, FRAME.pixels)


def test_a_frame_whose_pixels_are_in_its_message_has_no_place_elsewhere() -> None:
    assert wire.to_segment(wire.unpack(LITERAL)) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"file": "../etc/passwd"}, "must be named deblurd-"),
        ({"file": "deblurd-/../../etc/passwd"}, "must be named deblurd-"),
        ({"offset": -1}, "'offset' must hold whole numbers"),
        ({"size": 1 << 60}, "'size' must hold whole numbers"),
        ({"token": "5"}, "'token' must hold whole numbers"),
    ],
)
def test_a_malformed_place_in_shared_memory_is_refused(changes: dict[str, object], reason: str) -> None:
    place = {"file": "deblurd-run-1", "offset": 0, "size": 24, "token": 5, **changes}
    with pytest.raises(wire.WireError, match=reason):
        wire.to_segment(wire.unpack(message(encoding="shared", shared=place)))


@pytest.mark.parametrize("shared", [None, [], {}, 7])
def test_a_missing_place_in_shared_memory_is_refused(shared: object) -> None:
    with pytest.raises(wire.WireError):
        wire.to_segment(wire.unpack(message(encoding="shared", shared=shared)))


@given(st.binary(max_size=400))
def test_arbitrary_bytes_are_refused_without_anything_worse(data: bytes) -> None:
    with pytest.raises(wire.WireError):
        wire.to_frame(wire.unpack(data))


@given(position=st.integers(0, len(LITERAL) - 25), value=st.integers(0, 255))
def test_a_damaged_byte_before_the_payload_is_refused_or_read_but_never_worse(position: int, value: int) -> None:
    data = bytearray(LITERAL)
    data[position] = value
    with contextlib.suppress(wire.WireError):
        wire.to_frame(wire.unpack(data))


@given(st.integers(0, len(LITERAL) - 1))
def test_a_truncated_message_is_refused(length: int) -> None:
    with pytest.raises(wire.WireError):
        wire.to_frame(wire.unpack(LITERAL[:length]))
