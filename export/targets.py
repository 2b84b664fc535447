"""What a model is exported for: the graphs and the proofs that each target asks for.

Knows targets, graphs and back-ends; nothing of checkpoints, or of how a model is written.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import onnx

from engine.errors import EngineError
from engine.model import GraphPrecision, Model, PinnedFile, Precision
from engine.openvino.engine import OpenVinoEngine
from engine.protocol import EngineOptions, Frames

from .blur import CASES, Picture
from .errors import ExportError
from .half import to_half
from .pictures import find_pictures, read_picture, read_split, split_by_origin
from .proof import TOLERANCE_DB, Pair, Proof, Reference, chosen, fitted, prove, run_stream
from .quantise import to_int8

log = logging.getLogger(__name__)

Target = Literal["onnx", "openvino", "openvino-int8", "tensorrt"]
TARGETS: tuple[Target, ...] = get_args(Target)
DEFAULT_TARGETS: tuple[Target, ...] = ("onnx", "openvino")

CALIBRATION_FRAMES = 100
JUDGED_FRAMES = 40
CALIBRATION_SIDE_PX = 256
INT8_MARGIN_DB = 5.0
"""By how much int8 must beat its tolerance on pictures like those that it was made from."""


@dataclass(frozen=True)
class Task:
    """What is asked of an export, beside the f32 graph.

    targets: which; None for the defaults, of which those that fail are left out.
    calibration: pictures that show int8 how large values become, as `calibration_pictures` gives them.
    engine: how the engine for `tensorrt` is built, and where it is kept.
    """

    targets: tuple[Target, ...] | None = None
    calibration: tuple[Path, ...] = ()
    engine: EngineOptions = field(default_factory=EngineOptions)

    def __post_init__(self) -> None:
        for target in self.targets or ():
            if target not in TARGETS:
                raise ExportError(f"target must be one of {', '.join(TARGETS)}, got {target!r}")
        if "openvino-int8" in self.wanted and not self.calibration:
            raise ExportError("target openvino-int8 needs pictures to calibrate on: --data PICTURES")

    @property
    def wanted(self) -> tuple[Target, ...]:
        return DEFAULT_TARGETS if self.targets is None else self.targets


def calibration_pictures(folders: Sequence[Path], measured: Sequence[Path]) -> tuple[Path, ...]:
    """Pictures below `folders`, drawn at random, of other origins than the development split's.

    Where the split names none of them, any but those that the proof is made on.
    """
    found = find_pictures(folders)
    rest, held = split_by_origin(found, read_split())
    if not held:
        proving = set(chosen(measured))
        rest = [path for path in found if path not in proving]
    free = rest or found
    drawn = np.random.default_rng(0).permutation(len(free))[: CALIBRATION_FRAMES + JUDGED_FRAMES]
    return tuple(free[index] for index in drawn)


def add_targets(
    model: Model, task: Task, pairs: Sequence[Pair], reference: Reference
) -> tuple[Model, tuple[Proof, ...]]:
    """`model` with the graphs and the precisions that the targets ask for, each proven on `pairs`.

    Raises ExportError for a target that cannot be had here, and for one that was named and fails its proof; bf16 is
    only a precision of `openvino`, and is left out with a warning.
    """
    proofs: list[Proof] = []
    if "onnx" in task.wanted or "tensorrt" in task.wanted:
        half = with_graph(model, "f16", _half(model))
        named = task.targets is not None
        made = (
            [_proven("torch", "f16", half, pairs, EngineOptions(device="cpu"), named)] if "onnx" in task.wanted else []
        )
        made += [_proven("tensorrt", "f16", half, pairs, task.engine, named)] if "tensorrt" in task.wanted else []
        proofs += [proof for proof in made if proof]
        if all(proof and proof.holds for proof in made):
            model = half
    if "openvino" in task.wanted:
        model, found = _with_bf16(model, pairs)
        proofs += found
    if "openvino-int8" in task.wanted:
        model = with_graph(model, "int8", _quantised(model, task.calibration, reference))
        proof = _proven("openvino", "int8", model, pairs, EngineOptions(device="CPU"), named=True)
        proofs += [proof] if proof else []
    return model, tuple(proofs)


def with_graph(model: Model, precision: GraphPrecision, graph: bytes) -> Model:
    """`model` with a graph of its own for `precision`, in which it may run."""
    pinned = PinnedFile(file=f"{model.manifest.id}.{precision}.onnx", sha256=hashlib.sha256(graph).hexdigest())
    graphs = {**model.manifest.graphs, precision: pinned}
    allowed = replace(model, manifest=model.manifest.model_copy(update={"graphs": graphs}))
    return replace(allow(allowed, precision), graphs={**model.graphs, precision: graph})


def allow(model: Model, precision: Precision, allowed: bool = True) -> Model:
    """`model`, which may run in `precision`, or may not."""
    names = {*model.manifest.precisions, precision} if allowed else {*model.manifest.precisions} - {precision}
    ordered = tuple(name for name in get_args(Precision) if name in names)
    return replace(model, manifest=model.manifest.model_copy(update={"precisions": ordered}))


def _proven(
    backend: str, precision: Precision, model: Model, pairs: Sequence[Pair], options: EngineOptions, named: bool
) -> Proof | None:
    """The proof; a failure is an error if the target was `named`, else a warning."""
    proof = None
    try:
        proof = prove(backend, precision, model, pairs, options)
        failure = None if proof.holds else str(proof)
    except EngineError as error:
        failure = f"{backend} cannot run it in {precision}: {error}"
    if failure and named:
        raise ExportError(f"{model.manifest.id}: {failure}")
    if failure:
        log.warning("%s: %s; the model is written without %s", model.manifest.id, failure, precision)
    return proof


def _with_bf16(model: Model, pairs: Sequence[Pair]) -> tuple[Model, list[Proof]]:
    try:
        proof = prove("openvino", "bf16", allow(model, "bf16"), pairs, EngineOptions(device="CPU"))
    except EngineError as error:
        log.warning("bf16 cannot be proven here, so no engine will run the model so (%s)", error)
        return model, []
    if not proof.holds:
        log.warning("%s: %s: engines will not run it so", model.manifest.id, proof)
    return allow(model, "bf16", proof.holds), [proof]


def _half(model: Model) -> bytes:
    try:
        return to_half(model.onnx)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{model.manifest.id}: the graph has no f16 form ({_first_line(error)})") from error


def _quantised(model: Model, pictures: Sequence[Path], reference: Reference) -> bytes:
    if model.manifest.states:
        raise ExportError(f"{model.manifest.id}: int8 needs a model without a history")
    crops = _crops(model, pictures)
    calibration, judged = crops[:CALIBRATION_FRAMES], crops[CALIBRATION_FRAMES:]  # both hold all blurs
    expected = [reference(frame) for frame in judged]

    def judge(graph: bytes, numbers: Sequence[int]) -> list[float]:
        candidate = with_graph(model, "int8", graph)
        with OpenVinoEngine(candidate, EngineOptions(device="CPU", precision="int8")) as engine:
            got = [run_stream(engine, judged[number]) for number in numbers]
        wanted = [expected[number] for number in numbers]
        return [
            float(np.square(a.astype(np.float32) - b).mean(dtype=np.float64)) for a, b in zip(wanted, got, strict=True)
        ]

    return to_int8(model.onnx, calibration, judge, len(judged), aim_db=TOLERANCE_DB["int8"] + INT8_MARGIN_DB)


def _crops(model: Model, pictures: Sequence[Path]) -> list[Frames]:
    """Blurred crops, the pictures and the blurs taking turns; batches of one."""
    rng = np.random.default_rng(0)
    turns = zip(cycle(pictures), cycle(CASES.values()), strict=False)
    crops = []
    for path, blur in islice(turns, CALIBRATION_FRAMES + JUDGED_FRAMES):
        crops.append(blur(fitted(_cut(read_picture(path), rng), model.manifest, CALIBRATION_SIDE_PX), rng)[None])
    return crops


def _cut(picture: Picture, rng: np.random.Generator) -> Picture:
    """The picture from a random place on that leaves `CALIBRATION_SIDE_PX` of it where it has as much."""
    top, left = (int(rng.integers(max(1, side - CALIBRATION_SIDE_PX + 1))) for side in picture.shape[:2])
    return picture[top:, left:]


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
