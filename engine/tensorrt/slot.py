"""A slot: one stream on which a batch is uploaded, computed and downloaded, while other slots do the same.

Knows pycuda and a TensorRT engine; nothing of who submits, or in which order.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DeviceMemoryError, EngineError
from ..model import StateTensor
from ..protocol import Frames, Levels
from .capture import Graph, capture
from .contexts import Contexts
from .device import Device
from .history import History, HistoryPool
from .library import Library
from .profiles import Profiles

SHAPES_KEPT = 8
"""Batch shapes whose buffers and graphs a slot keeps: two frame sizes, in batches of 1 to 4."""

NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING: what others do on the default stream does not hold this one up."""

Shape = tuple[int, int, int]
"""(N, H, W) of a batch."""


class Lane:
    """All that batches of one shape need: an execution context, memory at fixed addresses, and a CUDA graph.

    A context of its own, because a graph is void as soon as its context is given another shape. Made, used and closed
    where its device is current.
    """

    def __init__(
        self,
        device: Device,
        library: Library,
        engine: Any,
        contexts: Contexts,
        stream: Any,
        profile: int,
        inputs: Mapping[str, tuple[int, ...]],
    ) -> None:
        """`inputs` gives the shape of every input. Raises EngineError, and what pycuda raises."""
        self._device, self._library, self._stream = device, library, stream
        # Frames are bytes, or levels of four.
        dtype = np.dtype(np.uint8 if engine.get_tensor_dtype("frames").itemsize == 1 else np.float32)
        self.frames, self.restored = (device.page_locked(inputs["frames"], dtype) for _ in range(2))
        self.memory: dict[str, Any] = {}
        """Device memory by the name of its tensor; that of no tensor is for intermediate results."""
        self._graph: Graph | None = None
        self._runs = 0
        try:
            self._context = contexts.create()
            self._demand(self._context is not None, "an execution context")
            self._demand(self._context.set_optimization_profile_async(profile, stream.handle), f"profile {profile}")
            stream.synchronize()
            for name, shape in inputs.items():
                self._demand(self._context.set_input_shape(name, shape), f"the shape {shape} of {name!r}")
            self._demand(self._context.infer_shapes() == [], "the shapes of its inputs")
            self.memory[""] = contexts.lend_memory(device.cuda, self._context)
            for name in (engine.get_tensor_name(i) for i in range(engine.num_io_tensors)):
                count = math.prod(self._context.get_tensor_shape(name))
                self.memory[name] = device.cuda.mem_alloc(count * engine.get_tensor_dtype(name).itemsize)
                self._demand(self._context.set_tensor_address(name, int(self.memory[name])), f"memory for {name!r}")
        except BaseException:
            self.close()
            raise

    def run(self) -> None:
        """Queue upload, network and download; as a graph from the second time on, if there can be one.

        The first time as it is, because TensorRT finishes its set-up in it, which no graph can record.
        """
        if self._runs == 1:
            self._graph = capture(self._stream.handle, self._enqueue)
        self._runs += 1
        if self._graph is not None:
            self._graph.launch(self._stream.handle)
        else:
            self._enqueue()

    def close(self) -> None:
        """Free everything, now: an error on its way up may hold this object much longer."""
        if self._graph is not None:
            self._graph.close()
        self._graph = self._context = None
        for memory in self.memory.values():
            memory.free()
        self.memory.clear()
        del self.frames, self.restored  # what a result still lends lives on

    def _enqueue(self) -> None:
        cuda, stream = self._device.cuda, self._stream
        cuda.memcpy_htod_async(int(self.memory["frames"]), self.frames, stream)
        self._demand(self._context.execute_async_v3(stream.handle), "a batch")
        cuda.memcpy_dtoh_async(self.restored, int(self.memory["restored"]), stream)

    def _demand(self, accepted: bool, what: str) -> None:
        """Raise what TensorRT refused: for want of memory, or else as it says itself."""
        if accepted:
            return
        lacks_memory, why = self._library.lacks_memory(), self._library.why()
        if lacks_memory:
            raise self._device.out_of_memory()
        raise EngineError(f"{self._library.version} refuses {what}{why}")


class Slot:
    """A stream, and the lanes of the shapes that came last. One batch at a time."""

    def __init__(
        self,
        device: Device,
        library: Library,
        engine: Any,
        contexts: Contexts,
        profiles: Profiles,
        states: Sequence[StateTensor],
        pool: HistoryPool,
    ) -> None:
        """For where `device` is current, as all that follows."""
        self._device, self._library, self._engine, self._contexts = device, library, engine, contexts
        self._profiles, self._states, self._pool = profiles, states, pool
        flags = device.cuda.event_flags
        self._stream = device.cuda.Stream(NON_BLOCKING)
        # Waiting must not spin: there may be fewer cores than slots.
        self._done = device.cuda.Event(flags.BLOCKING_SYNC | flags.DISABLE_TIMING)
        self._lanes: OrderedDict[Shape, Lane] = OrderedDict()
        self._held: tuple[History | None, ...] = ()
        """What the batch in flight reads and writes: its memory must not serve others before."""

    def start(
        self, batch: Frames | Levels, before: Sequence[History | None]
    ) -> tuple[NDArray[Any], list[History | None]]:
        """Queue a batch (N, H, W, 3) with the history of each item.

        Gives the restored frames and the histories after them, both to be read after `wait`.
        """
        count, height, width = batch.shape[:3]
        try:
            lane = self.lane((count, height, width))
            np.copyto(lane.frames, batch)
            self._load(lane, before)
            lane.run()
            after = self._store(lane, count, (height, width))
            self._done.record(self._stream)
        except BaseException:
            self._stream.synchronize()  # nothing may still use the buffers when the slot serves again
            raise
        self._held = (*before, *after)
        return lane.restored, after

    def wait(self) -> None:
        """Wait until the batch is done; after `close`, it is."""
        if self._done is not None:
            self._done.synchronize()
        self._held = ()

    def lane(self, shape: Shape) -> Lane:
        """The lane for batches of `shape`, made if there is none; the one not used for longest makes room."""
        if shape in self._lanes:
            self._lanes.move_to_end(shape)
            return self._lanes[shape]
        while len(self._lanes) >= SHAPES_KEPT:
            self._lanes.popitem(last=False)[1].close()
        count, height, width = shape
        inputs: dict[str, tuple[int, ...]] = {"frames": (count, height, width, 3)}
        for state in self._states:
            inputs[state.input] = (count, state.channels, height // state.scale, width // state.scale)
        profile = self._profiles.index(height, width)
        for attempt in range(2):
            try:
                with self._device.current():
                    self._lanes[shape] = Lane(
                        self._device, self._library, self._engine, self._contexts, self._stream, profile, inputs
                    )
                break
            except DeviceMemoryError:
                if attempt or not self._lanes:
                    raise
            for other in list(self._lanes):  # here, where no error holds on to a context
                self.forget(other)
        return self._lanes[shape]

    def forget(self, shape: Shape) -> None:
        """Free the lane of `shape`, if there is one."""
        lane = self._lanes.pop(shape, None)
        if lane is not None:
            lane.close()

    def close(self) -> None:
        """Wait for the batch in flight, and free everything."""
        self._stream.synchronize()
        for lane in self._lanes.values():
            lane.close()
        self._lanes.clear()
        self._stream = self._done = self._engine = self._contexts = None  # type: ignore[assignment] # here, where the device is current

    def _load(self, lane: Lane, before: Sequence[History | None]) -> None:
        cuda, stream = self._device.cuda, self._stream
        for item, history in enumerate(before):
            for part, (state, size) in enumerate(self._parts(lane)):
                target = int(lane.memory[state.input]) + item * size
                if history is None:
                    cuda.memset_d8_async(target, 0, size, stream)
                else:
                    cuda.memcpy_dtod_async(target, history.block.parts[part], size, stream)

    def _store(self, lane: Lane, count: int, size: tuple[int, int]) -> list[History | None]:
        if not self._states:
            return [None] * count
        after: list[History | None] = []
        for item in range(count):
            history = self._pool.take(size)
            for part, (state, length) in enumerate(self._parts(lane)):
                source = int(lane.memory[state.output]) + item * length
                self._device.cuda.memcpy_dtod_async(history.block.parts[part], source, length, self._stream)
            after.append(history)
        return after

    def _parts(self, lane: Lane) -> list[tuple[StateTensor, int]]:
        """Each state tensor, and its bytes for one item."""
        return list(zip(self._states, self._pool.sizes_of(lane.frames.shape[1:3]), strict=True))
