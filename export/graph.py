"""Turn a network into the ONNX graph that engines run.

Knows the exporter and what engines ask of a graph; nothing of files or of how well a network restores.
"""

from __future__ import annotations

import io
import warnings
from copy import deepcopy

import onnx
import torch

from .networks.generator import FrameNet, Generator

OPSET = 18
DYNAMIC = {0: "N", 1: "H", 2: "W"}


def to_onnx(generator: Generator, tile: tuple[int, int] | None = None) -> bytes:
    """The graph of `generator`, folded, with everything in one file; the generator itself stays as it is.

    Takes `frames` and gives `restored`, both uint8 RGB (N, H, W, 3); N is free, and H and W unless `tile` fixes
    them. Only `Cast` nodes touch uint8, because TensorRT accepts no other layer there.
    """
    folded = deepcopy(generator)
    folded.eval()  # before it is folded: batch norms merge as they are when they have stopped learning
    folded.fold()
    side = 2 * folded.stride
    example = torch.zeros(1, side, side, 3, dtype=torch.uint8)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # The exporter called legacy warns of that, and doubts shapes and instance norms; whether it was right is shown
        # by the proof, which runs the graph at other sizes. The newer one reads sizes at run time in pixel-unshuffles
        # (Shape, Div, Concat), where this one writes constants; it takes seconds, and needs onnxscript.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            FrameNet(folded).eval(),
            (example,),
            buffer,  # type: ignore[arg-type]
            input_names=["frames"],
            output_names=["restored"],
            dynamic_axes={"frames": DYNAMIC, "restored": DYNAMIC},
            opset_version=OPSET,
            dynamo=False,
        )
    model = onnx.load_from_string(buffer.getvalue())
    if tile:
        for value in (*model.graph.input, *model.graph.output):
            for dimension, side in zip(value.type.tensor_type.shape.dim[1:3], tile, strict=True):
                dimension.dim_value = side
        del model.graph.value_info[:]  # sizes that were free
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())
