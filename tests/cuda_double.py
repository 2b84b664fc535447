"""A CUDA device made of host memory, with the parts of pycuda and of cuda-bindings that the TensorRT engine uses.

It stands in where there is no GPU, and is stricter than one: nothing that is queued on a stream happens before somebody
waits for it, every address is checked against what is allocated, calls need a current context, and memory that is
freed without one counts as leaked. It says nothing about speed, or about what a real driver does.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections import deque
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

Operation = Callable[[], None]


class Device:
    """The state of the device: what is allocated, which streams there are, what went wrong."""

    def __init__(self, memory_bytes: int = 1 << 32) -> None:
        self.memory_bytes = memory_bytes
        self.name, self.capability = "Host GPU", (9, 0)
        self.allocations: dict[int, DeviceAllocation] = {}
        self.streams: dict[int, Stream] = {}
        self.leaks: list[str] = []
        self.launches = 0
        """CUDA graphs launched."""
        self.lock = threading.RLock()
        self.contexts = threading.local()

    @property
    def used(self) -> int:
        return sum(allocation.size for allocation in self.allocations.values())

    def is_current(self) -> bool:
        return getattr(self.contexts, "depth", 0) > 0

    def demand_context(self, what: str) -> None:
        if not self.is_current():
            raise LogicError(f"{what} failed: invalid device context")

    def at(self, address: int, size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The `size` bytes at `address`; LogicError unless they lie in one living allocation."""
        for start, allocation in self.allocations.items():
            if start <= address and address + size <= start + allocation.size:
                return allocation.data[address - start : address - start + size]
        raise LogicError("illegal address")


class Error(Exception):
    pass


class LogicError(Error):
    pass


class RuntimeError_(Error):  # noqa: N801, N818 - pycuda's own is called RuntimeError
    pass


class MemoryError_(Error):  # noqa: N801, N818 - pycuda's own is called MemoryError
    pass


class DeviceAllocation:
    def __init__(self, device: Device, size: int) -> None:
        device.demand_context("cuMemAlloc")
        if device.used + size > device.memory_bytes:
            raise MemoryError_("cuMemAlloc failed: out of memory")
        self._device, self.size = device, size
        self.data = np.full(max(size, 1), 0xAB, np.uint8)
        self._address = self.data.ctypes.data
        device.allocations[self._address] = self

    def __int__(self) -> int:
        return self._address

    __index__ = __int__

    def free(self) -> None:
        self._device.demand_context("cuMemFree")
        for stream in self._device.streams.values():  # cuMemFree waits for what uses the memory
            stream.synchronize()
        del self._device.allocations[self._address]
        self.data[:] = 0xCD


class Stream:
    def __init__(self, device: Device, flags: int) -> None:
        device.demand_context("cuStreamCreate")
        assert flags == 1, "a stream must not wait for the default stream"
        self._device = device
        self.queue: deque[Operation] = deque()
        self.recording: list[Operation] | None = None
        self.handle = id(self)
        device.streams[self.handle] = self

    def add(self, operation: Operation) -> None:
        (self.queue if self.recording is None else self.recording).append(operation)

    def synchronize(self) -> None:
        self._device.demand_context("cuStreamSynchronize")
        self.drain()

    def is_done(self) -> bool:
        return not self.queue

    def wait_for_event(self, event: Event) -> None:
        seen = event.mark
        if seen is not None:
            self.add(seen.reach)

    def drain(self, until: Mark | None = None) -> None:
        """Do what is queued, all of it or up to a mark."""
        with self._device.lock:
            if self.recording is not None:
                raise LogicError("cuStreamSynchronize failed: operation not permitted when stream is capturing")
            while self.queue and not (until and until.reached):
                self.queue.popleft()()


class Mark:
    """A point in a stream's queue."""

    def __init__(self, stream: Stream) -> None:
        self._stream, self.reached = stream, False
        stream.add(self._set)

    def _set(self) -> None:
        self.reached = True

    def reach(self) -> None:
        if not self.reached:
            self._stream.drain(self)


class Event:
    def __init__(self, device: Device, flags: int) -> None:
        device.demand_context("cuEventCreate")
        assert flags == 3, "an event must block, and needs no time"
        self._device = device
        self.mark: Mark | None = None

    def record(self, stream: Stream) -> Event:
        self.mark = Mark(stream)
        return self

    def synchronize(self) -> Event:
        self._device.demand_context("cuEventSynchronize")
        if self.mark:
            self.mark.reach()
        return self


def pycuda_driver(device: Device) -> ModuleType:
    """What stands in for the module `pycuda.driver`."""
    module: Any = ModuleType("pycuda.driver")
    module.Error, module.LogicError = Error, LogicError
    module.RuntimeError, module.MemoryError = RuntimeError_, MemoryError_
    module.event_flags = SimpleNamespace(DEFAULT=0, BLOCKING_SYNC=1, DISABLE_TIMING=2)

    class Context:
        def push(self) -> None:
            device.contexts.depth = getattr(device.contexts, "depth", 0) + 1

        @staticmethod
        def pop() -> None:
            device.contexts.depth -= 1

        def detach(self) -> None:
            pass

    class PycudaDevice:
        def __init__(self, ordinal: int) -> None:
            assert ordinal == 0

        @staticmethod
        def count() -> int:
            return 1

        def name(self) -> str:
            return device.name

        def compute_capability(self) -> tuple[int, int]:
            return device.capability

        def retain_primary_context(self) -> Context:
            return Context()

    def bytes_of(array: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.uint8]]:
        assert array.flags.c_contiguous
        return array.reshape(-1).view(np.uint8)

    def copy(target: Callable[[], Any], source: Callable[[], Any], stream: Stream) -> None:
        device.demand_context("cuMemcpyAsync")
        stream.add(lambda: np.copyto(target(), source()))

    def memcpy_htod_async(dest: int, src: np.ndarray[Any, Any], stream: Stream) -> None:
        assert src.ctypes.data in pinned, "an upload from memory that is not page-locked is not asynchronous"
        copy(lambda: device.at(dest, src.nbytes), lambda: bytes_of(src), stream)

    def memcpy_dtoh_async(dest: np.ndarray[Any, Any], src: int, stream: Stream) -> None:
        assert dest.ctypes.data in pinned, "a download to memory that is not page-locked is not asynchronous"
        copy(lambda: bytes_of(dest), lambda: device.at(src, dest.nbytes), stream)

    def memcpy_dtod_async(dest: int, src: int, size: int, stream: Stream) -> None:
        copy(lambda: device.at(dest, size), lambda: device.at(src, size), stream)

    def memset_d8_async(dest: int, data: int, size: int, stream: Stream) -> None:
        device.demand_context("cuMemsetD8Async")
        stream.add(lambda: device.at(dest, size).fill(data))

    pinned: set[int] = set()

    def pagelocked_empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
        device.demand_context("cuMemHostAlloc")
        array = np.full(shape, 0xEF, dtype)
        pinned.add(array.ctypes.data)
        weakref.finalize(array, freed, array.ctypes.data).atexit = False
        return array

    def freed(address: int) -> None:
        pinned.discard(address)
        if not device.is_current():
            device.leaks.append("page-locked memory was freed where the device is not current")

    module.init = lambda: None
    module.get_driver_version = lambda: 13000
    module.Device, module.Context = PycudaDevice, Context
    module.Stream = lambda flags=0: Stream(device, flags)
    module.Event = lambda flags=0: Event(device, flags)
    module.mem_alloc = lambda size: DeviceAllocation(device, size)
    module.mem_get_info = lambda: (device.memory_bytes - device.used, device.memory_bytes)
    for function in (memcpy_htod_async, memcpy_dtoh_async, memcpy_dtod_async, memset_d8_async, pagelocked_empty):
        setattr(module, function.__name__, function)
    return module  # type: ignore[no-any-return]


class GraphDriver:
    """What stands in for the module `cuda.bindings.driver`: stream capture, and nothing else."""

    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1)

    def __init__(self, device: Device) -> None:
        self._device = device

    def cuStreamBeginCapture(self, hStream: int, mode: int) -> tuple[int]:  # noqa: N802, N803
        assert mode == 1
        self._device.streams[hStream].recording = []
        return (0,)

    def cuStreamEndCapture(self, hStream: int) -> tuple[int, list[Operation]]:  # noqa: N802, N803
        stream = self._device.streams[hStream]
        operations, stream.recording = stream.recording, None
        assert operations is not None
        return 0, operations

    def cuGraphInstantiate(self, hGraph: list[Operation], flags: int) -> tuple[int, list[Operation]]:  # noqa: N802, N803
        return 0, list(hGraph)

    def cuGraphDestroy(self, hGraph: list[Operation]) -> tuple[int]:  # noqa: N802, N803
        hGraph.clear()
        return (0,)

    def cuGraphLaunch(self, hGraphExec: list[Operation], hStream: int) -> tuple[int]:  # noqa: N802, N803
        self._device.launches += 1
        for operation in hGraphExec:
            self._device.streams[hStream].add(operation)
        return (0,)

    def cuGraphExecDestroy(self, hGraphExec: list[Operation]) -> tuple[int]:  # noqa: N802, N803
        hGraphExec.clear()
        return (0,)


def read(device: Device, address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
    """An array that lies in device memory."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return device.at(address, size).view(dtype).reshape(shape)


def address_of(array: np.ndarray[Any, Any]) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(array))
