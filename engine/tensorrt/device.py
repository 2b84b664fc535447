"""One CUDA device through pycuda: its context, its memory, its facts.

Knows pycuda; nothing of TensorRT.

pycuda keeps a stack of contexts for each thread, and frees memory only where the context it came from is on top: all
that allocates, runs or frees stands in `with device.current()`.
"""

from __future__ import annotations

import atexit
import functools
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..driver import why_no_gpu
from ..errors import DeviceMemoryError, EngineError


class Device:
    """A CUDA device, used through its primary context, the one that TensorRT uses too.

    cuda: the module `pycuda.driver`. name: the device's name for us, e.g. `cuda:0`. facts: what a compiled engine
    depends on, by name.
    """

    def __init__(self, ordinal: int) -> None:
        self.cuda = _pycuda()
        self.name = f"cuda:{ordinal}"
        device = self.cuda.Device(ordinal)
        self.facts = {
            "gpu": device.name(),
            "compute_capability": ".".join(map(str, device.compute_capability())),
            "driver": self.cuda.get_driver_version(),
        }
        self._context = device.retain_primary_context()
        atexit.register(self._context.detach)  # left to its destructor, pycuda would detach it as what it is not

    @contextmanager
    def current(self) -> Iterator[Any]:
        """Make the device this thread's, for as long as the `with` lasts; gives `pycuda.driver`.

        What pycuda raises comes out as EngineError, and as DeviceMemoryError where there is no memory left.
        """
        self._context.push()
        try:
            yield self.cuda
        except self.cuda.MemoryError as error:
            raise self.out_of_memory() from error
        except (self.cuda.Error, RuntimeError) as error:  # RuntimeError: of a graph, or of TensorRT's bindings
            raise EngineError(f"{self.name} failed: {' '.join(str(error).split())}") from error
        finally:
            self._context.pop()

    def page_locked(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Host memory that the device copies from and to by itself; for where it is current."""
        return np.asarray(_PageLocked(self, shape, dtype))

    def out_of_memory(self) -> DeviceMemoryError:
        """The error that says how much memory there is; for where the device is current."""
        free, total = (size >> 20 for size in self.cuda.mem_get_info())
        return DeviceMemoryError(f"{self.name} has too little memory: {free} of {total} MB are free")


class _PageLocked:
    """Page-locked memory. Results are forgotten anywhere, but pycuda frees it only where its device is current."""

    def __init__(self, device: Device, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._device = device
        self._array = device.cuda.pagelocked_empty(shape, dtype)
        self.__array_interface__ = self._array.__array_interface__

    def __del__(self) -> None:
        if hasattr(self, "_array"):
            with self._device.current():
                del self._array


def find_device(name: str) -> Device:
    """The device of an engine's `device` option: `auto`, `cuda`, or `cuda:N`. EngineError if there is none."""
    reason = why_no_gpu()
    if reason:
        raise EngineError(f"TensorRT needs an NVIDIA GPU: {reason}")
    cuda = _pycuda()
    with _translated(cuda, "CUDA"):
        cuda.init()
        count = cuda.Device.count()
    kind, _, number = ("cuda:0" if name in ("auto", "cuda") else name).partition(":")
    if kind != "cuda" or not number.isdecimal() or int(number) >= count:
        raise EngineError(f"device must be auto, cuda, or cuda:0 to cuda:{count - 1}, got {name!r}")
    with _translated(cuda, f"cuda:{int(number)}"):  # a context takes memory, too
        return _device(int(number))


@functools.cache
def _device(ordinal: int) -> Device:
    """Engines on a device share it: its primary context stays until the process ends."""
    return Device(ordinal)


@contextmanager
def _translated(cuda: Any, what: str) -> Iterator[None]:
    try:
        yield
    except cuda.Error as error:
        raise EngineError(f"{what} cannot be used: {' '.join(str(error).split())}") from error


def _pycuda() -> Any:
    try:
        return importlib.import_module("pycuda.driver")
    except ImportError as error:
        raise EngineError(f"TensorRT needs pycuda, which does not import ({error})") from error
