"""Claims about the bytes of requests and answers, and about where they go."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon import control, wire
from daemon.control import Probe, Request, Welcome

# Written down once by hand: a change of these bytes is a change of the format.
REQUESTS = [
    (Request("hello"), b'{"version":1,"kind":"hello"}'),
    (Request("ping"), b'{"version":1,"kind":"ping"}'),
    (Request("release", release=(4, 9)), b'{"version":1,"kind":"release","release":[4,9]}'),
    (Request("next"), b'{"version":1,"kind":"next","streams":null,"shared":false,"wait":true,"release":[]}'),
    (
        Request("next", ("cam1", "\u00e9"), shared=True, wait=False, release=(7,)),
        b'{"version":1,"kind":"next","streams":["cam1","\xc3\xa9"],"shared":true,"wait":false,"release":[7]}',
    ),
]
WELCOME = Welcome("run", "boot", "fast", ("cam1",), "raw", "rgb24", Probe("/dev/shm", "deblurd-run-probe", "ab12"))
WELCOME_BYTES = (
    b"\1\0\xd8\0\0\0"
    b'{"version":1,"kind":"welcome","run_id":"run","boot_id":"boot","model":"fast","streams":["cam1"],"encoding":"raw",'
    b'"pixel_format":"rgb24","shared":{"folder":"/dev/shm","probe":"deblurd-run-probe","probe_value":"ab12"}}'
)


@pytest.mark.parametrize(("request_", "data"), REQUESTS)
def test_a_request_becomes_these_bytes_and_itself_again(request_: Request, data: bytes) -> None:
    assert control.pack_request(request_) == data
    assert control.unpack_request(data) == request_


def test_a_welcome_becomes_these_bytes_and_itself_again() -> None:
    data = control.pack_welcome(WELCOME)
    assert data == WELCOME_BYTES + bytes(-len(WELCOME_BYTES) % 64)
    assert control.to_welcome(wire.unpack(data)) == WELCOME


def test_a_welcome_without_shared_memory_says_so() -> None:
    welcome = replace(WELCOME, shared=None)
    assert control.to_welcome(wire.unpack(control.pack_welcome(welcome))) == welcome


def test_a_short_answer_is_one_block_of_64_bytes() -> None:
    answer = control.pack_answer("none")
    assert answer == b'\1\0\x1b\0\0\0{"version":1,"kind":"none"}' + bytes(31)


def test_what_a_request_leaves_out_has_its_default() -> None:
    assert control.unpack_request(b'{"version":1,"kind":"next"}') == Request("next")


def test_unknown_fields_of_a_request_are_ignored() -> None:
    assert control.unpack_request(b'{"version":1,"kind":"ping","weather":"fine"}') == Request("ping")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "JSON object"),
        (b"[1]", "JSON object, got list"),
        (b"\xff{}", "UTF-8"),
        (b"[" * 4000, "JSON object"),
        (b"{" + b" " * 4095 + b"}", "at most 4096 bytes, got 4097"),
        (b"{}", "'version' must be a whole number"),
        (b'{"version":true,"kind":"ping"}', "'version' must be a whole number"),
        (b'{"version":1}', "'kind' of a request must be"),
        (b'{"version":1,"kind":["ping"]}', "'kind' of a request must be"),
        (b'{"version":1,"kind":"shutdown"}', "hello, ping, next, release, got 'shutdown'"),
        (b'{"version":1,"kind":"next","streams":"cam1"}', "'streams' must be a list"),
        (b'{"version":1,"kind":"next","streams":[]}', "'streams' must be a list"),
        (b'{"version":1,"kind":"next","streams":[1]}', "'streams' must be a list"),
        (b'{"version":1,"kind":"next","streams":[""]}', "1 to 255 bytes"),
        (b'{"version":1,"kind":"next","streams":["\\ud800"]}', "1 to 255 bytes"),
        (b'{"version":1,"kind":"next","wait":1}', "true or false"),
        (b'{"version":1,"kind":"next","release":7}', "list of tokens"),
        (b'{"version":1,"kind":"release","release":[-1]}', "whole numbers"),
        (b'{"version":1,"kind":"release","release":[1e3]}', "whole numbers"),
    ],
)
def test_a_malformed_request_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(wire.WireError, match=reason):
        control.unpack_request(data)


def test_a_request_of_a_newer_version_is_refused_by_name() -> None:
    with pytest.raises(wire.VersionError, match="wire format 2, this daemon 1: update the daemon"):
        control.unpack_request(b'{"version":2,"kind":"glance"}')


def test_a_request_that_the_daemon_would_not_take_is_not_sent() -> None:
    with pytest.raises(wire.WireError, match="at most 4096 bytes"):
        control.pack_request(Request("next", tuple(f"{i:0255}" for i in range(20))))


@given(st.binary(max_size=400) | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(
    lambda value: json.dumps({"version": 1, "kind": "next", "streams": value, "release": value}).encode()
))  # fmt: skip
def test_arbitrary_requests_are_refused_or_read_but_never_worse(data: bytes) -> None:
    with contextlib.suppress(wire.WireError):
        control.unpack_request(data)


@pytest.mark.parametrize("field", ["run_id", "streams", "shared"])
def test_a_missing_field_of_a_welcome_is_named(field: str) -> None:
    header = wire.unpack(control.pack_welcome(WELCOME)).header
    del header[field]
    with pytest.raises(wire.WireError, match=f"a welcome must hold '{field}'"):
        control.to_welcome(wire.unpack(wire.pack_head(control.TOPIC, header)))


def test_a_probe_outside_the_daemons_own_files_is_refused() -> None:
    header = wire.unpack(control.pack_welcome(WELCOME)).header
    header["shared"]["probe"] = "../etc/passwd"
    with pytest.raises(wire.WireError, match="must be named deblurd-"):
        control.to_welcome(wire.unpack(wire.pack_head(control.TOPIC, header)))


@pytest.mark.parametrize(
    ("endpoint", "there"),
    [
        ("tcp://127.0.0.1:5555", "tcp://127.0.0.1:5556"),
        ("tcp://[::1]:5555", "tcp://[::1]:5556"),
        ("tcp://camera-host:65534", "tcp://camera-host:65535"),
        ("ipc:///run/deblurd/frames", "ipc:///run/deblurd/frames.control"),
        ("ipc://@frames", "ipc://@frames.control"),
    ],
)
def test_the_control_endpoint_is_the_next_one(endpoint: str, there: str) -> None:
    assert control.control_endpoint(endpoint) == there


@pytest.mark.parametrize(
    "endpoint", ["tcp://127.0.0.1:65535", "tcp://127.0.0.1:*", "tcp://host", "ipc://", "inproc://a"]
)
def test_an_endpoint_that_has_no_next_one_is_refused(endpoint: str) -> None:
    with pytest.raises(ValueError, match="endpoint must be a ZeroMQ address such as"):
        control.control_endpoint(endpoint)
