from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from daemon.address import Address, redact
from daemon.errors import SourceError

SECRETS = ("hunter2", "operator", "t0k3n", "p@ss", "p%40ss", "pa/ss", "1234", "987654")


def refusal(text: str) -> str:
    with pytest.raises(SourceError) as caught:
        Address.parse(text)
    line = str(caught.value)
    assert line.isprintable()
    for secret in SECRETS:
        assert secret not in line
    return line


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("rtsp://cam/live", "rtsp"),
        ("RTSP://cam/live", "rtsp"),
        ("rtsps://cam:322/live", "rtsps"),
        ("http://cam/video.mjpg", "http"),
        ("https://cdn.example/live.m3u8", "https"),
        ("/dev/video0", "v4l2"),
        ("/dev/v4l/by-id/usb-camera-index0", "v4l2"),
        ("v4l2:0", "v4l2"),
        ("v4l2:/dev/video2", "v4l2"),
        ("test:", "test"),
        ("a video.mp4", "file"),
        ("a:b.mp4", "file"),
        ("dir/a://b.mp4", "file"),
        ("file:///data/a.mp4", "file"),
        ("C:\\video.mp4", "file"),
    ],
)
def test_the_text_tells_the_kind(text, kind):
    assert Address.parse(text).kind == kind


def test_an_existing_folder_is_told_from_a_file(tmp_path):
    assert Address.parse(str(tmp_path)).kind == "folder"
    assert Address.parse(f"file://{tmp_path}").kind == "folder"
    assert Address.parse(str(tmp_path / "none")).kind == "file"


def test_a_camera_is_named_by_number_or_path():
    assert Address.parse("v4l2:0") == Address.parse("/dev/video0")
    assert Address.parse("v4l2:/dev/video2").path == Path("/dev/video2")


def test_a_test_pattern_has_a_size_and_a_rate():
    assert (Address.parse("test:").size, Address.parse("test:").rate) == ((1280, 720), 25)
    assert Address.parse("test:640x480").size == (640, 480)
    address = Address.parse("test:640x480@30000/1001")
    assert (address.size, address.rate) == ((640, 480), Fraction(30000, 1001))


def test_a_name_that_is_too_long_is_left_to_whoever_opens_it():
    assert Address.parse("a" * 5000).kind == "file"


def test_a_file_url_is_decoded():
    assert Address.parse("file:///data/a%20b.mp4").path == Path("/data/a b.mp4")


def test_user_and_password_are_decoded_and_the_url_is_left_as_it_is():
    address = Address.parse("rtsp://op%40site:p%2Fw%25@cam:8554/a/b?channel=1")
    assert (address.user, address.password) == ("op@site", "p/w%")
    assert (address.host, address.port) == ("cam", 8554)
    assert address.url == "rtsp://op%40site:p%2Fw%25@cam:8554/a/b?channel=1"


def test_an_at_sign_in_a_password_needs_no_encoding():
    address = Address.parse("rtsp://operator:p@ss@cam/live")
    assert (address.host, address.password, str(address)) == ("cam", "p@ss", "rtsp://cam/live")


def test_an_ipv6_address_is_a_host():
    address = Address.parse("rtsp://operator:hunter2@[::1]:8554/live")
    assert (address.host, address.port, str(address)) == ("::1", 8554, "rtsp://[::1]:8554/live")


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("rtsp://operator:hunter2@cam:554/live", "rtsp://cam:554/live"),
        ("http://cam/v.cgi?user=operator&pwd=hunter2", "http://cam/v.cgi?user=…&pwd=…"),
        ("http://cam/v.cgi?t0k3n", "http://cam/v.cgi?…"),
        ("rtsp://cam/user=operator_password=hunter2_channel=1.sdp", "rtsp://cam/user=…"),
        ("https://cam/a?x=1#t0k3n", "https://cam/a?x=…"),
    ],
)
def test_no_secret_is_printed(text, printed):
    address = Address.parse(text)
    for shown in (str(address), repr(address), f"{address}"):
        for secret in SECRETS:
            assert secret not in shown
    assert str(address) == printed


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "must not be empty"),
        ("rtmp://operator:hunter2@cam/live", "got 'rtmp'; there are rtsp://"),
        ("rtsp:cam/live", "must begin with rtsp://"),
        ("rtsp:///live", "must have a host"),
        ("rtsp://operator:hunter2@/live", "a host after the user and password"),
        ("rtsp://operator:hunter2@:554/live", "a host after the user and password"),
        ("rtsp://cam:70000/live", "from 1 to 65535, got 70000"),
        ("rtsp://cam:0/live", "from 1 to 65535, got 0"),
        ("rtsp://cam:hunter2/live", "must be a number"),
        ("rtsp://operator:pa/ss@cam/live", "%2F"),
        ("rtsp://operator:1234/5@cam/live", "%2F"),
        ("rtsp://operator:hun ter2@cam/live", "no spaces"),
        ("rtsp://cam/li\nve", "no spaces or control characters"),
        ("rtsp://operator:hunter2@cam\r\nX-Header: 1/live", "no spaces or control characters"),
        ("rtsp://[::1/live", "IPv6"),
        ("rtsp://::1/live", "IPv6"),
        ("v4l2:front", "by number or path"),
        ("v4l2:", "by number or path"),
        ("test:big", "test:1280x720@25"),
        ("test:0x0", "from 1x1"),
        ("test:64x48@0", "more than 0"),
        ("test:64x48@1/0", "more than 0"),
        ("file://server/a.mp4", "on this host"),
        ("a\0b", "path of a file"),
    ],
)
def test_what_is_no_address_is_refused_in_one_line(text, what):
    assert what in refusal(text)


def test_texts_of_libraries_lose_the_login_of_every_url():
    text = "[Errno 401] 'rtsp://operator:hunter2@cam/live'; then http://a:p@ss@b/c?sig=t0k3n\n failed"
    assert redact(text) == "[Errno 401] 'rtsp://cam/live'; then http://b/c?… failed"


@pytest.mark.parametrize("spelling", ["p@ss/w", "p%40ss%2Fw", "p%40ss%2fw", "b3BlcmF0b3I6cEBzcy93"])
def test_texts_of_libraries_lose_the_password_in_every_spelling(spelling):
    address = Address.parse("rtsp://operator:p%40ss%2fw@cam/live")
    assert spelling not in redact(f"bad login {spelling} for operator", address)
    assert "operator" not in redact(f"bad login {spelling} for operator", address)


def test_a_short_user_does_not_spoil_the_words_that_contain_it():
    address = Address.parse("rtsp://cam:pw@host/camera")
    assert redact("no camera at cam", address) == "no camera at ***"


def test_query_values_and_logins_in_the_path_are_secrets_too():
    address = Address.parse("http://cam/user=admin_password=hunter2?token=987654&x=1")
    text = redact(f"cannot open {address.url} (987654, admin_password=hunter2)", address)
    for secret in ("987654", "hunter2"):
        assert secret not in text
