"""Claims about CURVE keys: their files, and what a client is told when they do not fit."""

from __future__ import annotations

import os
import pickle
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
import zmq
from typer.testing import CliRunner
from zmq.auth import create_certificates, load_certificate
from zmq.utils.monitor import recv_monitor_message

from daemon.keys import HANDSHAKE_EVENTS, Handshakes, Keys, KeysError, is_key, new_keys, public_key
from daemon.keys_cli import keys as commands

WAIT_MS = 30_000


@pytest.fixture(params=[0o000, 0o022, 0o077], ids="umask {0:03o}".format)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def make(folder: Path, name: str, server: Keys | None = None) -> Keys:
    public, secret = new_keys(folder / name)
    loaded = Keys.load(secret)
    assert loaded.public == public_key(public)
    return Keys(loaded.public, loaded.secret, server.public if server else None)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_new_keys_are_a_pair_in_two_files_of_which_one_is_secret(tmp_path: Path, umask: int) -> None:
    public, secret = new_keys(tmp_path / "daemon")
    assert (public.name, secret.name) == ("daemon.key", "daemon.key_secret")
    assert mode(secret) == 0o600
    assert mode(public) == 0o644 & ~umask
    keys = Keys.load(secret)
    assert zmq.curve_public(keys.secret.encode()).decode() == keys.public == public_key(public)
    assert keys.secret not in public.read_text()


def test_the_folder_of_new_keys_is_made_for_their_owner_alone(tmp_path: Path) -> None:
    new_keys(tmp_path / "keys" / "daemon")
    assert mode(tmp_path / "keys") == 0o700


def test_other_tools_read_our_files_and_we_read_theirs(tmp_path: Path) -> None:
    _, secret = new_keys(tmp_path / "ours")
    keys = Keys.load(secret)
    assert load_certificate(secret) == (keys.public.encode(), keys.secret.encode())
    theirs_public, theirs_secret = create_certificates(tmp_path, "theirs", {"email": "a@b.example"})
    Path(theirs_secret).chmod(0o600)
    assert Keys.load(theirs_secret).public == public_key(theirs_public)


@pytest.mark.parametrize("existing", ["daemon.key", "daemon.key_secret"])
def test_keys_are_never_replaced(tmp_path: Path, existing: str) -> None:
    (tmp_path / existing).write_text("precious")
    with pytest.raises(KeysError, match=re.escape(f"{existing}: exists already")):
        new_keys(tmp_path / "daemon")
    assert [path.name for path in tmp_path.iterdir()] == [existing]
    assert (tmp_path / existing).read_text() == "precious"


def test_new_keys_in_a_folder_need_a_name(tmp_path: Path) -> None:
    with pytest.raises(KeysError, match="is a folder; name the keys, too"):
        new_keys(tmp_path)


@pytest.mark.parametrize("open_to", [0o604, 0o640, 0o620, 0o601])
def test_a_secret_that_others_may_open_is_refused_in_one_line(tmp_path: Path, open_to: int) -> None:
    _, secret = new_keys(tmp_path / "daemon")
    secret.chmod(open_to)
    with pytest.raises(KeysError) as error:
        Keys.load(secret)
    assert str(error.value) == f"{secret}: must be closed to others (chmod 600 {secret}), got mode {open_to:04o}"


def test_a_secret_shows_in_no_text(tmp_path: Path) -> None:
    keys = make(tmp_path, "daemon")
    assert not any(keys.secret in text for text in (str(keys), repr(keys), repr([keys])))
    assert keys.public in repr(keys)
    assert pickle.loads(pickle.dumps(keys)) == keys


GOOD, OTHER = zmq.curve_keypair()[0].decode(), zmq.curve_keypair()[1].decode()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "cannot be read (No such file or directory)"),
        ("", "must hold CURVE keys"),
        ("public-key", "must hold CURVE keys"),
        ("\xff\x00", "must hold CURVE keys"),
        (f'curve\n    public-key = "{GOOD}"\n', "must hold a secret key, got a public one only"),
        (f'curve\n    public-key = "{GOOD}"\n    secret-key = "{OTHER}"\n', "of one pair"),
        (f'curve\n    public-key = "{GOOD}"\n    secret-key = "{OTHER[1:]}"\n', "40 characters of Z85"),
        (f'curve\n    public-key = "{GOOD[1:]}"\n    secret-key = "{OTHER}"\n', "40 characters of Z85"),
        (f'curve\n    public-key = "{GOOD}"\n    secret-key = "\xe9{OTHER[1:]}"\n', "must hold CURVE keys"),
    ],
)
def test_a_file_without_a_pair_of_keys_is_refused_in_one_line(tmp_path: Path, text: str | None, reason: str) -> None:
    path = tmp_path / "bad.key_secret"
    if text is not None:
        path.write_text(text, encoding="latin-1")
        path.chmod(0o600)
    with pytest.raises(KeysError, match=re.escape(reason)) as error:
        Keys.load(path)
    assert str(error.value).startswith(f"{path}: ")
    assert OTHER[1:] not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_is_no_key_file(tmp_path: Path) -> None:
    with pytest.raises(KeysError, match="must be a file of keys"):
        Keys.load(tmp_path)


def test_a_key_is_forty_characters_of_z85() -> None:
    assert is_key(GOOD)
    assert not any(map(is_key, ["", GOOD[1:], GOOD + "0", " " + GOOD[1:], "é" * 20, "#" * 40, "~" * 40]))


def test_a_client_must_know_the_daemons_key(tmp_path: Path) -> None:
    with zmq.Context() as context, context.socket(zmq.SUB) as socket, pytest.raises(KeysError, match="public key"):
        make(tmp_path, "client").connect(socket)


# What a client is told. The other end answers as `daemon.gate` does, with whatever status it is given.


@dataclass
class Server:
    """A ROUTER with or without keys, and who it lets in."""

    keys: Keys | None
    status: bytes


def first_refusal(server: Server, keys: Keys | None) -> str | None:
    """What a client with `keys` is told; None when it is let in."""
    here, there = zmq.Context(), zmq.Context()
    handler, router = there.socket(zmq.REP), there.socket(zmq.ROUTER)
    handler.bind("inproc://zeromq.zap.01")
    router.setsockopt_string(zmq.ZAP_DOMAIN, "test")
    if server.keys:
        server.keys.serve(router)
    router.bind("tcp://127.0.0.1:*")
    client = here.socket(zmq.DEALER)
    if keys:
        keys.connect(client)
    monitor = client.get_monitor_socket(HANDSHAKE_EVENTS)
    client.connect(router.getsockopt_string(zmq.LAST_ENDPOINT))
    poller = zmq.Poller()
    poller.register(handler, zmq.POLLIN)
    poller.register(monitor, zmq.POLLIN)
    handshakes = Handshakes(keys)
    try:
        while ready := dict(poller.poll(WAIT_MS)):
            if handler in ready:
                request = handler.recv_multipart()
                handler.send_multipart([b"1.0", request[1], server.status, b"", b"", b""])
            if monitor in ready:
                event: Any = recv_monitor_message(monitor)
                line = handshakes.refusal(event)
                if line or event["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                    return line
        raise AssertionError("nothing happened")
    finally:
        client.disable_monitor()
        here.destroy(linger=0)
        there.destroy(linger=0)


@pytest.fixture
def daemon(tmp_path: Path) -> Keys:
    return make(tmp_path, "daemon")


def test_a_client_whose_keys_fit_is_told_nothing(tmp_path: Path, daemon: Keys) -> None:
    assert first_refusal(Server(daemon, b"200"), make(tmp_path, "client", daemon)) is None
    assert first_refusal(Server(None, b"200"), None) is None


def test_a_client_whose_key_is_not_on_the_list_is_told_which(tmp_path: Path, daemon: Keys) -> None:
    client = make(tmp_path, "client", daemon)
    line = first_refusal(Server(daemon, b"400"), client)
    assert line == f"the key {client.public} is not among those that it allows"


@pytest.mark.parametrize("with_keys", [True, False])
def test_one_client_too_many_is_told_so(tmp_path: Path, daemon: Keys, with_keys: bool) -> None:
    client = make(tmp_path, "client", daemon) if with_keys else None
    line = first_refusal(Server(daemon if with_keys else None, b"500"), client)
    assert line == "it has as many clients as it takes (publish.max_clients)"


def test_a_client_with_another_servers_key_is_told_so(tmp_path: Path, daemon: Keys) -> None:
    other = make(tmp_path, "other")
    line = first_refusal(Server(daemon, b"200"), make(tmp_path, "client", other))
    assert line == f"its public key is not {other.public}, or it has no keys (or it is no deblurd)"


@pytest.mark.parametrize("attempt", range(5))  # either end may be the first to see it
def test_a_client_without_keys_is_told_that_it_needs_some(daemon: Keys, attempt: int) -> None:
    line = first_refusal(Server(daemon, b"200"), None)
    assert line is not None
    assert line.startswith("it wants keys, got none: make some with `deblurd keys new`")


@pytest.mark.parametrize("attempt", range(5))
def test_a_client_with_keys_is_told_that_the_daemon_has_none(tmp_path: Path, daemon: Keys, attempt: int) -> None:
    line = first_refusal(Server(None, b"200"), make(tmp_path, "client", daemon))
    assert line is not None
    assert "it has no keys" in line


def test_a_daemon_that_ends_in_a_handshake_is_no_refusal() -> None:
    handshakes = Handshakes()
    broken_off = {"event": zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL, "value": 104}
    silent = {"event": zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL, "value": 11}
    good = {"event": zmq.EVENT_HANDSHAKE_SUCCEEDED, "value": 0}
    assert [handshakes.refusal(event) for event in (broken_off, good, broken_off, silent, silent)] == [None] * 5
    assert handshakes.refusal(broken_off) is not None


# The command.

app = typer.Typer()
app.add_typer(commands, name="keys")


def test_the_command_makes_keys_and_says_what_to_do_with_them(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["keys", "new", str(tmp_path / "porch")])
    assert result.exit_code == 0
    keys = Keys.load(tmp_path / "porch.key_secret")
    assert result.stdout == keys.public + "\n"  # all that a script wants
    assert keys.secret not in result.output


@pytest.mark.parametrize("given", ["porch", "porch.key", "porch.key_secret"])
def test_the_command_shows_the_public_key_of_either_file(tmp_path: Path, given: str) -> None:
    _, secret = new_keys(tmp_path / "porch")
    result = CliRunner().invoke(app, ["keys", "show", str(tmp_path / given)])
    assert (result.exit_code, result.output) == (0, Keys.load(secret).public + "\n")
