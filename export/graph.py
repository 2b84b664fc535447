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


def to_onnx(generator: Generator) -> bytes:
    """The graph of `generator`, folded, with everything in one file; the generator itself stays as it is.

    Takes `frames` and gives `restored`, both uint8 RGB (N, H, W, 3), N, H and W free. Only `Cast` nodes touch
    uint8, because TensorRT accepts no other layer there.
    """
    folded = deepcopy(generator)
    folded.eval()  # before it is folded: batch norms merge as they are when they have stopped learning
    folded.fold()
    side = 2 * folded.stride
    example = torch.zeros(1, side, side, 3, dtype=torch.uint8)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # The exporter that needs no onnxscript is called legacy, warns of it, and doubts shapes and instance norms;
        # whether it was right to go on is shown by the proof, which runs the graph at other sizes.
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
    graph = onnx.load_from_string(buffer.getvalue())
    onnx.checker.check_model(graph, full_check=True)
    return buffer.getvalue()
