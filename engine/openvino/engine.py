"""The engine that needs no GPU: OpenVINO on the processor, or on an Intel GPU or NPU by device name.

Knows OpenVINO; nothing of video.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import properties as props

from ..cache import Cache, open_cache
from ..errors import DeviceMemoryError, EngineError, ModelError
from ..model import Manifest, Model, Precision
from ..protocol import EngineOptions, EngineSpec, Frames, Levels, Result, State, check_batch, is_floating
from ..selfcheck import self_check
from ..slots import Slots
from .precision import compute_in, fastest
from .residual import lacks, to_residual
from .shuffle import merge_shuffles

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Self

    from ..cache import Key

SHAPES_KEPT = 4
"""Compiled shapes that are kept: a stream that changes its size back and forth compiles each size once."""

PRECISIONS: tuple[Precision, ...] = ("f32", "bf16", "int8")
"""What is offered here, finest first. No f16: processors with AVX-512 FP16 take 1.6 times as long in it as in f32."""

COMBINED = ("AUTO", "HETERO", "MULTI", "BATCH")
"""What the names of devices that combine others begin with, e.g. `HETERO:GPU,CPU`."""

NO_MEMORY = (
    "bad_alloc",
    "failed to allocate",
    "out of memory",
    "cl_out_of",
    "cl_mem_object_allocation_failure",
    "max size of memory",
)
"""How OpenVINO says that memory is short; there is nothing but its text to tell by."""

Shape = tuple[int, int, int]
"""(N, H, W)."""
Kind = tuple[Shape, bool]
"""A batch's shape, and whether it is floating."""


class _Compiled:
    """The graph compiled for one kind of batch: a request for every slot, made by the first who holds `making`.

    So whoever comes for a kind that is being compiled waits, and the streams of other kinds go on.
    """

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.making = threading.Lock()


class _Ticket:
    def __init__(
        self, engine: OpenVinoEngine, slot: int, request: Any, tensors: Sequence[Any], states: list[NDArray[np.float32]]
    ) -> None:
        self._engine, self._slot, self._request, self._states = engine, slot, request, states
        self._tensors = tensors  # OpenVINO works in memory of ours: it must live until the result is there

    def result(self) -> Result:
        try:
            self._request.wait()
        except RuntimeError as error:
            self._engine._slots.give(self._slot)
            raise _engine_error("OpenVINO failed on a batch", error) from error
        frames: NDArray[Any] = self._request.get_tensor("restored").data
        states: list[State | None] = [None] * len(frames)
        if self._states:
            states = [tuple(state[i : i + 1] for state in self._states) for i in range(len(frames))]
        return Result(frames, states, lambda: self._engine._slots.give(self._slot))


class OpenVinoEngine:
    """A model on an OpenVINO device.

    The graph is compiled for each batch shape that comes, which takes about 0.1 s on a processor; one graph for all
    shapes would take 1.3 times as long for every frame. The slots are shared by all shapes.
    """

    def __init__(self, model: Model, options: EngineOptions) -> None:
        self._manifest: Manifest = model.manifest
        self._core = ov.Core()
        self._device = self._choose_device(options.device)
        precision = self._choose_precision(options.precision)
        graph: Precision = "int8" if precision == "int8" else "f32"
        try:
            self._model = self._core.read_model(model.graph(graph))
        except RuntimeError as error:
            raise ModelError(f"{model.graph_path(graph)}: not an ONNX graph ({_first_line(error)})") from error
        self._check_graph(model.graph_path(graph))
        modes = props.hint.PerformanceMode
        self._config = {
            props.hint.performance_mode: modes.LATENCY if options.goal == "latency" else modes.THROUGHPUT,
            props.hint.num_requests: options.slots,
            **({} if precision == "auto" else compute_in(precision)),
        }
        # A processor compiles a shape in 50 ms (int8: 120 ms) and would read it from a cache in 20: not worth the disk.
        # GPUs and NPUs take seconds to minutes.
        self._cache = open_cache(options.cache) if self._device.startswith(("GPU", "NPU")) else None
        self._sha256 = hashlib.sha256(model.graph(graph)).hexdigest()
        self.spec = EngineSpec(
            model=self._manifest.id,
            backend=f"openvino/{self._device} {precision}",
            stride=self._manifest.stride,
            tile=self._manifest.tile(options.tile_px),
            fixed_tile=self._manifest.fixed_tile is not None,
            overlap_px=self._manifest.overlap_px,
            max_batch=4,
            best_batch=1,  # a processor runs frames one after another anyway, and small ones stay in its caches
            slots=options.slots,
            recurrent=bool(self._manifest.states),
            whole_frame=self._manifest.whole_frame,
            concurrent=1 if options.goal == "latency" else options.slots,
            floating=not lacks(self._model),
        )
        self._whole_model, self._levels_checked = model, False
        self._checking = threading.RLock()
        self._compiled: OrderedDict[Kind, _Compiled] = OrderedDict()
        self._choosing = threading.Lock()
        self._slots = Slots(range(options.slots))

    def _check_graph(self, file: Path) -> None:
        takes = {name for port in self._model.inputs for name in port.names}
        gives = {name for port in self._model.outputs for name in port.names}
        need_in = {"frames", *(s.input for s in self._manifest.states)}
        need_out = {"restored", *(s.output for s in self._manifest.states)}
        if not need_in <= takes or not need_out <= gives:
            raise ModelError(
                f"{file}: the graph must take {', '.join(sorted(need_in))} and give {', '.join(sorted(need_out))},"
                f" got {', '.join(sorted(takes))} and {', '.join(sorted(gives))}"
            )
        types = self._model.input("frames").element_type, self._model.output("restored").element_type
        if types != (ov.Type.u8, ov.Type.u8):
            raise ModelError(f"{file}: 'frames' and 'restored' must be uint8, got {types[0]} and {types[1]}")

    def _choose_device(self, wanted: str) -> str:
        if wanted == "auto":
            return "CPU"
        kind, _, parts = wanted.partition(":")
        there = self._core.available_devices
        known = {*there, *(name.partition(".")[0] for name in there)}  # two GPUs are there as GPU.0 and GPU.1
        asked = [part.partition("(")[0].lstrip("-") for part in parts.split(",")] if kind in COMBINED else [wanted]
        missing = [name for name in asked if name not in known]
        if missing and (kind, parts) != ("AUTO", ""):
            raise EngineError(
                f"OpenVINO device must be auto or one of {', '.join(there)}, or AUTO or HETERO: with several of them,"
                f" got {wanted!r}"
            )
        return wanted

    def _choose_precision(self, wanted: str) -> str:
        if wanted not in ("auto", *PRECISIONS):
            raise EngineError(f"precision must be auto, {_either(PRECISIONS)} on OpenVINO, got {wanted!r}")
        allowed = [name for name in PRECISIONS if name in self._manifest.precisions]
        if wanted not in ("auto", *allowed):
            raise EngineError(
                f"precision must be auto or {' or '.join(allowed)} for model {self._manifest.id!r}, as its export"
                f" proved no other, got {wanted!r}"
            )
        has_bf16 = self._has("BF16")
        if wanted == "bf16" and not has_bf16:
            raise EngineError(f"precision bf16 needs a device that has it; {self._device} does not")
        if wanted != "auto":
            return wanted
        if self._device == "CPU":
            # Not int8, however fast: it was proven on photographs, and drawn lines of one pixel come out wrong.
            finer = [name for name in allowed if name != "int8" and (name != "bf16" or has_bf16)]
            return fastest(self._device, tuple(finer))
        # GPUs and NPUs know best, but must not choose a half precision where none was proven.
        return "auto" if "bf16" in allowed else "f32"

    def _has(self, capability: str) -> bool:
        try:
            return capability in self._core.get_property(self._device, "OPTIMIZATION_CAPABILITIES")
        except RuntimeError:  # a combination does not tell
            return False

    def _requests(self, kind: Kind) -> list[Any]:
        """A request for every slot, for batches of `kind`."""
        with self._choosing:
            compiled = self._compiled.setdefault(kind, _Compiled())
            self._compiled.move_to_end(kind)
            while len(self._compiled) > SHAPES_KEPT:
                self._compiled.popitem(last=False)
        with compiled.making:
            if not compiled.requests:
                compiled.requests = self._compile(*kind)
        return compiled.requests

    def _compile(self, shape: Shape, floating: bool) -> list[Any]:
        count, height, width = shape
        shapes: dict[str, list[int]] = {"frames": [count, height, width, 3]}
        for tensor in self._manifest.states:
            shapes[tensor.input] = [count, tensor.channels, height // tensor.scale, width // tensor.scale]
        try:
            graph, config = self._model.clone(), self._config
            graph.reshape(shapes)
            if floating and to_residual(graph) == "difference":
                config = {**config, **compute_in("f32")}
            merge_shuffles(graph)
            key = {"graph": self._sha256, "shapes": shapes, **({"floating": True} if floating else {})}
            compiled = compile_kept(self._core, graph, self._device, config, self._cache, key)
            return [compiled.create_infer_request() for _ in range(self.spec.slots)]
        except RuntimeError as error:
            raise _engine_error(f"OpenVINO does not compile the graph for {width}x{height}", error) from error

    def submit(self, batch: Frames | Levels, states: Sequence[State | None] | None = None) -> _Ticket:
        check_batch(self.spec, batch, states)
        if is_floating(batch):
            self._check_levels()
        slot = self._slots.take()
        try:
            shape = (batch.shape[0], batch.shape[1], batch.shape[2])
            request = self._requests((shape, is_floating(batch)))[slot]
            # OpenVINO shares only what it might write to: a frame that is read-only is copied.
            tensors = [ov.Tensor(np.require(batch, requirements=["C", "W"]), shared_memory=True)]
            request.set_tensor("frames", tensors[0])
            new: list[NDArray[np.float32]] = []
            for i, tensor in enumerate(self._manifest.states):
                size = (1, tensor.channels, batch.shape[1] // tensor.scale, batch.shape[2] // tensor.scale)
                blank = np.zeros(size, np.float32)
                history = [blank if state is None else state[i] for state in states or [None] * len(batch)]  # type: ignore[index]
                old = history[0] if len(history) == 1 else np.concatenate(history)
                # The handles outlive the slot, so each batch writes them into memory of its own.
                new.append(np.empty((len(batch), *size[1:]), np.float32))
                for name, array in ((tensor.input, old), (tensor.output, new[-1])):
                    tensors.append(ov.Tensor(array, shared_memory=True))
                    request.set_tensor(name, tensors[-1])
            request.start_async()
        except BaseException as error:
            self._slots.give(slot)
            if isinstance(error, RuntimeError | ValueError | MemoryError):
                raise _engine_error("OpenVINO refused a batch", error) from error
            raise
        return _Ticket(self, slot, request, tensors, new)

    def _check_levels(self) -> None:
        """Check what serves `Levels`, once: the engine was checked without."""
        with self._checking:
            if not self._levels_checked:
                self._levels_checked = True  # the check's own batches come here, too
                try:
                    self_check(self, self._whole_model, levels=True)
                except BaseException:
                    self._levels_checked = False
                    raise

    def close(self) -> None:
        self._slots.close()
        with self._choosing:
            self._compiled.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def compile_kept(core: Any, graph: Any, device: str, config: dict[Any, Any], cache: Cache | None, key: Key) -> Any:
    """`graph` compiled for `device`, read from `cache` if it is there.

    key: what tells this graph from others; what it is compiled with and for is added. Not by OpenVINO's own cache,
    which reads what lies in its folder without a check.
    """
    if cache is None:
        return core.compile_model(graph, device, config)
    whole = {
        **key,
        "openvino": ov.get_version(),
        "device": [device, core.get_property(device, "FULL_DEVICE_NAME")],
        "config": sorted(f"{name}={value}" for name, value in config.items()),
    }
    kept = cache.get_or_make(whole, lambda: bytes(_exported(core.compile_model(graph, device, config))))
    try:
        return core.import_model(kept, device, config)
    except RuntimeError:  # of another driver, which the key does not tell
        cache.drop(whole)
        return core.compile_model(graph, device, config)


def _exported(compiled: Any) -> Any:
    blob = compiled.export_model()
    return blob.getvalue() if hasattr(blob, "getvalue") else blob


def _engine_error(what: str, error: BaseException) -> EngineError:
    short = isinstance(error, MemoryError) or any(text in str(error).lower() for text in NO_MEMORY)
    return (DeviceMemoryError if short else EngineError)(f"{what}: {_first_line(error)}")


def _first_line(error: BaseException) -> str:
    """OpenVINO's messages run over many lines; the last non-empty one holds the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _either(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
