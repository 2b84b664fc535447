"""What a recurrent model remembers, kept on the device from frame to frame.

Knows device memory; nothing of what the numbers mean.

A slot holds the handles that its batch reads and writes until the batch is done: the memory of a forgotten handle is
at rest.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
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
        self._free: dict[Size, list[Block]] = {}
        self._lock = threading.Lock()
        """Held to look at or change `_free`."""
        self._returned: deque[tuple[Size, Block]] = deque()
        """What died since: handles die anywhere, even inside the lock, so they only append here."""
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

    def take(self, size: Size) -> History:
        """A new history, whose memory nobody uses."""
        with self._lock:
            while self._returned:
                old, block = self._returned.popleft()
                self._free.setdefault(old, []).append(block)
            blocks = self._free.pop(size, [])
            self._free[size] = blocks  # the latest, so the last to go
            if not blocks:
                for old in list(self._free)[:-SIZES_KEPT]:
                    for block in self._free.pop(old):
                        block.memory.free()
                blocks.append(Block(self._device.cuda, self.sizes_of(size)))
            return History(self, size, blocks.pop())

    def give_back(self, size: Size, block: Block) -> None:
        """Keep the memory of a forgotten handle, for the next; needs no device."""
        self._returned.append((size, block))
        if self._closed:
            with self._device.current():
                self._free_returned()

    def close(self) -> None:
        """Free what no handle holds; the rest goes with the handles."""
        self._closed = True
        self._free_returned()
        with self._lock:
            for blocks in self._free.values():
                for block in blocks:
                    block.memory.free()
            self._free.clear()

    def _free_returned(self) -> None:
        with suppress(IndexError):  # several threads may be at it
            while True:
                self._returned.popleft()[1].memory.free()
