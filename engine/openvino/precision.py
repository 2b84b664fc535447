"""Which precision a processor is fastest in: tried out, because what it says it has does not tell.

Knows OpenVINO devices; nothing of models. A Xeon with AVX-512 BF16, but without the tiles of AMX, computes bf16 in 1.7
times the time of f32, and int8 in a quarter; one with AMX, bf16 in a fraction. Both say that they have BF16.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as ops
from openvino import properties as props

CHANNELS = 64
SIDE, TRIALS = 48, 5
GAIN = 1.1
"""How much faster a coarser precision must be to be taken: a tie, or noise in the trial, goes to the finer one."""


@cache
def fastest(device: str, precisions: Sequence[str]) -> str:
    """The one of `precisions`, finest first, in which convolutions run fastest on `device`.

    Takes about a tenth of a second, once in a process.
    """
    if len(precisions) == 1:
        return precisions[0]
    seconds = _try_out(device, precisions)
    best = precisions[0]
    for precision in precisions[1:]:
        if seconds[precision] * GAIN < seconds[best]:
            best = precision
    return best


def compute_in(precision: str) -> dict[Any, Any]:
    """The properties that make a device compute in `precision`. Of an int8 graph, what is not int8 is f32."""
    return {props.hint.inference_precision: ov.Type.bf16 if precision == "bf16" else ov.Type.f32}


def convolutions(precision: str, height: int, width: int, count: int) -> Any:
    """An `ov.Model` of `count` 3x3 convolutions of 64 channels, one after another, on (1, 64, `height`, `width`)."""
    data = layer = ops.parameter([1, CHANNELS, height, width], np.float32)
    weights = np.random.default_rng(0).normal(0, (2 / 9 / CHANNELS) ** 0.5, (CHANNELS, CHANNELS, 3, 3))
    for _ in range(count):
        kernel = ops.constant(weights.astype(np.float32))
        if precision == "int8":
            layer = ops.fake_quantize(layer, *_range(-1.27, 1.27), 255)
            kernel = ops.fake_quantize(kernel, *_range(-0.5, 0.5), 255)
        layer = ops.relu(ops.convolution(layer, kernel, [1, 1], [1, 1], [1, 1], [1, 1]))
    return ov.Model([layer], [data], "convolutions")


def features(height: int, width: int) -> NDArray[np.float32]:
    """An input for them."""
    return np.random.default_rng(0).random((1, CHANNELS, height, width), np.float32)


def _range(least: float, most: float) -> list[np.float32]:
    return [np.float32(least), np.float32(most)] * 2


def _try_out(device: str, precisions: Sequence[str]) -> dict[str, float]:
    """Processor seconds of a few convolutions; the least of some trials, taken in turn.

    Processor time, for a busy machine disturbs it least; and on one core, for in a real frame each has much to do.
    """
    core = ov.Core()
    requests = {}
    for precision in precisions:
        config = {**compute_in(precision), props.inference_num_threads: 1}
        compiled = core.compile_model(convolutions(precision, SIDE, SIDE, 3), device, config)
        requests[precision] = compiled.create_infer_request()
        # Not on memory as it is found: that may hold denormals, with which f32 takes five times as long.
        requests[precision].infer([features(SIDE, SIDE)])
    seconds = dict.fromkeys(precisions, math.inf)
    for _ in range(TRIALS):
        for precision, request in requests.items():
            began = time.process_time()
            request.infer()
            seconds[precision] = min(seconds[precision], time.process_time() - began)
    return seconds
