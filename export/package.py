"""Make a model out of a checkpoint: the ONNX file and its manifest, proven before they get their names.

Knows checkpoints, graphs and engines; nothing of how a network was trained, beyond the facts it hands on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from pydantic import ValidationError

from engine.errors import EngineError
from engine.model import Manifest, Model
from engine.openvino import OpenVinoEngine
from engine.protocol import EngineOptions, Frames

from .analysis import count_parameters, mac_per_pixel, overlap_px
from .blur import CASES, Picture
from .checkpoint import Checkpoint, find
from .errors import ExportError
from .evaluate import evaluate_model, gains
from .graph import to_onnx
from .leaves import dead_leaves
from .metrics import psnr
from .networks.generator import FrameNet
from .networks.restore import RestoreNet, RestoreNetConfig
from .pictures import read_picture

TOLERANCE_DB = {"f32": 60.0, "bf16": 48.0}
"""How near an engine must come to its checkpoint, by precision; 48 dB is an error of one level everywhere."""

PROOF_CASES = ("sharp", "gaussian 1.6", "motion 9")
PROOF_PICTURES = 6
PROOF_SIDE_PX = 384


@dataclass(frozen=True)
class Proof:
    """How an engine's output compares with the checkpoint's: the greatest error in levels, and the PSNR."""

    precision: str
    frames: int
    max_error: int
    psnr_db: float


@dataclass(frozen=True)
class Exported:
    """A model that has been written: where, what it is, and how it was proven."""

    path: Path
    manifest: Manifest
    proofs: tuple[Proof, ...]


def export_model(
    checkpoint: Path, output: Path, *, name: str, pictures: Sequence[Path] = (), licence: str = ""
) -> Exported:
    """Write `output/NAME.onnx` and `output/NAME.json` from a checkpoint, or the newest of a run.

    The graph must first compute on `pictures` what the checkpoint computes, in every precision that this
    processor has; without pictures, on drawn scenes. Given pictures also measure the gain that the manifest
    states, so they should be ones that the network never saw. Raises ExportError if the checkpoint is not one
    of ours, the proof fails or the files cannot be written; then nothing is left behind.
    """
    if not name or Path(name).name != name or name.startswith("."):
        raise ExportError(f"name must be a plain file name, got {name!r}")
    saved = find(checkpoint)
    network = load_network(saved)
    onnx = to_onnx(network)
    model = Model(_manifest(name, licence, saved, network, onnx), output / f"{name}.json", onnx)
    proofs = _prove(network, model, pictures)
    if pictures:
        measured = {
            "gain_db": _measure(model, pictures),
            "training": {**model.manifest.training, "measured": len(pictures)},
        }
        model = Model(model.manifest.model_copy(update=measured), model.path, onnx)
    _write(model)
    return Exported(model.path, model.manifest, proofs)


def load_network(checkpoint: Checkpoint) -> RestoreNet:
    """The network of `checkpoint` with its averaged weights; ExportError if they do not fit its configuration."""
    recipe = checkpoint.info["recipe"]
    if recipe != "restore":
        raise ExportError(f"{checkpoint.folder}: recipe must be 'restore', got {recipe!r}")
    try:
        network = RestoreNet(RestoreNetConfig.model_validate(checkpoint.info["config"]["network"]))
    except (KeyError, TypeError, ValidationError) as error:
        raise ExportError(f"{checkpoint.folder}: the configuration is not one of a restore network") from error
    weights = checkpoint.weights()
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ExportError(f"{checkpoint.folder}: the weights are not those of the network it names") from error
    for key, tensor in weights.items():
        if not tensor.isfinite().all():
            raise ExportError(f"{checkpoint.folder}: weights must be finite, {key} is not")
    return network.eval()


def _manifest(name: str, licence: str, checkpoint: Checkpoint, network: RestoreNet, onnx: bytes) -> Manifest:
    config, data = checkpoint.info["config"], checkpoint.info["data"]
    kept = ("blurs", "batch", "patch", "learning_rate", "seed")
    training: dict[str, Any] = {**data, "steps": checkpoint.info["step"], **{k: config[k] for k in kept if k in config}}
    return Manifest(
        id=name,
        file=f"{name}.onnx",
        sha256=hashlib.sha256(onnx).hexdigest(),
        stride=network.config.stride,
        overlap_px=overlap_px(network),
        recipe=checkpoint.info["recipe"],
        architecture=network.config.model_dump(mode="json"),
        parameters=count_parameters(network),
        mac_per_pixel=round(mac_per_pixel(network), 1),
        training=training,
        licence=licence,
    )


def _prove(network: RestoreNet, model: Model, pictures: Sequence[Path]) -> tuple[Proof, ...]:
    frames = _proof_frames(pictures, model.manifest.stride)
    reference = FrameNet(network).eval()
    with torch.no_grad():
        expected = [reference(torch.from_numpy(frame)).numpy() for frame in frames]
    proofs = []
    for precision, tolerance in TOLERANCE_DB.items():
        try:
            engine = OpenVinoEngine(model, EngineOptions(precision=precision))
        except EngineError as error:
            if precision != "f32":
                continue  # this processor lacks it, and so will not run the model in it either
            raise ExportError(f"{model.manifest.id}: no engine opens the graph ({error})") from error
        with engine:
            proof = _compare(engine, precision, frames, expected)
        if proof.psnr_db < tolerance:
            raise ExportError(
                f"{model.manifest.id}: in {precision} the engine must be within {tolerance:.0f} dB of its checkpoint,"
                f" got {proof.psnr_db:.1f} dB (greatest error {proof.max_error} levels)"
            )
        proofs.append(proof)
    return tuple(proofs)


def _compare(engine: OpenVinoEngine, precision: str, frames: Sequence[Frames], expected: Sequence[Frames]) -> Proof:
    restored = []
    for frame in frames:
        with engine.submit(frame).result() as result:
            restored.append(result.frames.ravel().copy())
    got, wanted = np.concatenate(restored), np.concatenate([frame.ravel() for frame in expected])
    return Proof(precision, len(frames), int(cv2.absdiff(wanted, got).max()), psnr(wanted, got))


def _proof_frames(pictures: Sequence[Path], stride: int) -> list[Frames]:
    """Batches of one, (1, H, W, 3): a few pictures, each sharp and blurred, cut to whole strides."""
    rng = np.random.default_rng(0)
    chosen = list(pictures)[:: max(1, len(pictures) // PROOF_PICTURES)][:PROOF_PICTURES]
    sources: list[Picture] = [read_picture(path)[:PROOF_SIDE_PX, :PROOF_SIDE_PX] for path in chosen]
    if not sources:
        sources = [dead_leaves(PROOF_SIDE_PX, PROOF_SIDE_PX, rng)]
    frames = []
    for source in sources:
        height, width = (side // stride * stride for side in source.shape[:2])
        if height and width:
            cut = np.ascontiguousarray(source[:height, :width])
            frames += [CASES[case](cut, rng)[None] for case in PROOF_CASES]
    if not frames:
        raise ExportError(f"pictures must be at least {stride} px on each side to prove an export with")
    return frames


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
            partial.unlink(missing_ok=True)
        raise ExportError(f"{model.path}: the model cannot be written ({error.strerror})") from error
