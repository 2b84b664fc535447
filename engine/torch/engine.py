"""The engine that runs a model in PyTorch: on NVIDIA GPUs where TensorRT is absent, and on processors for tests.

Knows torch's devices and precisions; nothing of video, and of its slots only how to start a batch on one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import torch

from ..errors import DeviceMemoryError, EngineError, ModelError
from ..model import Manifest, Model, Precision
from ..protocol import EngineOptions, EngineSpec, Frames, Levels, Result, State, Ticket, check_batch, is_floating
from ..residual import Variant, lacking
from ..slots import Slots
from .cuda import MAX_BATCH, Size, lacks_memory, memory_text, open_slots
from .onnx_module import OnnxModule
from .slots import CpuSlot, Finish, Network, Slot, first_line

if TYPE_CHECKING:
    from typing import Self


class _Ticket:
    def __init__(self, finish: Finish, give: Callable[[], None]) -> None:
        self._finish, self._give = finish, give

    def result(self) -> Result:
        try:
            frames, states = self._finish()
        except Exception as error:
            self._give()
            raise _engine_error(error) from error
        return Result(frames, states, self._give)


class TorchEngine:
    """A model in PyTorch, as its ONNX graph says; see `engine.torch.onnx_module`.

    On a GPU it takes float16 where the model has a graph of it, or bfloat16: convolutions work in it, the skip
    around them stays in float. In f32, TensorFloat-32 is off.
    """

    def __init__(self, model: Model, options: EngineOptions) -> None:
        self._manifest: Manifest = model.manifest
        device = _choose_device(options.device)
        precision = self._choose_precision(options.precision, device)
        graph: Precision = "f16" if precision == "f16" else "f32"
        module = OnnxModule(
            model.graph(graph), model.graph_path(graph), torch.bfloat16 if precision == "bf16" else None
        )
        _check_ports(module, model, model.graph_path(graph))
        self._network = Network(_moved(module, device), device, self._manifest.states)
        tile = self._manifest.tile(options.tile_px)
        self._all: Sequence[Slot]
        if device.type == "cuda":
            sizes = _allowed(options.sizes, tile, self._manifest)
            self._all, best_batch = open_slots(self._network, options.slots, tile, sizes, self._manifest.whole_frame)
        else:
            self._all = [CpuSlot(self._network) for _ in range(options.slots)]
            best_batch = 1  # a processor runs frames one after another anyway, and small ones stay in its caches
        self._slots: Slots[Slot] = Slots(self._all)
        self.spec = EngineSpec(
            model=self._manifest.id,
            backend=f"torch/{device} {precision}",
            stride=self._manifest.stride,
            tile=tile,
            fixed_tile=self._manifest.fixed_tile is not None,
            overlap_px=self._manifest.overlap_px,
            max_batch=MAX_BATCH,
            best_batch=best_batch,
            slots=options.slots,
            recurrent=bool(self._manifest.states),
            whole_frame=self._manifest.whole_frame,
            concurrent=1 if device.type == "cuda" else options.slots,
            floating=model.floating or not lacking(model),
        )
        self._variant = None if model.floating else Variant(model, lambda variant: TorchEngine(variant, options))

    def _choose_precision(self, wanted: str, device: torch.device) -> str:
        if wanted not in ("auto", "f32", "bf16", "f16"):
            raise EngineError(f"precision must be auto, f32, bf16 or f16 on torch, got {wanted!r}")
        allowed = tuple(name for name in self._manifest.precisions if name != "int8")
        if wanted not in ("auto", *allowed):
            raise EngineError(
                f"precision must be auto or {' or '.join(allowed)} for model {self._manifest.id!r}, as its export"
                f" proved no other, got {wanted!r}"
            )
        has_bf16 = _has_bf16(device)
        if wanted == "bf16" and not has_bf16:
            raise EngineError(f"precision bf16 needs a device that has it; {device} does not")
        if wanted != "auto":
            return wanted
        if device.type == "cuda" and "f16" in allowed:
            return "f16"  # a processor computes it slowly: it is there to prove graphs
        fast_bf16 = has_bf16 if device.type == "cuda" else _cpu_has("amx_bf16")
        return "bf16" if fast_bf16 and "bf16" in allowed else "f32"

    def submit(self, batch: Frames | Levels, states: Sequence[State | None] | None = None) -> Ticket:
        check_batch(self.spec, batch, states)
        if is_floating(batch) and self._variant:
            return self._variant.engine().submit(batch, states)
        histories = self._network.histories((batch.shape[0], batch.shape[1], batch.shape[2]), states)
        slot = self._slots.take()
        try:
            finish = slot.start(batch, histories)
        except BaseException as error:
            self._slots.give(slot)
            if isinstance(error, RuntimeError):
                raise _engine_error(error) from error
            raise
        return _Ticket(finish, lambda: self._slots.give(slot))

    def close(self) -> None:
        if self._variant:
            self._variant.close()
        self._slots.close()
        for slot in self._all:
            with suppress(RuntimeError):  # a GPU that failed cannot be waited for
                slot.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _choose_device(name: str) -> torch.device:
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    kind, _, number = name.partition(":")
    if name != "auto" and (kind != "cuda" or (":" in name and not (number.isascii() and number.isdigit()))):
        raise EngineError(f"torch device must be auto, cpu, cuda or cuda:N, got {name!r}")
    if not torch.cuda.is_available():
        why = "sees no GPU" if torch.version.cuda else "is built without CUDA"
        raise EngineError(f"torch device {name!r} needs CUDA; torch {torch.__version__} {why}")
    index, count = int(number or 0), torch.cuda.device_count()
    if index >= count:
        raise EngineError(f"torch device must be cuda:0 to cuda:{count - 1}, got {name!r}")
    return torch.device("cuda", index)


def _has_bf16(device: torch.device) -> bool:
    """Whether the device computes bfloat16 itself."""
    if device.type == "cuda":
        try:
            return torch.cuda.get_device_capability(device) >= (8, 0)
        except RuntimeError as error:  # the first call of all that needs the driver
            raise EngineError(f"{device} cannot be used: {first_line(error)}") from error
    return _cpu_has("amx_bf16", "avx512_bf16", "bf16")


def _cpu_has(*features: str) -> bool:
    # Without AMX, bfloat16 is there but not fast: 60 ms where float32 took 34 (`fast` at 640x368, two cores).
    has: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # older ones lack it
    return any(has.get(feature) for feature in features)


def _check_ports(module: OnnxModule, model: Model, file: Path) -> None:
    manifest = model.manifest
    need_in = {"frames", *(state.input for state in manifest.states)}
    need_out = {"restored", *(state.output for state in manifest.states)}
    if set(module.takes) != need_in or not need_out <= set(module.gives):
        raise ModelError(
            f"{file}: the graph must take {', '.join(sorted(need_in))} and give {', '.join(sorted(need_out))},"
            f" got {', '.join(sorted(module.takes))} and {', '.join(sorted(module.gives))}"
        )
    types = [str(each).removeprefix("torch.") for each in (module.takes["frames"], module.gives["restored"])]
    if types != [model.dtype] * 2:
        raise ModelError(f"{file}: 'frames' and 'restored' must be {model.dtype}, got {types[0]} and {types[1]}")
    for state in manifest.states:
        if module.takes[state.input] != module.gives[state.output]:
            raise ModelError(f"{file}: {state.input!r} and {state.output!r} must be of one type")


def _moved(module: OnnxModule, device: torch.device) -> OnnxModule:
    """The module on its device, its weights in the layout that convolutions are fastest with."""
    lacking = ""
    try:
        module.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()  # the slots' streams do not wait for this one
    except RuntimeError as error:
        if not lacks_memory(error):
            raise _engine_error(error) from error
        lacking = memory_text(device)
    if lacking:  # raised here, where no error holds on to tensors
        raise DeviceMemoryError(f"{lacking}: the model's weights do not fit")
    return module


def _allowed(sizes: Sequence[Size], tile: Size, manifest: Manifest) -> list[Size]:
    """Those of `sizes` that batches may have."""
    if manifest.fixed_tile:
        return [manifest.fixed_tile]
    return [
        (height, width)
        for height, width in sizes
        if 0 < height <= tile[0] and 0 < width <= tile[1] and not (height % manifest.stride or width % manifest.stride)
    ]


def _engine_error(error: Exception) -> EngineError:
    return error if isinstance(error, EngineError) else EngineError(f"torch failed on a batch: {first_line(error)}")
