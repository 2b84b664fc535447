"""What the torch engine adds to the contract: devices, precisions, where states live, and what fails on a GPU."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
torch = pytest.importorskip("torch")

from engine.backends import open_backend, open_engine  # noqa: E402
from engine.errors import DeviceMemoryError, EngineError, ModelError  # noqa: E402
from engine.model import PinnedFile, load_model  # noqa: E402
from engine.protocol import Engine, EngineOptions, Frames  # noqa: E402
from engine.torch.engine import TorchEngine  # noqa: E402

CPU = EngineOptions(device="cpu", precision="f32", tile_px=64)
HAS_BF16 = any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def frames(*shape: int, seed: int = 0) -> Frames:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


def picture(height: int, width: int) -> Frames:
    """Soft waves, (1, H, W, 3)."""
    y, x, c = np.ogrid[:height, :width, :3]
    return (128 + 100 * np.sin(x / (5 + c)) * np.cos(y / (9 - c))).astype(np.uint8)[None]


def restored(engine: Engine, batch: Frames) -> Frames:
    with engine.submit(batch).result() as result:
        return result.frames.copy()


def half_onnx() -> bytes:
    """`brighten_onnx` in float16, and one level darker, to tell the two apart."""
    graph = onnx.load_from_string(models.brighten_onnx())
    half = onnx.TensorProto.FLOAT16
    for constant in graph.graph.initializer:
        array = onnx.numpy_helper.to_array(constant) - (1 if constant.name == "bias" else 0)
        constant.CopyFrom(onnx.numpy_helper.from_array(array.astype(np.float16), constant.name))
    next(node for node in graph.graph.node if node.op_type == "Cast").attribute[0].i = half
    return bytes(graph.SerializeToString())


def model_of_all_precisions(folder: Path) -> str:
    half = half_onnx()
    (folder / "tiny.f16.onnx").write_bytes(half)
    graphs = {"f16": PinnedFile(file="tiny.f16.onnx", sha256=hashlib.sha256(half).hexdigest())}
    path = models.write_model(folder, models.brighten_onnx(), graphs=graphs, precisions=("f32", "bf16", "f16"))
    return str(path)


@pytest.fixture
def echo(tmp_path: Path) -> Iterator[TorchEngine]:
    path = models.write_model(tmp_path, models.echo_onnx(), states=(models.STATE,))
    with TorchEngine(load_model(str(path)), CPU) as engine:
        yield engine


@pytest.mark.parametrize(("precision", "psnr_db"), [("f32", 60), ("bf16", 48)])
def test_the_shipped_model_restores_as_it_does_in_openvino(precision: str, psnr_db: float) -> None:
    if precision == "bf16" and not HAS_BF16:
        pytest.skip("this processor has no bfloat16")
    batch = picture(128, 192)
    with (
        open_engine("openvino", "fast", EngineOptions(device="CPU", precision="f32")) as reference,
        open_engine("torch", "fast", replace(CPU, precision=precision, tile_px=256)) as engine,
    ):
        assert engine.spec.backend == f"torch/cpu {precision}"
        error = np.abs(restored(reference, batch).astype(int) - restored(engine, batch))
    assert error.max() <= (1 if precision == "f32" else 3)
    assert np.mean(np.square(error)) <= 255**2 / 10 ** (psnr_db / 10)


def test_float16_runs_the_graph_that_states_it(tmp_path: Path) -> None:
    model, batch = model_of_all_precisions(tmp_path), frames(2, 16, 16)
    with open_engine("torch", model, replace(CPU, precision="f16")) as engine:
        assert engine.spec.backend == "torch/cpu f16"
        np.testing.assert_array_equal(restored(engine, batch), np.minimum(batch.astype(int) + 9, 255))
    with open_engine("torch", model, CPU) as engine:
        np.testing.assert_array_equal(restored(engine, batch), models.brightened(batch))


def test_auto_on_a_processor_is_never_float16(tmp_path: Path) -> None:
    with open_engine("torch", model_of_all_precisions(tmp_path), replace(CPU, precision="auto")) as engine:
        assert engine.spec.backend in ("torch/cpu f32", "torch/cpu bf16")


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"device": "GPU"}, "torch device must be auto, cpu, cuda or cuda:N, got 'GPU'"),
        ({"device": "cuda:one"}, "torch device must be auto, cpu, cuda or cuda:N, got 'cuda:one'"),
        ({"device": "cuda:"}, "torch device must be auto, cpu, cuda or cuda:N, got 'cuda:'"),
        ({"precision": "int8"}, "precision must be auto, f32, bf16 or f16 on torch, got 'int8'"),
        (
            {"precision": "f16"},
            "precision must be auto or f32 or bf16 for model 'tiny', as its export proved no other, got 'f16'",
        ),
    ],
)
def test_a_device_or_precision_that_is_not_there_is_refused(tmp_path: Path, options: Any, rule: str) -> None:
    path = models.write_model(tmp_path, models.brighten_onnx())
    with pytest.raises(EngineError, match=f"^{rule}$"):
        open_engine("torch", str(path), replace(CPU, **options))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_gpu_without_cuda_is_refused_in_one_line(tmp_path: Path, device: str) -> None:
    path = models.write_model(tmp_path, models.brighten_onnx())
    with pytest.raises(EngineError, match=f"^torch device '{device}' needs CUDA; torch .* (sees no GPU|without CUDA)$"):
        open_engine("torch", str(path), replace(CPU, device=device))


def test_a_graph_without_the_states_of_its_manifest_is_refused(tmp_path: Path) -> None:
    path = models.write_model(tmp_path, models.brighten_onnx(), states=(models.STATE,))
    with pytest.raises(ModelError, match=r"must take frames, history and give history_out, restored, got frames and"):
        open_engine("torch", str(path), CPU)


def test_an_operator_that_is_not_known_is_refused_at_open(tmp_path: Path) -> None:
    graph = onnx.load_from_string(models.brighten_onnx())
    next(node for node in graph.graph.node if node.op_type == "Round").op_type = "Ceil"
    path = models.write_model(tmp_path, graph.SerializeToString())
    with pytest.raises(ModelError, match=r"tiny\.onnx: node 'rounded' \(Ceil\): the torch engine does not know"):
        open_engine("torch", str(path), CPU)


def test_a_read_only_frame_is_taken(tmp_path: Path) -> None:
    path = models.write_model(tmp_path, models.brighten_onnx())
    batch = frames(1, 8, 8)
    batch.flags.writeable = False
    with open_engine("torch", str(path), CPU) as engine:
        np.testing.assert_array_equal(restored(engine, batch), models.brightened(batch))


def only_8x8_onnx() -> bytes:
    """A graph that, against its manifest, runs at 8x8 only."""
    graph = onnx.load_from_string(models.brighten_onnx())
    shape = onnx.numpy_helper.from_array(np.array([-1, 3, 8, 8]), "shape")
    graph.graph.initializer.append(shape)
    place = next(i for i, node in enumerate(graph.graph.node) if node.op_type == "Conv")
    graph.graph.node[place].input[0] = "reshaped"
    graph.graph.node.insert(place, onnx.helper.make_node("Reshape", ["levels", "shape"], ["reshaped"]))
    graph.graph.node.insert(place + 2, onnx.helper.make_node("Add", ["sum", "levels"], ["both"]))
    return bytes(graph.SerializeToString())


def test_a_batch_that_fails_says_so_at_its_result_and_gives_its_slot_back(tmp_path: Path) -> None:
    path = models.write_model(tmp_path, only_8x8_onnx())
    with TorchEngine(load_model(str(path)), CPU) as engine:
        for _ in range(engine.spec.slots + 1):
            ticket = engine.submit(frames(1, 16, 16))
            with pytest.raises(EngineError, match=r"^torch failed on a batch: [^\n]+$"):
                ticket.result()
        np.testing.assert_array_equal(restored(engine, frames(1, 8, 8)), models.brightened(frames(1, 8, 8)))


def test_a_state_stays_as_it_was_while_later_batches_run(echo: TorchEngine) -> None:
    with echo.submit(np.full((1, 8, 8, 3), 40, np.uint8)).result() as result:
        states = result.states
    for level in (50, 100, 200):
        echo.submit(np.full((1, 8, 8, 3), level, np.uint8), states).result().release()
    with echo.submit(np.zeros((1, 8, 8, 3), np.uint8), states).result() as result:
        assert result.frames[0, 0, 0, 0] == 20


@pytest.mark.parametrize("state", [(np.zeros((1, 3, 4, 4), np.float32),), "history"])
def test_the_state_of_another_engine_is_refused_and_takes_no_slot(echo: TorchEngine, state: object) -> None:
    for _ in range(echo.spec.slots + 1):
        with pytest.raises(EngineError, match=r"a state must be one that this engine gave, got (tuple|str)"):
            echo.submit(frames(1, 8, 8), [state])
    echo.submit(frames(1, 8, 8)).result().release()


def test_a_state_of_another_size_is_refused_by_both_sizes(echo: TorchEngine) -> None:
    with echo.submit(frames(1, 16, 16)).result() as result:
        states = result.states
    with pytest.raises(EngineError, match=r"must be float32 \(1, 3, 4, 4\) on cpu, got float32 \(1, 3, 8, 8\) on cpu"):
        echo.submit(frames(1, 8, 8), states)


def test_an_engine_ends_its_threads(tmp_path: Path) -> None:
    path = models.write_model(tmp_path, models.brighten_onnx())
    before = set(threading.enumerate())
    with open_engine("torch", str(path), CPU) as engine:
        engine.submit(frames(1, 8, 8)).result().release()
        assert any(thread.name.startswith("torch-slot") for thread in set(threading.enumerate()) - before)
    assert set(threading.enumerate()) <= before


# On a GPU.

CUDA = replace(CPU, device="cuda", slots=2)


@pytest.fixture
def echo_on_gpu(tmp_path: Path) -> Iterator[TorchEngine]:
    path = models.write_model(tmp_path, models.echo_onnx(), states=(models.STATE,))
    with TorchEngine(load_model(str(path)), CUDA) as engine:
        yield engine


@pytest.mark.gpu
def test_a_cuda_graph_computes_what_its_network_does_without_one() -> None:
    from engine.torch.cuda import Capturing, CudaSlot

    model, options = load_model("fast"), EngineOptions(device="cuda", precision="f32", tile_px=256)
    with TorchEngine(model, options) as engine:
        capturing = Capturing()
        slots = [CudaSlot(engine._network, capturing), CudaSlot(engine._network, Capturing(works=False))]
        for seed, shape in enumerate([(1, 64, 96), (2, 128, 64), (1, 64, 96)]):
            batch = frames(*shape, seed=seed)
            graph, eager = (slot.start(batch, [None] * len(batch))()[0] for slot in slots)
            assert np.abs(graph.astype(int) - eager).max() <= 1  # two searches may choose two convolutions
        assert capturing.works, "the graph was not captured"
        for slot in slots:
            slot.close()


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "levels"), [("f32", 1), ("bf16", 3)])
def test_a_gpu_restores_as_a_processor_does(precision: str, levels: int) -> None:
    batch = picture(128, 192)
    with (
        open_engine("torch", "fast", replace(CPU, tile_px=256)) as reference,
        open_engine("torch", "fast", replace(CUDA, precision=precision, tile_px=256)) as engine,
    ):
        assert engine.spec.backend == f"torch/cuda:0 {precision}"
        error = np.abs(restored(reference, batch).astype(int) - restored(engine, batch))
    assert error.max() <= levels


@pytest.mark.gpu
def test_auto_on_a_gpu_is_the_float16_that_the_model_has(tmp_path: Path) -> None:
    options = EngineOptions(precision="auto", tile_px=64)
    with open_engine("torch", model_of_all_precisions(tmp_path), options) as engine:
        assert engine.spec.backend == "torch/cuda:0 f16"


@pytest.mark.gpu
def test_states_stay_on_the_device(echo_on_gpu: TorchEngine) -> None:
    with echo_on_gpu.submit(frames(2, 8, 8)).result() as result:
        for state in result.states:
            assert all(tensor.is_cuda for tensor in state.tensors)  # type: ignore[attr-defined,union-attr]


@pytest.mark.gpu
def test_histories_wander_between_slots_without_mixing(echo_on_gpu: TorchEngine) -> None:
    engine = echo_on_gpu
    levels = np.random.default_rng(0).integers(0, 100, (40, 4))
    expected = np.zeros(4)
    states: list[Any] = [None] * 4
    for row in levels:
        # Two batches in flight, the streams dealt out anew each time: a history is read on the other slot's stream.
        order = np.random.default_rng(int(row[0])).permutation(4)
        pairs = [order[:2], order[2:]]
        tickets = [
            engine.submit(np.stack([np.full((64, 64, 3), row[i], np.uint8) for i in pair]), [states[i] for i in pair])
            for pair in pairs
        ]
        expected = expected / 2 + row
        for pair, ticket in reversed(list(zip(pairs, tickets, strict=True))):
            with ticket.result() as result:
                for place, i in enumerate(pair):
                    states[i] = result.states[place]
                    assert abs(int(result.frames[place, 5, 5, 1]) - min(expected[i], 255)) <= 0.51


@pytest.mark.gpu
def test_more_shapes_than_are_kept_come_back_right(tmp_path: Path) -> None:
    path = models.write_model(tmp_path, models.brighten_onnx())
    with open_engine("torch", str(path), CUDA) as engine:
        for _ in range(2):
            for side in range(4, 64, 4):
                batch = frames(1, side, 8, seed=side)
                np.testing.assert_array_equal(restored(engine, batch), models.brightened(batch))


@pytest.mark.gpu
def test_submits_of_several_threads_keep_their_batches(tmp_path: Path) -> None:
    path = models.write_model(tmp_path, models.brighten_onnx())
    wrong: list[int] = []

    def work(engine: Engine, number: int) -> None:
        for seed in range(20):
            batch = frames(1 + seed % 3, 8 + 4 * number, 16, seed=seed)  # new shapes are captured beside the others
            if not np.array_equal(restored(engine, batch), models.brightened(batch)):
                wrong.append(number)

    with open_engine("torch", str(path), CUDA) as engine:
        threads = [threading.Thread(target=work, args=(engine, number), name="test-submit") for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
    assert not wrong


@pytest.mark.gpu
def test_tiles_beyond_the_memory_are_refused_with_what_is_free() -> None:
    hoard, model = [], load_model("fast")
    free, _ = torch.cuda.mem_get_info(0)
    hoard.append(torch.empty(max(0, free - (400 << 20)), dtype=torch.uint8, device="cuda:0"))
    options = EngineOptions(device="cuda", precision="f32", tile_px=8192)
    with pytest.raises(DeviceMemoryError, match=r"cuda:0 .* has \d+ MiB of \d+ MiB free"):
        TorchEngine(model, options)
    with open_backend("torch", model, options) as engine:  # smaller tiles are tried
        assert engine.spec.tile[0] < 8192
        hoard.clear()
