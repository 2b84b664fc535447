"""Claims about the low-latency RTSP source and servers of another mind: scripted to the byte, lax, odd and hostile."""

from __future__ import annotations

import contextlib
import random
import re
import resource
import socket
import struct
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from live_clips import decoded, make_clip
from live_reading import numbers, taken
from rtp_payloads import media_lines, parameter_sets, payload_type, payloads
from rtsp_server import Auth, RtspServer

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


def source_of(url: str, options: LiveOptions = USUAL) -> RtspSource:
    return RtspSource(Address.parse(url), options, stream="cam")


def take(count: int, url: str, options: LiveOptions = USUAL):
    return taken(count, source_of(url, options))


def failure(url: str, options: LiveOptions = SOON) -> str:
    """The error that a source ends with, whatever it yields before."""
    with source_of(url, options) as source, pytest.raises(SourceError) as caught:
        for _ in source:
            pass
    address, text = Address.parse(url), str(caught.value)
    assert text.startswith(f"{address}: ")
    assert text.isprintable()
    for secret in {address.password, PASSWORD, "s3cret"} - {None}:
        assert secret not in text + str(caught.value.__cause__)
    return text


# Servers that are scripted


@contextlib.contextmanager
def scripted(answer):
    """A server that gives `answer(connection, method, cseq, head)` to each request, until the client is gone."""

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            buffer = b""
            while data := connection.recv(4096):
                buffer += data
                while b"\r\n\r\n" in buffer:
                    head, buffer = buffer.split(b"\r\n\r\n", 1)
                    words = head.decode().split()
                    cseq = words[words.index("CSeq:") + 1] if "CSeq:" in words else "0"
                    answer(connection, words[0], int(cseq), head.decode())

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"rtsp://127.0.0.1:{listener.getsockname()[1]}/cam"
        thread.join()


def reply(cseq: int, lines=(), body: bytes = b"", status: str = "200 OK") -> bytes:
    head = [f"RTSP/1.0 {status}", f"CSeq: {cseq}", *lines, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(head).encode() + body


def camera(send=None, *, session: str = "12345", transport: str = "RTP/AVP/TCP;interleaved=4-5"):
    """An `answer` for `scripted` that describes a clip of H.264, and calls `send(connection)` when it is to play.

    What was sent is all that comes; without `send` nothing comes, and the connection stays.
    """
    unit = make_clip().units[0].data
    sdp = "\r\n".join([*media_lines("h264", parameter_sets(unit, "h264")), "a=control:track0", ""]).encode()

    def answer(connection, method, cseq, head):
        lines = {"SETUP": [f"Transport: {transport}", f"Session: {session}"]}.get(method, [])
        connection.sendall(reply(cseq, lines, sdp if method == "DESCRIBE" else b""))
        if method == "PLAY" and send is not None:
            send(connection)
            connection.shutdown(socket.SHUT_WR)

    return answer


def packets(clip, marked=None, *, extended: bool = False, ssrc: int = 7, channel: int = 4) -> list[bytes]:
    """A clip as RTP within the connection, a packet each; `marked(pieces, place)` says which get the marker.

    extended: with a contributing source, a header extension and padding.
    """
    found = []
    for number, unit in enumerate(clip.units):
        pieces = payloads(unit.data, clip.codec, aggregate=False)
        for place, piece in enumerate(pieces):
            last = marked(pieces, place) if marked else place == len(pieces) - 1
            kind = last << 7 | payload_type(clip.codec)
            head = struct.pack(">BBHII", 0xB1 if extended else 0x80, kind, len(found) & 0xFFFF, number * 3600, ssrc)
            if extended:
                head += struct.pack(">IHHI", 99, 0xABAC, 1, 0)
                piece += b"\0\0\3"
            found.append(struct.pack(">cBH", b"$", channel, len(head + piece)) + head + piece)
    return found


def sending(data: bytes):
    return lambda connection: connection.sendall(data)


def frames_until_the_end(url: str):
    frames = []
    with source_of(url) as source, pytest.raises(SourceError, match="closed"):
        frames.extend(source)
    return frames


def test_cameras_that_never_set_the_marker_are_cut_where_the_time_changes():
    data = b"".join(packets(make_clip(), lambda pieces, place: False))
    with scripted(camera(sending(data))) as url:
        assert numbers(frames_until_the_end(url)) == list(range(49))  # the end of the last one is never known


def ends_a_nal_unit(pieces, place) -> bool:
    return pieces[place][0] & 31 != 28 or bool(pieces[place][1] & 0x40)


@pytest.mark.parametrize("marked", [ends_a_nal_unit, lambda pieces, place: True], ids=["NAL unit", "packet"])
def test_cameras_that_mark_more_than_the_end_of_a_picture_are_found_out(marked):
    clip = make_clip(slices=4, frames=75)
    data = b"".join(packets(clip, marked))
    with scripted(camera(sending(data))) as url:
        frames = frames_until_the_end(url)
    assert numbers(frames) == list(range(25, 74))
    truth = decoded(clip)
    assert all(
        np.array_equal(frame.pixels, to_rgb(truth[number]))
        for frame, number in zip(frames, numbers(frames), strict=True)
    )


def test_packets_that_come_before_the_answer_to_play_are_not_lost():
    clip = make_clip()
    data = b"".join(packets(clip))
    usual = camera(sending(data[20_000:]))

    def answer(connection, method, cseq, head):
        if method == "PLAY":
            connection.sendall(data[:20_000])
            # What follows is in the middle of a packet: the answer has to wait for its end.
            connection.sendall(data[20_000:])
            connection.sendall(reply(cseq))
            connection.shutdown(socket.SHUT_WR)
        else:
            usual(connection, method, cseq, head)

    with scripted(answer) as url:
        assert numbers(frames_until_the_end(url)) == list(range(50))


def test_a_server_may_send_its_clients_elsewhere_but_not_without_end():
    with RtspServer(make_clip(rate=FAST), auth=Auth("cam", PASSWORD)) as server:
        target = f"rtsp://127.0.0.1:{server.port}/cam"

        def answer(connection, method, cseq, head):
            elsewhere = method == "DESCRIBE"
            lines = [f"Location: {target}"] if elsewhere else []
            connection.sendall(reply(cseq, lines, status="302 Found" if elsewhere else "200 OK"))

        with scripted(answer) as url:
            assert numbers(take(5, url.replace("//", "//cam:s3cret%2Fp%40ss@"))) == list(range(5))
        target = "http://127.0.0.1/cam"
        with scripted(answer) as url:
            assert "must redirect to rtsp://" in failure(url)


def test_a_login_that_has_grown_old_is_renewed_and_a_wrong_one_is_not_tried_again():
    tries: list[str] = []

    def answer(connection, method, cseq, head):
        nonce = re.search(r'nonce="(\w+)"', head)
        tries.append(nonce[1] if nonce else "")
        if tries[-1] == accepted:
            connection.sendall(reply(cseq, status="404 Not Found"))
        else:
            stale = ", stale=true" if accepted != "none" and nonce else ""
            fresh = f'WWW-Authenticate: Digest realm="cam", nonce="n{len(tries)}", algorithm=SHA-256, qop="auth"{stale}'
            connection.sendall(reply(cseq, [fresh], status="401 Unauthorized"))

    accepted = "n2"
    with scripted(answer) as url:
        assert "no stream at this path" in failure(url.replace("//", "//cam:s3cret@"))
    assert tries == ["", "n1", "n2", "n2"]
    tries.clear()
    accepted = "none"
    with scripted(answer) as url:
        assert "refuses this user and password" in failure(url.replace("//", "//cam:s3cret@"))
    assert tries == ["", "n1"]


@pytest.mark.parametrize("seed", range(10))
def test_whatever_a_server_says_ends_in_one_line(seed):
    chance = random.Random(seed)

    def answer(connection, method, cseq, head):
        good = reply(
            cseq, ["Session: 1", "Transport: RTP/AVP/TCP"], b"m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\n"
        )
        bad = bytearray(good + chance.randbytes(60))
        for _ in range(chance.choice([0, 0, 3])):
            bad[chance.randrange(len(bad))] = chance.randrange(256)
        connection.sendall(bad if chance.random() < 0.5 else good)
        if method == "PLAY":
            connection.sendall(b"".join(b"$\x00\x00\x40" + chance.randbytes(64) for _ in range(100)))
            connection.shutdown(socket.SHUT_WR)

    with scripted(answer) as url:
        failure(url)


# Odd cameras


def test_answers_may_come_in_single_bytes():
    data = packets(make_clip())

    class Dripping:
        """A connection that sends each byte by itself."""

        def __init__(self, connection: socket.socket) -> None:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connection = connection
            self.shutdown = connection.shutdown

        def sendall(self, data: bytes) -> None:
            for byte in data[:5000]:
                self._connection.sendall(bytes([byte]))
            self._connection.sendall(data[5000:])

    usual = camera(sending(b"".join(data)))
    with scripted(lambda connection, *request: usual(Dripping(connection), *request)) as url:
        assert numbers(frames_until_the_end(url)) == list(range(50))


def test_servers_that_write_loosely_are_understood():
    unit = make_clip().units[0].data
    sdp = "\n".join([*media_lines("h264", parameter_sets(unit, "h264")), ""])

    def answer(connection, method, cseq, head):
        body = sdp if method == "DESCRIBE" else ""
        lines = [f"cseq :{cseq}", "session:\t1 ; Timeout = 9", "x-note: one", "  two", f"content-length:{len(body)}"]
        connection.sendall("\n".join(["\n\nRTSP/1.0 200", *lines, "", body]).encode())
        if method == "PLAY":
            connection.sendall(b"".join(packets(make_clip(), channel=0)))
            connection.shutdown(socket.SHUT_WR)

    with scripted(answer) as url:
        assert numbers(frames_until_the_end(url)) == list(range(50))


def test_packets_may_have_all_that_rtp_allows():
    with scripted(camera(sending(b"".join(packets(make_clip(), extended=True))))) as url:
        assert numbers(frames_until_the_end(url)) == list(range(50))


def test_a_camera_that_begins_anew_within_a_session_is_shown_from_the_next_key_frame():
    data = packets(make_clip()) + packets(make_clip(), ssrc=8)  # of the first key frame, nobody knows if it is whole
    with scripted(camera(sending(b"".join(data)))) as url:
        assert numbers(frames_until_the_end(url)) == [*range(50), *range(25, 50)]


def test_what_a_server_asks_of_its_client_is_refused_and_the_stream_goes_on():
    data = packets(make_clip())
    heard: list[str] = []
    answered = threading.Event()

    def ask_between(connection) -> None:
        connection.sendall(b"".join(data[:20]) + b"SET_PARAMETER * RTSP/1.0\r\nCSeq: 77\r\n\r\n" + b"".join(data[20:]))

    usual = camera(ask_between)

    def answer(connection, method, cseq, head):
        if method.startswith("RTSP/"):
            heard.append(f"{head.split()[1]} {cseq}")
            answered.set()
        else:
            usual(connection, method, cseq, head)

    with scripted(answer) as url:
        assert numbers(frames_until_the_end(url)) == list(range(50))
        assert answered.wait(10)
    assert heard == ["501 77"]


def test_of_the_places_of_a_name_the_one_that_answers_is_taken():
    with RtspServer(make_clip(rate=FAST)) as server:
        assert numbers(take(3, server.url().replace("127.0.0.1", "localhost"))) == [0, 1, 2]


# Servers that break off


def test_a_connection_that_ends_within_a_packet_gives_all_frames_before_it():
    data = b"".join(packets(make_clip()))[:-100]
    with scripted(camera(sending(data))) as url:
        assert numbers(frames_until_the_end(url)) == list(range(49))


def test_a_connection_that_is_reset_within_a_packet_breaks_the_stream_in_one_line():
    def reset(connection: socket.socket) -> None:
        connection.sendall(b"".join(packets(make_clip()))[:-100])
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()

    with scripted(camera(reset)) as url:
        assert "the server closed the connection" in failure(url)


@pytest.mark.parametrize("method", ["OPTIONS", "DESCRIBE", "SETUP", "PLAY"])
def test_a_connection_that_ends_within_an_answer_is_told_as_that(method):
    usual = camera()

    def answer(connection, asked, cseq, head):
        if asked == method:
            connection.sendall(b"RTSP/1.0 200 OK\r\nCSe")
            connection.shutdown(socket.SHUT_RDWR)
        else:
            usual(connection, asked, cseq, head)

    with scripted(answer) as url:
        assert failure(url).endswith("the server closed the connection")


@pytest.mark.parametrize("garbage", [b"\0\0\0", b"garbage\r\n\r\n", b"\xff" * 5000], ids=["zeros", "text", "much"])
def test_garbage_between_packets_ends_the_session_and_none_of_it_is_shown(garbage):
    data = packets(make_clip())
    with scripted(camera(sending(b"".join(data[:20]) + garbage + b"".join(data[20:])))) as url:
        frames = []
        with source_of(url) as source, pytest.raises(SourceError, match="the server must speak RTSP, got"):
            frames.extend(source)
    assert numbers(frames) == list(range(len(frames)))


def test_packets_that_are_not_rtp_are_counted_and_passed_over():
    data = packets(make_clip())
    senseless = b"$\4\0\5trash$\4\0\0$\5\0\4trash"[:-1] + b"$\x63\0\2hi"
    with scripted(camera(sending(b"".join(data[:20]) + senseless + b"".join(data[20:])))) as url:
        frames = []
        with source_of(url) as source, pytest.raises(SourceError, match="closed"):
            frames.extend(source)
        assert source.counters["malformed_packets"] == 3
    assert numbers(frames) == list(range(50))


# Servers that demand patience


@pytest.mark.parametrize("size", ["4294967296", "99999999999999999999", "-1", "many"])
def test_a_body_that_is_too_large_is_not_waited_for(size):
    def answer(connection, method, cseq, head):
        connection.sendall(f"RTSP/1.0 200 OK\r\nCSeq: {cseq}\r\nContent-Length: {size}\r\n\r\n".encode())

    with scripted(answer) as url:
        assert f"Content-Length of a message must be at most 262144, got '{size}'" in failure(url, USUAL)


def test_a_body_that_does_not_come_is_given_up_in_time():
    def answer(connection, method, cseq, head):
        size = 1000 if method == "DESCRIBE" else 0
        connection.sendall(f"RTSP/1.0 200 OK\r\nCSeq: {cseq}\r\nContent-Length: {size}\r\n\r\n".encode())

    with scripted(answer) as url:
        assert "must answer DESCRIBE, and has not within 1 s" in failure(url)


def test_packets_without_end_are_no_answer():
    usual = camera()

    def answer(connection, method, cseq, head):
        if method == "PLAY":
            data = b"".join(packets(make_clip()))
            while True:  # until the client is gone
                connection.sendall(data)
        usual(connection, method, cseq, head)

    with scripted(answer) as url:
        began = time.monotonic()
        assert "must answer PLAY, and has not within 1 s" in failure(url)
        assert time.monotonic() - began < 3


def test_where_no_packet_comes_over_udp_the_other_transport_is_named():
    with scripted(camera(transport="RTP/AVP;unicast;server_port=9-10")) as url:
        assert "nor any packet; where a firewall lets none through, set transport 'tcp'" in failure(
            url, replace(SOON, transport="udp")
        )


def test_a_camera_that_sends_no_key_frame_is_given_up_and_told_what_to_set():
    clip = make_clip(rate=FAST)
    with RtspServer(replace(clip, units=clip.units[1:25])) as server:
        text = failure(server.url(), LiveOptions(timeout_s=0.2))
    assert "no clean key frame for 0.8 s; set it to send key frames (IDR) more often" in text


# Refusals


@pytest.mark.parametrize(
    ("status", "lines", "text"),
    [
        ("500 Out of Cheese", [], "must answer DESCRIBE with 200, got 500 Out of Cheese"),
        ("401 Unauthorized", ["WWW-Authenticate: Negotiate"], "must ask for Basic or Digest authentication"),
        ("302 Found", ["Location: nowhere://"], "must redirect to an address, got none that can be read"),
        ("302 Found", [], "must redirect to an address, got none that can be read"),
        ("453 Not Enough Bandwidth", [], "no bandwidth left for another client (453)"),
        ("503 Service Unavailable", [], "the camera is busy"),
    ],
)
def test_what_a_server_refuses_is_said_in_one_line(status, lines, text):
    def answer(connection, method, cseq, head):
        connection.sendall(reply(cseq, lines, status=status) if method == "DESCRIBE" else reply(cseq))

    with scripted(answer) as url:
        assert text in failure(url.replace("//", "//cam:s3cret@"))


def test_redirects_in_a_circle_end():
    def answer(connection, method, cseq, head):
        if method == "DESCRIBE":
            connection.sendall(reply(cseq, [f"Location: {next(onward)}"], status="302 Found"))
        else:
            connection.sendall(reply(cseq))

    with contextlib.ExitStack() as servers:
        circle = [servers.enter_context(scripted(answer)) for _ in range(4)]
        onward = iter([*circle[1:], circle[0]])
        assert "must redirect at most 3 times" in failure(circle[0])


def test_a_session_that_the_camera_ended_is_over_and_a_login_that_grew_old_within_it_is_renewed():
    usual = camera(session="12345;timeout=2")
    nonces: list[str] = []

    def answer(connection, method, cseq, head):
        if method != "OPTIONS" or "Session" not in head:
            usual(connection, method, cseq, head)
            return
        nonce = re.search(r'nonce="(\w+)"', head)
        nonces.append(nonce[1] if nonce else "")
        challenge = 'WWW-Authenticate: Digest realm="cam", nonce="fresh"'
        connection.sendall(reply(cseq, status="454 Gone") if nonce else reply(cseq, [challenge], status="401 No"))

    with scripted(answer) as url:
        assert "the camera ended the session (454)" in failure(url.replace("//", "//cam:s3cret@"), USUAL)
    assert nonces == ["", "fresh"]


def test_hosts_that_cannot_be_reached_are_told_apart_from_those_that_do_not_answer():
    assert "must be reachable, and is not (network is unreachable)" in failure("rtsp://127.255.255.255/live")


def test_a_port_that_speaks_something_else_is_found_out():
    def greet(connection, method, cseq, head):
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with scripted(greet) as url:
        assert "got an answer in HTTP: is the port right?" in failure(url)
    with RtspServer(make_clip()) as server:
        assert "must answer in TLS, and does not; is this the port for rtsps?" in failure(
            server.url().replace("rtsp:", "rtsps:")
        )


def test_where_descriptors_run_out_it_is_said():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (max(int(path.name) for path in Path("/proc/self/fd").iterdir()), hard)
        )
        with contextlib.suppress(OSError):
            while True:
                stack.enter_context(socket.socket())
        assert "this host has no room for a session (Too many open files)" in failure("rtsp://127.0.0.1:9/cam")
