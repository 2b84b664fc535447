"""Claims about streams that share an engine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from models import STATE, brighten_onnx, brightened, echo_onnx, write_model
from numpy.typing import NDArray
from streams import Collector, EndlessSource, GivenSource, numbered

from daemon.errors import DaemonError, SinkError, SourceError
from daemon.frame import Frame
from daemon.pipeline import Pipeline
from engine.backends import open_engine
from engine.errors import EngineError
from engine.protocol import Engine, EngineOptions


@pytest.fixture
def brighten(tmp_path: Path) -> Iterator[Engine]:
    """A model that adds a constant, on a real engine."""
    path = write_model(tmp_path, brighten_onnx())
    with open_engine("openvino", str(path), EngineOptions(slots=2, tile_px=64)) as engine:
        yield engine


@pytest.fixture
def identity(tmp_path: Path) -> Iterator[Engine]:
    """The engine that changes nothing; it takes batches of several frames."""
    path = write_model(tmp_path, brighten_onnx())
    with open_engine("identity", str(path), EngineOptions(slots=2, tile_px=64)) as engine:
        yield engine


def test_every_frame_of_a_file_is_restored_in_order(brighten: Engine) -> None:
    frames = [numbered(i) for i in range(40)]
    sink = Collector()
    with Pipeline(brighten) as pipeline:
        stream = pipeline.add("cam", GivenSource(frames), sink)
        assert pipeline.wait(60)
    assert [frame.seq for frame in sink.frames] == list(range(40))
    for sent, frame in zip(sink.frames, frames, strict=True):
        np.testing.assert_array_equal(sent.pixels, brightened(frame.pixels))
    assert (stream.decoded, stream.restored, stream.drops, stream.error) == (40, 40, 0, None)
    assert sink.closed == 1


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (64, 64), (65, 64), (150, 201), (7, 300)])
def test_a_frame_of_any_size_comes_out_whole_and_in_its_own_size(brighten: Engine, size: tuple[int, int]) -> None:
    sink = Collector()
    with Pipeline(brighten) as pipeline:
        pipeline.add("cam", GivenSource([numbered(3, size)]), sink)
        assert pipeline.wait(60)
    np.testing.assert_array_equal(sink.frames[0].pixels, brightened(numbered(3, size).pixels))


def test_a_stream_may_change_its_size(brighten: Engine) -> None:
    sizes = [(32, 48), (32, 48), (100, 40), (32, 48), (8, 8)]
    sink = Collector()
    with Pipeline(brighten) as pipeline:
        pipeline.add("cam", GivenSource([numbered(i, size) for i, size in enumerate(sizes)]), sink)
        assert pipeline.wait(60)
    assert [(frame.height, frame.width) for frame in sink.frames] == sizes


def test_tiles_of_several_streams_share_batches_and_find_their_way_back(identity: Engine) -> None:
    sizes = [(32, 48), (32, 48), (130, 70), (32, 48), (9, 200)]
    sources = [[numbered(100 * i + k, size) for k in range(15)] for i, size in enumerate(sizes)]
    sinks = [Collector() for _ in sizes]
    with Pipeline(identity) as pipeline:
        for i, (frames, sink) in enumerate(zip(sources, sinks, strict=True)):
            pipeline.add(f"cam{i}", GivenSource(frames), sink)
        assert pipeline.wait(60)
    for frames, sink in zip(sources, sinks, strict=True):
        assert len(sink.frames) == len(frames)
        for sent, frame in zip(sink.frames, frames, strict=True):
            np.testing.assert_array_equal(sent.pixels, frame.pixels)


def test_a_live_stream_drops_what_is_too_old_and_says_how_much(identity: Engine) -> None:
    sink = Collector()
    source = EndlessSource()
    with Pipeline(identity) as pipeline:
        stream = pipeline.add("cam", source, sink)
        sink.wait_for(20)
        source.close()
        assert pipeline.wait(60)
    seqs = [frame.seq for frame in sink.frames]
    assert seqs == sorted(set(seqs))
    assert stream.restored + stream.drops == stream.decoded
    assert sink.frames[-1].drops <= stream.drops


def test_a_sink_that_stands_still_delays_its_own_stream_only(identity: Engine) -> None:
    stuck, free = Collector(shut=True), Collector()
    with Pipeline(identity) as pipeline:
        pipeline.add("stuck", GivenSource([numbered(i) for i in range(50)]), stuck)
        pipeline.add("free", GivenSource([numbered(i) for i in range(50)]), free)
        free.wait_for(50)
        assert not stuck.frames
        stuck.open.set()
        assert pipeline.wait(60)
    assert len(stuck.frames) == 50


def test_behind_a_slow_sink_no_live_frame_is_restored_to_grow_old(identity: Engine) -> None:
    sink = Collector(shut=True)
    source = EndlessSource()
    with Pipeline(identity) as pipeline:
        stream = pipeline.add("cam", source, sink)
        while stream.decoded < 200:  # decoding goes on, whatever the sink does
            with pipeline.changed:
                pipeline.changed.wait(1)
        sink.open.set()
        sink.wait_for(10)
        source.close()
        assert pipeline.wait(60)
    # Sent at once: the one at the sink, and those that the engine had begun by then.
    old = [frame.seq for frame in sink.frames if frame.seq < 150]
    assert len(old) <= identity.spec.slots + 1


def test_a_source_that_breaks_ends_its_own_stream_after_what_came(identity: Engine) -> None:
    broken, whole = Collector(), Collector()
    with Pipeline(identity) as pipeline:
        first = pipeline.add("broken", GivenSource([numbered(i) for i in range(5)], error="the cable is cut"), broken)
        second = pipeline.add("whole", GivenSource([numbered(i) for i in range(30)]), whole)
        assert pipeline.wait(60)
    assert isinstance(first.error, SourceError)
    assert [frame.seq for frame in broken.frames] == [0, 1, 2, 3, 4]
    assert len(whole.frames) == 30
    assert second.error is None
    assert broken.closed == whole.closed == 1


def test_a_sink_that_breaks_ends_its_own_stream(identity: Engine) -> None:
    broken, whole = Collector(break_after=3), Collector()
    with Pipeline(identity) as pipeline:
        stream = pipeline.add("broken", EndlessSource(), broken)
        pipeline.add("whole", GivenSource([numbered(i) for i in range(30)]), whole)
        assert pipeline.wait(60)
    assert isinstance(stream.error, SinkError)
    assert len(broken.frames) == 3
    assert len(whole.frames) == 30


def test_stopping_ends_endless_streams_and_their_threads(identity: Engine) -> None:
    before = threading.active_count()
    sinks = [Collector() for _ in range(3)]
    with Pipeline(identity) as pipeline:
        for i, sink in enumerate(sinks):
            pipeline.add(f"cam{i}", EndlessSource(), sink)
        for sink in sinks:
            sink.wait_for(5)
    assert threading.active_count() == before
    assert all(sink.closed == 1 for sink in sinks)


def test_streams_may_be_added_while_others_run(identity: Engine) -> None:
    early, late = Collector(), Collector()
    with Pipeline(identity) as pipeline:
        pipeline.add("early", EndlessSource(), early)
        early.wait_for(5)
        pipeline.add("late", GivenSource([numbered(i) for i in range(10)]), late)
        late.wait_for(10)


def test_a_stream_that_comes_after_the_end_is_refused(identity: Engine) -> None:
    pipeline = Pipeline(identity)
    pipeline.stop()
    with pytest.raises(DaemonError, match="too late"):
        pipeline.add("late", GivenSource([]), Collector())


def test_a_frame_too_large_for_a_model_that_needs_it_whole_ends_its_stream_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.model.WHOLE_FRAME_PX", 64)
    path = write_model(tmp_path, brighten_onnx(), whole_frame=True)
    small, large = Collector(), Collector()
    with open_engine("openvino", str(path)) as engine, Pipeline(engine) as pipeline:
        pipeline.add("small", GivenSource([numbered(i) for i in range(20)]), small)
        stream = pipeline.add("large", GivenSource([numbered(0, (100, 64)), numbered(1)]), large)
        assert pipeline.wait(60)
    assert len(small.frames) == 20
    assert large.frames == []
    assert "must be at most 64x64 for model 'tiny', which takes them whole, got 64x100" in str(stream.error)


def test_an_engine_that_fails_stops_everything_with_its_cause(identity: Engine) -> None:
    sinks = [Collector(), Collector()]
    with Pipeline(identity) as pipeline:
        for i, sink in enumerate(sinks):
            pipeline.add(f"cam{i}", EndlessSource(), sink)
            sink.wait_for(3)
        identity.close()
        with pytest.raises(EngineError, match="closed"):
            pipeline.wait(60)
    assert all(sink.closed == 1 for sink in sinks)


@pytest.mark.parametrize("size", [(32, 48), (100, 150)])
def test_history_runs_from_frame_to_frame_and_starts_afresh_at_a_reconnect(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    path = write_model(tmp_path, echo_onnx(), states=[STATE])
    frames = [numbered(0, size, epoch=epoch) for epoch in (0, 0, 0, 1)]
    sink = Collector()
    options = EngineOptions(precision="f32", tile_px=64)
    with open_engine("openvino", str(path), options) as engine, Pipeline(engine) as pipeline:
        pipeline.add("cam", GivenSource(frames), sink)
        assert pipeline.wait(60)
    means = [float(frame.pixels.mean()) for frame in sink.frames]
    assert means[0] < means[1] < means[2]  # half of the history is added to every frame
    np.testing.assert_array_equal(sink.frames[3].pixels, sink.frames[0].pixels)


def test_history_starts_afresh_at_a_scene_cut(tmp_path: Path) -> None:
    path = write_model(tmp_path, echo_onnx(), states=[STATE])
    dark, bright = np.full((32, 48, 3), 20, np.uint8), np.full((32, 48, 3), 120, np.uint8)
    pictures = [dark, dark, bright, bright]
    frames = [_with(numbered(i), picture) for i, picture in enumerate(pictures)]
    sink = Collector()
    with open_engine("openvino", str(path), EngineOptions(precision="f32")) as engine, Pipeline(engine) as pipeline:
        pipeline.add("cam", GivenSource(frames), sink)
        assert pipeline.wait(60)
    assert [int(frame.pixels[0, 0, 0]) for frame in sink.frames] == [20, 30, 120, 180]


def test_streams_of_a_recurrent_model_do_not_share_their_history(tmp_path: Path) -> None:
    path = write_model(tmp_path, echo_onnx(), states=[STATE])
    levels = (10, 40, 70)
    sinks = [Collector() for _ in levels]
    with open_engine("openvino", str(path), EngineOptions(precision="f32")) as engine, Pipeline(engine) as pipeline:
        for level, sink in zip(levels, sinks, strict=True):
            frames = [_with(numbered(i), np.full((32, 48, 3), level, np.uint8)) for i in range(6)]
            pipeline.add(f"cam{level}", GivenSource(frames), sink)
        assert pipeline.wait(60)
    for level, sink in zip(levels, sinks, strict=True):
        expected = [level * (2 - 0.5**i) for i in range(6)]
        got = [float(frame.pixels[0, 0, 0]) for frame in sink.frames]
        assert got == pytest.approx(expected, abs=0.51)


def test_the_time_spent_in_each_stage_travels_with_the_frame(brighten: Engine) -> None:
    sink = Collector()
    with Pipeline(brighten) as pipeline:
        pipeline.add("cam", GivenSource([numbered(0)]), sink)
        assert pipeline.wait(60)
    spent = sink.frames[0].spent_ns
    assert set(spent) == {"wait", "engine", "merge"}
    assert all(ns >= 0 for ns in spent.values())


def _with(frame: Frame, pixels: NDArray[np.uint8]) -> Frame:
    return replace(frame, pixels=pixels)
