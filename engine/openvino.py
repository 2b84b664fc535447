"""The engine that needs no GPU: OpenVINO on the processor, or on an Intel GPU or NPU by device name.

Knows OpenVINO; nothing of video.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import openvino as ov
from openvino import properties as props

from .errors import EngineError, ModelError
from .model import Manifest, Model, Precision
from .protocol import EngineOptions, EngineSpec, Frames, Result, State, check_batch
from .slots import Slots

if TYPE_CHECKING:
    from typing import Self

SHAPES_KEPT = 4
"""Compiled shapes that are kept: a stream that changes its size back and forth compiles each size once."""


@dataclass(frozen=True)
class _Compiled:
    """The graph compiled for one batch shape, with an inference request for every slot."""

    requests: tuple[Any, ...]


class _Ticket:
    def __init__(self, engine: OpenVinoEngine, slot: int, request: Any, inputs: Sequence[Any], count: int) -> None:
        self._engine, self._slot, self._request, self._count = engine, slot, request, count
        self._inputs = inputs  # OpenVINO reads the caller's memory: it must live until the result is there

    def result(self) -> Result:
        try:
            self._request.wait()
        except RuntimeError as error:
            self._engine._slots.give(self._slot)
            raise EngineError(f"OpenVINO failed on a batch: {error}") from error
        states: list[State | None] = [None] * self._count
        tensors = self._engine._manifest.states
        if tensors:
            # A copy: the handles outlive the slot.
            new = [self._request.get_tensor(tensor.output).data.copy() for tensor in tensors]
            states = [tuple(array[i : i + 1] for array in new) for i in range(self._count)]
        frames: Frames = self._request.get_tensor("restored").data
        return Result(frames, states, lambda: self._engine._slots.give(self._slot))


class OpenVinoEngine:
    """A model on an OpenVINO device.

    The graph is compiled for each batch shape that comes (static shapes run faster), in a fraction of a
    second; the slots are shared by all shapes.
    """

    def __init__(self, model: Model, options: EngineOptions) -> None:
        self._manifest: Manifest = model.manifest
        self._core = ov.Core()
        self._device = "CPU" if options.device == "auto" else options.device
        if self._device.split(":")[0].split(".")[0] not in {*self._core.available_devices, "AUTO"}:
            raise EngineError(
                f"OpenVINO device must be auto or one of {', '.join(self._core.available_devices)},"
                f" got {options.device!r}"
            )
        precision = self._choose_precision(options.precision)
        graph: Precision = "int8" if precision == "int8" else "f32"
        try:
            self._model = self._core.read_model(model.graph(graph))
        except RuntimeError as error:
            raise ModelError(f"{model.graph_path(graph)}: not an ONNX graph ({_first_line(error)})") from error
        self._check_graph(model.graph_path(graph))
        latency = options.goal == "latency"
        self._config = {
            props.hint.performance_mode: props.hint.PerformanceMode.LATENCY
            if latency
            else props.hint.PerformanceMode.THROUGHPUT,
            props.hint.num_requests: options.slots,
        }
        if precision in ("f32", "bf16"):
            self._config[props.hint.inference_precision] = ov.Type.bf16 if precision == "bf16" else ov.Type.f32
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
        )
        self._compiled: OrderedDict[tuple[int, int, int], _Compiled] = OrderedDict()
        self._compiling = threading.Lock()
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

    def _choose_precision(self, wanted: str) -> str:
        if wanted not in ("auto", "f32", "bf16", "int8"):
            raise EngineError(f"precision must be auto, f32, bf16 or int8 on OpenVINO, got {wanted!r}")
        allowed = tuple(name for name in self._manifest.precisions if name != "f16")
        if wanted not in ("auto", *allowed):
            raise EngineError(
                f"precision must be auto or {' or '.join(allowed)} for model {self._manifest.id!r}, as its export"
                f" proved no other, got {wanted!r}"
            )
        has_bf16 = "BF16" in self._core.get_property(self._device.split(":")[0], "OPTIMIZATION_CAPABILITIES")
        if wanted == "bf16" and not has_bf16:
            raise EngineError(f"precision bf16 needs a device that has it; {self._device} does not")
        if wanted == "int8":
            return "int8"
        if "bf16" not in allowed:
            return "f32"  # also where the device would choose a half precision of its own
        if wanted == "auto" and self._device != "CPU":
            return "auto"  # GPUs and NPUs know best
        return "bf16" if has_bf16 and wanted != "f32" else "f32"

    def _for_shape(self, shape: tuple[int, int, int]) -> _Compiled:
        with self._compiling:
            if shape in self._compiled:
                self._compiled.move_to_end(shape)
                return self._compiled[shape]
            count, height, width = shape
            shapes: dict[str, list[int]] = {"frames": [count, height, width, 3]}
            for tensor in self._manifest.states:
                shapes[tensor.input] = [count, tensor.channels, height // tensor.scale, width // tensor.scale]
            try:
                graph = self._model.clone()
                graph.reshape(shapes)
                compiled = self._core.compile_model(graph, self._device, self._config)
            except RuntimeError as error:
                raise EngineError(
                    f"OpenVINO does not compile the graph for {width}x{height}: {_first_line(error)}"
                ) from error
            entry = _Compiled(tuple(compiled.create_infer_request() for _ in range(self.spec.slots)))
            self._compiled[shape] = entry
            while len(self._compiled) > SHAPES_KEPT:
                self._compiled.popitem(last=False)
            return entry

    def submit(self, batch: Frames, states: Sequence[State | None] | None = None) -> _Ticket:
        check_batch(self.spec, batch, states)
        slot = self._slots.take()
        try:
            request = self._for_shape((batch.shape[0], batch.shape[1], batch.shape[2])).requests[slot]
            inputs = [ov.Tensor(np.ascontiguousarray(batch), shared_memory=True)]
            request.set_tensor("frames", inputs[0])
            for i, tensor in enumerate(self._manifest.states):
                shape = (1, tensor.channels, batch.shape[1] // tensor.scale, batch.shape[2] // tensor.scale)
                blank = np.zeros(shape, np.float32)
                history = [blank if state is None else state[i] for state in states or [None] * len(batch)]  # type: ignore[index]
                inputs.append(ov.Tensor(np.concatenate(history), shared_memory=True))
                request.set_tensor(tensor.input, inputs[-1])
            request.start_async()
        except BaseException as error:
            self._slots.give(slot)
            if isinstance(error, RuntimeError | ValueError):
                raise EngineError(f"OpenVINO refused a batch: {_first_line(error)}") from error
            raise
        return _Ticket(self, slot, request, inputs, len(batch))

    def close(self) -> None:
        self._slots.close()
        with self._compiling:
            self._compiled.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _first_line(error: BaseException) -> str:
    """OpenVINO's messages run over many lines; the last non-empty one holds the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
