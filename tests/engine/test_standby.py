"""An engine that another one replaces while it serves: nobody waits, nothing is lost, the contract holds."""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import ClassVar, Self

import clips
import models
import numpy as np
import pytest
from streams import Collector, EndlessSource, GivenSource, numbered

from daemon import service
from daemon.config import Config
from daemon.pipeline import Pipeline
from daemon.settings import EngineConfig, PublishConfig, StreamConfig
from engine import backends
from engine.backends import open_engine
from engine.errors import DeviceMemoryError, EngineError
from engine.identity import IdentityEngine
from engine.model import Model, PinnedFile
from engine.openvino.engine import OpenVinoEngine
from engine.protocol import Engine, EngineOptions, EngineSpec, Frames, State, Ticket
from engine.standby import BATCHES_BEFORE_REBUILD, SIZES_KEPT, Standby

OPTIONS = EngineOptions(precision="f32", slots=2, tile_px=64, build="background")
WAIT_S = 60


class Built:
    """OpenVINO as a back-end whose engines are built when the test opens `gate`, each for sizes of its own."""

    base: ClassVar[Callable[[Model, EngineOptions], Engine]]
    gate: ClassVar[threading.Event]
    cached: ClassVar[bool]
    opened: ClassVar[list[Built]]
    fail: ClassVar[Callable[[EngineOptions], None]]
    change: ClassVar[dict[str, object]]

    @staticmethod
    def must_build(model: Model, options: EngineOptions) -> bool:
        return not Built.cached

    def __init__(self, model: Model, options: EngineOptions) -> None:
        if options.sizes or not Built.cached:
            assert Built.gate.wait(WAIT_S)
        Built.fail(options)
        self._engine = Built.base(model, options)
        self.spec: EngineSpec = replace(self._engine.spec, backend="built", sizes=options.sizes, **Built.change)  # type: ignore[arg-type]
        self.batches = 0
        self.closed = threading.Event()
        Built.opened.append(self)

    def submit(self, batch: Frames, states: Sequence[State | None] | None = None) -> Ticket:
        self.batches += 1
        return self._engine.submit(batch, states)

    def close(self) -> None:
        self._engine.close()
        self.closed.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Log(logging.Handler):
    """What the engines say, to wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self._more = threading.Condition()

    def emit(self, record: logging.LogRecord) -> None:
        with self._more:
            self.lines.append(record.getMessage())
            self._more.notify_all()

    def wait_for(self, text: str, times: int = 1) -> str:
        with self._more:
            assert self._more.wait_for(lambda: self.count(text) >= times, WAIT_S), f"{text!r} not in {self.lines}"
            return next(line for line in reversed(self.lines) if text in line)

    def count(self, text: str) -> int:
        return sum(text in line for line in self.lines)


@pytest.fixture(autouse=True)
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """`auto` tries the back-end `built`, then OpenVINO."""
    Built.base, Built.gate, Built.cached, Built.opened = OpenVinoEngine, threading.Event(), False, []
    Built.fail, Built.change = lambda options: None, {}
    monkeypatch.setitem(backends.BACKENDS, "built", f"{__name__}:Built")
    monkeypatch.setattr(backends, "AUTO", ("built", "openvino"))
    yield Built.gate
    Built.gate.set()  # else a test that failed would leave its thread waiting


@pytest.fixture(autouse=True)
def said() -> Iterator[Log]:
    handler, logger = Log(), logging.getLogger("engine")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(before)


@pytest.fixture
def brighten(tmp_path: Path) -> str:
    return str(models.write_model(tmp_path, models.brighten_onnx()))


@pytest.fixture
def echo_model(tmp_path: Path) -> str:
    return str(models.write_model(tmp_path, models.echo_onnx(), states=(models.STATE,)))


def frames(*shape: int, seed: int = 0) -> Frames:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


def restore(engine: Engine, batch: Frames) -> None:
    """One batch there and back, right to the pixel."""
    with engine.submit(batch).result() as result:
        np.testing.assert_array_equal(result.frames, models.brightened(batch))


def in_thread(call: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=call, name="test")
    thread.start()
    return thread


def ended(thread: threading.Thread) -> bool:
    thread.join(WAIT_S)
    return not thread.is_alive()


# Start.


@pytest.mark.parametrize("name", ["auto", "built"])
def test_another_engine_serves_until_the_best_one_is_built(
    brighten: str, gate: threading.Event, said: Log, name: str
) -> None:
    with open_engine(name, brighten, OPTIONS) as engine:
        assert engine.spec.backend == "openvino/CPU f32"
        assert said.wait_for("engine openvino/CPU f32") == "engine openvino/CPU f32 (not built: it is being built)"
        assert said.wait_for("prepared") == "built is being prepared; openvino/CPU f32 serves meanwhile"
        restore(engine, frames(1, 8, 8))
        gate.set()
        said.wait_for("built serves now")
        assert engine.spec.backend == "built"
        restore(engine, frames(1, 8, 8))
    assert [built.batches for built in Built.opened] == [2]  # its self-check, and ours
    assert Built.opened[0].closed.is_set()


def test_one_that_is_built_already_serves_at_once(brighten: str, said: Log) -> None:
    Built.cached = True
    with open_engine("auto", brighten, OPTIONS) as engine:
        assert engine.spec.backend == "built"
    assert not said.count("prepared")


def test_who_would_rather_wait_gets_the_best_one_and_keeps_it(brighten: str, gate: threading.Event) -> None:
    gate.set()
    with open_engine("auto", brighten, replace(OPTIONS, build="wait")) as engine:
        assert isinstance(engine, Built)


def test_where_no_other_engine_works_the_build_is_waited_for(
    brighten: str, gate: threading.Event, said: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "AUTO", ("built", "absent"))
    gate.set()
    with open_engine("auto", brighten, OPTIONS) as engine:
        assert engine.spec.backend == "built"
    assert said.wait_for("engine built").startswith("engine built (not absent: ")


def test_openvino_stands_in_for_an_engine_of_a_gpu(brighten: str) -> None:
    with open_engine("built", brighten, replace(OPTIONS, device="cuda:1", precision="f16")) as engine:
        assert engine.spec.backend.startswith("openvino/CPU ")
        Built.gate.set()


def test_the_daemon_starts_while_an_engine_is_built_unless_it_shall_wait(
    brighten: str, gate: threading.Event, said: Log, tmp_path: Path
) -> None:
    clip = StreamConfig(source=str(clips.write_video(tmp_path / "clip.mp4", count=20)))
    for build in ("background", "wait"):
        Built.gate.set()
        engine = EngineConfig(name="built", model=brighten, precision="f32", tile_px=64, build=build)
        publish = PublishConfig(endpoint=f"ipc://{tmp_path}/{build}")
        assert service.run(Config(engine=engine, publish=(publish,), streams=(clip,)), threading.Event()) == 0
        assert said.count("built is being prepared") == 1


def test_all_frames_of_a_file_come_from_one_engine(brighten: str, gate: threading.Event) -> None:
    gate.set()
    config = EngineConfig(name="built", model=brighten, tile_px=64)
    assert config.build == "background"
    with service.engine_from(config) as engine:  # as `enhance` and `evaluate` open it
        assert isinstance(engine, Built)


# A swap while it works.


def test_a_stream_loses_no_frame_to_a_swap(brighten: str, gate: threading.Event, said: Log) -> None:
    sent = [numbered(i) for i in range(120)]
    sink = Collector()
    with open_engine("auto", brighten, OPTIONS) as engine, Pipeline(engine) as pipeline:
        stream = pipeline.add("cam", GivenSource(sent), sink)
        sink.wait_for(20)
        sink.open.clear()  # the file waits, so that it does not end before the swap
        gate.set()
        said.wait_for("built serves now")
        sink.open.set()
        assert pipeline.wait(WAIT_S)
    assert [frame.seq for frame in sink.frames] == list(range(len(sent)))
    for got, frame in zip(sink.frames, sent, strict=True):
        np.testing.assert_array_equal(got.pixels, models.brightened(frame.pixels))
    assert (stream.error, stream.drops) == (None, 0)
    assert 1 < Built.opened[0].batches < len(sent)  # each of the two engines had its share


def test_live_streams_run_on_through_a_swap(brighten: str, gate: threading.Event) -> None:
    sinks = [Collector() for _ in range(3)]
    with open_engine("auto", brighten, OPTIONS) as engine, Pipeline(engine) as pipeline:
        for number, sink in enumerate(sinks):
            pipeline.add(f"cam{number}", EndlessSource((100, 40)), sink)
        sinks[0].wait_for(5)
        gate.set()
        with sinks[0].arrived:
            assert sinks[0].arrived.wait_for(lambda: engine.spec.backend == "built", WAIT_S)
            already = len(sinks[0].frames)
        sinks[0].wait_for(already + 20)
    for sink in sinks:
        assert [frame.seq for frame in sink.frames] == sorted({frame.seq for frame in sink.frames})
        for frame in sink.frames:
            np.testing.assert_array_equal(frame.pixels, models.brightened(numbered(frame.seq, (100, 40)).pixels))


def test_a_result_of_the_old_engine_stands_after_the_swap(brighten: str, gate: threading.Event, said: Log) -> None:
    Built.cached = True
    first, second = frames(1, 16, 16), frames(1, 16, 16, seed=1)
    with open_engine("built", brighten, OPTIONS) as engine:
        assert isinstance(engine, Standby)
        held, ticket = engine.submit(first).result(), engine.submit(second)
        engine.prepare(((16, 16),))
        gate.set()
        said.wait_for("built serves now")
        old, _ = Built.opened
        restore(engine, first)
        assert not old.closed.is_set()
        np.testing.assert_array_equal(held.frames, models.brightened(first))
        held.release()
        with ticket.result() as result:
            np.testing.assert_array_equal(result.frames, models.brightened(second))
            assert not old.closed.is_set()
        assert old.closed.wait(WAIT_S)  # with its last batch
        restore(engine, second)


def test_a_batch_that_waits_for_a_slot_of_the_old_engine_gets_it(
    brighten: str, gate: threading.Event, said: Log
) -> None:
    with open_engine("auto", brighten, OPTIONS) as engine:
        held = [engine.submit(frames(1, 8, 8)).result() for _ in range(OPTIONS.slots)]
        waiting = in_thread(lambda: restore(engine, frames(1, 8, 8, seed=1)))
        gate.set()
        said.wait_for("built serves now")
        restore(engine, frames(1, 8, 8))  # the new one has slots of its own
        for result in held:
            result.release()
        assert ended(waiting)


def test_threads_that_submit_through_many_swaps_get_every_batch_back(
    brighten: str, gate: threading.Event, said: Log
) -> None:
    sizes = [(height, 8) for height in range(8, 28, 4)]
    done: list[int] = []
    Built.change = {"best_batch": 4}
    gate.set()

    def hammer(seed: int) -> None:
        for batch in itertools.count():
            height, width = sizes[batch // BATCHES_BEFORE_REBUILD % len(sizes)]
            restore(engine, frames(engine.spec.best_batch if batch % 2 else 1, height, width, seed=seed))
            if said.count("serves now") >= len(sizes):
                break
        done.append(seed)

    with open_engine("auto", brighten, OPTIONS) as engine:
        threads = [in_thread(lambda seed=seed: hammer(seed)) for seed in range(6)]  # type: ignore[misc]
        assert all(ended(thread) for thread in threads)
    assert len(done) == len(threads)
    assert all(built.closed.is_set() for built in Built.opened)
    assert not said.count("failed")


def test_a_history_starts_afresh_once_at_the_swap(echo_model: str, gate: threading.Event, said: Log) -> None:
    grey = np.full((1, 8, 8, 3), 40, np.uint8)
    levels: list[int] = []

    def step(states: Sequence[State | None] | None) -> Sequence[State | None]:
        with engine.submit(grey, states).result() as result:
            levels.append(int(result.frames[0, 0, 0, 0]))
            return result.states

    with open_engine("auto", echo_model, OPTIONS) as engine:
        before = states = step(step(None))
        gate.set()
        assert said.wait_for("built serves now").endswith(", and every history starts afresh")
        for _ in range(3):
            states = step(states)
        step(before)  # whenever it comes
    assert levels == [40, 60, 40, 60, 70, 40]


def test_one_batch_may_hold_histories_of_both_engines(echo_model: str, gate: threading.Event, said: Log) -> None:
    grey = np.full((1, 8, 8, 3), 40, np.uint8)
    with open_engine("auto", echo_model, OPTIONS) as engine:
        with engine.submit(grey).result() as result:
            (old,) = result.states
        gate.set()
        said.wait_for("built serves now")
        with engine.submit(grey).result() as result:
            (new,) = result.states
        with engine.submit(np.concatenate([grey] * 3), [old, new, None]).result() as result:
            assert [int(frame[0, 0, 0]) for frame in result.frames] == [40, 60, 40]


def test_a_batch_that_is_refused_does_not_keep_the_old_engine(
    echo_model: str, gate: threading.Event, said: Log
) -> None:
    Built.cached = True
    with open_engine("auto", echo_model, OPTIONS) as engine:
        assert isinstance(engine, Standby)
        with engine.submit(frames(1, 16, 16)).result() as result:
            states = result.states
        with pytest.raises(EngineError):
            engine.submit(frames(1, 8, 8), states)  # a history of another size
        gate.set()
        engine.prepare(((8, 8),))
        said.wait_for("serves now")
        assert Built.opened[0].closed.wait(WAIT_S)


# What may not take over.


def test_a_build_that_fails_leaves_the_one_that_serves(brighten: str, gate: threading.Event, said: Log) -> None:
    def fail(options: EngineOptions) -> None:
        raise EngineError("the builder gave up")

    Built.fail = fail
    with open_engine("auto", brighten, OPTIONS) as engine:
        gate.set()
        assert said.wait_for("failed") == "built failed: the builder gave up; openvino/CPU f32 serves on"
        for _ in range(2 * BATCHES_BEFORE_REBUILD):
            restore(engine, frames(1, 8, 8))
    assert said.count("prepared") == 1


def test_a_mistake_in_a_back_end_leaves_the_one_that_serves(brighten: str, gate: threading.Event, said: Log) -> None:
    def fail(options: EngineOptions) -> None:
        raise ZeroDivisionError("a mistake")

    Built.fail = fail
    with open_engine("auto", brighten, OPTIONS) as engine:
        gate.set()
        said.wait_for("failed")
        restore(engine, frames(1, 8, 8))


def test_one_that_computes_something_else_never_serves(tmp_path: Path, gate: threading.Event, said: Log) -> None:
    blurred = frames(1, 32, 32)
    np.savez(tmp_path / "tiny.check.npz", blurred=blurred, restored=models.brightened(blurred))
    digest = hashlib.sha256((tmp_path / "tiny.check.npz").read_bytes()).hexdigest()
    pair = PinnedFile(file="tiny.check.npz", sha256=digest)
    path = str(models.write_model(tmp_path, models.brighten_onnx(), check=pair))
    Built.base = IdentityEngine
    with open_engine("auto", path, OPTIONS) as engine:
        gate.set()
        assert "built does not compute what model 'tiny' should" in said.wait_for("failed")
        assert said.count("openvino/CPU f32 serves on")
        restore(engine, frames(1, 8, 8))
    assert Built.opened[0].closed.is_set()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tile": (64, 32)}, "its tiles must be at least 64x64, by which frames are cut, got 32x64"),
        ({"slots": 1}, "its slots must be at least 2 like that of the engine that serves, got 1"),
        ({"max_batch": 3}, "its max_batch must be at least 4"),
        ({"stride": 8}, "its stride must be 4"),
        ({"fixed_tile": True}, "its fixed_tile must be False"),
        ({"recurrent": True}, "its recurrent must be False"),
        ({"floating": False}, "it must take levels"),
    ],
)
def test_one_that_takes_less_than_the_one_that_serves_is_refused(
    brighten: str, gate: threading.Event, said: Log, change: dict[str, object], reason: str
) -> None:
    with open_engine("auto", brighten, OPTIONS) as engine:
        Built.change = change
        gate.set()
        assert reason in said.wait_for("failed")
        assert engine.spec.backend == "openvino/CPU f32"
    assert Built.opened[0].closed.is_set()


def test_one_that_finds_no_memory_beside_the_one_that_serves_is_not_built_for_smaller_tiles(
    brighten: str, gate: threading.Event, said: Log
) -> None:
    asked: list[int] = []

    def fail(options: EngineOptions) -> None:
        asked.append(options.tile_px)
        raise DeviceMemoryError("no memory left on the device")

    Built.fail = fail
    with open_engine("auto", brighten, OPTIONS):
        gate.set()
        assert said.wait_for("failed") == "built failed: no memory left on the device; openvino/CPU f32 serves on"
    assert asked == [64]


def test_an_engine_is_built_for_the_tiles_that_the_one_that_serves_could_take(
    brighten: str, gate: threading.Event, said: Log
) -> None:
    def fail(options: EngineOptions) -> None:
        if options.tile_px > 256:
            raise DeviceMemoryError("no memory left on the device")

    Built.cached, Built.fail = True, fail
    gate.set()
    with open_engine("auto", brighten, replace(OPTIONS, tile_px=1024)) as engine:
        assert engine.spec.tile == (256, 256)
        for _ in range(BATCHES_BEFORE_REBUILD):
            restore(engine, frames(1, 8, 8))
        said.wait_for("built for tiles of 8x8 is ready")


def test_what_frames_were_planned_by_stays_when_the_new_engine_could_take_more(
    brighten: str, gate: threading.Event, said: Log
) -> None:
    with open_engine("auto", brighten, OPTIONS) as engine:
        before = engine.spec
        Built.base = lambda model, options: OpenVinoEngine(model, replace(options, tile_px=128, slots=5))
        Built.change = {"best_batch": 8, "max_batch": 8}
        gate.set()
        said.wait_for("built serves now")
        assert engine.spec == replace(before, backend="built", best_batch=8, max_batch=8, sizes=())
        with pytest.raises(EngineError, match="at most 64x64"):
            engine.submit(frames(1, 128, 128))


# Sizes.


def test_a_size_that_comes_often_is_built_for_once(brighten: str, gate: threading.Event, said: Log) -> None:
    Built.cached = True
    with open_engine("auto", brighten, OPTIONS) as engine:
        assert engine.spec.sizes == ()
        for _ in range(BATCHES_BEFORE_REBUILD - 1):
            restore(engine, frames(1, 32, 48))
        assert not said.count("prepared")
        for _ in range(2 * BATCHES_BEFORE_REBUILD):
            restore(engine, frames(1, 32, 48))
        assert said.wait_for("prepared") == "built for tiles of 48x32 is being prepared; built serves meanwhile"
        gate.set()
        said.wait_for("built for tiles of 48x32 is ready")
        assert engine.spec.sizes == ((32, 48),)
        assert Built.opened[0].closed.wait(WAIT_S)
        for _ in range(2 * BATCHES_BEFORE_REBUILD):
            restore(engine, frames(1, 32, 48))
    assert len(Built.opened) == 2


def test_the_latest_sizes_are_kept_and_none_is_asked_for_twice(brighten: str, gate: threading.Event, said: Log) -> None:
    Built.cached = True
    gate.set()
    sizes = [(height, 8) for height in range(8, 8 + 4 * (SIZES_KEPT + 1), 4)]
    with open_engine("auto", brighten, OPTIONS) as engine:
        for number, (height, width) in enumerate(sizes):
            for _ in range(BATCHES_BEFORE_REBUILD):
                restore(engine, frames(1, height, width))
            said.wait_for("serves now", times=number + 1)
            assert Built.opened[number].closed.wait(WAIT_S)
        assert engine.spec.sizes == tuple(sizes[-SIZES_KEPT:])
        for _ in range(2 * BATCHES_BEFORE_REBUILD):
            restore(engine, frames(1, *sizes[0]))
    assert len(Built.opened) == 1 + len(sizes)


def test_a_build_that_fails_is_not_tried_again_for_its_size_but_for_another(
    brighten: str, gate: threading.Event, said: Log
) -> None:
    def fail(options: EngineOptions) -> None:
        if options.sizes == ((8, 8),):
            raise EngineError("no such tactic")

    Built.cached, Built.fail = True, fail
    gate.set()
    with open_engine("auto", brighten, OPTIONS) as engine:
        for _ in range(3 * BATCHES_BEFORE_REBUILD):
            restore(engine, frames(1, 8, 8))
        assert said.wait_for("failed") == "built for tiles of 8x8 failed: no such tactic; built serves on"
        for _ in range(3 * BATCHES_BEFORE_REBUILD):
            restore(engine, frames(1, 16, 8))
        said.wait_for("built for tiles of 8x16 is ready")
        assert engine.spec.sizes == ((16, 8),)
    assert said.count("8x8 is being prepared") == 1


def test_the_greatest_tile_needs_no_build_of_its_own(brighten: str, said: Log) -> None:
    Built.cached = True
    with open_engine("auto", brighten, OPTIONS) as engine:
        for _ in range(2 * BATCHES_BEFORE_REBUILD):
            restore(engine, frames(1, 64, 64))
    assert not said.count("prepared")


def test_one_engine_is_prepared_at_a_time(brighten: str, gate: threading.Event, said: Log) -> None:
    Built.cached = True
    with open_engine("auto", brighten, OPTIONS) as engine:
        for height in (8, 16, 24):
            for _ in range(2 * BATCHES_BEFORE_REBUILD):
                restore(engine, frames(1, height, 8))
        said.wait_for("prepared")
        assert isinstance(engine, Standby)
        engine.prepare(((40, 8),))
        gate.set()
        said.wait_for("serves now")
    assert said.count("prepared") == 1


# The end.


def test_closing_during_a_build_refuses_batches_at_once_and_waits_for_the_build(
    brighten: str, gate: threading.Event, said: Log
) -> None:
    engine = open_engine("auto", brighten, OPTIONS)
    said.wait_for("prepared")
    closing = in_thread(engine.close)
    said.wait_for("waiting for built: a build cannot be interrupted")
    with pytest.raises(EngineError, match="closed"):
        engine.submit(frames(1, 8, 8))
    assert closing.is_alive()
    gate.set()
    assert ended(closing)
    assert Built.opened[0].closed.is_set()
    assert not said.count("serves now")
    assert not [thread.name for thread in threading.enumerate() if "build" in thread.name]


def test_a_batch_in_flight_is_still_delivered_when_a_closing_engine_waits_for_a_build(
    brighten: str, gate: threading.Event, said: Log
) -> None:
    engine = open_engine("auto", brighten, OPTIONS)
    ticket = engine.submit(frames(1, 8, 8))
    closing = in_thread(engine.close)
    with ticket.result() as result:
        np.testing.assert_array_equal(result.frames, models.brightened(frames(1, 8, 8)))
    gate.set()
    assert ended(closing)


def test_nothing_is_prepared_after_the_end(brighten: str, said: Log) -> None:
    Built.cached = True
    engine = open_engine("auto", brighten, OPTIONS)
    assert isinstance(engine, Standby)
    engine.close()
    engine.prepare(((8, 8),))
    assert not said.count("prepared")


# The whole contract, over an engine that was swapped once.


def _contract() -> ModuleType:
    spec = importlib.util.spec_from_file_location("contract", Path(__file__).with_name("test_contract.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["contract"] = module
    spec.loader.exec_module(module)
    return module


contract = _contract()
globals().update(
    {name: value for name, value in vars(contract).items() if name.startswith("test_") and "back_end" not in name}
)


def swapped(path: Path, said: Log) -> Engine:
    Built.gate.set()
    engine = open_engine("auto", str(path), OPTIONS)
    said.wait_for("built serves now")
    return engine


@pytest.fixture
def case(tmp_path: Path, said: Log) -> Iterator[object]:
    with swapped(models.write_model(tmp_path, models.brighten_onnx()), said) as engine:
        yield contract.Case(engine, models.brightened)


@pytest.fixture
def echo(tmp_path: Path, said: Log) -> Iterator[Engine]:
    path = models.write_model(tmp_path, models.echo_onnx(), name="echo", states=(models.STATE,))
    with swapped(path, said) as engine:
        yield engine


@pytest.fixture
def whole(tmp_path: Path, said: Log) -> Iterator[object]:
    path = models.write_model(tmp_path, models.centre_onnx(), overlap_px=0, whole_frame=True)
    with swapped(path, said) as engine:
        yield contract.Case(engine, models.centred)
