"""Claims about message buffers and their files in shared memory; real files, real processes."""

from __future__ import annotations

import logging
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from daemon.buffers import IDLE_S, OVERSTAY_S, Pool
from daemon.segments import Segments, open_segments, sweep

SIZE = 1000
WAIT_S = 30.0


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def segments(tmp_path: Path) -> Iterator[Segments]:
    """Files in a folder of their own, which shared memory does not have to be for this."""
    segments = Segments("a1", tmp_path)
    yield segments
    segments.close()


@pytest.fixture
def pool(segments: Segments, clock: Clock) -> Pool:
    return Pool(segments, clock)


def frame_files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.name.rpartition("-")[2].isdigit()}


@contextmanager
def no_file_over(size: int) -> Iterator[None]:
    """As in a folder that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def repository() -> Path:
    return Path(__file__).parents[2]


# Buffers.


def test_a_buffer_is_used_again_when_its_message_is_gone(pool: Pool) -> None:
    buffer = pool.take(SIZE)
    tracker = buffer.message().tracker
    buffer.done()
    tracker.wait(WAIT_S)
    assert pool.take(SIZE) is buffer


def test_a_buffer_of_which_nothing_was_sent_is_used_again(pool: Pool) -> None:
    buffer = pool.take(SIZE)
    buffer.done()
    assert pool.take(SIZE) is buffer


@pytest.mark.parametrize("size", [10, 100_000])
def test_a_buffer_is_left_alone_while_it_is_in_hand_or_its_message_is_anywhere(pool: Pool, size: int) -> None:
    in_hand, sent = pool.take(size), pool.take(size)
    message = sent.message()
    sent.done()
    assert pool.take(size) not in (in_hand, sent)
    assert len(message) == size


def test_a_buffer_that_is_on_loan_is_left_alone_until_it_is_given_back(pool: Pool) -> None:
    buffer = pool.take(SIZE, shared=True)
    tokens = [buffer.lease(1000.0), buffer.lease(1000.0)]
    buffer.done()
    buffer.release(tokens[0])
    assert pool.take(SIZE, shared=True) is not buffer
    buffer.release(tokens[1])
    assert pool.take(SIZE, shared=True) is buffer


def test_a_buffer_held_for_too_long_is_retired_and_never_written_to(pool: Pool, clock: Clock, tmp_path: Path) -> None:
    buffer = pool.take(SIZE, shared=True)
    buffer.array[:] = 7
    buffer.lease(clock.now_s)
    buffer.done()
    assert buffer.name in frame_files(tmp_path)
    reader = np.memmap(tmp_path / str(buffer.name), np.uint8, "r")
    clock.now_s += OVERSTAY_S + 0.1
    for _ in range(3):
        other = pool.take(SIZE, shared=True)
        other.array[:] = 9
        other.done()
    assert (reader == 7).all()
    assert frame_files(tmp_path) == {other.name}
    assert len(pool) == 1


def test_a_change_of_size_retires_what_is_free(pool: Pool, tmp_path: Path) -> None:
    pool.take(SIZE, shared=True).done()
    other = pool.take(2 * SIZE, shared=True)
    assert len(other.array) == 2 * SIZE
    assert frame_files(tmp_path) == {other.name}


def test_a_pool_shrinks_when_less_is_needed(pool: Pool, clock: Clock) -> None:
    for buffer in [pool.take(SIZE) for _ in range(8)]:
        buffer.done()
    for _ in range(3):
        clock.now_s += IDLE_S / 2
        pool.take(SIZE).done()
    assert len(pool) == 1


def test_only_what_is_to_be_shared_lies_in_shared_memory(pool: Pool, tmp_path: Path) -> None:
    assert pool.take(SIZE).name is None
    assert frame_files(tmp_path) == set()
    shared = pool.take(SIZE, shared=True)
    assert frame_files(tmp_path) == {shared.name}
    shared.done()
    assert pool.take(SIZE).name is None


def test_where_there_is_no_room_a_buffer_is_plain_and_one_warning_says_so(
    pool: Pool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with no_file_over(SIZE - 1), caplog.at_level(logging.WARNING):
        buffers = [pool.take(SIZE, shared=True) for _ in range(3)]
    assert [buffer.name for buffer in buffers] == [None] * 3
    assert frame_files(tmp_path) == set()
    assert len(caplog.records) == 1
    assert "no shared memory for a frame (1000 bytes" in caplog.text


def test_without_shared_memory_every_buffer_is_plain() -> None:
    assert Pool().take(SIZE, shared=True).name is None


# Files.


def test_files_are_for_this_user_only(pool: Pool, segments: Segments, tmp_path: Path) -> None:
    pool.take(SIZE, shared=True)
    modes = {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {0o600}
    assert (tmp_path / segments.probe.file).read_text() == segments.probe.value


def test_no_file_is_left_at_the_end_and_who_mapped_one_keeps_it(tmp_path: Path) -> None:
    segments = Segments("b2", tmp_path)
    buffer = Pool(segments).take(SIZE, shared=True)
    buffer.array[:] = 5
    reader = np.memmap(tmp_path / str(buffer.name), np.uint8, "r")
    segments.close()
    segments.close()
    assert list(tmp_path.iterdir()) == []
    assert (reader == 5).all()


def test_the_files_of_a_killed_daemon_are_swept_and_those_of_a_living_one_are_not(tmp_path: Path) -> None:
    program = (
        "import sys, os, signal; from pathlib import Path\n"
        "from daemon.segments import Segments\n"
        "Segments('dead', Path(sys.argv[1])).create(1000); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    killed = subprocess.run(command, cwd=repository(), timeout=60, check=False)
    assert killed.returncode == -signal.SIGKILL
    living = Segments("11fe", tmp_path)
    living.create(SIZE)
    (tmp_path / "deblurd-0f0f-3").touch()  # nobody's
    (tmp_path / "deblurd-notes.txt").touch()
    (tmp_path / "another").touch()
    assert (tmp_path / "deblurd-dead-0").exists()
    sweep(tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"deblurd-11fe-0", "deblurd-11fe-probe", "deblurd-11fe.lock", "deblurd-notes.txt", "another"}
    living.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_the_files_of_other_users_are_not_swept(tmp_path: Path) -> None:
    for name in ("deblurd-aa-0", "deblurd-bb-0", "deblurd-bb.lock"):
        (tmp_path / name).touch()
        os.chown(tmp_path / name, 12345, 12345)
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"deblurd-aa-0", "deblurd-bb-0", "deblurd-bb.lock"}


def test_daemons_that_start_together_do_not_sweep_each_other(tmp_path: Path) -> None:
    started: list[Segments | None] = []

    def start(number: int) -> None:
        started.extend(open_segments(f"{number:02x}{turn:02x}", tmp_path) for turn in range(10))

    threads = [threading.Thread(target=start, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(tmp_path.glob("*.lock"))) == len(list(tmp_path.glob("*-probe"))) == 80
    for segments in started:
        assert segments is not None
        segments.close()
    assert list(tmp_path.iterdir()) == []


def test_where_there_is_no_shared_memory_there_are_no_segments(tmp_path: Path) -> None:
    assert open_segments("a1", tmp_path / "missing") is None


def test_a_file_that_somebody_put_there_is_not_written_to(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    segments = Segments("c3", tmp_path)
    (tmp_path / "deblurd-c3-0").symlink_to(precious)
    assert segments.create(SIZE) is None
    assert precious.read_text() == "precious"
    segments.close()
