"""A slot of the torch engine on a GPU: a stream, page-locked buffers and CUDA graphs.

Knows torch on CUDA; nothing of model files or options.

The rules behind the code:
- A slot has one stream, on which upload, network and download of its batch follow each other. Streams run beside
  each other, so neighbouring slots overlap.
- The host touches the page-locked buffers of a slot only before its upload is queued and after its download ended.
- A history was written on the stream of one slot and may be read on another's. The reader waits for the writer's
  event, and holds the history until its own batch is done: its memory goes back to the writer's stream, which
  would write to it while it is read.
- An error that lacks memory is dropped before memory is asked for again: it holds the frames of the run that failed,
  and with them the tensors.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.backends import cudnn

from ..errors import DeviceMemoryError, EngineError
from ..protocol import Frames, Levels, State
from .slots import Finish, History, Network, Shape, first_line

log = logging.getLogger(__name__)

T = TypeVar("T")

Size = tuple[int, int]
"""(H, W)."""

MAX_BATCH = 4

SHAPES_KEPT = 8
"""Batch shapes for which a slot keeps buffers and a CUDA graph: two frame sizes, in batches of 1 to 4."""

WARM_UPS = 2
"""Runs before a graph is captured: the first measures which convolution is fastest, the second allocates for it."""

_tuning = threading.Lock()
"""Held while a network runs outside a graph, or graphs are made or ended: cuDNN's flags are the whole process's, and
a capture is disturbed least when nothing else is rearranged."""


@dataclass
class _Plan:
    """What a slot holds for one batch shape; the tensors never move, as a CUDA graph has their addresses in it."""

    host_in: Tensor
    host_out: Tensor
    inputs: dict[str, Tensor]
    graph: torch.cuda.CUDAGraph | None = None
    outputs: dict[str, Tensor] | None = None
    """Where the graph leaves its results."""


@dataclass
class Capturing:
    """Whether the slots of an engine capture CUDA graphs; the first that cannot ends it for all."""

    works: bool = True


class CudaSlot:
    """A slot on a GPU: a stream, page-locked buffers, and a CUDA graph for each of the last few batch shapes."""

    def __init__(self, network: Network, capturing: Capturing) -> None:
        self._network, self._capturing = network, capturing
        self._stream = torch.cuda.Stream(network.device)  # type: ignore[no-untyped-call]
        self._plans: OrderedDict[Shape, _Plan] = OrderedDict()
        self._pool = torch.cuda.graph_pool_handle()  # shared by its graphs: they never run beside each other
        self._failed: torch.cuda.CUDAGraph | None = None

    def prepare(self, shape: Shape) -> None:
        """Have everything ready for a shape, so that its first batch is as fast as the others."""
        self._within_memory(shape, lambda: self._plan(shape))

    def fits(self, shape: Shape, *, times: int) -> bool:
        """Whether the memory suffices for so many slots with such a batch."""
        device = self._network.device

        def run() -> bool:
            with _tuning:
                torch.cuda.empty_cache()
                before = torch.cuda.memory_reserved(device)
                self._network.run(self._inputs(shape))
                self._stream.synchronize()
                taken = torch.cuda.memory_reserved(device) - before
                free, _ = torch.cuda.mem_get_info(device)
                torch.cuda.empty_cache()
            return free >= (times - 1) * taken

        try:
            return self._within_memory(shape, run)
        except DeviceMemoryError:
            return False

    def start(self, batch: Frames | Levels, histories: Sequence[History | None]) -> Finish:
        shape = batch.shape[0], batch.shape[1], batch.shape[2]
        return self._within_memory(shape, lambda: self._start(shape, batch, histories))

    def close(self) -> None:
        with self._here():
            self._forget()

    def _start(self, shape: Shape, batch: Frames | Levels, histories: Sequence[History | None]) -> Finish:
        network, stream = self._network, self._stream
        plan = self._plan(shape)
        np.copyto(plan.host_in.numpy(), batch)
        plan.inputs["frames"].copy_(plan.host_in, non_blocking=True)
        for event in {id(each.ready): each.ready for each in histories if each and each.ready}.values():
            stream.wait_event(event)
        for i, state in enumerate(network.states):
            for item, history in enumerate(histories):
                place = plan.inputs[state.input][item : item + 1]
                if history is None:
                    place.zero_()
                else:
                    place.copy_(history.tensors[i], non_blocking=True)
        if plan.graph is not None:
            assert plan.outputs is not None
            plan.graph.replay()
            outputs = plan.outputs
        else:
            with _tuned():
                outputs = network.run(plan.inputs)
        # Whoever waits for it sleeps: the others need the processor.
        done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        states = network.split(outputs, len(batch), done)
        plan.host_out.copy_(outputs["restored"], non_blocking=True)
        done.record(stream)
        held = list(histories)

        def finish() -> tuple[Frames | Levels, list[State | None]]:
            done.synchronize()
            held.clear()
            return plan.host_out.numpy(), states

        return finish

    def _plan(self, shape: Shape) -> _Plan:
        if shape in self._plans:
            self._plans.move_to_end(shape)
            return self._plans[shape]
        with _tuned():
            plan = _Plan(
                torch.empty((*shape, 3), dtype=self._network.dtype, pin_memory=True),
                torch.empty((*shape, 3), dtype=self._network.dtype, pin_memory=True),
                self._inputs(shape),
            )
            for _ in range(WARM_UPS):
                self._network.run(plan.inputs)
            self._stream.synchronize()
            if self._capturing.works:
                self._capture(plan)
        self._plans[shape] = plan
        while len(self._plans) > SHAPES_KEPT:
            self._plans.popitem(last=False)
        return plan

    def _inputs(self, shape: Shape) -> dict[str, Tensor]:
        network = self._network
        inputs = {"frames": torch.zeros((*shape, 3), dtype=network.dtype, device=network.device)}
        for state in network.states:
            inputs[state.input] = torch.zeros(
                network.state_shape(state, shape), dtype=network.module.takes[state.input], device=network.device
            )
        return inputs

    def _capture(self, plan: _Plan) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            # Only this thread's calls are watched: other slots go on uploading and launching meanwhile.
            with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                outputs = self._network.run(plan.inputs)
        except (RuntimeError, EngineError) as error:
            if lacks_memory(error):
                raise
            self._capturing.works = False
            self._failed = graph  # kept: before 2.12, torch's allocator goes on asking it
            log.warning("torch runs without CUDA graphs: %s", first_line(error))
            return
        plan.graph, plan.outputs = graph, outputs

    @contextmanager
    def _here(self) -> Iterator[None]:
        # The stream also ends a capture's own stream context, which torch leaves open when a capture fails.
        with torch.cuda.device(self._network.device), torch.cuda.stream(self._stream), torch.inference_mode():
            yield

    def _within_memory(self, shape: Shape, work: Callable[[], T]) -> T:
        """Do `work`; where memory lacks, once more without what is kept for other shapes. DeviceMemoryError then."""
        lacking = ""
        for _ in range(2):
            try:
                with self._here():
                    return work()
            except BaseException as error:
                # What was queued still reads and writes the buffers; they must be at rest before they serve again.
                with suppress(RuntimeError):
                    self._stream.synchronize()
                if not lacks_memory(error):
                    raise
                lacking = memory_text(self._network.device)
            with self._here():
                self._forget()
        count, height, width = shape
        raise DeviceMemoryError(f"{lacking}: it takes more to restore {count} x {width}x{height} at once")

    def _forget(self) -> None:
        self._stream.synchronize()
        with _tuning:
            for plan in self._plans.values():
                if plan.graph is not None:
                    plan.graph.reset()
            self._plans.clear()
            self._pool = torch.cuda.graph_pool_handle()  # the old one ends with its last graph
            torch.cuda.empty_cache()


def open_slots(
    network: Network, count: int, tile: Size, sizes: Sequence[Size], whole_frame: bool
) -> tuple[list[CudaSlot], int]:
    """The slots of a GPU, ready for `sizes`; and the greatest batch for which the memory suffices in all at once.

    That is tried with the greatest tile. A frame that comes whole is hardly ever as great as is allowed: there the
    greatest of `sizes` is tried, or nothing, and frames come one by one. DeviceMemoryError if one tile is too much.
    """
    capturing, slots = Capturing(), list[CudaSlot]()
    greatest = max(sizes, key=lambda size: size[0] * size[1], default=None) if whole_frame else tile
    try:
        slots += [CudaSlot(network, capturing) for _ in range(count)]
        best_batch = _best_batch(slots, network.device, greatest) if greatest else 1
        for height, width in sizes[:SHAPES_KEPT]:
            for slot in slots:
                slot.prepare((1, height, width))
    except BaseException as error:
        for slot in slots:
            with suppress(RuntimeError):
                slot.close()
        if isinstance(error, RuntimeError):
            raise EngineError(f"torch does not run the model on {network.device}: {first_line(error)}") from error
        raise
    return slots, best_batch


def _best_batch(slots: Sequence[CudaSlot], device: torch.device, size: Size) -> int:
    height, width = size
    for count in range(MAX_BATCH, 0, -1):
        if slots[0].fits((count, height, width), times=len(slots)):
            return count
    raise DeviceMemoryError(f"{memory_text(device)}: {len(slots)} slots of {width}x{height} take more")


@contextmanager
def _tuned() -> Iterator[None]:
    """Let cuDNN measure which convolution is fastest, and compute float32 as float32."""
    with _tuning, cudnn.flags(enabled=cudnn.enabled, benchmark=True, allow_tf32=False):
        yield


def lacks_memory(error: BaseException) -> bool:
    """Whether a device ran out of memory; cuDNN and the driver say so in words only."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and (
        isinstance(error, torch.OutOfMemoryError) or "out of memory" in text or "alloc_failed" in text
    )


def memory_text(device: torch.device) -> str:
    """What to tell of a GPU whose memory does not suffice."""
    try:
        free, total = torch.cuda.mem_get_info(device)
        name = torch.cuda.get_device_name(device)
    except RuntimeError:  # not even enough to be asked
        return f"{device} has no memory left"
    return f"{device} ({name}) has {free / 2**20:.0f} MiB of {total / 2**20:.0f} MiB free"
