"""Turn a graph of f32 into one whose convolutions compute in int8, by NNCF's post-training quantisation.

Knows ONNX graphs and NNCF; nothing of pictures, of engines or of models' files.

The graph says with QuantizeLinear and DequantizeLinear nodes what is int8: symmetric everywhere, weights by channel,
as TensorRT asks. The first and the last convolution stay in float, and all that is no convolution: their errors would
be seen. So do those convolutions that spoil most, as many as it takes (NNCF's accuracy control).
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import math
import os
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, numpy_helper

from engine.protocol import Frames

from .errors import ExportError
from .half import CONVOLUTIONS

log = logging.getLogger(__name__)

Judge = Callable[[bytes, Sequence[int]], list[float]]
"""The mean square error, in levels, of a graph on each of the frames named by number."""


def to_int8(f32: bytes, calibration: Sequence[Frames], judge: Judge, judged: int, *, aim_db: float) -> bytes:
    """The graph `f32` with int8 convolutions; the same inputs and outputs.

    calibration: batches (N, H, W, 3) that show how large the values between the layers become.
    judge: measures a graph on `judged` frames; layers go back to float until their PSNR is `aim_db`.

    Raises ExportError if NNCF is not installed, or if no convolution can be int8.
    """
    nncf = _nncf()
    model = _with_names(onnx.load_from_string(f32))
    convolutions = [node.name for node in model.graph.node if node.op_type in CONVOLUTIONS]
    others = sorted({node.op_type for node in model.graph.node} - CONVOLUTIONS)

    def validate(candidate: ModelProto, numbers: Sequence[int]) -> tuple[float, list[float]]:
        errors = judge(_symmetric(candidate).SerializeToString(), list(numbers))
        mean = float(np.mean(errors))
        # Above the aim all are equal: what f32 itself reaches does not matter.
        return min(aim_db, 10 * math.log10(255**2 / mean) if mean else math.inf), [-error for error in errors]

    with contextlib.redirect_stdout(io.StringIO()):  # progress bars
        quantised = nncf.quantize_with_accuracy_control(
            model,
            nncf.Dataset(list(calibration), lambda batch: {"frames": batch}),
            nncf.Dataset(range(judged)),
            validate,
            max_drop=1e-6,
            preset=nncf.QuantizationPreset.PERFORMANCE,  # symmetric
            subset_size=len(calibration),
            ignored_scope=nncf.IgnoredScope(
                names=[*convolutions[:1], *convolutions[-1:]], types=others, validate=False
            ),
            advanced_accuracy_restorer_parameters=nncf.AdvancedAccuracyRestorerParameters(ranking_subset_size=judged),
        )
    whole = _int8_convolutions(quantised)
    if not whole:
        raise ExportError(f"int8 must be of use to a convolution, but all {len(convolutions)} have to stay in float")
    log.info("%d of %d convolutions are int8", len(whole), len(convolutions))
    done = _symmetric(quantised)
    onnx.checker.check_model(done, full_check=True)
    return bytes(done.SerializeToString())


def _nncf() -> Any:
    os.environ.setdefault("NNCF_CI", "1")  # or it reports over the network that it was used
    try:
        nncf = importlib.import_module("nncf")
    except ImportError as error:
        raise ExportError(f"int8 needs its extra ({error.name} is missing): pip install 'deblurd[int8]'") from error
    nncf.set_log_level(logging.ERROR)
    return nncf


def _with_names(model: ModelProto) -> ModelProto:
    """`model` with a name for every node: NNCF goes by them."""
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{number}"
    return model


def _symmetric(model: ModelProto) -> ModelProto:
    """A copy in which values from 0 to 255 steps are values from -128 to 127 steps of twice the size.

    NNCF takes uint8 for what is never negative, as behind a ReLU; TensorRT has int8 only.
    """
    model = deepcopy(model)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    pairs = [node.input[1:3] for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    unsigned = [(scale, zero) for scale, zero in pairs if constants[zero].data_type == TensorProto.UINT8]
    for name in {scale for scale, _ in unsigned}:
        wider = numpy_helper.to_array(constants[name]) * np.float32(255 / 127)
        constants[name].CopyFrom(numpy_helper.from_array(wider.astype(np.float32), name))
    for name in {zero for _, zero in unsigned}:
        offset = numpy_helper.to_array(constants[name])
        assert not offset.any()  # so it is with symmetric ranges
        constants[name].CopyFrom(numpy_helper.from_array(offset.astype(np.int8), name))
    del model.graph.value_info[:]
    return model


def _int8_convolutions(model: ModelProto) -> list[str]:
    dequantised = {name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    convolutions = [node for node in model.graph.node if node.op_type in CONVOLUTIONS]
    return [node.name for node in convolutions if set(node.input[:2]) <= dequantised]
