from __future__ import annotations

from pathlib import Path

import clips
import pytest

from daemon.declared_size import declared_size

CONTAINERS = [
    ("a.mp4", "mov,mp4,m4a,3gp,3g2,mj2", {}),
    ("a.mp4", "mov,mp4,m4a,3gp,3g2,mj2", {"container_options": {"movflags": "frag_keyframe+empty_moov"}}),
    ("a.mkv", "matroska,webm", {}),
    ("a.avi", "avi", {}),
    ("a.wmv", "asf", {"codec": "wmv2"}),
]


@pytest.mark.parametrize(("name", "container", "options"), CONTAINERS)
def test_a_file_says_how_long_it_is_also_when_it_is_cut(tmp_path: Path, name, container, options) -> None:
    path = clips.write_video(tmp_path / name, count=4, **options)
    size = path.stat().st_size
    assert declared_size(path, container) == size
    path.write_bytes(path.read_bytes()[:-9])
    assert declared_size(path, container) == size


@pytest.mark.parametrize("container", ["mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "asf"])
@pytest.mark.parametrize("data", [b"", b"\x1a", b"no media " * 9, bytes(99), b"\xff" * 99], ids=range(5))
def test_of_what_is_none_nothing_is_known(tmp_path: Path, container: str, data: bytes) -> None:
    (tmp_path / "a").write_bytes(data)
    assert declared_size(tmp_path / "a", container) is None


def test_of_a_recording_that_was_written_into_a_pipe_nothing_is_missing(tmp_path: Path) -> None:
    header, unknown = b"\x1a\x45\xdf\xa3\x80", b"\x18\x53\x80\x67\x01" + b"\xff" * 7
    (tmp_path / "a.mkv").write_bytes(header + unknown + bytes(100))
    assert declared_size(tmp_path / "a.mkv", "matroska,webm") == len(header)


def test_containers_without_a_size_do_not_say(tmp_path: Path) -> None:
    path = clips.write_video(tmp_path / "a.ts", count=2)
    assert declared_size(path, "mpegts") is None


@pytest.mark.parametrize(("name", "container", "options"), CONTAINERS)
def test_what_was_added_behind_the_end_is_no_part_of_it(tmp_path: Path, name, container, options) -> None:
    path = clips.write_video(tmp_path / name, count=2, **options)
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + b"SDRHsomething of a camera's maker")
    assert declared_size(path, container) == size
