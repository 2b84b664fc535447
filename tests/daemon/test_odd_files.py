"""Odd and broken files end in a right file or one clear line: no traceback, no hang, nothing left over."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import clips
import numpy as np
import pytest
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream
from broken_files import BROKEN_FILES
from odd_files import ODD_FILES, OddFile

from daemon.cli import main

REPOSITORY = Path(__file__).parents[2]
ANSWER_S = 200  # the largest on two busy cores; what hangs takes longer
Enhance = Callable[..., tuple[int, str]]
pytestmark = pytest.mark.timeout(ANSWER_S)


@pytest.fixture
def enhance(capfd, monkeypatch) -> Iterator[Enhance]:
    """`deblurd enhance` with the engine that changes nothing: its status, and what it says."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def run(source: Path, target: Path, *options: str) -> tuple[int, str]:
        arguments = ["--engine", "identity", *options, "-o", str(target), "--", str(source)]
        monkeypatch.setattr(sys, "argv", ["deblurd", "enhance", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        said = capfd.readouterr()
        assert said.out == ""
        return int(left.value.code or 0), said.err

    yield run
    root.handlers[:] = handlers
    root.setLevel(level)


def cases(files: list[OddFile], ends: str) -> list[object]:
    of_this_end = [file for file in files if file.ends == ends]
    return [pytest.param(file, id=file.name, marks=[pytest.mark.long] if file.long else []) for file in of_this_end]


def names_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def opened(path: Path) -> InputContainer:
    return av.open(str(path), metadata_errors="replace")


def shown(path: Path) -> list[av.VideoFrame]:
    """What of a file's best video decodes, as a plain reader sees it."""
    frames: list[av.VideoFrame] = []
    with opened(path) as container:
        video = best_of(container)
        video.thread_type = "SLICE"
        for packet in container.demux(video):
            with suppress(av.FFmpegError):
                frames += packet.decode()
        if container.format.name == "avi":  # without times of presentation; FFmpeg's guess is out of order
            for frame in frames:
                frame.pts = frame.dts
    return frames


def best_of(container: InputContainer) -> VideoStream:
    videos = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    return next((stream for stream in videos if stream.disposition & Disposition.default), videos[0])


def depth_of(frame: av.VideoFrame) -> int:
    return frame.format.components[0].bits


def lines_of(frame: av.VideoFrame, index: int) -> np.ndarray:
    """A plane's bytes without the padding at the end of each line."""
    plane = frame.planes[index]
    width = plane.width * (1 if depth_of(frame) <= 8 else 2)
    return np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, :width]


def assert_same_picture(old: av.VideoFrame, new: av.VideoFrame) -> None:
    """Bit for bit where the format stayed; in luma where only chroma became finer; else to rounding."""
    assert (new.width, new.height) == (old.width, old.height)
    planar = all(component.plane == number for number, component in enumerate(old.format.components))
    if old.format.name.replace("yuvj", "yuv") == new.format.name and planar:
        for index in range(len(old.planes)):
            assert np.array_equal(lines_of(old, index), lines_of(new, index))
    elif {old.format.name[:3], new.format.name[:3]} == {"yuv"} and depth_of(old) == depth_of(new):
        assert np.array_equal(lines_of(old, 0), lines_of(new, 0))
    else:
        distance = np.abs(old.to_ndarray(format="rgb24").astype(int) - new.to_ndarray(format="rgb24"))
        assert distance.mean() < 3


def times_of(frames: list[av.VideoFrame]) -> list[Fraction | None]:
    return [None if frame.pts is None else frame.pts * frame.time_base for frame in frames]


def kept_of(path: Path) -> dict[str, object]:
    """What else of a file must stay."""
    with opened(path) as container:
        best = best_of(container)
        return {
            "streams": [
                (stream.type, stream.language, stream.disposition)
                for stream in container.streams
                if stream.type not in ("data", "attachment")
            ],
            "aspect": best.sample_aspect_ratio or 1,
            "chapters": [
                (chapter["start"] * chapter["time_base"], chapter["metadata"]) for chapter in container.chapters()
            ],
            "title": container.metadata.get("title"),
        }


def colour_of(frame: av.VideoFrame) -> tuple[object, ...]:
    full = frame.color_range == 2 or frame.format.name.startswith("yuvj") or frame.format.is_rgb
    return frame.colorspace, frame.color_primaries, frame.color_trc, full, frame.rotation


@pytest.mark.parametrize("file", [*cases(ODD_FILES, "whole"), *cases(BROKEN_FILES, "whole")])
def test_what_is_whole_is_kept_whole(tmp_path: Path, enhance: Enhance, file: OddFile) -> None:
    source, target = tmp_path / file.name, tmp_path / "out" / (file.result or file.name)
    file.make(source)
    before = names_below(tmp_path)
    status, said = enhance(source, target, "--lossless")
    assert status == 0, said
    assert file.says in said
    assert names_below(tmp_path) == sorted([*before, "out", f"out/{target.name}"])
    old, new = shown(source), shown(target)
    assert len(new) == len(old) > 0
    assert times_of(new) == (times_of(old) if file.times is None else from_first(file.times, new))
    if "the frame size changes" not in said:
        for one, other in zip(old, new, strict=True):
            assert_same_picture(one, other)
    if "becomes" not in said:
        assert colour_of(new[0]) == colour_of(old[0])
    if kind_of(target) == kind_of(source):
        assert kept_of(target) == kept_of(source)
        assert sound_of(target) == sound_of(source)


def kind_of(path: Path) -> str:
    with opened(path) as container:
        return container.format.name


def sound_of(path: Path) -> list[str]:
    with opened(path) as container:
        return clips.packet_digests(path, "audio") if container.streams.audio else []  # of none, all are meant


def from_first(times: Sequence[Fraction], frames: list[av.VideoFrame]) -> list[Fraction]:
    """The times moved to where the frames begin: MPEG-TS begins late by itself."""
    first = frames[0].pts * frames[0].time_base
    return [time - times[0] + first for time in times]


@pytest.mark.parametrize("file", [*cases(ODD_FILES, "partial"), *cases(BROKEN_FILES, "partial")])
def test_of_what_is_damaged_all_that_decodes_is_kept(tmp_path: Path, enhance: Enhance, file: OddFile) -> None:
    source, target = tmp_path / file.name, tmp_path / "out" / (file.result or file.name)
    file.make(source)
    status, said = enhance(source, target)
    assert status == 1, said
    assert file.says in said
    assert "lost" in said
    assert "partial" in said
    assert "Traceback" not in said
    assert names_below(tmp_path) == sorted([file.name, "out", f"out/{target.name}"])
    old, new = shown(source), shown(target)
    assert len(new) == len(old) > 0
    assert all(later > sooner for sooner, later in pairwise(times_of(new)))


@pytest.mark.parametrize("file", [*cases(ODD_FILES, "refused"), *cases(BROKEN_FILES, "refused")])
def test_what_is_no_video_is_refused_in_one_line_and_nothing_is_left(
    tmp_path: Path, enhance: Enhance, file: OddFile
) -> None:
    source, target = tmp_path / file.name, tmp_path / "out" / (file.result or file.name)
    file.make(source)
    before = names_below(tmp_path)
    status, said = enhance(source, target)
    assert status == 1
    assert said.startswith("deblurd: ")
    assert said.count("\n") == 1
    assert file.says in said
    assert "Errno" not in said
    assert names_below(tmp_path) == before


NAMES = (
    *("100%d.mp4", "%s%n.mp4", "a:b.mp4", "file:x.mp4", "-dash.mp4", "--help.mp4", "with space.mp4", " first.mp4"),
    *("new\nline.mp4", "üñí 漢字 🎞.mp4", "[red]bold[bold].mp4", "quo'te\".mp4", "back\\slash.mp4", "a*?.mp4", "..mp4"),
    *(
        os.fsdecode(b"not \xff utf-8.mp4"),
        "UPPER.MP4",
        "x" * 251 + ".mp4",
        "$HOME `id`;.mp4",
        "a|b&c.mp4",
        "dot.job.mp4",
    ),
)


def deblurd(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "300", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "daemon", "enhance", "--engine", "identity", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, errors="surrogateescape", timeout=ANSWER_S, cwd=cwd, env=environment
    )


def test_any_name_will_do(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    data = clips.write_video(tmp_path / "plain.mp4", count=2).read_bytes()
    for name in NAMES:
        (tmp_path / "in" / name).write_bytes(data)
    answer = deblurd("--jobs", "2", "-o", tmp_path / "out", "--", *NAMES, cwd=tmp_path / "in")
    assert answer.returncode == 0, answer.stderr
    assert f"{len(NAMES)} files: {len(NAMES)} done" in answer.stderr
    assert names_below(tmp_path / "out") == sorted(NAMES)
    assert names_below(tmp_path / "in") == sorted(NAMES)


def test_a_folder_of_odd_files_comes_to_its_end(tmp_path: Path) -> None:
    """What is broken keeps nothing else from being restored, and each has its line."""
    (tmp_path / "in").mkdir()
    files = [file for file in (*ODD_FILES, *BROKEN_FILES) if not (file.long or file.result)]
    chosen = [file for file in files if file.name.endswith(".mp4")]
    for file in chosen:
        if file.ends != "refused" or file.name in ("text.mp4", "no_index.mp4", "noise.mp4", "empty.mp4"):
            file.make(tmp_path / "in" / file.name)
    made = [file for file in chosen if (tmp_path / "in" / file.name).exists()]
    answer = deblurd("in", "-o", "out", cwd=tmp_path)
    assert answer.returncode == 1
    assert "Traceback" not in answer.stderr
    ends = Counter(file.ends for file in made)
    counts = f"{ends['whole']} done, {ends['partial']} partial, {ends['refused']} failed"
    assert f"{len(made)} files: {counts}" in answer.stderr
    assert names_below(tmp_path / "out") == sorted(file.name for file in made if file.ends != "refused")


def test_a_name_that_is_too_long_is_one_line(tmp_path: Path) -> None:
    answer = deblurd("x" * 300 + ".mp4", "-o", "out.mp4", cwd=tmp_path)
    assert answer.returncode == 1
    assert answer.stderr.count("\n") == 1
    assert "too long" in answer.stderr.lower()
