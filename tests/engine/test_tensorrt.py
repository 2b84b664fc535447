"""The TensorRT engine where there is no GPU: NVIDIA's own classes with our memory behind them, and a real builder.

`tensorrt_double` says what stands in for what. What needs a GPU carries the marker `gpu`.
"""

from __future__ import annotations

import gc
import importlib.util
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import models
import numpy as np
import pytest
import tensorrt_double
from tensorrt_double import Double

from engine.backends import open_engine
from engine.errors import DeviceMemoryError, EngineError, ModelError
from engine.model import Manifest, Model, Precision, load_model, shipped_models
from engine.protocol import EngineOptions, Frames
from engine.residual import floating
from engine.tensorrt.engine import TensorRtEngine
from engine.tensorrt.library import MODULES, Library
from engine.tensorrt.plan import build
from engine.tensorrt.profiles import Profiles, fitted
from engine.tensorrt.slot import SHAPES_KEPT

OPTIONS = EngineOptions(tile_px=64)


@pytest.fixture
def double() -> Iterator[Double]:
    with tensorrt_double.installed() as double:
        yield double


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return load_model(str(models.write_model(tmp_path, models.brighten_onnx())))


@pytest.fixture
def recurrent(tmp_path: Path) -> Model:
    return load_model(str(models.write_model(tmp_path, models.echo_onnx(), states=(models.STATE,))))


def frames(*shape: int, seed: int = 0) -> Frames:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


def restore(engine: TensorRtEngine, batch: Frames) -> Frames:
    with engine.submit(batch).result() as result:
        return result.frames.copy()


# Plans and their cache


def test_a_plan_is_built_once_and_comes_from_the_cache_afterwards(
    double: Double, model: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = replace(OPTIONS, cache=tmp_path / "cache")
    assert TensorRtEngine.must_build(model, options)
    with caplog.at_level(logging.INFO):
        TensorRtEngine(model, options).close()
    assert "building tiny for Host GPU with tensorrt" in caplog.text
    assert "built in" in caplog.text
    assert not TensorRtEngine.must_build(model, options)
    TensorRtEngine(model, options).close()
    assert double.builds == 1


def test_without_a_cache_it_is_built_every_time(double: Double, model: Model) -> None:
    for _ in range(2):
        assert TensorRtEngine.must_build(model, OPTIONS)
        TensorRtEngine(model, OPTIONS).close()
    assert double.builds == 2


def test_a_cache_folder_that_is_open_to_others_is_not_used(
    double: Double, model: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o755)
    options = replace(OPTIONS, cache=folder)
    assert TensorRtEngine.must_build(model, options)
    TensorRtEngine(model, options).close()
    assert "closed to others (mode 0700), got 0755; nothing is kept for the next start" in caplog.text
    assert not list(folder.iterdir())


def another_gpu(double: Double) -> None:
    double.device.name = "Other GPU"


def another_capability(double: Double) -> None:
    double.device.capability = (12, 0)


@pytest.mark.parametrize("change", [another_gpu, another_capability])
def test_another_gpu_gets_a_plan_of_its_own(
    double: Double, model: Model, tmp_path: Path, change: Callable[[Double], None]
) -> None:
    options = replace(OPTIONS, cache=tmp_path / "cache")
    TensorRtEngine(model, options).close()
    change(double)
    tensorrt_double.forget_devices()
    assert TensorRtEngine.must_build(model, options)
    TensorRtEngine(model, options).close()
    assert double.builds == 2


@pytest.mark.parametrize("change", [{"tile_px": 128}, {"sizes": ((32, 48),)}])
def test_other_shapes_get_a_plan_of_their_own(
    double: Double, model: Model, tmp_path: Path, change: dict[str, object]
) -> None:
    options = replace(OPTIONS, cache=tmp_path / "cache")
    TensorRtEngine(model, options).close()
    assert TensorRtEngine.must_build(model, replace(options, **change))  # type: ignore[arg-type]


def test_a_plan_that_the_library_does_not_take_is_built_anew(double: Double, model: Model, tmp_path: Path) -> None:
    options = replace(OPTIONS, cache=tmp_path / "cache")
    TensorRtEngine(model, options).close()
    double.library = "another build of the same version"
    with TensorRtEngine(model, options) as engine:
        batch = frames(1, 16, 16)
        np.testing.assert_array_equal(restore(engine, batch), models.brightened(batch))
    assert double.builds == 2


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: data[:200] + b"\0" + data[201:]])
def test_the_library_never_sees_a_damaged_plan(
    double: Double, model: Model, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    options = replace(OPTIONS, cache=tmp_path / "cache")
    TensorRtEngine(model, options).close()
    for path in (tmp_path / "cache").glob("*.entry"):
        path.write_bytes(damage(path.read_bytes()))
    TensorRtEngine(model, options).close()
    assert double.builds == 2


def test_a_build_profits_from_what_the_one_before_learnt(double: Double, model: Model, tmp_path: Path) -> None:
    options = replace(OPTIONS, cache=tmp_path / "cache")
    TensorRtEngine(model, options).close()
    TensorRtEngine(model, replace(options, tile_px=128)).close()
    assert double.timings == [b"", b"learnt"]


def test_sizes_get_profiles_of_their_own_and_others_still_run(double: Double, model: Model) -> None:
    with TensorRtEngine(model, replace(OPTIONS, sizes=((32, 48), (16, 16)))) as engine:
        assert engine.spec.sizes == ((32, 48), (16, 16))
        for batch in (frames(1, 32, 48), frames(4, 16, 16), frames(2, 64, 64), frames(1, 4, 4)):
            np.testing.assert_array_equal(restore(engine, batch), models.brightened(batch))


# Running


def test_batches_run_as_a_graph_from_the_second_of_a_shape_on(double: Double, model: Model) -> None:
    with TensorRtEngine(model, replace(OPTIONS, slots=1)) as engine:
        for number, launches in enumerate([0, 1, 2]):
            batch = frames(2, 32, 48, seed=number)
            np.testing.assert_array_equal(restore(engine, batch), models.brightened(batch))
            assert double.device.launches == launches


def test_where_nothing_can_be_captured_batches_run_as_they_are(double: Double, model: Model) -> None:
    double.captures_work = False
    with TensorRtEngine(model, replace(OPTIONS, slots=1)) as engine:
        for seed in range(3):
            batch = frames(1, 16, 16, seed=seed)
            np.testing.assert_array_equal(restore(engine, batch), models.brightened(batch))
    assert not double.device.launches


def test_without_cuda_bindings_batches_run_as_they_are(
    double: Double, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with TensorRtEngine(model, replace(OPTIONS, slots=1)) as engine:
        for seed in range(3):
            batch = frames(1, 16, 16, seed=seed)
            np.testing.assert_array_equal(restore(engine, batch), models.brightened(batch))
    assert not double.device.launches


def test_a_graph_outlives_batches_of_other_shapes(double: Double, model: Model) -> None:
    with TensorRtEngine(model, replace(OPTIONS, slots=1)) as engine:
        for seed in range(3):
            for shape in ((1, 16, 16), (2, 32, 16), (1, 64, 64)):
                batch = frames(*shape, seed=seed)
                np.testing.assert_array_equal(restore(engine, batch), models.brightened(batch))
    assert double.device.launches == 6


def test_memory_stays_bounded_however_many_shapes_come(double: Double, model: Model) -> None:
    with TensorRtEngine(model, replace(OPTIONS, slots=1)) as engine:
        used = []
        for height in range(4, 68, 4):
            batch = frames(1, height, 64)
            np.testing.assert_array_equal(restore(engine, batch), models.brightened(batch))
            used.append(double.device.used)
        row = used[0] // 4  # bytes for one row of pixels
        assert used[-1] == row * sum(range(68 - 4 * SHAPES_KEPT, 68, 4))
    assert not double.device.used


def test_a_result_that_outlives_its_engine_leaks_nothing(double: Double, model: Model) -> None:
    with TensorRtEngine(model, OPTIONS) as engine:
        result = engine.submit(frames(1, 16, 16)).result()
        result.release()
    del engine, result
    gc.collect()
    assert not double.device.leaks


def test_a_ticket_that_is_asked_after_the_engine_was_closed_gives_its_batch(
    double: Double, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = TensorRtEngine(model, OPTIONS)
    batch = frames(1, 16, 16)
    ticket = engine.submit(batch)
    monkeypatch.setattr(type(engine._slots), "close", lambda self: None)  # its patience is over
    engine.close()
    with ticket.result() as result:
        np.testing.assert_array_equal(result.frames, models.brightened(batch))


def test_an_engine_is_used_and_closed_by_other_threads_than_made_it(double: Double, recurrent: Model) -> None:
    engine = TensorRtEngine(recurrent, OPTIONS)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            states = None
            for seed in range(20):
                with engine.submit(frames(1, 16, 16, seed=seed), states).result() as result:
                    states = result.states
        except BaseException as error:  # noqa: BLE001 - the thread's edge
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    closer = threading.Thread(target=engine.close)
    closer.start()
    closer.join(60)
    gc.collect()
    assert not failures
    assert not double.device.used


def test_the_memory_of_forgotten_histories_serves_again(double: Double, recurrent: Model) -> None:
    with TensorRtEngine(recurrent, OPTIONS) as engine:
        states, used = None, []
        for seed in range(50):
            with engine.submit(frames(1, 16, 16, seed=seed), states).result() as result:
                states = result.states
            used.append(double.device.used)
        assert used[-1] == used[10]


def test_a_history_that_outlives_its_engine_still_gives_its_memory_back(double: Double, recurrent: Model) -> None:
    with TensorRtEngine(recurrent, OPTIONS) as engine, engine.submit(frames(1, 16, 16)).result() as result:
        states = result.states
    assert double.device.used
    del states, result
    gc.collect()
    assert not double.device.used


def test_a_history_is_not_overwritten_while_another_slot_still_reads_it(double: Double, recurrent: Model) -> None:
    """The handle dies while the batch that reads it waits in its stream; its memory is wanted at once."""
    with TensorRtEngine(recurrent, OPTIONS) as engine:
        with engine.submit(np.full((1, 8, 8, 3), 40, np.uint8)).result() as result:
            states = result.states
        reading = engine.submit(np.full((1, 8, 8, 3), 100, np.uint8), states)
        del states, result
        gc.collect()
        with engine.submit(np.full((1, 8, 8, 3), 7, np.uint8)).result() as result:
            assert result.frames[0, 0, 0, 0] == 7
        with reading.result() as result:
            assert result.frames[0, 0, 0, 0] == 100 + 40 // 2


def test_a_history_of_another_engine_is_refused(double: Double, recurrent: Model) -> None:
    with (
        TensorRtEngine(recurrent, OPTIONS) as one,
        TensorRtEngine(recurrent, OPTIONS) as other,
        one.submit(frames(1, 8, 8)).result() as result,
        pytest.raises(EngineError, match="that this engine gave"),
    ):
        other.submit(frames(1, 8, 8), result.states)


# Memory


def test_where_memory_is_short_tiles_become_smaller(
    double: Double, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    double.device.memory_bytes = 30_000_000
    with open_engine("tensorrt", str(model.path), EngineOptions(tile_px=2048)) as engine:
        assert engine.spec.tile == (512, 512)
        assert engine.spec.best_batch == 1
        batch = frames(1, 512, 512)
        np.testing.assert_array_equal(restore(engine, batch), models.brightened(batch))  # type: ignore[arg-type]
    assert "cuda:0 has too little memory" in caplog.text
    assert "trying tiles of 1024 px instead of 2048" in caplog.text
    assert not double.device.used


def test_where_memory_is_short_batches_become_smaller_first(double: Double, model: Model) -> None:
    double.device.memory_bytes = 500_000
    with TensorRtEngine(model, OPTIONS) as engine:
        assert engine.spec.best_batch == 1
    double.device.memory_bytes = 700_000
    with TensorRtEngine(model, OPTIONS) as engine:
        assert engine.spec.best_batch == 2
    assert not double.device.used


def test_where_there_is_no_memory_for_any_tile_the_engine_is_refused(double: Double, model: Model) -> None:
    double.device.memory_bytes = 1_000_000
    with pytest.raises(EngineError, match=r"too little memory: 0 of 0 MB are free; no smaller tile is left to try$"):
        open_engine("tensorrt", str(model.path), EngineOptions(tile_px=512))
    assert not double.device.used


def test_a_frame_that_finds_no_memory_is_refused_and_takes_no_slot(double: Double, model: Model) -> None:
    with TensorRtEngine(model, OPTIONS) as engine:
        double.device.memory_bytes = double.device.used
        for _ in range(engine.spec.slots + 1):
            with pytest.raises(DeviceMemoryError, match="too little memory"):
                engine.submit(frames(1, 64, 64))
        double.device.memory_bytes = 1 << 30
        batch = frames(1, 64, 64)
        np.testing.assert_array_equal(restore(engine, batch), models.brightened(batch))


# What cannot be


def test_devices_are_named_as_cuda_names_them(double: Double, model: Model) -> None:
    for name in ("auto", "cuda", "cuda:0"):
        with TensorRtEngine(model, replace(OPTIONS, device=name)) as engine:
            assert engine.spec.backend == "tensorrt/cuda:0 f32"
    for name in ("cuda:1", "cpu", "GPU", "cuda:", "cuda:x"):
        with pytest.raises(EngineError, match=f"device must be auto, cuda, or cuda:0 to cuda:0, got '{name}'"):
            TensorRtEngine(model, replace(OPTIONS, device=name))


@pytest.mark.parametrize("precision", ["bf16", "f16", "int8", "f64"])
def test_a_precision_that_the_model_has_no_graph_for_is_refused(double: Double, model: Model, precision: str) -> None:
    with pytest.raises(EngineError, match=f"precision must be auto or f32 for model 'tiny' .*, got '{precision}'"):
        TensorRtEngine(model, replace(OPTIONS, precision=precision))


def test_without_a_gpu_the_reason_is_said(model: Model) -> None:
    from engine.driver import why_no_gpu

    reason = why_no_gpu()
    if reason is None:
        pytest.skip("there is a GPU")
    with pytest.raises(EngineError) as caught:
        TensorRtEngine(model, OPTIONS)
    assert str(caught.value) == f"TensorRT needs an NVIDIA GPU: {reason}"


def test_without_the_library_it_is_named(double: Double, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in MODULES:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(EngineError, match=r"^tensorrt does not import "):
        TensorRtEngine(model, OPTIONS)


def test_without_pycuda_it_is_named(double: Double, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    with pytest.raises(EngineError, match=r"^TensorRT needs pycuda, which does not import "):
        TensorRtEngine(model, OPTIONS)


# The real builder of TensorRT-RTX, which needs no GPU to build


@pytest.fixture
def rtx() -> Library:
    if importlib.util.find_spec("tensorrt_rtx_bindings") is None:
        pytest.skip("needs a builder: pip install tensorrt-rtx-cu13-bindings tensorrt-rtx-cu13-libs")
    return Library(("tensorrt_rtx", "tensorrt_rtx_bindings"))


@pytest.mark.parametrize("name", shipped_models())
def test_every_graph_of_the_shipped_models_builds_for_the_tiles_of_production(rtx: Library, name: str) -> None:
    model = load_model(name)
    profiles = Profiles.of(model.manifest, model.manifest.tile(2048), 4, [(720, 1280), (1088, 1920)])
    for precision in {"f32", *model.manifest.graphs}:
        plan, _ = build(rtx, model, precision, profiles, b"")  # type: ignore[arg-type]
        assert len(plan) > model.manifest.parameters


def test_a_recurrent_graph_builds(rtx: Library, recurrent: Model) -> None:
    assert build(rtx, recurrent, "f32", Profiles.of(recurrent.manifest, (64, 64), 4), b"")[0]


@pytest.mark.parametrize("precision", ["f32", "f16"])
def test_the_float_variant_of_a_shipped_model_builds(rtx: Library, precision: Precision) -> None:
    model = floating(load_model("fast"))
    assert build(rtx, model, precision, Profiles.of(model.manifest, (64, 64), 4), b"")[0]


def test_the_float_variant_of_a_recurrent_graph_builds(rtx: Library, recurrent: Model) -> None:
    model = floating(recurrent)
    assert build(rtx, model, "f32", Profiles.of(model.manifest, (64, 64), 4), b"")[0]


def test_what_an_earlier_build_learnt_is_taken_whatever_it_is(rtx: Library, model: Model) -> None:
    profiles = Profiles.of(model.manifest, (64, 64), 4)
    _, learnt = build(rtx, model, "f32", profiles, b"")
    for timing in (learnt, b"not a timing cache"):
        assert build(rtx, model, "f32", profiles, timing)[0]


def damaged(model: Model, onnx: bytes) -> str:
    with pytest.raises(EngineError) as caught:
        build(Library(("tensorrt_rtx", "tensorrt_rtx_bindings")), replace(model, onnx=onnx), "f32",
              Profiles.of(model.manifest, (64, 64), 4), b"")  # fmt: skip
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_truncated_graph_is_refused(rtx: Library, model: Model) -> None:
    assert "does not take the graph" in damaged(model, model.onnx[: len(model.onnx) // 2])


def test_bytes_that_are_no_graph_are_refused(rtx: Library, model: Model) -> None:
    assert "got nothing and nothing" in damaged(model, b"")


def test_an_unknown_operator_is_refused_by_its_name(rtx: Library, model: Model) -> None:
    assert "Ronud" in damaged(model, model.onnx.replace(b"Round", b"Ronud"))


def test_a_graph_of_other_tensors_is_refused_by_their_names(rtx: Library, model: Model) -> None:
    line = damaged(model, model.onnx.replace(b"restored", b"repaired"))
    assert "must take frames and give restored" in line
    assert "repaired" in line


def test_profiles_that_a_graph_cannot_meet_are_refused(rtx: Library, model: Model) -> None:
    wrong = Profiles.of(model.manifest, (64, 64), 4)
    (ranges,) = wrong.ranges
    least, usual, greatest = ranges["frames"]
    with pytest.raises(EngineError, match=r"refuses the frame sizes|cannot build"):
        build(rtx, model, "f32", replace(wrong, ranges=({"frames": (greatest, usual, least)},)), b"")


# Profiles


def manifest(**facts: object) -> Manifest:
    return Manifest(id="m", file="m.onnx", sha256="0" * 64, overlap_px=0, **{"stride": 16, **facts})  # type: ignore[arg-type]


def test_the_general_profile_takes_everything_up_to_the_tile() -> None:
    profiles = Profiles.of(manifest(), (2048, 2048), 4)
    assert profiles.ranges == ({"frames": ((1, 16, 16, 3), (1, 720, 1280, 3), (4, 2048, 2048, 3))},)
    assert Profiles.of(manifest(), (512, 512), 4).ranges[0]["frames"][1] == (1, 512, 512, 3)


def test_a_size_gets_a_profile_before_the_general_one() -> None:
    profiles = Profiles.of(manifest(), (2048, 2048), 4, [(720, 1280), (720, 1280)])
    assert profiles.sizes == ((720, 1280),)
    assert profiles.ranges[0]["frames"] == ((1, 720, 1280, 3), (1, 720, 1280, 3), (4, 720, 1280, 3))
    assert (profiles.index(720, 1280), profiles.index(704, 1280)) == (0, 1)


def test_a_model_of_one_tile_has_one_profile() -> None:
    profiles = Profiles.of(manifest(fixed_tile=(256, 512)), (256, 512), 4, [(256, 512), (64, 64)])
    assert profiles.sizes == ()
    assert profiles.ranges == ({"frames": ((1, 256, 512, 3), (1, 256, 512, 3), (4, 256, 512, 3))},)


def test_states_have_ranges_of_their_own() -> None:
    profiles = Profiles.of(manifest(states=(models.STATE,)), (64, 64), 4)
    assert profiles.ranges[0]["history"] == ((1, 3, 8, 8), (1, 3, 32, 32), (4, 3, 32, 32))


def test_sides_that_the_graph_has_fixed_stay() -> None:
    wanted = ((1, 16, 16, 3), (1, 32, 32, 3), (4, 64, 64, 3))
    assert fitted((2, -1, -1, 3), wanted) == ((2, 16, 16, 3), (2, 32, 32, 3), (2, 64, 64, 3))


def test_a_model_of_another_kind_is_a_model_error(rtx: Library, model: Model) -> None:
    with pytest.raises(ModelError):
        build(rtx, replace(model, onnx=b"\x08\x09"), "f32", Profiles.of(model.manifest, (64, 64), 4), b"")
