"""Make a model out of a checkpoint: the ONNX file and its manifest, proven before they get their names.

Knows checkpoints, graphs and engines; nothing of how a network was trained, beyond the facts it hands on.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from engine.errors import EngineError
from engine.model import Manifest, Model, Precision
from engine.openvino import OpenVinoEngine
from engine.protocol import EngineOptions, Frames

from .analysis import count_parameters, mac_per_pixel, overlap_px
from .blur import CASES, Picture
from .checkpoint import Checkpoint, find_best
from .errors import ExportError
from .evaluate import evaluate_model
from .graph import to_onnx
from .leaves import dead_leaves
from .metrics import psnr
from .networks.generator import FrameNet, Generator
from .pictures import read_picture
from .recipes import load_generator
from .report import gains

log = logging.getLogger(__name__)

TOLERANCE_DB: dict[Precision, float] = {"f32": 60.0, "bf16": 48.0}
"""How near an engine must come to its checkpoint, by precision; 48 dB is an error of one level everywhere."""

PROOF_CASES = ("sharp", "gaussian 1.6", "motion 9")
PROOF_PICTURES = 6
PROOF_SIDE_PX = 384


@dataclass(frozen=True)
class Proof:
    """How an engine's output compares with the checkpoint's: the greatest error in levels, and the PSNR."""

    precision: Precision
    frames: int
    max_error: int
    psnr_db: float

    @property
    def holds(self) -> bool:
        """Whether the engine is within tolerance, so that the model may run in this precision."""
        return self.psnr_db >= TOLERANCE_DB[self.precision]


@dataclass(frozen=True)
class Exported:
    """A model that has been written: where, what it is, and how it was proven; `proofs` that fail are there too."""

    path: Path
    manifest: Manifest
    proofs: tuple[Proof, ...]


def export_model(
    checkpoint: Path, output: Path, *, name: str, pictures: Sequence[Path] = (), licence: str = ""
) -> Exported:
    """Write `output/NAME.onnx` and `output/NAME.json` from a checkpoint, or the best of a run.

    Raises ExportError if the checkpoint is not one of ours, and as `export_generator` does, which does the work.
    """
    saved = find_best(checkpoint)
    return export_generator(load_generator(saved), saved, output, name=name, pictures=pictures, licence=licence)


def export_generator(
    generator: Generator,
    checkpoint: Checkpoint,
    output: Path,
    *,
    name: str,
    pictures: Sequence[Path] = (),
    licence: str = "",
) -> Exported:
    """Make a model of any `generator` in eval mode; `checkpoint` says where it came from.

    The graph must first compute on `pictures` what the checkpoint computes; without pictures, on a drawn scene.
    It must do so in f32; the manifest allows the lower precisions of this processor in which it does so too.
    Given pictures also measure the gain that the manifest states, so they should be ones that the network never
    saw. Raises ExportError if the proof fails or the files cannot be written; then nothing is left behind.
    """
    if not name or Path(name).name != name or name.startswith("."):
        raise ExportError(f"name must be a plain file name, got {name!r}")
    onnx = to_onnx(generator)
    model = Model(_manifest(name, licence, checkpoint, generator, onnx), output / f"{name}.json", onnx)
    proofs = _prove(generator, model, pictures)
    allowed = {"precisions": tuple(proof.precision for proof in proofs if proof.holds)}
    model = Model(model.manifest.model_copy(update=allowed), model.path, onnx)
    if pictures:
        measured = {
            "gain_db": _measure(model, pictures),
            "training": {**model.manifest.training, "measured": len(pictures)},
        }
        model = Model(model.manifest.model_copy(update=measured), model.path, onnx)
    _write(model)
    return Exported(model.path, model.manifest, proofs)


def _manifest(name: str, licence: str, checkpoint: Checkpoint, generator: Generator, onnx: bytes) -> Manifest:
    config, data = checkpoint.info["config"], checkpoint.info["data"]
    kept = ("blur", "batch", "patch", "learning_rate", "seed")
    training: dict[str, Any] = {**data, "steps": checkpoint.info["step"], **{k: config[k] for k in kept if k in config}}
    return Manifest(
        id=name,
        file=f"{name}.onnx",
        sha256=hashlib.sha256(onnx).hexdigest(),
        stride=generator.stride,
        overlap_px=overlap_px(generator),
        whole_frame=generator.whole_frame,
        recipe=checkpoint.info["recipe"],
        architecture=config["network"],
        parameters=count_parameters(generator),
        mac_per_pixel=round(mac_per_pixel(generator), 1),
        training=training,
        licence=licence,
    )


def _prove(generator: Generator, model: Model, pictures: Sequence[Path]) -> tuple[Proof, ...]:
    """One proof for each precision that this processor has; ExportError unless that of f32 holds."""
    frames = _proof_frames(pictures, model.manifest.stride)
    reference = FrameNet(generator).eval()
    with torch.no_grad():
        expected = [reference(torch.from_numpy(frame)).numpy() for frame in frames]
    proofs = []
    for precision, tolerance in TOLERANCE_DB.items():
        try:
            engine = OpenVinoEngine(model, EngineOptions(precision=precision))
        except EngineError as error:
            if precision == "f32":
                raise ExportError(f"{model.manifest.id}: no engine opens the graph ({error})") from error
            log.warning("this processor has no %s: the model is not proven in it, so none will run it so", precision)
            continue
        with engine:
            proof = _compare(engine, precision, frames, expected)
        if not proof.holds:
            line = (
                f"{model.manifest.id}: in {precision} the engine must be within {tolerance:.0f} dB of its checkpoint,"
                f" got {proof.psnr_db:.1f} dB (greatest error {proof.max_error} levels)"
            )
            if precision == "f32":
                raise ExportError(line)
            log.warning("%s: engines will not run it so", line)
        proofs.append(proof)
    return tuple(proofs)


def _compare(
    engine: OpenVinoEngine, precision: Precision, frames: Sequence[Frames], expected: Sequence[Frames]
) -> Proof:
    restored = []
    for frame in frames:
        with engine.submit(frame).result() as result:
            restored.append(result.frames.ravel().copy())
    got, wanted = np.concatenate(restored), np.concatenate([frame.ravel() for frame in expected])
    return Proof(precision, len(frames), int(cv2.absdiff(wanted, got).max()), psnr(wanted, got))


def _proof_frames(pictures: Sequence[Path], stride: int) -> list[Frames]:
    """Batches of one, (1, H, W, 3): a few pictures, each sharp and blurred, in whole strides."""
    rng = np.random.default_rng(0)
    chosen = list(pictures)[:: max(1, len(pictures) // PROOF_PICTURES)][:PROOF_PICTURES]
    sources: list[Picture] = [read_picture(path) for path in chosen]
    if not sources:
        sources = [dead_leaves(PROOF_SIDE_PX, PROOF_SIDE_PX, rng)]
    frames = []
    for source in sources:
        whole = _in_strides(source, stride)
        frames += [CASES[case](whole, rng)[None] for case in PROOF_CASES]
    return frames


def _in_strides(picture: Picture, stride: int) -> Picture:
    """`picture` cut to whole strides and to about `PROOF_SIDE_PX`, or mirrored where it is less than one stride."""
    height, width = (max(1, min(side, PROOF_SIDE_PX) // stride) * stride for side in picture.shape[:2])
    cut = picture[:height, :width]
    missing = height - cut.shape[0], width - cut.shape[1]
    return np.asarray(cv2.copyMakeBorder(cut, 0, missing[0], 0, missing[1], cv2.BORDER_REFLECT_101), np.uint8)


def _measure(model: Model, pictures: Sequence[Path]) -> dict[str, float]:
    with OpenVinoEngine(model, EngineOptions()) as engine:
        return gains(evaluate_model(engine, pictures))


def _write(model: Model) -> None:
    target = model.path.with_name(model.manifest.file)
    files = {target: model.onnx, model.path: model.manifest.model_dump_json(indent=2).encode() + b"\n"}
    partials = {path: path.with_name(f".{path.name}.partial") for path in files}
    try:
        model.path.parent.mkdir(parents=True, exist_ok=True)
        for path, data in files.items():
            partials[path].write_bytes(data)
        for path, partial in partials.items():
            partial.replace(path)
    except OSError as error:
        for partial in partials.values():
            with contextlib.suppress(OSError):
                partial.unlink()
        raise ExportError(f"{model.path}: the model cannot be written ({error.strerror})") from error
