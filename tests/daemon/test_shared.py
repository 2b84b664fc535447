"""Claims about reading frames where the daemon wrote them."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import numpy as np
import pytest

from daemon.control import Probe
from daemon.shared import SharedMemory, open_shared
from daemon.wire import Segment

FILE = "deblurd-run-0"


@pytest.fixture
def memory(tmp_path: Path) -> SharedMemory:
    """Of a daemon whose folder has a file of 4096 bytes, 0, 1, 2 and so on."""
    (tmp_path / "deblurd-run-probe").write_text("ab12")
    (tmp_path / FILE).write_bytes(bytes(range(256)) * 16)
    return SharedMemory(Probe(str(tmp_path), "deblurd-run-probe", "ab12"))


def test_a_view_is_what_the_file_holds_there_and_cannot_be_written_to(memory: SharedMemory) -> None:
    view = memory.view(Segment(FILE, 64, 100, 7))
    assert bytes(view) == bytes(range(64, 164))
    assert view.readonly


def test_a_token_comes_back_once_when_the_last_who_holds_the_pixels_lets_go(memory: SharedMemory) -> None:
    pixels = np.frombuffer(memory.view(Segment(FILE, 0, 4096, 7)), np.uint8).reshape(64, 64)
    corner = pixels[:8, :8]
    del pixels
    gc.collect()
    assert memory.released() == ()
    del corner
    gc.collect()
    assert memory.released() == (7,)
    assert memory.released() == ()


def test_what_was_mapped_stays_when_its_file_is_removed(memory: SharedMemory, tmp_path: Path) -> None:
    view = memory.view(Segment(FILE, 0, 16, 1))
    (tmp_path / FILE).unlink()
    (tmp_path / "deblurd-run-1").write_bytes(bytes(4096))
    assert bytes(memory.view(Segment("deblurd-run-1", 0, 16, 2))) == bytes(16)
    del memory
    assert bytes(view) == bytes(range(16))


def test_files_that_were_removed_are_let_go_of(memory: SharedMemory, tmp_path: Path) -> None:
    def mapped() -> str:
        return Path("/proc/self/maps").read_text()

    if not Path("/proc/self/maps").exists():
        pytest.skip("the system does not say what is mapped")
    memory.view(Segment(FILE, 0, 16, 1))
    assert f"{tmp_path}/{FILE}" in mapped()
    (tmp_path / FILE).unlink()
    (tmp_path / "deblurd-run-1").write_bytes(bytes(4096))
    memory.view(Segment("deblurd-run-1", 0, 16, 2))
    gc.collect()
    assert f"{tmp_path}/{FILE}" not in mapped()


@pytest.mark.parametrize("segment", [Segment(FILE, 4090, 7, 3), Segment("deblurd-run-9", 0, 1, 3)])
def test_a_file_that_is_short_or_missing_is_an_error_and_its_token_comes_back(
    memory: SharedMemory, segment: Segment
) -> None:
    with pytest.raises(OSError):
        memory.view(segment)
    assert memory.released() == (3,)


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "empty"])
def test_what_only_looks_like_a_file_of_the_daemon_is_not_read(memory: SharedMemory, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "deblurd-run-2"
    if kind == "link":
        path.symlink_to(tmp_path / FILE)
    elif kind == "pipe":
        os.mkfifo(path)  # nobody writes: who opened it to read would wait for ever
    elif kind == "folder":
        path.mkdir()
    else:
        path.touch()
    with pytest.raises(OSError):
        memory.view(Segment(path.name, 0, 16, 1))


def test_another_users_file_is_not_read(memory: SharedMemory, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    os.chown(tmp_path / FILE, 12345, -1)
    with pytest.raises(PermissionError):
        memory.view(Segment(FILE, 0, 16, 1))


@pytest.mark.parametrize(("file", "value"), [("deblurd-run-probe", "cd34"), ("deblurd-other-probe", "ab12")])
def test_without_the_probe_there_is_no_shared_memory(
    memory: SharedMemory, tmp_path: Path, file: str, value: str
) -> None:
    assert open_shared(Probe(str(tmp_path), "deblurd-run-probe", "ab12")) is not None
    assert open_shared(Probe(str(tmp_path), file, value)) is None
    assert open_shared(None) is None
