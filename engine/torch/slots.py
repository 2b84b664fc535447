"""Where the torch engine computes: a slot takes one batch at a time, here on a processor; GPUs have theirs elsewhere.

Knows torch; nothing of model files, options or who may use a slot when: its user starts a batch only after the one
before has been taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import EngineError
from ..model import StateTensor
from ..protocol import Frames, Levels, State
from .onnx_module import OnnxModule

Shape = tuple[int, int, int]
"""(N, H, W)."""


@dataclass(frozen=True)
class History:
    """The state of one batch item: tensors (1, C, H / scale, W / scale) on the device, whole once `ready` came."""

    tensors: tuple[Tensor, ...]
    ready: torch.cuda.Event | None = None


@dataclass(frozen=True)
class Network:
    """A module on its device, and the states that it carries from frame to frame."""

    module: OnnxModule
    device: torch.device
    states: tuple[StateTensor, ...]

    @property
    def dtype(self) -> torch.dtype:
        """Of the frames."""
        return self.module.takes["frames"]

    def state_shape(self, state: StateTensor, shape: Shape) -> tuple[int, int, int, int]:
        count, height, width = shape
        return count, state.channels, height // state.scale, width // state.scale

    def histories(self, shape: Shape, states: Sequence[State | None] | None) -> list[History | None]:
        """The handles of a batch; EngineError for one that does not fit it."""
        given = list(states or [None] * shape[0]) if self.states else [None] * shape[0]
        wanted = [(self.state_shape(s, (1, *shape[1:])), self.module.takes[s.input]) for s in self.states]
        histories: list[History | None] = []
        for state in given:
            if state is not None and not isinstance(state, History):
                raise EngineError(f"a state must be one that this engine gave, got {type(state).__name__}")
            if state is not None:
                got = [(tuple(tensor.shape), tensor.dtype) for tensor in state.tensors]
                if got != wanted or any(tensor.device != self.device for tensor in state.tensors):
                    where = state.tensors[0].device if state.tensors else "nowhere"
                    raise EngineError(
                        f"a state must be {_described(wanted)} on {self.device}, got {_described(got)} on {where}"
                    )
            histories.append(state)
        return histories

    def run(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        outputs = self.module(inputs)
        return {**outputs, "restored": outputs["restored"].contiguous()}

    def split(self, outputs: dict[str, Tensor], count: int, ready: torch.cuda.Event | None) -> list[State | None]:
        """A handle for each batch item, in memory of its own."""
        if not self.states:
            return [None] * count
        return [
            History(tuple(outputs[state.output][i : i + 1].clone() for state in self.states), ready)
            for i in range(count)
        ]


Finish = Callable[[], tuple[Frames | Levels, list[State | None]]]
"""Waits for a batch that was started, and gives its frames and states; raises what went wrong."""


class Slot(Protocol):
    """Where one batch at a time is computed."""

    def start(self, batch: Frames | Levels, histories: Sequence[History | None]) -> Finish:
        """Start a batch and return at once."""

    def close(self) -> None:
        """Wait for what runs, and free everything."""


class CpuSlot:
    """A slot on the processor: a thread of its own, so that its user need not wait."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._worker = ThreadPoolExecutor(1, "torch-slot")

    def start(self, batch: Frames | Levels, histories: Sequence[History | None]) -> Finish:
        return self._worker.submit(self._run, batch, histories).result

    def _run(
        self, batch: Frames | Levels, histories: Sequence[History | None]
    ) -> tuple[Frames | Levels, list[State | None]]:
        network = self._network
        with torch.inference_mode():
            # torch reads the caller's memory where it can: neither views turned around nor read-only arrays.
            inputs = {"frames": torch.from_numpy(np.require(batch, requirements=("C", "W")))}
            for i, state in enumerate(network.states):
                shape = network.state_shape(state, (1, *batch.shape[1:3]))
                blank = torch.zeros(shape, dtype=network.module.takes[state.input])
                inputs[state.input] = torch.cat([blank if each is None else each.tensors[i] for each in histories])
            outputs = network.run(inputs)
            return outputs["restored"].numpy(), network.split(outputs, len(batch), None)

    def close(self) -> None:
        self._worker.shutdown()


def first_line(error: BaseException) -> str:
    """The messages of torch run over many lines; the first one holds the cause."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _described(tensors: Sequence[tuple[tuple[int, ...], torch.dtype]]) -> str:
    return " and ".join(f"{str(dtype).removeprefix('torch.')} {shape}" for shape, dtype in tensors) or "empty"
