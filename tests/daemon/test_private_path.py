"""Claims about the sockets of ipc endpoints: nobody else gets at them, and no second daemon takes them."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from daemon.private_path import Bound, bind

REPOSITORY = Path(__file__).parents[2]
WAIT_MS = 30_000
NOBODY = 65534

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")


@pytest.fixture
def router() -> Iterator[zmq.Socket[bytes]]:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        yield router


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that every user can reach, unlike those of pytest."""
    folder = Path("/tmp") / f"deblurd-{os.getpid()}-{tmp_path.name}"
    folder.mkdir(mode=0o755)
    yield folder
    shutil.rmtree(folder)


def answers(router: zmq.Socket[bytes], endpoint: str) -> bool:
    """A message to `endpoint` reaches `router`."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.connect(endpoint)
        dealer.send(b"hello")
        return bool(router.poll(WAIT_MS)) and router.recv_multipart()[-1] == b"hello"


def fails(router: zmq.Socket[bytes], path: Path | str) -> str:
    """Why `path` cannot be bound."""
    with pytest.raises(OSError) as error:
        bind(router, f"ipc://{path}")
    assert "\n" not in error.value.strerror
    return error.value.strerror


@contextlib.contextmanager
def another_daemon(endpoint: str, user: int = os.geteuid()) -> Iterator[subprocess.Popen[str]]:
    """A process of `user` that is bound to `endpoint`."""
    program = """
        import codecs, os, sys, zmq
        from daemon.private_path import bind
        codecs.lookup("ascii")  # which filelock needs: the other user may have no way to Python's own files
        os.setuid(int(sys.argv[2]))
        with zmq.Context() as context, context.socket(zmq.ROUTER) as router, bind(router, sys.argv[1]):
            print("bound", flush=True)
            sys.stdin.read()
    """
    command = [sys.executable, "-c", textwrap.dedent(program), endpoint, str(user)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "bound\n"
        yield process
        process.stdin.close()


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077], ids="umask {0:03o}".format)
def test_a_socket_is_its_owners_alone_whatever_the_umask(tmp_path: Path, router: zmq.Socket[bytes], umask: int) -> None:
    before = os.umask(umask)
    try:
        with bind(router, f"ipc://{tmp_path}/frames") as bound:
            files = {path.name: path.stat().st_mode for path in tmp_path.iterdir()}
            assert {name: stat.S_IMODE(mode) for name, mode in files.items()} == {"frames": 0o600, "frames.lock": 0o600}
            assert bound.endpoint == f"ipc://{tmp_path}/frames"
            assert answers(router, bound.endpoint)
    finally:
        os.umask(before)


def test_the_socket_is_removed_at_the_end_and_may_be_taken_again(tmp_path: Path) -> None:
    for _ in range(3):
        with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
            bound = bind(router, f"ipc://{tmp_path}/frames")
            assert answers(router, bound.endpoint)
        bound.close()
        bound.close()
        assert [path.name for path in tmp_path.iterdir()] == ["frames.lock"]


def test_any_thread_may_close(tmp_path: Path, router: zmq.Socket[bytes]) -> None:
    bound = bind(router, f"ipc://{tmp_path}/frames")
    closer = threading.Thread(target=bound.close)
    closer.start()
    closer.join()
    with another_daemon(bound.endpoint):
        pass


def test_a_second_daemon_cannot_take_the_path(tmp_path: Path, router: zmq.Socket[bytes]) -> None:
    path = tmp_path / "frames"
    with another_daemon(f"ipc://{path}"):
        assert fails(router, path) == "the address is in use"
        assert path.is_socket()


def test_a_second_publisher_of_this_daemon_cannot_take_the_path(tmp_path: Path, router: zmq.Socket[bytes]) -> None:
    path = tmp_path / "frames"
    with zmq.Context() as context, context.socket(zmq.ROUTER) as first, bind(first, f"ipc://{path}") as bound:
        assert fails(router, path) == "the address is in use"
        assert answers(first, bound.endpoint)


def test_of_many_daemons_at_once_one_gets_the_path(tmp_path: Path) -> None:
    """Over what a killed one left."""
    endpoint = f"ipc://{tmp_path}/frames"
    with another_daemon(endpoint) as killed:
        killed.send_signal(signal.SIGKILL)
    processes = multiprocessing.get_context("spawn")
    start, end, results = processes.Barrier(4), processes.Event(), processes.Queue()
    racers = [processes.Process(target=_race, args=(endpoint, start, end, results)) for _ in range(4)]
    for racer in racers:
        racer.start()
    outcomes = sorted(results.get(timeout=60) for _ in racers)
    end.set()
    for racer in racers:
        racer.join()
    assert outcomes == ["bound", *["the address is in use"] * 3]


def _race(endpoint: str, start, end, results) -> None:  # type: ignore[no-untyped-def]
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        start.wait()
        try:
            with bind(router, endpoint):
                results.put("bound")
                end.wait()
        except OSError as error:
            results.put(error.strerror)


def test_what_a_killed_daemon_left_is_taken_over(tmp_path: Path, router: zmq.Socket[bytes]) -> None:
    path = tmp_path / "frames"
    with another_daemon(f"ipc://{path}") as killed:
        killed.send_signal(signal.SIGKILL)
    assert path.is_socket()
    with bind(router, f"ipc://{path}") as bound:
        assert answers(router, bound.endpoint)


def test_a_program_that_knows_no_lock_keeps_its_socket(tmp_path: Path, router: zmq.Socket[bytes]) -> None:
    path = tmp_path / "frames"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        assert fails(router, path) == "the address is in use"
        assert path.is_socket()


def test_closing_leaves_alone_what_somebody_else_put_there_meanwhile(tmp_path: Path, router: zmq.Socket[bytes]) -> None:
    path = tmp_path / "frames"
    with bind(router, f"ipc://{path}"):
        path.unlink()
        path.write_text("precious")
    assert path.read_text() == "precious"


@pytest.mark.parametrize("kind", ["file", "folder", "fifo", "link to a socket", "link to nothing"])
def test_what_is_no_socket_is_never_removed(tmp_path: Path, router: zmq.Socket[bytes], kind: str) -> None:
    path, target = tmp_path / "frames", tmp_path / "target"
    if kind == "file":
        path.write_text("precious")
    elif kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to(target)
        if kind == "link to a socket":
            with socket.socket(socket.AF_UNIX) as left:
                left.bind(str(target))
    before = path.lstat()
    assert fails(router, path) == "a file of this name exists, and is no socket"
    assert path.lstat().st_ino == before.st_ino
    assert not target.exists() or target.is_socket()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path, router: zmq.Socket[bytes]) -> None:
    assert fails(router, tmp_path / "none" / "frames") == f"the folder {tmp_path}/none is not there"


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757])
def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path, router: zmq.Socket[bytes], mode: int) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(mode)
    reason = f"{folder} must be closed to others' writing (chmod go-w {folder}), got mode {mode:04o}"
    assert fails(router, folder / "frames") == reason
    assert not list(folder.iterdir())


def test_a_folder_with_the_sticky_bit_will_do(tmp_path: Path, router: zmq.Socket[bytes]) -> None:
    folder = tmp_path / "like-tmp"
    folder.mkdir()
    folder.chmod(0o1777)
    with bind(router, f"ipc://{folder}/frames") as bound:
        assert answers(router, bound.endpoint)


def test_a_path_that_no_socket_can_have_is_refused(tmp_path: Path, router: zmq.Socket[bytes]) -> None:
    long = tmp_path / ("long" * 30)
    assert fails(router, long).endswith(f" bytes, got {len(str(long))}")
    assert fails(router, "*") == fails(router, f"{tmp_path}/\0") == "it must name a file"
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="names without files are Linux's")
def test_a_name_without_a_file_and_a_port_are_bound_as_they_are(router: zmq.Socket[bytes]) -> None:
    with bind(router, f"ipc://@deblurd-{os.getpid()}") as bound:
        assert answers(router, bound.endpoint)
    with bind(router, "tcp://127.0.0.1:*") as bound:
        assert isinstance(bound, Bound)
        assert answers(router, bound.endpoint)


def test_an_address_of_ipv6_is_bound(router: zmq.Socket[bytes]) -> None:
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("this host has no IPv6")
    with bind(router, "tcp://[::1]:*") as bound:
        assert bound.endpoint.startswith("tcp://[::1]:")


# Another user, for whom tests must run as root.


@as_root
def test_another_user_cannot_connect(folder: Path, router: zmq.Socket[bytes]) -> None:
    program = (
        "import os, socket, sys; os.setuid(int(sys.argv[2]))\n"
        "sys.exit(socket.socket(socket.AF_UNIX).connect_ex(sys.argv[1]))"
    )
    with bind(router, f"ipc://{folder}/frames"):
        command = [sys.executable, "-c", program, str(folder / "frames")]
        results = [subprocess.run([*command, str(user)], check=False).returncode for user in (os.geteuid(), NOBODY)]
    assert results == [0, errno.EACCES]


@as_root
def test_there_is_no_moment_at_which_another_user_could_connect(folder: Path) -> None:
    program = """
        import os, socket, sys
        path, came_in, end = sys.argv[1], 0, sys.argv[1] + ".end"
        os.setuid(int(sys.argv[2]))
        print("tries", flush=True)
        while not os.path.exists(end):
            with socket.socket(socket.AF_UNIX) as stranger:
                came_in += stranger.connect_ex(path) == 0
        print(came_in)
    """
    path = folder / "frames"
    command = [sys.executable, "-c", textwrap.dedent(program), str(path), str(NOBODY)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as stranger:
        assert stranger.stdout is not None
        assert stranger.stdout.readline() == "tries\n"
        before = os.umask(0)
        try:
            for _ in range(100):
                with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
                    bound = bind(router, f"ipc://{path}")
                bound.close()
        finally:
            os.umask(before)
            Path(f"{path}.end").touch()
        assert int(stranger.stdout.readline()) == 0


@as_root
def test_the_folder_of_another_user_is_refused(folder: Path, router: zmq.Socket[bytes]) -> None:
    os.chown(folder, NOBODY, NOBODY)
    assert fails(router, folder / "frames") == f"{folder} must belong to this user or root, got user {NOBODY}"


@as_root
def test_roots_folder_will_do_for_another_user_if_it_is_sticky(folder: Path) -> None:
    folder.chmod(0o1777)
    with another_daemon(f"ipc://{folder}/frames", user=NOBODY):
        assert (folder / "frames").stat().st_uid == NOBODY


@as_root
def test_the_socket_that_another_user_left_in_a_sticky_folder_is_not_taken(
    folder: Path, router: zmq.Socket[bytes]
) -> None:
    folder.chmod(0o1777)
    with another_daemon(f"ipc://{folder}/frames", user=NOBODY) as killed:
        killed.send_signal(signal.SIGKILL)
    (folder / "frames.lock").unlink()
    assert fails(router, folder / "frames") == f"the socket there must belong to this user, got user {NOBODY}"
    assert (folder / "frames").is_socket()
