from __future__ import annotations

from pathlib import Path

import clips
import pytest

from daemon.matroska import broken_at


@pytest.fixture
def path(tmp_path: Path) -> Path:
    options = {"cluster_time_limit": "400"}
    return clips.write_video(tmp_path / "a.mkv", count=50, audio="aac", chapters=True, container_options=options)


@pytest.mark.parametrize(("name", "codec"), [("a.mkv", "ffv1"), ("a.webm", "libvpx-vp9")])
def test_nothing_is_broken_in_a_whole_file(tmp_path: Path, path: Path, name: str, codec: str) -> None:
    assert broken_at(path) is None
    assert broken_at(clips.write_video(tmp_path / f"b{name}", count=5, codec=codec)) is None


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
def test_a_hole_is_found_near_where_it_begins(path: Path, share: float) -> None:
    data = bytearray(path.read_bytes())
    begin = int(len(data) * share)
    data[begin : begin + 5000] = bytes(5000)
    path.write_bytes(data)
    place = broken_at(path)
    assert place is not None
    assert begin <= place <= begin + 5000


@pytest.mark.parametrize("share", [0.001, 0.01, 0.3, 0.8, 0.999])
def test_a_file_that_is_cut_is_not_broken_by_that(path: Path, share: float) -> None:
    assert broken_at(clips.truncated(path, share)) is None


def test_of_a_recording_into_a_pipe_nothing_is_said(tmp_path: Path) -> None:
    path = clips.write_video(tmp_path / "a.mkv", count=20, container_options={"live": "1"})
    assert broken_at(path) is None


@pytest.mark.parametrize("data", [b"", b"\x1a", b"no media " * 9, bytes(99), b"\xff" * 99], ids=range(5))
def test_of_what_is_no_matroska_nothing_is_said(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a").write_bytes(data)
    assert broken_at(tmp_path / "a") is None
