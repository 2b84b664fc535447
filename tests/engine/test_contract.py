"""What every engine promises, checked on every back-end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import models
import numpy as np
import pytest
import tensorrt_double
from numpy.typing import NDArray

from daemon.tiles import TilePlan
from engine.backends import BACKENDS, open_engine
from engine.errors import EngineError
from engine.protocol import Engine, EngineOptions, Frames, Levels

OPTIONS = EngineOptions(precision="f32", slots=2, tile_px=64)
STAND_IN = "tensorrt on a stand-in"
"""Everything of ours, on a TensorRT and a CUDA device made of host memory: `tensorrt_double`, `cuda_double`."""
DEVICES = {"openvino": "CPU", "torch": "cpu", STAND_IN: "auto", "torch on CUDA": "cuda", "tensorrt": "cuda"}
COMPUTING = [pytest.param(name, marks=[pytest.mark.gpu] if DEVICES[name] == "cuda" else []) for name in DEVICES]


@contextmanager
def opened(name: str, path: Path) -> Iterator[Engine]:
    """Back-end `name` on a model, at the smallest tiles."""
    with ExitStack() as stack:
        double = stack.enter_context(tensorrt_double.installed()) if name == STAND_IN else None
        options = replace(OPTIONS, device=DEVICES.get(name, "auto"))
        yield stack.enter_context(open_engine(name.split()[0], str(path), options))
        stack.close()
        assert double is None or not double.device.used  # all device memory was given back


@dataclass(frozen=True)
class Case:
    """An engine, and what it must make of a batch."""

    engine: Engine
    expected: Callable[[Frames], Frames]


@pytest.fixture(params=["identity", *COMPUTING])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Case]:
    path = models.write_model(tmp_path, models.brighten_onnx())
    with opened(request.param, path) as engine:
        yield Case(engine, (lambda frames: frames) if request.param == "identity" else models.brightened)


@pytest.fixture(params=COMPUTING)
def echo(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    path = models.write_model(tmp_path, models.echo_onnx(), states=(models.STATE,))
    with opened(request.param, path) as engine:
        yield engine


@pytest.fixture(params=["identity", *COMPUTING])
def whole(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Case]:
    """A model that may not be tiled, on an engine that was told to cut frames at 64 px."""
    path = models.write_model(tmp_path, models.centre_onnx(), overlap_px=0, whole_frame=True)
    with opened(request.param, path) as engine:
        yield Case(engine, (lambda frames: frames) if request.param == "identity" else models.centred)


def test_every_back_end_is_held_to_the_contract() -> None:
    assert {"identity", *(name.split()[0] for name in DEVICES)} == set(BACKENDS)


def frames(*shape: int, seed: int = 0) -> Frames:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


def flat(*levels: int) -> Frames:
    """One grey frame for each level."""
    return np.stack([np.full((8, 8, 3), level, np.uint8) for level in levels])


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 32, 64), (4, 64, 8)])
def test_a_batch_of_any_allowed_shape_comes_back_restored(case: Case, shape: tuple[int, int, int]) -> None:
    batch = frames(*shape)
    with case.engine.submit(batch).result() as result:
        assert result.frames.dtype == np.uint8
        np.testing.assert_array_equal(result.frames, case.expected(batch))
        assert len(result.states) == len(batch)


@pytest.mark.parametrize(("height", "width"), [(48, 64), (70, 91), (1, 300), (180, 320)])
def test_a_model_that_may_not_be_tiled_takes_every_frame_in_one_piece(whole: Case, height: int, width: int) -> None:
    spec = whole.engine.spec
    assert spec.whole_frame
    plan = TilePlan.for_frame(height, width, stride=spec.stride, limit=spec.tile, overlap=spec.overlap_px)
    tiles = plan.split(frames(height, width))
    assert len(tiles) == 1
    with whole.engine.submit(tiles).result() as result:
        np.testing.assert_array_equal(result.frames, whole.expected(tiles))
        assert plan.merge(result.frames).shape == (height, width, 3)


def test_the_spec_tells_whether_frames_must_come_whole(case: Case) -> None:
    assert not case.engine.spec.whole_frame


def test_a_view_into_a_larger_frame_is_taken_as_it_looks(case: Case) -> None:
    batch = frames(1, 48, 48)[:, 8:40:2, 4:36, ::-1]
    with case.engine.submit(batch).result() as result:
        np.testing.assert_array_equal(result.frames, case.expected(batch))


def test_each_ticket_gives_its_own_batch_whatever_the_order_of_asking(case: Case) -> None:
    batches = [frames(1, 16, 16, seed=seed) for seed in range(case.engine.spec.slots)]
    tickets = [case.engine.submit(batch) for batch in batches]
    for batch, ticket in reversed(list(zip(batches, tickets, strict=True))):
        with ticket.result() as result:
            np.testing.assert_array_equal(result.frames, case.expected(batch))


def test_batches_of_different_sizes_are_in_flight_together(case: Case) -> None:
    small, large = frames(1, 8, 8), frames(2, 32, 16)
    first, second = case.engine.submit(small), case.engine.submit(large)
    with first.result() as a, second.result() as b:
        np.testing.assert_array_equal(a.frames, case.expected(small))
        np.testing.assert_array_equal(b.frames, case.expected(large))


def test_a_result_stands_while_other_slots_work(case: Case) -> None:
    batch = frames(1, 16, 16)
    with case.engine.submit(batch).result() as kept:
        for seed in range(1, 8):
            case.engine.submit(frames(1, 16, 16, seed=seed)).result().release()
        np.testing.assert_array_equal(kept.frames, case.expected(batch))


def test_a_released_slot_serves_the_next_batch(case: Case) -> None:
    batch = frames(1, 8, 8)
    for _ in range(3 * case.engine.spec.slots):
        case.engine.submit(batch).result().release()


def test_releasing_twice_gives_one_slot_back(case: Case) -> None:
    held = [case.engine.submit(frames(1, 8, 8)).result() for _ in range(case.engine.spec.slots)]
    held[0].release()
    held[0].release()
    held[0] = case.engine.submit(frames(1, 8, 8)).result()
    waiting = _in_thread(lambda: case.engine.submit(frames(1, 8, 8)))
    closing = _in_thread(case.engine.close)
    assert isinstance(waiting(), EngineError)  # there was no second slot to take
    for result in held:
        result.release()
    assert closing() is None


def test_a_submit_beyond_the_slots_goes_on_when_one_is_released(case: Case) -> None:
    held = [case.engine.submit(frames(1, 8, 8)).result() for _ in range(case.engine.spec.slots)]
    outcome = _in_thread(lambda: case.engine.submit(frames(1, 8, 8)).result().release())
    held.pop().release()
    assert outcome() is None
    for result in held:
        result.release()


@pytest.mark.parametrize(
    ("batch", "rule"),
    [
        (np.zeros((1, 8, 8, 3), np.float64), "uint8 or float32"),
        (np.zeros((1, 8, 8, 4), np.float32), r"\(N, H, W, 3\)"),
        (np.zeros((8, 8, 3), np.uint8), r"\(N, H, W, 3\)"),
        (np.zeros((1, 8, 8, 4), np.uint8), r"\(N, H, W, 3\)"),
        (np.zeros((1, 8, 6, 3), np.uint8), "multiples of 4"),
        (np.zeros((1, 0, 8, 3), np.uint8), "multiples of 4"),
        (np.zeros((0, 8, 8, 3), np.uint8), "1 to 4 frames"),
        (np.zeros((5, 8, 8, 3), np.uint8), "1 to 4 frames"),
        (np.zeros((1, 8, 68, 3), np.uint8), "at most 64x64"),
    ],
)
def test_a_batch_that_the_spec_forbids_is_refused_and_takes_no_slot(
    case: Case, batch: NDArray[np.uint8], rule: str
) -> None:
    for _ in range(case.engine.spec.slots + 1):
        with pytest.raises(EngineError, match=rule):
            case.engine.submit(batch)
    case.engine.submit(frames(1, 8, 8)).result().release()


def test_states_must_be_one_per_frame(case: Case) -> None:
    with pytest.raises(EngineError, match="one per frame"):
        case.engine.submit(frames(2, 8, 8), [None])


def test_a_closed_engine_refuses_batches(case: Case) -> None:
    case.engine.close()
    with pytest.raises(EngineError, match="closed"):
        case.engine.submit(frames(1, 8, 8))


def test_closing_twice_is_allowed(case: Case) -> None:
    case.engine.close()
    case.engine.close()


def test_close_wakes_a_waiting_submit_and_waits_for_what_is_lent(case: Case) -> None:
    batch = frames(1, 8, 8)
    held = [case.engine.submit(batch).result() for _ in range(case.engine.spec.slots)]
    waiting = _in_thread(lambda: case.engine.submit(batch))
    closing = _in_thread(case.engine.close)
    assert isinstance(waiting(), EngineError)
    np.testing.assert_array_equal(held[0].frames, case.expected(batch))
    for result in held:
        result.release()
    assert closing() is None


def test_a_history_is_carried_from_frame_to_frame(echo: Engine) -> None:
    with echo.submit(flat(40)).result() as first:
        assert first.frames[0, 0, 0, 0] == 40
        states = first.states
    with echo.submit(flat(100), states).result() as second:
        assert second.frames[0, 0, 0, 0] == 100 + 40 // 2


def test_none_starts_a_history_afresh(echo: Engine) -> None:
    echo.submit(flat(40)).result().release()
    with echo.submit(flat(100), [None]).result() as result:
        assert result.frames[0, 0, 0, 0] == 100


def test_streams_mixed_in_one_batch_keep_their_own_histories(echo: Engine) -> None:
    with echo.submit(flat(40)).result() as result:
        (old,) = result.states
    with echo.submit(flat(100, 100), [None, old]).result() as result:
        assert [int(frame[0, 0, 0]) for frame in result.frames] == [100, 120]
        newer, older = result.states
    with echo.submit(flat(0, 0), [older, newer]).result() as result:
        assert [int(frame[0, 0, 0]) for frame in result.frames] == [60, 50]


def test_a_frame_that_is_dropped_leaves_no_trace(echo: Engine) -> None:
    with echo.submit(flat(40)).result() as result:
        states = result.states
    echo.submit(flat(200), states).result().release()
    with echo.submit(flat(100), states).result() as result:
        assert result.frames[0, 0, 0, 0] == 120


def test_a_history_of_another_size_is_refused_and_takes_no_slot(echo: Engine) -> None:
    with echo.submit(frames(1, 16, 16)).result() as result:
        states = result.states
    for _ in range(echo.spec.slots + 1):
        with pytest.raises(EngineError):
            echo.submit(flat(1), states)
    echo.submit(flat(1)).result().release()


def test_the_spec_tells_whether_there_is_a_history(case: Case, echo: Engine) -> None:
    assert not case.engine.spec.recurrent
    assert echo.spec.recurrent


def levels(*shape: int) -> Levels:
    """Levels of all fineness, white and black among them."""
    return np.clip(np.random.default_rng(1).uniform(-20, 275, (*shape, 3)), 0, 255).astype(np.float32)


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 32, 64)])
def test_levels_come_back_as_a_residual_neither_rounded_nor_clipped(case: Case, shape: tuple[int, int, int]) -> None:
    assert case.engine.spec.floating
    with case.engine.submit(levels(*shape)).result() as result:
        brighter = 0 if case.engine.spec.model == "identity" else models.BRIGHTER
        assert result.frames.dtype == np.float32
        np.testing.assert_allclose(result.frames, np.full((*shape, 3), brighter), atol=1e-4)


def test_frames_and_levels_are_in_flight_together(case: Case) -> None:
    batch = frames(1, 8, 8)
    first, second = case.engine.submit(levels(1, 8, 8)), case.engine.submit(batch)
    with first.result() as a, second.result() as b:
        assert a.frames.dtype == np.float32
        np.testing.assert_array_equal(b.frames, case.expected(batch))


def test_a_history_is_carried_through_levels(echo: Engine) -> None:
    with echo.submit(np.full((1, 8, 8, 3), 40.25, np.float32)).result() as first:
        np.testing.assert_allclose(first.frames, 0, atol=1e-4)
        states = first.states
    with echo.submit(np.full((1, 8, 8, 3), 100.5, np.float32), states).result() as second:
        np.testing.assert_allclose(second.frames, 40.25 / 2, atol=1e-4)


def test_a_closed_engine_refuses_levels(case: Case) -> None:
    case.engine.submit(levels(1, 8, 8)).result().release()
    case.engine.close()
    with pytest.raises(EngineError, match="closed"):
        case.engine.submit(levels(1, 8, 8))


@pytest.mark.parametrize("name", COMPUTING)
def test_a_graph_of_another_shape_takes_frames_alone(name: str, tmp_path: Path) -> None:
    with opened(name, models.write_model(tmp_path, models.brighten_half_onnx())) as engine:
        assert not engine.spec.floating
        with engine.submit(frames(1, 8, 8) // 2).result() as result:
            np.testing.assert_array_equal(result.frames, frames(1, 8, 8) // 2 + models.BRIGHTER)
        with pytest.raises(EngineError, match="must be uint8"):
            engine.submit(levels(1, 8, 8))


def _in_thread(call: Callable[[], object]) -> Callable[[], BaseException | None]:
    """Start `call`; the function returned waits for its end and tells what it raised."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except EngineError as error:
            raised.append(error)

    thread = threading.Thread(target=run, name="test-submit")
    thread.start()

    def end() -> BaseException | None:
        thread.join(30)
        assert not thread.is_alive()
        return raised[0] if raised else None

    return end
