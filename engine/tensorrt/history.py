"""What a recurrent model remembers, kept on the device from frame to frame.

Knows device memory and the order of streams; nothing of what the numbers mean.

A block of memory may still be read or written by a stream when its handle is forgotten. Every stream that touches a
block records its own event afterwards and leaves it with the block; who takes the block next waits for those first.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from ..errors import EngineError
from ..protocol import State
from .device import Device

Size = tuple[int, int]
ALIGNMENT = 256
"""Bytes; what cuMemAlloc itself aligns to."""
SIZES_KEPT = 4
"""Frame sizes whose forgotten memory is kept for the next frames."""


class Block:
    """Device memory for one frame's history; `parts` are the addresses of the state tensors in it."""

    def __init__(self, cuda: Any, sizes: Sequence[int]) -> None:
        padded = [-(-size // ALIGNMENT) * ALIGNMENT for size in sizes]
        self.memory = cuda.mem_alloc(sum(padded))
        self.parts = [int(self.memory) + offset for offset in accumulate(padded[:-1], initial=0)]
        self.touched: set[Any] = set()
        """The events of the streams that last used it."""

    def wait(self, stream: Any) -> None:
        """Let `stream` wait until nobody uses the block."""
        for event in tuple(self.touched):
            stream.wait_for_event(event)


class History:
    """A handle: the history of one batch item after a frame. Its memory serves again when it is forgotten."""

    def __init__(self, pool: HistoryPool, size: Size, block: Block) -> None:
        self.pool, self.size, self.block = pool, size, block
        weakref.finalize(self, pool.give_back, size, block).atexit = False


class HistoryPool:
    """The histories of one engine. Used with the device current, except where it says otherwise."""

    def __init__(self, device: Device, bytes_of: Sequence[tuple[int, int]]) -> None:
        """`bytes_of` gives for each state tensor (bytes for one pixel of its own, frame pixels for one of its side)."""
        self._device, self._bytes_of = device, tuple(bytes_of)
        self._free: dict[Size, deque[Block]] = {}
        self._closed = False

    def sizes_of(self, size: Size) -> list[int]:
        """Bytes of each part for a frame of `size` (H, W)."""
        return [per_pixel * (size[0] // scale) * (size[1] // scale) for per_pixel, scale in self._bytes_of]

    def checked(self, state: State | None, size: Size) -> History | None:
        """`state` if it is a history of this engine for frames of `size`, or None; needs no device. EngineError."""
        if state is None:
            return None
        if not isinstance(state, History) or state.pool is not self:
            raise EngineError("a history must be one that this engine gave")
        if state.size != size:
            raise EngineError(
                f"a history must be of the batch's size {size[1]}x{size[0]}, got {state.size[1]}x{state.size[0]}"
            )
        return state

    def take(self, size: Size, stream: Any) -> History:
        """A new history, whose memory `stream` may write."""
        try:
            block = self._free.setdefault(size, deque()).pop()
        except IndexError:
            self._forget_sizes(size)
            block = Block(self._device.cuda, self.sizes_of(size))
        block.wait(stream)
        block.touched.clear()
        return History(self, size, block)

    def give_back(self, size: Size, block: Block) -> None:
        """Keep the memory of a forgotten handle, for the next; runs wherever handles die, so it takes no lock."""
        if not self._closed:
            self._free.setdefault(size, deque()).append(block)
            return
        with self._device.current():
            block.memory.free()

    def close(self) -> None:
        """Free what no handle holds; the rest goes with the handles."""
        self._closed = True
        for size in list(self._free):
            self._drop(size)

    def _forget_sizes(self, kept: Size) -> None:
        for size in [size for size in tuple(self._free) if size != kept][: -SIZES_KEPT + 1]:
            self._drop(size)

    def _drop(self, size: Size) -> None:
        for block in self._free.pop(size):
            block.memory.free()  # which waits for whoever uses it
