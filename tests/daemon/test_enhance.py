from __future__ import annotations

import _thread
import signal
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import clips
import cv2
import numpy as np
import pytest

from daemon.encoding import Encoding
from daemon.enhance import Job, Settings, enhance, expand
from daemon.errors import SinkError, SourceError
from engine.errors import EngineError
from engine.identity import IdentityEngine
from engine.model import Manifest, Model
from engine.protocol import EngineOptions

LOSSLESS = Settings(Encoding(lossless=True))


@pytest.fixture
def engine() -> Iterator[IdentityEngine]:
    manifest = Manifest(id="none", file="none.onnx", sha256="0" * 64, stride=16, overlap_px=32)
    with IdentityEngine(Model(manifest, Path("none.json"), b""), EngineOptions(tile_px=96)) as engine:
        yield engine


def names_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_video_keeps_its_times_its_sound_and_with_the_identity_its_pixels(tmp_path, engine):
    times = [0, 40, 80, 240, 250, 300, 1000, 1040, 1111, 1200]
    source = clips.write_video(
        tmp_path / "a.mkv", count=10, width=160, height=120, pts=times, time_base=Fraction(1, 1000), audio="aac"
    )
    outcome = enhance(Job(source, tmp_path / "b.mkv"), engine, LOSSLESS)
    assert (outcome.status, outcome.frames, outcome.warnings, outcome.damage) == ("done", 10, (), ())
    assert clips.times_of(tmp_path / "b.mkv") == clips.times_of(source)
    assert clips.packet_digests(tmp_path / "b.mkv", "audio") == clips.packet_digests(source, "audio")
    for old, new in zip(clips.frames_of(source), clips.frames_of(tmp_path / "b.mkv"), strict=True):
        luma, *chroma = (np.abs(x - y).max() for x, y in zip(clips.planes_of(old), clips.planes_of(new), strict=True))
        assert luma == 0
        assert max(chroma) <= 1


def test_progress_is_told_after_every_frame(tmp_path, engine):
    told: list[tuple[int, int | None]] = []
    job = Job(clips.write_video(tmp_path / "a.mp4", count=12), tmp_path / "b.mp4")
    enhance(job, engine, progress=lambda done, expected: told.append((done, expected)))
    assert told == [(number, 12) for number in range(1, 13)]


def test_strictly_nothing_is_made_that_would_lose_a_stream(tmp_path, engine):
    source = clips.write_video(tmp_path / "a.mkv", count=5, audio="flac", codec="libvpx-vp9")
    told: list[int] = []
    with pytest.raises(SinkError, match=r"must keep all of its source \(--strict\), but stream 1 .* is left out"):
        enhance(Job(source, tmp_path / "b.webm"), engine, Settings(strict=True), lambda done, _: told.append(done))
    assert told == []  # before anything was restored
    assert names_below(tmp_path) == ["a.mkv"]
    assert enhance(Job(source, tmp_path / "b.mkv"), engine, Settings(strict=True)).warnings == ()


def test_strictly_nothing_is_made_of_what_is_damaged(tmp_path, engine):
    whole = clips.write_video(tmp_path / "a.mp4", count=50, container_options={"movflags": "+faststart"})
    cut = clips.truncated(whole, 0.6)
    before = names_below(tmp_path)
    with pytest.raises(SinkError, match=r"did not decode .*; and 1 more"):
        enhance(Job(cut, tmp_path / "b.mp4"), engine, Settings(strict=True))
    (tmp_path / "c.jpg").write_bytes(cv2.imencode(".png", np.zeros((16, 16, 4), np.uint8))[1].tobytes())
    with pytest.raises(SinkError, match="--strict"):
        enhance(Job((tmp_path / "c.jpg").rename(tmp_path / "c.png"), tmp_path / "d.jpg"), engine, Settings(strict=True))
    assert names_below(tmp_path) == sorted([*before, "c.png"])


def test_a_cut_video_is_restored_as_far_as_it_goes(tmp_path, engine):
    whole = clips.write_video(tmp_path / "a.mp4", count=50, container_options={"movflags": "+faststart"}, audio="aac")
    cut = clips.truncated(whole, 0.6)
    outcome = enhance(Job(cut, tmp_path / "b.mp4"), engine)
    assert outcome.status == "partial"
    assert any("cut off" in line for line in outcome.damage)
    assert len(clips.frames_of(tmp_path / "b.mp4")) == outcome.frames > 10


def test_a_deep_video_stays_as_deep_without_a_word(tmp_path, engine):
    source = clips.write_video(tmp_path / "a.mkv", count=3, codec="ffv1", pix_fmt="yuv420p10le")
    outcome = enhance(Job(source, tmp_path / "b.mkv"), engine)
    assert outcome.warnings == ()
    assert clips.frames_of(tmp_path / "b.mkv")[0].format.name == "yuv420p10le"


def test_a_picture_is_enhanced_too(tmp_path, engine):
    image = clips.smooth(0, 150, 100)
    cv2.imwrite(str(tmp_path / "a.png"), image)
    outcome = enhance(Job(tmp_path / "a.png", tmp_path / "b.png"), engine)
    assert outcome.status == "done"
    assert (cv2.imread(str(tmp_path / "b.png")) == image).all()


def test_a_folder_is_made_for_the_result(tmp_path, engine):
    source = clips.write_video(tmp_path / "a.mp4", count=2)
    enhance(Job(source, tmp_path / "new" / "folder" / "b.mp4"), engine)
    assert names_below(tmp_path) == ["a.mp4", "new", "new/folder", "new/folder/b.mp4"]


@pytest.fixture
def interruptible():
    """Ctrl-C raises KeyboardInterrupt, also where the tests run in the background of a shell, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_leaves_nothing(tmp_path, engine):
    def interrupt(done: int, expected: int | None) -> None:
        if done == 3:
            _thread.interrupt_main()  # what Ctrl-C does

    source = clips.write_video(tmp_path / "a.mp4", count=200, audio="aac")
    with pytest.raises(KeyboardInterrupt):
        enhance(Job(source, tmp_path / "new" / "b.mp4"), engine, progress=interrupt)
    assert names_below(tmp_path) == ["a.mp4"]


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, engine):
    source = clips.write_video(tmp_path / "a.mp4", count=30, audio="aac")
    with clips.full_disk(4096), pytest.raises(SinkError, match=r"b\.mp4: cannot be written"):
        enhance(Job(source, tmp_path / "new" / "b.mp4"), engine, LOSSLESS)
    assert names_below(tmp_path) == ["a.mp4"]


def test_a_failed_engine_leaves_nothing(tmp_path, engine):
    source = clips.write_video(tmp_path / "a.mp4", count=30)
    engine.close()
    with pytest.raises(EngineError):
        enhance(Job(source, tmp_path / "new" / "b.mp4"), engine)
    assert names_below(tmp_path) == ["a.mp4"]


def test_a_text_file_is_refused_and_leaves_nothing(tmp_path, engine):
    (tmp_path / "a.mp4").write_text("no video")
    with pytest.raises(SourceError, match="must be a video file"):
        enhance(Job(tmp_path / "a.mp4", tmp_path / "new" / "b.mp4"), engine)
    assert names_below(tmp_path) == ["a.mp4"]


def test_one_file_goes_to_one_file(tmp_path):
    (tmp_path / "a.mp4").touch()
    assert expand([tmp_path / "a.mp4"], tmp_path / "b.mp4") == [Job(tmp_path / "a.mp4", tmp_path / "b.mp4")]


def test_one_file_goes_into_a_folder_that_exists(tmp_path):
    (tmp_path / "a.mp4").touch()
    (tmp_path / "out").mkdir()
    assert expand([tmp_path / "a.mp4"], tmp_path / "out") == [Job(tmp_path / "a.mp4", tmp_path / "out" / "a.mp4")]


def test_a_folder_keeps_its_structure_and_only_its_media(tmp_path):
    for name in ("in/b.mp4", "in/deep/er/a.JPG", "in/notes.txt", "in/.hidden.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    jobs = expand([tmp_path / "in"], tmp_path / "out")
    assert [job.target.relative_to(tmp_path).as_posix() for job in jobs] == ["out/b.mp4", "out/deep/er/a.JPG"]


def test_results_inside_the_folder_are_not_enhanced_again(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "a.mp4").touch()
    (tmp_path / "out" / "a.mp4").touch()
    assert expand([tmp_path], tmp_path / "out") == [Job(tmp_path / "a.mp4", tmp_path / "out" / "a.mp4")]


def test_results_are_known_by_any_spelling_of_their_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "a.mp4").touch()
    (tmp_path / "out" / "a.mp4").touch()
    assert [job.source for job in expand([tmp_path], Path("out"))] == [tmp_path / "a.mp4"]


def test_a_folder_is_never_its_own_output(tmp_path):
    (tmp_path / "a.mp4").touch()
    with pytest.raises(SinkError, match="another folder than the input"):
        expand([tmp_path], tmp_path)


def test_several_inputs_need_a_folder(tmp_path):
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        (tmp_path / name).touch()
    with pytest.raises(SinkError, match="must be a folder"):
        expand([tmp_path / "a.mp4", tmp_path / "b.mp4"], tmp_path / "c.mp4")


def test_two_inputs_never_share_an_output(tmp_path):
    for name in ("one/a.mp4", "two/a.mp4"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    with pytest.raises(SinkError, match="an output of its own"):
        expand([tmp_path / "one" / "a.mp4", tmp_path / "two" / "a.mp4"], tmp_path / "out")


def test_a_missing_input_is_refused(tmp_path):
    with pytest.raises(SourceError, match="no such file or folder"):
        expand([tmp_path / "none"], tmp_path / "out")


def test_a_folder_without_media_is_refused(tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(SourceError, match="must hold a video or a picture"):
        expand([tmp_path / "in"], tmp_path / "out")
