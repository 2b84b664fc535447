"""Claims about streams that are sent on as video, by real processes to real files and servers."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from live_clips import LEAST_HEIGHT, Mark, draw_mark, read_mark
from record_servers import GstRecorder, Listener, YesServer, free_port

from daemon.colour import to_rgb
from daemon.errors import SinkError
from daemon.forward import Forward, Progress
from daemon.forwarder import Order
from daemon.frame import Colour, Frame
from daemon.persistent import Retry
from daemon.publisher import Publisher
from daemon.target import Target
from daemon.timeline import RATE, Timeline
from daemon.video_output import Shape, VideoOptions

WAIT_S = 60.0
SIZE = (64, 256)
SOON = Retry(min_s=0.05, max_s=0.1)
PASSWORD = "s3cret/p@ss"
LOGIN = "op%40site:s3cret%2Fp%40ss@"
STEP = RATE // 25


def picture(number: int, size: tuple[int, int] = SIZE, noise: bool = False) -> np.ndarray:
    """RGB (H, W, 3) that says its number."""
    pixels = np.full((*size, 3), 90, np.uint8)
    pixels[LEAST_HEIGHT:, :, 1] = number * 3 % 200
    if noise:
        pixels[LEAST_HEIGHT:] = np.random.default_rng(number).integers(0, 255, pixels[LEAST_HEIGHT:].shape)
    for channel in range(3):
        draw_mark(pixels[..., channel], Mark(number, 0))
    return pixels


class Studio:
    """A daemon with one stream, whose frames say their numbers."""

    def __init__(self) -> None:
        self.publisher = Publisher("tcp://127.0.0.1:*", "fast")
        self.sink = self.publisher.stream("cam")
        self.sent = 0

    def order(self, target: object, **changes: Any) -> Order:
        order = Order(self.publisher.endpoint, "cam", str(target), control=self.publisher.control, report_s=0)
        return replace(order, **changes)

    def publish(self, **changes: Any) -> Frame:
        """One frame, a 25th of a second after the one before it."""
        pixels = changes.pop("pixels", None)
        pixels = picture(self.sent) if pixels is None else pixels
        frame = Frame("cam", self.sent, self.sent, Fraction(1, 25), time.time_ns(), time.monotonic_ns(), pixels)
        frame = replace(frame, **changes)
        buffer = self.sink.lend(frame)
        buffer[:] = frame.pixels
        self.sink.send(replace(frame, pixels=buffer))
        self.sent += 1
        return frame

    def send(self, forward: Forward, count: int, **changes: Any) -> None:
        """So many frames, each when the one before it is written."""
        for _ in range(count):
            frame = self.publish(**changes)
            assert forward.wait_for(lambda now, seq=frame.seq: now.seq >= seq, WAIT_S), forward.status.snapshot()

    def begin(self, forward: Forward) -> None:
        """Send frames until they come through."""
        until_s = time.monotonic() + WAIT_S
        frame = self.publish()
        while not forward.wait_for(lambda now, seq=frame.seq: now.seq == seq, 0.5):
            assert time.monotonic() < until_s, forward.status.snapshot()
            frame = self.publish()

    def fail(self, forward: Forward) -> None:
        """Send frames until its process breaks."""
        until_s = time.monotonic() + WAIT_S
        while not forward.wait_for(lambda now: now.restarts > 0, 0.2):
            assert time.monotonic() < until_s, forward.progress
            self.publish()


@pytest.fixture
def studio() -> Iterator[Studio]:
    studio = Studio()
    yield studio
    studio.publisher.close()


def read(path: Path) -> list[tuple[int, int]]:
    """The number and the time in ticks of each frame of a file."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    marks = [read_mark(to_rgb(frame)) for frame in frames]
    return [(mark.number if mark else -1, round(frame.time * RATE)) for mark, frame in zip(marks, frames, strict=True)]


def numbers_in(paths: list[Path]) -> list[int]:
    return sorted(number for path in paths for number, _ in read(path))


def failed(forward: Forward) -> str:
    """What went wrong first, once it did."""
    assert forward.wait_for(lambda now: now.restarts > 0, WAIT_S)
    until_s = time.monotonic() + WAIT_S
    while not (error := forward.status.snapshot().error):
        assert time.monotonic() < until_s
    assert error.isprintable()
    return error


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
def test_files_rotated_by_time_hold_every_frame_once_and_each_begins_at_nought(studio, tmp_path, suffix):
    with Forward(studio.order(tmp_path / f"{{stream}}-%Y.{suffix}", every_s=1)) as forward:
        studio.begin(forward)
        first = studio.sent - forward.progress.frames
        studio.send(forward, 60)
    paths = list(tmp_path.iterdir())
    year = time.strftime("%Y")
    assert {path.name for path in paths} >= {f"cam-{year}.{suffix}", f"cam-{year}-2.{suffix}"}
    assert numbers_in(paths) == list(range(first, studio.sent))
    assert forward.progress.missed == 0
    for path in paths:
        frames = read(path)
        assert len(frames) <= 25
        # Matroska's times are whole milliseconds.
        assert all(abs(ticks - n * STEP) <= RATE // 1000 for n, (_, ticks) in enumerate(frames))


def test_files_rotated_by_size_hold_every_frame_once(studio, tmp_path):
    with Forward(studio.order(tmp_path / "%Y.mkv", max_mb=0.05)) as forward:
        studio.begin(forward)
        first = studio.sent - forward.progress.frames
        for _ in range(40):
            studio.send(forward, 1, pixels=picture(studio.sent, noise=True))
    paths = sorted(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    assert len(paths) > 2
    assert numbers_in(paths) == list(range(first, studio.sent))
    assert all(50_000 <= path.stat().st_size < 80_000 for path in paths[:-1])


def test_a_file_is_whole_when_the_forward_is_closed(studio, tmp_path):
    with Forward(studio.order(tmp_path / "x.mkv")) as forward:
        studio.begin(forward)
        studio.send(forward, 5)
        last = studio.publish()  # on its way while it is closed
    with av.open(str(tmp_path / "x.mkv")) as container:
        assert container.duration is not None  # which is written at the end
        assert container.metadata.get("creation_time", container.metadata.get("CREATION_TIME"))
    assert read(tmp_path / "x.mkv")[-1][0] == last.seq


def test_a_file_that_is_there_is_left_as_it_is(studio, tmp_path):
    (tmp_path / "x.mp4").write_bytes(b"precious")
    with Forward(studio.order(tmp_path / "x.mp4")) as forward:
        studio.begin(forward)
    assert (tmp_path / "x.mp4").read_bytes() == b"precious"
    assert read(tmp_path / "x-2.mp4")


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
def test_a_process_that_is_killed_is_replaced_and_its_file_can_be_read(studio, tmp_path, suffix):
    with Forward(studio.order(tmp_path / f"x.{suffix}"), retry=SOON) as forward:
        studio.begin(forward)
        first = studio.sent - forward.progress.frames
        studio.send(forward, 110)
        assert forward.progress.pid
        os.kill(forward.progress.pid, signal.SIGKILL)
        assert "signal 9" in failed(forward)
        studio.begin(forward)
        studio.send(forward, 5)
    before, after = read(tmp_path / f"x.{suffix}"), read(tmp_path / f"x-2.{suffix}")
    # An MP4 ends with its last whole fragment; one begins every two seconds.
    assert 50 <= len(before) <= 111
    assert [number for number, _ in before] == list(range(first, first + len(before)))
    assert after[-1][0] == studio.sent - 1


def test_a_frame_of_another_size_begins_another_file(studio, tmp_path):
    with Forward(studio.order(tmp_path / "x.mkv")) as forward:
        studio.begin(forward)
        studio.send(forward, 3)
        for _ in range(3):
            studio.send(forward, 1, epoch=1, pixels=picture(studio.sent, (96, 320)))
    assert {path.name for path in tmp_path.iterdir()} == {"x.mkv", "x-2.mkv"}
    with av.open(str(tmp_path / "x-2.mkv")) as container:
        assert [(frame.height, frame.width) for frame in container.decode(video=0)] == [(96, 320)] * 3


def test_odd_sizes_keep_every_pixel_and_turned_pictures_stand_upright_with_their_colours(studio, tmp_path):
    pixels = np.zeros((101, 33, 3), np.uint8)
    pixels[:, :16] = (200, 40, 30)
    changes = {"pixels": pixels, "rotation": 90, "colour": Colour(1, 1, 1), "sample_aspect_ratio": Fraction(4, 3)}
    with Forward(studio.order(tmp_path / "x.mp4", video=VideoOptions(crf=5))) as forward:
        studio.begin(forward)
        studio.send(forward, 2, **changes)
    with av.open(str(tmp_path / "x-2.mp4")) as container:
        frame = next(container.decode(video=0))
        assert container.streams.video[0].sample_aspect_ratio == Fraction(3, 4)
    assert (frame.height, frame.width) == (34, 102)
    assert (frame.colorspace, frame.color_primaries, frame.color_trc) == (1, 1, 1)
    upright = to_rgb(frame)
    np.testing.assert_allclose(upright[20:32, 10:90], np.broadcast_to((200, 40, 30), (12, 80, 3)), atol=4)
    np.testing.assert_allclose(upright[2:14, 10:90], 0, atol=4)


@pytest.mark.parametrize("encoder", ["libx265", "libsvtav1"])
def test_other_encoders_write_the_same_frames(studio, tmp_path, encoder):
    with Forward(studio.order(tmp_path / "x.mp4", video=VideoOptions(encoder))) as forward:
        studio.begin(forward)
        first = studio.sent - forward.progress.frames
        studio.send(forward, 5)
    assert [number for number, _ in read(tmp_path / "x.mp4")] == list(range(first, studio.sent))


def test_an_encoder_that_does_not_work_here_is_named(studio, tmp_path):
    with Forward(studio.order(tmp_path / "x.mkv", video=VideoOptions("h264_nvenc"))) as forward:
        until_s = time.monotonic() + WAIT_S
        while not forward.progress.frames and not forward.progress.restarts and time.monotonic() < until_s:
            studio.publish()
            forward.wait_for(lambda now: bool(now.frames or now.restarts), 0.2)
        if forward.progress.frames:
            pytest.skip("this GPU encodes")
        assert "the encoder h264_nvenc, which needs an NVIDIA GPU" in failed(forward)
    assert not list(tmp_path.iterdir())


def test_a_codec_that_rtsp_does_not_carry_is_named(studio):
    order = studio.order("", video=VideoOptions("libsvtav1"))
    with YesServer() as server, Forward(replace(order, target=server.url)) as forward:
        studio.fail(forward)
        assert failed(forward).startswith("AV1 goes into files only")


def test_a_missing_folder_is_named_and_used_once_it_is_there(studio, tmp_path):
    folder = tmp_path / "not-mounted"
    with Forward(studio.order(folder / "%Y" / "x.mkv"), retry=SOON) as forward:
        studio.fail(forward)
        assert failed(forward) == f"there is no folder {folder}"
        folder.mkdir()
        studio.begin(forward)
    assert read(folder / time.strftime("%Y") / "x.mkv")


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of another process can be set on Linux only")
def test_a_disk_that_is_full_is_an_error_that_is_tried_again(studio, tmp_path):
    with Forward(studio.order(tmp_path / "x.mkv"), retry=SOON) as forward:
        studio.begin(forward)
        assert forward.progress.pid
        resource.prlimit(forward.progress.pid, resource.RLIMIT_FSIZE, (50_000, 50_000))
        while not forward.progress.restarts:
            frame = studio.publish(pixels=picture(studio.sent, noise=True))
            forward.wait_for(lambda now, seq=frame.seq: now.seq == seq or now.restarts > 0, WAIT_S)
        assert failed(forward) == f"{tmp_path / 'x.mkv'} cannot be written (file too large)"
        studio.begin(forward)
    assert read(tmp_path / "x.mkv")
    assert read(tmp_path / "x-2.mkv")


def test_a_file_that_is_taken_away_is_followed_by_the_next(studio, tmp_path):
    with Forward(studio.order(tmp_path / "x.mkv")) as forward:
        studio.begin(forward)
        (tmp_path / "x.mkv").rename(tmp_path / "taken.mkv")
        studio.send(forward, 3)
    assert len(read(tmp_path / "x.mkv")) == 3
    assert numbers_in(list(tmp_path.iterdir()))[-1] == studio.sent - 1


def started(order: Order) -> subprocess.Popen[str]:
    """The process alone, with its order."""
    process = subprocess.Popen(
        [sys.executable, "-m", "daemon.forwarder"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    process.stdin.write(order.to_json() + "\n")
    process.stdin.flush()
    return process


def test_the_process_ends_its_file_when_who_started_it_is_no_more(studio, tmp_path):
    process = started(studio.order(tmp_path / "x.mkv"))
    assert process.stdout is not None
    while '"seq": -1' in process.stdout.readline():
        studio.publish()
    process.communicate(timeout=WAIT_S)  # closes its input
    assert process.returncode == 0
    with av.open(str(tmp_path / "x.mkv")) as container:
        assert container.duration is not None


def test_the_process_ends_when_who_started_it_is_no_more_even_if_a_server_freezes_it(studio):
    with YesServer("ANNOUNCE") as server:
        process = started(studio.order(server.url, stall_s=0.1))
        while not server.wait_for(1, 0.1):
            studio.publish()
        process.communicate(timeout=WAIT_S)
        assert process.returncode == -signal.SIGALRM


def test_a_server_gets_every_frame_at_its_time(studio):
    server = Listener(free_port())
    with Forward(studio.order(server.url), retry=SOON) as forward:
        studio.begin(forward)
        first = studio.sent - forward.progress.frames
        studio.send(forward, 60)
        assert server.wait_for(50, WAIT_S)  # FFmpeg's reader holds some back
    server.close()
    assert server.numbers == list(range(first, first + len(server.numbers)))
    ticks = [ticks for ticks in server.ticks if ticks is not None]
    assert {later - sooner for sooner, later in pairwise(ticks)} == {STEP}


@pytest.mark.parametrize("login", ["", LOGIN])
def test_gstreamers_server_takes_every_frame(studio, tmp_path, login):
    options = ("--user", "op@site", "--password", PASSWORD) if login else ()
    with GstRecorder(tmp_path, *options) as server, Forward(studio.order(server.url(login)), retry=SOON) as forward:
        studio.begin(forward)
        first = studio.sent - forward.progress.frames
        for _ in range(20):
            studio.send(forward, 10)
            if len(server.numbers()) >= 50:
                break
        numbers = server.numbers()
        assert len(numbers) >= 50
        assert numbers == list(range(first, first + len(numbers)))
        assert PASSWORD not in str(forward.progress)
        assert "s3cret" not in Path(f"/proc/{forward.progress.pid}/cmdline").read_text()


@pytest.mark.parametrize(
    ("login", "why"), [("op:s3cretword@", "refuses this user and password"), ("", "wants a user and password")]
)
def test_a_wrong_password_is_said_without_saying_it(studio, tmp_path, caplog, login, why):
    options = ("--user", "op", "--password", "another")
    with GstRecorder(tmp_path, *options) as server, Forward(studio.order(server.url(login))) as forward:
        studio.fail(forward)
        assert failed(forward) == why
    assert why in caplog.text
    assert "s3cret" not in caplog.text + repr(forward.target) + repr(studio.order(server.url(login)))


def test_a_server_that_is_not_there_yet_is_tried_again(studio):
    port = free_port()
    with Forward(studio.order(f"rtsp://127.0.0.1:{port}/live"), retry=SOON) as forward:
        studio.fail(forward)
        assert failed(forward).startswith("connection refused")
        server = Listener(port)
        studio.begin(forward)
        studio.send(forward, 30)
        assert server.wait_for(10, WAIT_S)
    server.close()


@pytest.mark.parametrize("request_", ["ANNOUNCE", "RECORD"])
def test_a_server_that_freezes_is_left_and_tried_again_and_nobody_waits_for_it(studio, request_):
    with YesServer(freezes_at=request_) as server:
        with Forward(studio.order(server.url, stall_s=1.0), retry=SOON) as forward:
            until_s = time.monotonic() + WAIT_S
            while server.publishers < 2:
                assert time.monotonic() < until_s
                studio.publish(pixels=picture(studio.sent, (480, 640), noise=True))
                forward.wait_for(lambda now: now.restarts > 0, 0.04)
            assert failed(forward) == "takes no video for 1 s"
            # It is closed while the second connection fills up, or is stuck already.
        assert forward.progress.pid is None


def test_a_frame_of_another_size_begins_another_session(studio):
    with YesServer() as server, Forward(studio.order(server.url)) as forward:
        studio.begin(forward)
        studio.send(forward, 3)
        assert server.publishers == 1
        studio.send(forward, 1, pixels=picture(studio.sent, (96, 320)))
        assert server.wait_for(2, WAIT_S)
        assert forward.progress.restarts == 0


def frame(pts: int | None, arrived_s: float = 0.0, epoch: int = 0, **changes: Any) -> Frame:
    pixels = np.zeros((2, 2, 3), np.uint8)
    return Frame("cam", 0, pts, Fraction(1, 1000), 0, round(arrived_s * 1e9), pixels, epoch=epoch, **changes)


def seconds(*frames: Frame) -> list[float]:
    timeline = Timeline()
    return [round(timeline.place(each) / RATE, 3) for each in frames]


def test_times_are_the_sources_and_a_gap_stays_a_gap():
    assert seconds(frame(5000), frame(5040), frame(9000), frame(9033)) == [0, 0.04, 4, 4.033]


def test_after_a_reconnect_or_a_jump_back_times_go_on_by_the_time_that_passed():
    before = frame(700_000, 10), frame(700_040, 10.04)
    assert seconds(*before, frame(0, 13.04, epoch=1), frame(40, 13.1, epoch=1)) == [0, 0.04, 3.04, 3.08]
    assert seconds(*before, frame(0, 13.04), frame(40, 13.1)) == [0, 0.04, 3.04, 3.08]
    assert seconds(*before, frame(999_999, 13.04, epoch=1)) == [0, 0.04, 3.04]


def test_a_frame_out_of_order_moves_none_but_itself():
    assert seconds(frame(0), frame(40), frame(40), frame(30), frame(80)) == [0, 0.04, 0.04, 0.04, 0.08]
    timeline = Timeline()
    ticks = [timeline.place(frame(pts)) for pts in (0, 40, 40, 30, 80)]
    assert all(later > sooner for sooner, later in pairwise(ticks))


def test_frames_without_times_have_those_of_their_arrival():
    assert seconds(frame(None, 5), frame(None, 5.1), frame(None, 5.1)) == [0, 0.1, 0.1]


def test_the_matrix_of_rgb_sources_is_that_of_what_is_encoded():
    shape = Shape.of(frame(0, colour=Colour(1, 13, 0, True)))
    assert (shape.colour.matrix, shape.colour.full_range) == (6, False)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("http://host/x", "video goes to rtsp:// or to files"),
        ("rtsp://", "must have a host"),
        ("rtsp://op:s3cret/x@host/x", "must be written as %2F"),
        ("", "must be rtsp://"),
        ("folder/x", "must end in .mkv or .mp4, got ''"),
        ("x.avi", "must end in .mkv or .mp4, got '.avi'"),
        ("{name}.mkv", "got {name}"),
        ("x\n.mkv", "must be rtsp://"),
    ],
)
def test_a_target_that_is_none_is_refused_in_one_line(text, why):
    with pytest.raises(SinkError) as caught:
        Target.parse(text)
    assert why in str(caught.value)
    assert str(caught.value).isprintable()
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("stream", ["../../etc", "..", "host/stream", "C:\\x", "ä"])
def test_no_name_of_a_stream_leads_out_of_the_folder(tmp_path, stream):
    path = Target.parse(f"{tmp_path}/{{stream}}/{{stream}}.mkv").create(stream, time.localtime())
    assert path.resolve().parent.parent == tmp_path.resolve()


def test_an_order_comes_over_whole_and_shows_no_password():
    order = Order("tcp://h:1", "cam", "rtsp://op:s3cret@host/x", control="tcp://h:2", every_s=2, max_mb=3, report_s=4)
    assert Order.from_json(order.to_json()) == order
    assert "s3cret" not in repr(order)
    assert "\n" not in order.to_json()


def test_a_forward_that_is_closed_before_it_begins_ends(studio, tmp_path):
    forward = Forward(studio.order(tmp_path / "x.mkv"))
    forward.close()
    forward.close()
    assert forward.progress == Progress()
    assert not list(tmp_path.iterdir())
