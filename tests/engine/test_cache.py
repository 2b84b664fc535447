"""The cache of compiled engines: nothing damaged or foreign comes out of it, and work is done once."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine import cache as module
from engine.cache import Cache, private_folder
from engine.errors import EngineError

KEY = {"library": "tensorrt 11.4", "gpu": "H200", "sizes": [[720, 1280]]}


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def entry(tmp_path: Path) -> Path:
    (path,) = (tmp_path / "cache").glob("*.entry")
    return path


def test_what_was_kept_comes_back(cache: Cache) -> None:
    assert cache.get(KEY) is None
    cache.put(KEY, b"plan")
    assert cache.get(KEY) == b"plan"


@pytest.mark.parametrize("change", [{"gpu": "H100"}, {"library": "tensorrt 10"}, {"sizes": []}, {"more": 1}])
def test_an_entry_of_anything_else_does_not(cache: Cache, change: dict[str, object]) -> None:
    cache.put(KEY, b"plan")
    assert cache.get({**KEY, **change}) is None


def test_an_entry_that_lies_under_anothers_name_is_not_taken(cache: Cache, tmp_path: Path) -> None:
    other = {**KEY, "gpu": "H100"}
    cache.put(KEY, b"plan")
    path = entry(tmp_path)
    cache.put(other, b"other plan")
    (theirs,) = {*(tmp_path / "cache").glob("*.entry")} - {path}
    path.replace(theirs)
    assert cache.get(other) is None


@pytest.mark.parametrize("at", [0, 5, 20, 80, -40, -1])
def test_one_wrong_bit_anywhere_is_noticed(
    cache: Cache, tmp_path: Path, at: int, caplog: pytest.LogCaptureFixture
) -> None:
    cache.put(KEY, bytes(100))
    data = bytearray(entry(tmp_path).read_bytes())
    data[at] ^= 1
    entry(tmp_path).write_bytes(data)
    assert cache.get(KEY) is None
    assert "damaged, made anew" in caplog.text


@pytest.mark.parametrize("length", [0, 1, 16, 60, 130, -1])
def test_a_truncated_entry_is_made_anew(cache: Cache, tmp_path: Path, length: int) -> None:
    cache.put(KEY, bytes(100))
    entry(tmp_path).write_bytes(entry(tmp_path).read_bytes()[:length])
    assert cache.get_or_make(KEY, lambda: b"new") == b"new"
    assert cache.get(KEY) == b"new"


def test_what_is_there_is_not_made_again(cache: Cache) -> None:
    cache.put(KEY, b"plan")
    assert cache.get_or_make(KEY, lambda: pytest.fail("made again")) == b"plan"


def test_a_failure_keeps_nothing_and_locks_nobody_out(cache: Cache, tmp_path: Path) -> None:
    def fail() -> bytes:
        raise EngineError("no")

    with pytest.raises(EngineError, match="no"):
        cache.get_or_make(KEY, fail)
    assert not list((tmp_path / "cache").glob("*.entry"))
    assert cache.get_or_make(KEY, lambda: b"plan") == b"plan"


MAKE = """
import sys
from pathlib import Path
from engine.cache import Cache

def make():
    with open(sys.argv[2], "a") as made:
        made.write("made\\n")
    print("making", flush=True)
    sys.stdin.read()
    return b"plan"

print(Cache(Path(sys.argv[1])).get_or_make({"gpu": 1}, make), flush=True)
"""


def test_two_processes_that_want_the_same_make_it_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", MAKE, tmp_path / "cache", tmp_path / "made"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": Path(__file__).parents[2]}
    with subprocess.Popen(command, **pipes) as first:  # type: ignore[call-overload]
        assert first.stdout.readline() == "making\n"
        with subprocess.Popen(command, **pipes) as second:  # type: ignore[call-overload]
            outputs = [process.communicate(timeout=60)[0] for process in (first, second)]
    assert outputs == ["b'plan'\n", "b'plan'\n"]
    assert (tmp_path / "made").read_text() == "made\n"


def test_a_process_that_was_killed_while_it_made_one_locks_nobody_out(tmp_path: Path) -> None:
    command = [sys.executable, "-c", MAKE, tmp_path / "cache", tmp_path / "made"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "making\n"
        first.kill()
    assert Cache(tmp_path / "cache").get_or_make({"gpu": 1}, lambda: b"mine") == b"mine"


def test_the_oldest_entries_go_when_there_are_too_many(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ENTRIES_KEPT", 3)
    for number in range(5):
        before = {*tmp_path.glob("cache/*.entry")}
        cache.put({"number": number}, b"plan")
        (new,) = {*tmp_path.glob("cache/*.entry")} - before
        os.utime(new, (number, number))
    assert [cache.get({"number": number}) is not None for number in range(5)] == [False, False, True, True, True]


def test_the_folder_is_for_its_owner_only(tmp_path: Path) -> None:
    assert private_folder(tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
def test_a_folder_that_is_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(EngineError, match=rf"closed to others \(mode 0700\), got 0{mode:o}"):
        private_folder(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir(mode=0o700)
    os.chown(folder, 1234, -1)
    with pytest.raises(EngineError, match="must belong to this user, got user 1234"):
        private_folder(folder)


def test_a_file_in_the_folders_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(EngineError, match="cannot be made"):
        private_folder(tmp_path / "file")


def test_a_disk_that_refuses_is_a_warning(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with caplog.at_level(logging.WARNING):
        assert cache.get_or_make(KEY, lambda: b"plan") == b"plan"
    assert "cannot be kept (No space left on device)" in caplog.text
    assert not [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"]
