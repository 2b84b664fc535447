"""Jobs that are killed, stopped, hindered and changed, and go on."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from threading import Event

import av
import clips
import numpy as np
import pytest
from models import STATE, echo_onnx, write_model
from streams import Collector

from daemon.assembly import Assembly, rising
from daemon.encoding import Encoding
from daemon.errors import SinkError, SourceError, StorageError
from daemon.file_source import FileSource
from daemon.job import Job, job_folder
from daemon.packet_file import PacketFile, PacketFileWriter
from daemon.pipeline import Pipeline
from daemon.plan import PRIME_FRAMES
from daemon.video import VideoJob, VideoResult, restore_video
from daemon.video_setup import video_setup
from engine.backends import open_engine
from engine.identity import IdentityEngine
from engine.model import Manifest, Model
from engine.protocol import Engine, EngineOptions

REPOSITORY = Path(__file__).parents[2]
SEGMENTS = 10
FRAMES = 50 * SEGMENTS


@pytest.fixture
def engine() -> Iterator[Engine]:
    manifest = Manifest(id="none", file="none.onnx", sha256="0" * 64, stride=16, overlap_px=32)
    with IdentityEngine(Model(manifest, Path("none.json"), b""), EngineOptions()) as engine:
        yield engine


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A hundred seconds in few frames: ten segments."""
    return slow_video(tmp_path / "a.mp4")


def slow_video(path: Path, **options: object) -> Path:
    made = {"g": "10", "qp": "20", "preset": "ultrafast", "bf": "2"}
    times = range(0, 10 * FRAMES, 10)
    return clips.write_video(
        path,
        **({"count": FRAMES, "pts": times, "time_base": Fraction(1, 50), "options": made, "audio": "aac"} | options),
    )


def packets_of(path: Path) -> list[tuple[object, ...]]:
    with av.open(str(path)) as container:
        return [
            (packet.pts, packet.dts, packet.duration, packet.is_keyframe, bytes(packet))
            for packet in container.demux(video=0)
            if packet.size
        ]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def command(source: Path, target: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "daemon", "enhance", str(source), "-o", str(target), *options]


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "300", "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=120, cwd=REPOSITORY, env=environment
    )


def stopped_after(frames: int, job: VideoJob, engine: Engine) -> None:
    """Restore until so many frames are done, and then stop it, as Ctrl-C would."""
    done, asked = Event(), Event()

    def count(number: int, _: int | None) -> None:
        if number >= frames:
            done.set()
            assert asked.wait(60)

    def ask() -> bool:
        if done.is_set():
            asked.set()
        return done.is_set()

    with pytest.raises(KeyboardInterrupt):
        restore_video(job, engine, count, ask)


def killed_and_resumed(source: Path, target: Path, *options: str) -> None:
    """Run the command whole; then kill it when a segment is done, and at random moments, until it comes to its end."""
    seed = random.randrange(2**32)
    moments = random.Random(seed)
    began = time.monotonic()
    assert run(source, target.with_stem("whole"), *options).returncode == 0
    whole_s = time.monotonic() - began
    with subprocess.Popen(command(source, target, *options), stderr=subprocess.PIPE, cwd=REPOSITORY) as process:
        while not any(job_folder(target).glob("*.packets")):
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.001)
                pytest.fail("ended before it was killed")
        process.kill()
    for kill in range(6):
        with subprocess.Popen(
            command(source, target, *options), stderr=subprocess.PIPE, text=True, cwd=REPOSITORY
        ) as process:
            try:
                _, said = process.communicate(timeout=moments.uniform(0.3, 0.9) * whole_s if kill < 5 else 120)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                if target.exists() and not job_folder(target).exists():
                    break  # it was on its way out
            else:
                assert process.returncode == 0, said
                assert "segments from before" in said
                break
    print(f"seed {seed}: ended after {kill + 1} kills")


@pytest.mark.parametrize(
    ("codec", "suffix"),
    [
        ("h264", ".mp4"),
        ("hevc", ".mkv"),
        ("ffv1", ".mkv"),
        pytest.param("av1", ".mp4", marks=pytest.mark.long),
        pytest.param("vp9", ".mkv", marks=pytest.mark.long),
        pytest.param("h264", ".ts", marks=pytest.mark.long),
        pytest.param("prores", ".mov", marks=pytest.mark.long),
    ],
)
def test_killed_at_any_moments_the_result_is_that_of_an_uninterrupted_run(tmp_path, codec, suffix):
    source = slow_video(tmp_path / "a.mp4")
    target = tmp_path / f"b{suffix}"
    killed_and_resumed(source, target, "--engine", "identity", "--codec", codec)
    assert packets_of(target) == packets_of(target.with_stem("whole"))
    assert clips.packet_digests(target, "audio") == clips.packet_digests(target.with_stem("whole"), "audio")
    assert names_in(tmp_path) == sorted([source.name, target.name, f"whole{suffix}"])


def test_killed_with_a_model_that_has_a_history_the_result_is_the_same_too(tmp_path, source):
    model = write_model(tmp_path, echo_onnx(), overlap_px=0, states=(STATE,))
    options = ("--engine", "openvino", "--model", str(model), "--lossless")
    killed_and_resumed(source, tmp_path / "b.mp4", *options)
    assert packets_of(tmp_path / "b.mp4") == packets_of(tmp_path / "whole.mp4")


@pytest.mark.parametrize("codec", ["h264", "hevc", "mpeg4"])
def test_every_frame_of_every_segment_comes_at_its_time_and_is_decoded_in_time(tmp_path, source, engine, codec):
    result = restore_video(VideoJob(source, tmp_path / "b.mp4", Encoding(codec=codec)), engine)
    assert (result.frames, result.segments, result.kept, result.damage) == (FRAMES, SEGMENTS, 0, ())
    assert clips.times_of(tmp_path / "b.mp4") == clips.times_of(source)
    packets = packets_of(tmp_path / "b.mp4")
    assert all(later[1] > sooner[1] for sooner, later in pairwise(packets))
    assert all(dts <= pts for pts, dts, *_ in packets)


def test_a_time_of_decoding_is_moved_no_more_than_it_must_be():
    assert rising(5, None) == 5
    assert rising(5, 3) == 5
    assert rising(5, 5) == 6


def test_a_job_that_is_stopped_goes_on_from_the_last_segment_that_was_finished(tmp_path, source, engine):
    job = VideoJob(source, tmp_path / "b.mp4", Encoding())
    restore_video(replace(job, target=tmp_path / "whole.mp4"), engine)
    stopped_after(260, job, engine)
    assert job_folder(job.target).is_dir()
    assert not job.target.exists()
    told: list[int] = []
    result = restore_video(job, engine, lambda count, _: told.append(count))
    assert result.kept >= 3
    assert told == list(range(result.kept * 50 + 1, FRAMES + 1))
    assert packets_of(job.target) == packets_of(tmp_path / "whole.mp4")
    assert not job_folder(job.target).exists()


def test_a_stop_before_the_first_segment_is_finished_leaves_nothing(tmp_path, source, engine):
    stopped_after(3, VideoJob(source, tmp_path / "b.mp4", Encoding()), engine)
    assert names_in(tmp_path) == ["a.mp4"]


def test_the_history_of_a_segment_makes_its_beginning_that_of_the_whole(tmp_path):
    """After `PRIME_FRAMES` frames the echo of what came before them is a level."""
    source = slow_video(tmp_path / "a.mkv", codec="ffv1", pix_fmt="bgr0", options={"g": "1"})
    model = write_model(tmp_path, echo_onnx(), overlap_px=0, states=(STATE,))
    sink = Collector()
    with open_engine("openvino", str(model)) as engine:
        restore_video(VideoJob(source, tmp_path / "b.mkv", Encoding(), strength=1.0), engine)
        with Pipeline(engine) as pipeline:
            pipeline.add("whole", FileSource(source), sink)
            pipeline.wait()
    with FileSource(tmp_path / "b.mkv") as restored:
        worst = [
            np.abs(frame.pixels.astype(int) - whole.pixels).max()
            for frame, whole in zip(restored, sink.frames, strict=True)
        ]
    assert max(worst) <= 255 / 2**PRIME_FRAMES * 2


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda job: replace(job, encoding=Encoding(crf=30)), "settings, encoder"),
        (lambda job: replace(job, model_sha256="other"), "model"),
        (lambda job: os.utime(job.source, ns=(1, 1)), "input"),
    ],
)
def test_another_job_of_the_same_output_begins_anew_and_says_why(tmp_path, source, engine, caplog, change, part):
    job = VideoJob(source, tmp_path / "b.mp4", Encoding())
    stopped_after(260, job, engine)
    result = restore_video(change(job) or job, engine)
    assert result.kept == 0
    assert f"the job begins anew: another {part} than before" in caplog.text


def test_another_engine_begins_anew(tmp_path, source, engine, caplog):
    job = VideoJob(source, tmp_path / "b.mp4", Encoding())
    stopped_after(260, job, engine)
    manifest = Manifest(id="none", file="none.onnx", sha256="0" * 64, stride=16, overlap_px=32)
    with IdentityEngine(Model(manifest, Path("none.json"), b""), EngineOptions(tile_px=64)) as other:
        assert restore_video(job, other).kept == 0
    assert "another engine than before" in caplog.text


def test_a_full_disk_keeps_what_is_done_and_says_how_to_go_on(tmp_path, source, engine):
    job = VideoJob(source, tmp_path / "b.mp4", Encoding())
    whole = tmp_path / "whole.mp4"
    restore_video(replace(job, target=whole), engine)
    with clips.full_disk(whole.stat().st_size // 2), pytest.raises(StorageError) as caught:
        restore_video(job, engine)
    assert f"what is done is kept in {job_folder(job.target)}: the same command goes on" in str(caught.value)
    assert not job.target.exists()
    assert restore_video(job, engine).kept == SEGMENTS
    assert packets_of(job.target) == packets_of(whole)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_a_disk_that_is_really_full_too(tmp_path, source):
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("nothing may be mounted here")
    try:
        answer = run(source, small / "b.mp4", "--engine", "identity")
        assert answer.returncode == 1
        assert "cannot be written (no space left on device); what is done is kept in" in answer.stderr
        assert names_in(small) == ["b.mp4.job"]
        subprocess.run(["mount", "-o", "remount,size=9M", small], check=True)
        answer = run(source, small / "b.mp4", "--engine", "identity")
        assert "segments from before" in answer.stderr
        assert names_in(small) == ["b.mp4"]
    finally:
        subprocess.run(["umount", small], check=True)


def test_two_processes_never_work_on_one_output(tmp_path, source):
    target = tmp_path / "b.mp4"
    with Job(target):
        answer = run(source, target, "--engine", "identity")
    assert answer.returncode == 1
    assert answer.stderr.strip() == f"deblurd: {target}: another process works on it (in {target}.job)"
    assert run(source, target, "--engine", "identity").returncode == 0


def test_a_job_that_was_killed_after_its_output_had_got_its_name_is_done(tmp_path, source, engine):
    job = VideoJob(source, tmp_path / "b.mp4", Encoding())
    result = restore_video(job, engine)
    before = job.target.stat()
    with Job(job.target) as folder:
        folder.begin({"input": "any"})
        folder.segment(0).write_bytes(b"left over")
        folder.note_result(job.target, {"frames": FRAMES, "damage": [], "warnings": [], "segments": 10, "kept": 4})
    assert job_folder(job.target).is_dir()
    assert restore_video(job, engine) == replace(result, kept=4)
    assert job.target.stat() == before
    assert not job_folder(job.target).exists()


def test_a_folder_without_anything_done_is_no_job(tmp_path, source, engine):
    job_folder(tmp_path / "b.mp4").mkdir()
    assert restore_video(VideoJob(source, tmp_path / "b.mp4", Encoding()), engine).kept == 0
    assert names_in(tmp_path) == ["a.mp4", "b.mp4"]


def test_an_output_is_replaced_only_by_a_whole_one(tmp_path, source, engine):
    job = VideoJob(source, tmp_path / "b.mp4", Encoding(), overwrite=True)
    job.target.write_text("precious")
    stopped_after(260, job, engine)
    assert job.target.read_text() == "precious"
    with pytest.raises(SinkError, match="must not exist yet"):
        restore_video(replace(job, overwrite=False), engine)
    assert restore_video(job, engine).kept >= 3
    assert len(packets_of(job.target)) == FRAMES


def test_an_input_that_is_changed_while_it_is_restored_gives_no_result(tmp_path, source, engine):
    def touch(done: int, expected: int | None) -> None:
        if done == 400:
            os.utime(source, ns=(1, 1))

    with pytest.raises(SourceError, match="must stay as it is while it is restored"):
        restore_video(VideoJob(source, tmp_path / "b.mp4", Encoding()), engine, touch)
    assert names_in(tmp_path) == ["a.mp4"]


def test_an_input_that_is_gone_for_a_while_costs_nothing(tmp_path, source, engine):
    def unplug(done: int, expected: int | None) -> None:
        if done == 400:
            source.rename(tmp_path / "elsewhere")

    job = VideoJob(source, tmp_path / "b.mp4", Encoding())
    with pytest.raises(SourceError, match="the same command goes on from there"):
        restore_video(job, engine, unplug)
    (tmp_path / "elsewhere").rename(source)
    assert restore_video(job, engine).kept >= 6


def test_what_was_lost_is_told_by_the_run_that_ends_the_job(tmp_path, engine):
    source = slow_video(tmp_path / "a.mkv")
    with av.open(str(source)) as container:
        packet = [bytes(packet) for packet in container.demux(video=0)][30]
    data = source.read_bytes()
    assert data.count(packet) == 1
    source.write_bytes(data.replace(packet, packet[:8] + bytes(len(packet) - 8)))
    job = VideoJob(source, tmp_path / "b.mkv", Encoding())
    stopped_after(260, job, engine)
    assert (
        restore_video(job, engine).damage == restore_video(replace(job, target=tmp_path / "c.mkv"), engine).damage != ()
    )


def test_a_damaged_segment_is_made_again(tmp_path, source, engine):
    job = VideoJob(source, tmp_path / "b.mp4", Encoding())
    stopped_after(260, job, engine)
    damaged = min(job_folder(job.target).glob("*.packets"))
    damaged.write_bytes(damaged.read_bytes()[:-5])
    assert restore_video(job, engine).frames == FRAMES
    assert len(packets_of(job.target)) == FRAMES


def test_segments_of_encoders_with_other_headers_are_never_joined(tmp_path, source):
    video = video_setup(source, tmp_path / "b.mp4", Encoding())
    record = VideoResult(0, (), ())
    assert record.segments == 1
    writer = PacketFileWriter(tmp_path / "00000.packets")
    writer.commit({"frames": 0, "header": "00", "notes": [], "damage": [], "warnings": []})
    with (
        PacketFile(tmp_path / "00000.packets") as packets,
        Assembly(source, tmp_path / "b.mp4", tmp_path / "b.mp4", video) as assembly,
        pytest.raises(SinkError, match="must have one header, got another from libx264 for segment 0"),
    ):
        assembly.add(0, packets)


def test_files_side_by_side_are_all_restored_and_counted(tmp_path):
    (tmp_path / "in").mkdir()
    for name in "abc":
        clips.write_video(tmp_path / "in" / f"{name}.mp4", count=10)
    (tmp_path / "in" / "broken.mp4").write_text("no video")
    answer = run(tmp_path / "in", tmp_path / "out", "--engine", "identity", "--jobs", "3")
    assert answer.returncode == 1
    assert answer.stderr.splitlines()[-1] == "4 files: 3 done, 1 failed"
    answer = run(tmp_path / "in", tmp_path / "out", "--engine", "identity", "--jobs", "3")
    assert answer.stderr.splitlines()[-1] == "4 files: 3 skipped, 1 failed"
    assert names_in(tmp_path / "out") == ["a.mp4", "b.mp4", "c.mp4"]


def test_ctrl_c_says_how_to_go_on(tmp_path):
    """Stopped when the first segments are done, two of few frames; the rest takes seconds."""
    target = tmp_path / "b.mp4"
    times = [*range(0, 1000, 50), *range(1000, 6000, 2)]
    source = slow_video(tmp_path / "a.mp4", count=len(times), pts=times)
    with subprocess.Popen(
        command(source, target, "--engine", "identity", "--codec", "av1", "--preset", "0"),
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    ) as process:
        while not any(job_folder(target).glob("*.packets")):
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.001)
                pytest.fail("ended before it was stopped")
        process.terminate()
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert " ".join(said.split()) == (
        f"stopped {target}: what is done is kept in {target}.job: the same command goes on from there"
    )
    assert names_in(tmp_path) == ["a.mp4", "b.mp4.job"]
    assert all(name.endswith(".packets") or name in ("job.json", "lock") for name in names_in(job_folder(target)))
