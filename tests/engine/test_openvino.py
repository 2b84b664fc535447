"""What the OpenVINO engine does beyond the contract: merged shuffles, precisions, devices, memory, compiled graphs."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
from pathlib import Path

import models
import numpy as np
import openvino as ov
import pytest

from engine.cache import Cache
from engine.errors import EngineError
from engine.model import Model, PinnedFile, load_model
from engine.openvino.engine import OpenVinoEngine, Shape, compile_kept
from engine.openvino.precision import compute_in, fastest
from engine.openvino.shuffle import merge_shuffles
from engine.protocol import EngineOptions, Frames

F32 = EngineOptions(precision="f32")


@pytest.fixture
def tiny(tmp_path: Path) -> Model:
    return load_model(str(models.write_model(tmp_path, models.brighten_onnx())))


def picture(count: int, height: int, width: int) -> Frames:
    """Soft waves: natural enough for a network that restores pictures."""
    y, x, n = np.ogrid[:height, :width, :count]
    waves = [128 + 90 * np.sin(x / (7 + 3 * c) + n) * np.cos(y / (13 - 4 * c)) for c in range(3)]
    return np.stack(waves, axis=-1).transpose(2, 0, 1, 3).round().astype(np.uint8)


def graph(onnx: bytes, shape: Shape) -> ov.Model:
    read = ov.Core().read_model(onnx)
    read.reshape({"frames": [*shape, 3]})
    return read


def computed(compiled: ov.CompiledModel, frames: Frames) -> Frames:
    restored: Frames = compiled.create_infer_request().infer({"frames": frames})["restored"]
    return restored


def restored(engine: OpenVinoEngine, frames: Frames) -> Frames:
    with engine.submit(frames).result() as result:
        return result.frames.copy()


@pytest.mark.parametrize("shape", [(1, 16, 16), (1, 48, 80), (3, 144, 96)])
def test_merged_shuffles_compute_what_the_graph_computes(shape: Shape) -> None:
    onnx, frames = load_model("fast").onnx, picture(*shape)
    plain, merged = graph(onnx, shape), graph(onnx, shape)
    assert merge_shuffles(merged) == ["unshuffle", "shuffle"]
    core, f32 = ov.Core(), compute_in("f32")
    wanted = computed(core.compile_model(plain, "CPU", f32), frames).astype(np.int64)
    got = computed(core.compile_model(merged, "CPU", f32), frames)
    assert np.abs(wanted - frames).max() > 1  # the network does something here
    assert np.abs(wanted - got).max() <= 1
    assert np.mean(np.square(wanted - got)) < 255**2 / 10**6  # 60 dB


def test_a_graph_without_shuffles_stays_as_it_is() -> None:
    read = graph(models.brighten_onnx(), (1, 16, 16))
    before = [node.get_friendly_name() for node in read.get_ordered_ops()]
    assert merge_shuffles(read) == []
    assert [node.get_friendly_name() for node in read.get_ordered_ops()] == before


def test_shuffles_of_another_order_stay_as_they_are() -> None:
    onnx = pytest.importorskip("onnx")
    foreign = onnx.load_from_string(load_model("fast").onnx)
    (unshuffle,) = [n for n in foreign.graph.node if n.op_type == "Transpose" and len(n.attribute[0].ints) == 6]
    unshuffle.attribute[0].ints[:] = [0, 1, 5, 3, 2, 4]  # columns before rows
    shuffle = [n for n in foreign.graph.node if n.op_type == "DepthToSpace"][-1]
    next(a for a in shuffle.attribute if a.name == "mode").s = b"DCR"
    assert merge_shuffles(graph(foreign.SerializeToString(), (1, 32, 32))) == []


def test_a_frame_that_is_read_only_is_taken(tiny: Model) -> None:
    frames = picture(1, 16, 16)
    frames.setflags(write=False)
    with OpenVinoEngine(tiny, F32) as engine:
        np.testing.assert_array_equal(restored(engine, frames), models.brightened(frames))


def test_auto_takes_what_is_fastest_here_of_what_was_proven(tmp_path: Path) -> None:
    path = models.write_model(tmp_path, models.brighten_onnx(), precisions=("f32", "bf16"))
    with OpenVinoEngine(load_model(str(path)), EngineOptions()) as engine:
        there = "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        assert engine.spec.backend == f"openvino/CPU {fastest('CPU', ('f32', 'bf16')) if there else 'f32'}"


def test_int8_must_be_asked_for(tmp_path: Path) -> None:
    onnx = models.brighten_onnx()
    (tmp_path / "tiny.int8.onnx").write_bytes(onnx)
    int8 = PinnedFile(file="tiny.int8.onnx", sha256=hashlib.sha256(onnx).hexdigest())
    path = models.write_model(tmp_path, onnx, precisions=("f32", "int8"), graphs={"int8": int8})
    with OpenVinoEngine(load_model(str(path)), EngineOptions()) as engine:
        assert engine.spec.backend == "openvino/CPU f32"
    with OpenVinoEngine(load_model(str(path)), EngineOptions(precision="int8")) as engine:
        assert engine.spec.backend == "openvino/CPU int8"
        np.testing.assert_array_equal(restored(engine, picture(1, 8, 8)), models.brightened(picture(1, 8, 8)))


def test_a_single_precision_needs_no_trial() -> None:
    assert fastest("no such device", ("f32",)) == "f32"


@pytest.mark.parametrize("device", ["AUTO", "AUTO:CPU", "HETERO:CPU", "MULTI:CPU"])
def test_combined_devices_restore(tiny: Model, device: str) -> None:
    with OpenVinoEngine(tiny, EngineOptions(device=device, precision="f32")) as engine:
        assert engine.spec.backend == f"openvino/{device} f32"
        np.testing.assert_array_equal(restored(engine, picture(1, 16, 16)), models.brightened(picture(1, 16, 16)))


@pytest.mark.parametrize("device", ["", "cpu", "CPU.7", "GPU.99", "HETERO", "HETERO:", "HETERO:GPU.99,CPU", "AUTO:TPU"])
def test_a_device_that_is_not_there_is_refused_in_one_line(tiny: Model, device: str) -> None:
    with pytest.raises(EngineError, match=r"^OpenVINO device must be auto or one of .*CPU.*, got '.*'$") as caught:
        OpenVinoEngine(tiny, EngineOptions(device=device))
    assert repr(device) in str(caught.value)


def test_a_stream_is_served_while_a_shape_is_compiled_for_another(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    compiling, go_on = threading.Event(), threading.Event()
    with OpenVinoEngine(tiny, F32) as engine:
        compile_shape = engine._compile

        def compile_slowly(shape: Shape, floating: bool) -> list[object]:
            if shape == (1, 32, 32):
                compiling.set()
                assert go_on.wait(30)
            return compile_shape(shape, floating)

        monkeypatch.setattr(engine, "_compile", compile_slowly)
        other: list[Frames] = []
        stream = threading.Thread(target=lambda: other.append(restored(engine, picture(1, 32, 32))), name="stream")
        stream.start()
        assert compiling.wait(30)
        for frames in (picture(1, 16, 16), picture(1, 8, 8)):  # the second has to be compiled too
            np.testing.assert_array_equal(restored(engine, frames), models.brightened(frames))
        assert not other
        go_on.set()
        stream.join(30)
        np.testing.assert_array_equal(other[0], models.brightened(picture(1, 32, 32)))


def test_more_shapes_than_are_kept_come_and_go(tiny: Model) -> None:
    with OpenVinoEngine(tiny, F32) as engine:
        for _ in range(2):
            for side in range(8, 64, 8):
                frames = picture(1, side, side)
                np.testing.assert_array_equal(restored(engine, frames), models.brightened(frames))


SHORT_OF_MEMORY = """
import resource, sys
import numpy as np
from engine.errors import DeviceMemoryError
from engine.model import load_model
from engine.openvino.engine import OpenVinoEngine
from engine.protocol import EngineOptions

small, large = np.zeros((1, 64, 64, 3), np.uint8), np.zeros((1, 4096, 4096, 3), np.uint8)
with OpenVinoEngine(load_model("fast"), EngineOptions(precision="f32", tile_px=4096)) as engine:
    engine.submit(small).result().release()
    size = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (size + 2**28, resource.RLIM_INFINITY))
    try:
        engine.submit(large).result().release()
    except DeviceMemoryError as error:
        print(error)
    engine.submit(small).result().release()
    print("still serves")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads its size from /proc")
def test_a_tile_too_large_for_the_memory_is_refused_and_smaller_ones_go_on() -> None:
    done = subprocess.run([sys.executable, "-c", SHORT_OF_MEMORY], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    refusal, after = done.stdout.splitlines()
    assert refusal.startswith("OpenVINO does not compile the graph for 4096x4096: ")
    assert after == "still serves"


def test_a_processor_keeps_nothing_on_disk(tiny: Model, tmp_path: Path) -> None:
    with OpenVinoEngine(tiny, EngineOptions(cache=tmp_path / "cache")) as engine:
        restored(engine, picture(1, 16, 16))
    assert not (tmp_path / "cache").exists()


DAMAGES = {
    "none": lambda entry: entry,
    "truncated": lambda entry: entry[: len(entry) // 2],
    "emptied": lambda entry: b"",
    "zeroed": lambda entry: bytes(len(entry)),
    "one bit flipped": lambda entry: entry[:-1000] + bytes([entry[-1000] ^ 1]) + entry[-999:],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_kept_graph_computes_the_same_and_a_damaged_one_is_made_anew(tmp_path: Path, damage: str) -> None:
    """On a processor here, which can do what GPUs and NPUs do; the engine keeps graphs for these only."""
    frames, read = picture(1, 16, 16), graph(models.brighten_onnx(), (1, 16, 16))
    for _ in range(2):
        cache = Cache(tmp_path / "cache")
        compiled = compile_kept(ov.Core(), read, "CPU", compute_in("f32"), cache, {"graph": "brighten"})
        np.testing.assert_array_equal(computed(compiled, frames), models.brightened(frames))
        (entry,) = (tmp_path / "cache").glob("*.entry")
        entry.write_bytes(DAMAGES[damage](entry.read_bytes()))


def test_a_kept_graph_that_the_driver_refuses_is_compiled(tmp_path: Path) -> None:
    class Foreign(Cache):
        """What an older driver left under the same key."""

        def get(self, key: object) -> bytes:
            return b"no blob of this driver" * 100

    frames, read = picture(1, 16, 16), graph(models.brighten_onnx(), (1, 16, 16))
    compiled = compile_kept(ov.Core(), read, "CPU", compute_in("f32"), Foreign(tmp_path / "cache"), {"graph": "x"})
    np.testing.assert_array_equal(computed(compiled, frames), models.brightened(frames))


def test_nobody_is_told_that_openvino_is_used() -> None:
    """Neither over the network nor through a child process: importing OpenVINO by itself forks one that does."""
    script = """
import sys, threading
sys.addaudithook(lambda event, _: event in ("os.fork", "os.posix_spawn", "subprocess.Popen") and print(event))
from engine.backends import open_engine
open_engine("openvino", "fast").close()
print([thread.name for thread in threading.enumerate() if thread is not threading.main_thread()])
"""
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert answer.stdout == "[]\n"
