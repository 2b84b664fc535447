"""Claims about the generated test pattern."""

from __future__ import annotations

import threading
import time
from fractions import Fraction
from itertools import islice

import cv2
import numpy as np
import pytest

from daemon.errors import SourceError
from daemon.pattern_source import PatternSource, read_counter

SIZES = [(720, 1280), (1080, 1920), (480, 640), (241, 177), (48, 64), (32, 48)]


def drawn(count, size=(240, 320), **options):
    with PatternSource(size, live=False, frames=count, **options) as source:
        return list(source)


def test_frames_are_numbered_and_timed_by_the_rate() -> None:
    frames = drawn(3, rate=Fraction(30000, 1001))
    assert [frame.seq for frame in frames] == [0, 1, 2]
    assert [frame.pts * frame.time_base for frame in frames] == [Fraction(1001 * i, 30000) for i in range(3)]


@pytest.mark.parametrize("size", SIZES)
def test_programs_can_read_the_number(size) -> None:
    frames = drawn(5, size)
    assert all(frame.pixels.shape == (*size, 3) and frame.pixels.dtype == np.uint8 for frame in frames)
    assert [read_counter(frame.pixels) for frame in frames] == list(range(5))


@pytest.mark.parametrize("quality", [90, 50])
@pytest.mark.parametrize("size", SIZES)
def test_the_number_survives_jpeg(size, quality) -> None:
    for frame in drawn(5, size):
        done, data = cv2.imencode(".jpg", frame.pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
        assert done
        assert read_counter(cv2.imdecode(data, cv2.IMREAD_COLOR)) == frame.seq


@pytest.mark.parametrize("size", SIZES)
def test_the_number_survives_what_restoring_may_do(size) -> None:
    (*_, frame) = drawn(4, size)
    pixels = frame.pixels.astype(np.float32)
    softer = cv2.GaussianBlur(pixels, (0, 0), 1)
    noise = np.random.default_rng(0).normal(0, 20, pixels.shape)
    for changed in (softer, 3 * pixels - 2 * softer, pixels + noise, 60 + pixels / 2, np.roll(pixels, 1, axis=(0, 1))):
        assert read_counter(np.clip(changed, 0, 255).astype(np.uint8)) == 3


def test_a_damaged_counter_is_refused_instead_of_misread() -> None:
    (frame,) = drawn(1)
    damaged = frame.pixels.copy()
    damaged[:16, :36] = 235
    random = np.random.default_rng(0).integers(0, 256, frame.pixels.shape, dtype=np.uint8)
    for pixels in (damaged, random, np.zeros_like(damaged), np.full_like(damaged, 255)):
        with pytest.raises(ValueError, match="no counter that can be read"):
            read_counter(pixels)
    with pytest.raises(ValueError, match="at least 48x32 pixels"):
        read_counter(np.zeros((8, 8, 3), np.uint8))


def test_the_picture_moves_and_is_the_same_each_time_it_is_drawn() -> None:
    first, again = drawn(3), drawn(3)
    assert all((one.pixels == other.pixels).all() for one, other in zip(first, again, strict=True))
    below = slice(20, 120)  # neither counter reaches there
    step = 320 // 80
    assert (first[1].pixels[below, :-step] == first[0].pixels[below, step:]).all()
    assert not (first[1].pixels[below] == first[0].pixels[below]).all()


def test_each_frame_has_pixels_of_its_own() -> None:
    frames = drawn(2)
    frames[0].pixels[:] = 0
    assert read_counter(frames[1].pixels) == 1


def test_frames_come_no_sooner_than_they_are_due_and_waits_do_not_add_up() -> None:
    rate = 50
    with PatternSource((48, 64), rate) as source:
        assert source.live
        frames = list(islice(source, 26))
    began = frames[0].arrived_ns
    for frame in frames:
        # Whatever the machine does meanwhile: a frame that is late does not make those after it late.
        assert frame.arrived_ns - began >= (frame.seq - 1) / rate * 1e9
    numbers = [frame.seq for frame in frames]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] - 25 <= source.counters["skipped_frames"]


def test_a_reader_that_is_late_gets_the_frame_that_is_due() -> None:
    with PatternSource((48, 64), 1000) as source:
        frames = iter(source)
        first = next(frames)
        while time.monotonic_ns() - first.arrived_ns < 50e6:
            pass
        assert next(frames).seq >= 50
        assert source.counters["skipped_frames"] >= 49


def test_it_ends_after_the_frames_asked_for() -> None:
    with PatternSource((48, 64), 1000, frames=20) as source:
        assert all(frame.seq < 20 for frame in source)


def test_closing_ends_a_wait_for_the_next_frame_at_once() -> None:
    source = PatternSource((48, 64), Fraction(1, 900))
    first, ended = threading.Event(), threading.Event()

    def read() -> None:
        with source:
            for _ in source:
                first.set()
        ended.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert first.wait(60)
    source.close()
    assert ended.wait(60)
    reader.join()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (8, 8)}, "from 48x32 to 8192x8192, got 8x8"),
        ({"size": (20000, 20000)}, "got 20000x20000"),
        ({"rate": 0}, "the rate must be from 0.001 to 1000, got 0"),
        ({"rate": float("nan")}, "got nan"),
    ],
)
def test_what_is_impossible_is_refused_in_one_line(options, message) -> None:
    with pytest.raises(SourceError) as caught:
        PatternSource(**options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
