"""Claims about who may connect: by key, by number, and by address."""

from __future__ import annotations

import contextlib
import logging
import random
import re
import socket
import subprocess
import sys
import textwrap
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import pytest
import zmq
from zmq.utils import z85
from zmq.utils.monitor import recv_monitor_message

from daemon import gate as gates
from daemon.allow_list import AllowList
from daemon.errors import ConfigError
from daemon.gate import Admission, Gate, checked_bind
from daemon.keys import HANDSHAKE_EVENTS, Keys, KeysError, is_key, new_keys, public_key

REPOSITORY = Path(__file__).parents[2]
WAIT_MS = 30_000
WHO = r"(127\.0\.0\.1|somebody)"
"""libzmq tells no address of these, and who has hung up has none any more."""


@pytest.fixture
def daemon(tmp_path: Path) -> Keys:
    return Keys.load(new_keys(tmp_path / "daemon")[1])


@pytest.fixture
def allowed(tmp_path: Path) -> Path:
    """An empty list of those who may connect."""
    path = tmp_path / "allowed"
    path.touch(mode=0o644)
    return path


def client_keys(folder: Path, name: str, daemon: Keys) -> Keys:
    own = Keys.load(new_keys(folder / name)[1])
    return Keys(own.public, own.secret, daemon.public)


class House:
    """A guarded socket at a port of its own."""

    def __init__(self, admission: Admission | None = None, most: int = 64, socket_type: int = zmq.ROUTER) -> None:
        self._context = zmq.Context()
        self._gate = Gate(self._context)
        self.socket = self._context.socket(socket_type)
        self.socket.setsockopt(zmq.LINGER, 0)
        self._gate.guard(self.socket, most, admission)
        self.socket.bind("tcp://127.0.0.1:*")
        self.endpoint = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def close(self) -> None:
        self.socket.close()
        self._gate.close()
        self._context.term()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Visitor:
    """A client that has tried to get in: `status` is that of its handshake, 200 when it is in."""

    def __init__(self, endpoint: str, keys: Keys | None = None) -> None:
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        if keys:
            keys.connect(self.socket)
        monitor = self.socket.get_monitor_socket(HANDSHAKE_EVENTS)
        self.socket.connect(endpoint)
        assert monitor.poll(WAIT_MS)
        event = recv_monitor_message(monitor)
        self.status = 200 if event["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED else int(event["value"])
        self.socket.disable_monitor()
        monitor.close()

    def close(self) -> None:
        self._context.destroy(linger=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def status(endpoint: str, keys: Keys | None = None) -> int:
    with Visitor(endpoint, keys) as visitor:
        return visitor.status


# By key.


def test_who_has_a_key_on_the_list_is_heard_and_others_are_not(tmp_path: Path, daemon: Keys, allowed: Path) -> None:
    friend, stranger = client_keys(tmp_path, "friend", daemon), client_keys(tmp_path, "stranger", daemon)
    allowed.write_text(f"# who may connect\n\n{friend.public} the friend\n")
    with House(Admission(daemon, AllowList(allowed))) as house:
        with Visitor(house.endpoint, stranger) as visitor:
            assert visitor.status == 400
            with contextlib.suppress(zmq.Again):
                visitor.socket.send(b"open sesame", zmq.NOBLOCK)
        with Visitor(house.endpoint, friend) as visitor:
            assert visitor.status == 200
            visitor.socket.send(b"hello")
            assert house.socket.poll(WAIT_MS)
            routing_id, text = house.socket.recv_multipart()
            assert text == b"hello"
            house.socket.send_multipart([routing_id, b"welcome"])
            assert visitor.socket.recv() == b"welcome"
            assert not house.socket.poll(0)


def test_a_client_in_another_process_is_told_that_its_key_is_not_allowed(
    tmp_path: Path, daemon: Keys, allowed: Path
) -> None:
    program = """
        import sys, zmq
        from zmq.utils.monitor import recv_monitor_message
        from daemon.keys import HANDSHAKE_EVENTS, Handshakes, Keys
        endpoint, secret, server = sys.argv[1:]
        keys = Keys.load(secret, server)
        handshakes = Handshakes(keys)
        with zmq.Context() as context, context.socket(zmq.SUB) as socket:
            keys.connect(socket)
            with socket.get_monitor_socket(HANDSHAKE_EVENTS) as monitor:
                socket.connect(endpoint)
                print(handshakes.refusal(recv_monitor_message(monitor)))
                socket.disable_monitor()
    """
    public, secret = new_keys(tmp_path / "client")
    with House(Admission(daemon, AllowList(allowed)), socket_type=zmq.XPUB) as house:
        command = [sys.executable, "-c", textwrap.dedent(program), house.endpoint, secret, tmp_path / "daemon.key"]
        said = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=60).stdout
    assert said == f"the key {public_key(public)} is not among those that it allows\n"


@pytest.mark.parametrize("attempt", range(5))  # either end may be the first to see it
def test_nobody_without_keys_gets_in(
    daemon: Keys, allowed: Path, attempt: int, caplog: pytest.LogCaptureFixture
) -> None:
    with House(Admission(daemon, AllowList(allowed))) as house:
        assert status(house.endpoint, None) != 200
    assert re.fullmatch(f"{WHO} was refused: it (has no keys|broke off, as one without keys does)", caplog.messages[0])


@pytest.mark.parametrize("attempt", range(5))
def test_nobody_with_keys_gets_in_where_there_are_none(
    tmp_path: Path, daemon: Keys, attempt: int, caplog: pytest.LogCaptureFixture
) -> None:
    with House() as house:
        assert status(house.endpoint, client_keys(tmp_path, "friend", daemon)) != 200
    reason = "(has keys, where none are asked for|broke off, as one with keys does)"
    assert re.fullmatch(f"{WHO} was refused: it {reason}", caplog.messages[0])


def test_nobody_who_expects_another_daemon_gets_in(
    tmp_path: Path, daemon: Keys, allowed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    misled = client_keys(tmp_path, "misled", client_keys(tmp_path, "other", daemon))
    allowed.write_text(misled.public)
    with House(Admission(daemon, AllowList(allowed))) as house:
        assert status(house.endpoint, misled) != 200
    assert re.fullmatch(f"{WHO} was refused: it expects a daemon with another key", caplog.messages[0])


def test_what_the_log_says_of_strangers_names_them_and_no_secret(
    tmp_path: Path, daemon: Keys, allowed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    stranger = client_keys(tmp_path, "stranger", daemon)
    with House(Admission(daemon, AllowList(allowed))) as house:
        assert status(house.endpoint, stranger) == 400
    assert caplog.messages == [f"127.0.0.1 was refused: the key {stranger.public} is not among those that are allowed"]
    assert stranger.secret not in caplog.text
    assert daemon.secret not in caplog.text


def test_a_crowd_of_strangers_is_logged_at_most_once_a_second(
    tmp_path: Path, daemon: Keys, allowed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stranger = client_keys(tmp_path, "stranger", daemon)
    with House(Admission(daemon, AllowList(allowed))) as house:
        for _ in range(30):
            assert status(house.endpoint, stranger) == 400
    first, last = caplog.records[0].created, caplog.records[-1].created
    assert len(caplog.records) <= 1 + (last - first) / 0.99
    unsaid = sum(map(int, re.findall(r"\((\d+) more since the last one\)", caplog.text)))
    assert len(caplog.records) + unsaid <= 30


def test_a_key_that_is_added_gets_in_and_one_that_is_removed_does_not(
    tmp_path: Path, daemon: Keys, allowed: Path
) -> None:
    friend = client_keys(tmp_path, "friend", daemon)
    with House(Admission(daemon, AllowList(allowed))) as house:
        for text, expected in (("", 400), (friend.public, 200), ("# nobody", 400)):
            allowed.write_text(text)
            assert status(house.endpoint, friend) == expected


# The list.


def test_a_folder_of_public_keys_is_a_list(tmp_path: Path, daemon: Keys) -> None:
    folder = tmp_path / "clients"
    first, second = (client_keys(folder, name, daemon).public for name in ("first", "second"))
    allowed = AllowList(folder)
    assert first in allowed
    assert second in allowed
    assert daemon.public not in allowed
    (folder / "first.key").unlink()
    assert first not in allowed
    (folder / "daemon.key").write_text((tmp_path / "daemon.key").read_text())
    assert daemon.public in allowed
    assert len(allowed) == 2


def test_what_follows_a_key_is_a_comment_and_so_is_a_line_with_the_sign_of_one(daemon: Keys, allowed: Path) -> None:
    allowed.write_text(f"# porch\n\t{daemon.public}\tthe porch\r\n\n#{'1' * 40}\n{'2' * 40}", encoding="utf-8")
    keys = AllowList(allowed)
    assert daemon.public in keys
    assert "2" * 40 in keys
    assert len(keys) == 2


def test_no_key_begins_with_the_sign_of_a_comment() -> None:
    assert not is_key("#" + "0" * 39)
    assert is_key(z85.encode(b"\xff" * 32).decode())


@pytest.mark.parametrize(
    ("text", "reason"),
    [(None, "No such file or directory"), ("porch\n", "line 1: must begin with a key of 40 characters, got 5")],
)
def test_a_list_that_is_none_is_refused_at_the_start(allowed: Path, text: str | None, reason: str) -> None:
    allowed.unlink() if text is None else allowed.write_text(text)
    with pytest.raises(KeysError, match=f"{allowed}.*{reason}"):
        AllowList(allowed)


@pytest.mark.parametrize("mode", [0o602, 0o620, 0o666])
def test_a_list_that_others_may_change_is_refused(allowed: Path, mode: int) -> None:
    allowed.chmod(mode)
    with pytest.raises(KeysError, match=r"must be closed to others' writing \(chmod go-w .*allowed\)"):
        AllowList(allowed)


def test_a_list_that_breaks_later_lets_in_what_is_left_of_it(
    tmp_path: Path, daemon: Keys, allowed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    allowed.write_text(daemon.public)
    keys = AllowList(allowed)
    allowed.write_text(f"half a line\n{daemon.public}\n")
    assert daemon.public in keys
    assert "line 1: must begin with a key" in caplog.text
    allowed.unlink()
    caplog.clear()
    assert [daemon.public in keys for _ in range(3)] == [False] * 3
    assert caplog.messages == [f"{allowed}: No such file or directory; nobody is let in"]
    allowed.touch(mode=0o644)
    allowed.write_text(daemon.public)
    assert daemon.public in keys


# By number.


def test_one_client_too_many_is_refused_until_another_has_gone(caplog: pytest.LogCaptureFixture) -> None:
    with House(most=2) as house, Visitor(house.endpoint) as first:
        with Visitor(house.endpoint) as second:
            assert (first.status, second.status) == (200, 200)
            assert status(house.endpoint) == 500
        assert status(house.endpoint) == 200
    assert caplog.messages == ["127.0.0.1 was refused: 2 connections are there already ('publish.max_clients')"]


def test_a_client_with_keys_is_counted_too(tmp_path: Path, daemon: Keys, allowed: Path) -> None:
    friend = client_keys(tmp_path, "friend", daemon)
    allowed.write_text(friend.public)
    with House(Admission(daemon, AllowList(allowed)), most=1) as house, Visitor(house.endpoint, friend):
        assert status(house.endpoint, friend) == 500


def test_each_socket_has_its_own_room() -> None:
    with (
        zmq.Context() as context,
        Gate(context) as gate,
        context.socket(zmq.ROUTER) as first,
        context.socket(zmq.ROUTER) as second,
        ExitStack() as stack,
    ):
        endpoints = []
        for each in (first, second):
            gate.guard(each, most=1)
            each.bind("tcp://127.0.0.1:*")
            endpoints.append(each.getsockopt_string(zmq.LAST_ENDPOINT))
        assert [stack.enter_context(Visitor(endpoint)).status for endpoint in endpoints] == [200, 200]
        assert [status(endpoint) for endpoint in endpoints] == [500, 500]


def test_clients_that_come_and_go_leave_nothing_behind() -> None:
    with House(most=1) as house:
        assert [status(house.endpoint) for _ in range(50)] == [200] * 50


def test_who_has_been_there_for_long_is_still_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "HANDSHAKE_S", 0.1)
    monkeypatch.setattr(gates, "_GRACE_S", 0.0)
    with House(most=1) as house, Visitor(house.endpoint) as first:
        wait_for_silence_to_end(house.endpoint)
        assert first.status == 200
        assert status(house.endpoint) == 500


def wait_for_silence_to_end(endpoint: str) -> None:
    """Connect, say nothing, and be thrown out."""
    host, port = endpoint.removeprefix("tcp://").split(":")
    with socket.create_connection((host, int(port)), timeout=WAIT_MS / 1000) as silent:
        while silent.recv(4096):
            pass


def test_strangers_who_connect_and_say_nothing_take_no_place_and_are_thrown_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gates, "HANDSHAKE_S", 1.0)
    with House(most=2) as house, ExitStack() as stack:
        host, port = house.endpoint.removeprefix("tcp://").split(":")
        silent = [stack.enter_context(socket.create_connection((host, int(port)), timeout=30)) for _ in range(50)]
        for _ in range(2):
            assert stack.enter_context(Visitor(house.endpoint)).status == 200
        for each in silent:
            with contextlib.suppress(ConnectionResetError):
                while each.recv(4096):
                    pass
        assert status(house.endpoint) == 500


GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01CURVE" + bytes(15) + bytes(32)


@pytest.mark.parametrize("with_keys", [True, False])
def test_hostile_bytes_leave_the_gate_as_it_was(
    tmp_path: Path, daemon: Keys, allowed: Path, with_keys: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gates, "HANDSHAKE_S", 0.5)
    monkeypatch.setattr(gates, "_GRACE_S", 0.5)
    friend = client_keys(tmp_path, "friend", daemon)
    allowed.write_text(friend.public)
    keys, admission = (friend, Admission(daemon, AllowList(allowed))) if with_keys else (None, None)
    chance = random.Random(7)
    with House(admission, most=2) as house, ExitStack() as stack:
        host, port = house.endpoint.removeprefix("tcp://").split(":")
        for number in range(300):
            data = chance.randbytes(chance.randrange(1, 600))
            if number % 3:  # further in
                data = (GREETING if number % 2 else GREETING.replace(b"CURVE", b"NULL\0")) + data
            with socket.create_connection((host, int(port)), timeout=30) as hostile:
                hostile.sendall(data)
                if number % 5 == 0:
                    hostile.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # ends in a reset
        wait_for_silence_to_end(house.endpoint)  # by now, none of them can count any more
        for _ in range(2):
            assert stack.enter_context(Visitor(house.endpoint, keys)).status == 200
        assert status(house.endpoint, keys) == 500


# By address.


@pytest.mark.parametrize(
    "endpoint",
    [
        "tcp://127.0.0.1:5555",
        "tcp://127.1.2.3:*",
        "tcp://localhost:5555",
        "tcp://[::1]:5555",
        "tcp://::1:5555",
        "ipc:///run/deblurd/frames",
        "ipc://@deblurd",
    ],
)
def test_where_no_other_host_comes_in_keys_are_not_needed(endpoint: str, daemon: Keys) -> None:
    assert checked_bind(endpoint, None) == checked_bind(endpoint, daemon) == endpoint


@pytest.mark.parametrize(
    "endpoint",
    [
        "tcp://*:5555",
        "tcp://0.0.0.0:5555",
        "tcp://[::]:5555",
        "tcp://192.168.1.2:5555",
        "tcp://eth0:5555",
        "tcp://lo:5555",
        "tcp://localhost.example.com:5555",
        "tcp://127.0.0.1.example.com:5555",
        "tcp://127.0.0.1;0.0.0.0:5555",
        "tcp://[::ffff:192.168.1.2]:5555",
        "tcp://2130706433:5555",
        "udp://127.0.0.1:5555",
    ],
)
def test_where_other_hosts_come_in_keys_are_needed(endpoint: str, daemon: Keys) -> None:
    assert checked_bind(endpoint, daemon) == endpoint
    with pytest.raises(ConfigError) as error:
        checked_bind(endpoint, None)
    assert str(error.value) == (
        f"'{endpoint}' can be reached from other hosts and must have keys, got none: make some with "
        "`deblurd keys new`, or bind to 127.0.0.1 or ipc://PATH"
    )
