"""Make a model out of a checkpoint, or add to one: graphs, check pair and manifest, proven before they get their names.

Knows checkpoints, graphs and engines; nothing of how a network was trained, beyond the facts it hands on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from engine.backends import open_backend
from engine.errors import EngineError
from engine.model import Manifest, Model, PinnedFile, load_model
from engine.openvino.engine import OpenVinoEngine
from engine.protocol import EngineOptions

from .analysis import count_parameters, mac_per_pixel, overlap_px
from .check import check_pair
from .checkpoint import Checkpoint, find_best
from .errors import ExportError
from .evaluate import evaluate_model
from .files import write_together
from .graph import to_onnx
from .networks.generator import Generator
from .proof import Pair, Proof, Reference, proof_streams, prove, reference_of, run_stream
from .recipes import load_generator
from .report import gains
from .targets import Task, add_targets

MEASURED_PX = 256
LEAST_TILE_PX = 16

F32 = EngineOptions(device="CPU", precision="f32")


@dataclass(frozen=True)
class Exported:
    """A model that has been written: where, what it is, and how it was proven; `proofs` that fail are there too."""

    path: Path
    manifest: Manifest
    proofs: tuple[Proof, ...]


@dataclass(frozen=True)
class Order:
    """What to make of a checkpoint or model, and where.

    pictures: ones that the network never saw: the proof is made on some of them, and they measure the gain.
    tile: the only (H, W) that the graphs will take; None leaves sizes free.
    licence: of the weights, as the manifest states it.
    """

    output: Path
    name: str
    task: Task = field(default_factory=Task)
    pictures: tuple[Path, ...] = ()
    tile: tuple[int, int] | None = None
    licence: str = ""

    def __post_init__(self) -> None:
        if not self.name or Path(self.name).name != self.name or self.name.startswith("."):
            raise ExportError(f"name must be a plain file name, got {self.name!r}")

    @property
    def path(self) -> Path:
        """The manifest's."""
        return self.output / f"{self.name}.json"


def export_model(checkpoint: Path, order: Order) -> Exported:
    """Make a model of a checkpoint, or of the best one of a run.

    Raises ExportError if the checkpoint is not one of ours, and as `export_generator` does, which does the work.
    """
    saved = find_best(checkpoint)
    return export_generator(load_generator(saved), saved, order)


def export_generator(generator: Generator, checkpoint: Checkpoint, order: Order) -> Exported:
    """Make a model of any `generator` in eval mode; `checkpoint` says where it came from.

    The f32 graph must compute what the checkpoint computes; what else is asked for, too (`add_targets`). Raises
    ExportError if a proof fails or the files cannot be written; then nothing is left behind.
    """
    _check_tile(order.tile, generator.stride)
    onnx = to_onnx(generator, order.tile)
    reference = reference_of(generator)
    model = Model(_manifest(order, checkpoint, generator, onnx), order.path, onnx)
    model = _with_check(model, reference)
    pairs = _pairs(model, order, reference)
    try:
        proof = prove("openvino", "f32", model, pairs, F32)
    except EngineError as error:
        raise ExportError(f"{order.name}: no engine opens the graph ({error})") from error
    if not proof.holds:
        raise ExportError(f"{order.name}: {proof}")
    model, proofs = add_targets(model, order.task, pairs, reference)
    if order.pictures:
        training = {**model.manifest.training, "measured": len(order.pictures)}
        model = _stating(model, gain_db=_measure(model, order.pictures), training=training)
    return _written(model, (proof, *proofs), order)


def extend_model(source: str, order: Order) -> Exported:
    """Add to a model, by shipped name or path, what the targets ask for, and a check pair if it has none.

    Its f32 graph stays as it is, and takes the place of the checkpoint in the proofs. Raises ModelError if there is
    no such model, and else as `export_generator` does.
    """
    model = load_model(source)
    if order.tile:
        raise ExportError(f"--tile needs a checkpoint: the graph of {source} stays as it is")
    model = _renamed(model, order)
    with open_backend("openvino", replace(model, check=None), F32) as engine:
        reference = partial(run_stream, engine)
        if model.check is None:
            model = _with_check(model, reference)
        model, proofs = add_targets(model, order.task, _pairs(model, order, reference), reference)
    return _written(model, proofs, order)


def _check_tile(tile: tuple[int, int] | None, stride: int) -> None:
    if tile and any(side < LEAST_TILE_PX or side % stride for side in tile):
        raise ExportError(f"--tile must be multiples of {stride} from {LEAST_TILE_PX} px on, got {tile[0]}x{tile[1]}")


def _manifest(order: Order, checkpoint: Checkpoint, generator: Generator, onnx: bytes) -> Manifest:
    config, data = checkpoint.info["config"], checkpoint.info["data"]
    kept = ("blur", "batch", "patch", "learning_rate", "seed")
    training: dict[str, Any] = {**data, "steps": checkpoint.info["step"], **{k: config[k] for k in kept if k in config}}
    return Manifest(
        id=order.name,
        file=f"{order.name}.onnx",
        sha256=hashlib.sha256(onnx).hexdigest(),
        stride=generator.stride,
        overlap_px=overlap_px(generator),
        whole_frame=generator.whole_frame,
        fixed_tile=order.tile,
        precisions=("f32",),
        recipe=checkpoint.info["recipe"],
        architecture=config["network"],
        parameters=count_parameters(generator),
        mac_per_pixel=round(mac_per_pixel(generator), 1),
        training=training,
        licence=order.licence,
    )


def _renamed(model: Model, order: Order) -> Model:
    """`model` with the order's name and place."""
    name, manifest = order.name, model.manifest
    graphs = {kind: PinnedFile(file=f"{name}.{kind}.onnx", sha256=old.sha256) for kind, old in manifest.graphs.items()}
    check = manifest.check and PinnedFile(file=f"{name}.check.npz", sha256=manifest.check.sha256)
    model = _stating(model, id=name, file=f"{name}.onnx", graphs=graphs, check=check)
    if order.licence:
        model = _stating(model, licence=order.licence)
    return replace(model, path=order.path)


def _with_check(model: Model, reference: Reference) -> Model:
    check = check_pair(model.manifest, reference)
    pinned = PinnedFile(file=f"{model.manifest.id}.check.npz", sha256=hashlib.sha256(check).hexdigest())
    return replace(_stating(model, check=pinned), check=check)


def _pairs(model: Model, order: Order, reference: Reference) -> list[Pair]:
    return [Pair(stream, reference(stream)) for stream in proof_streams(order.pictures, model.manifest)]


def _stating(model: Model, **facts: Any) -> Model:
    return replace(model, manifest=model.manifest.model_copy(update=facts))


def _measure(model: Model, pictures: Sequence[Path]) -> dict[str, float]:
    size = min((MEASURED_PX, *(model.manifest.fixed_tile or ())))
    with OpenVinoEngine(model, EngineOptions()) as engine:
        return gains(evaluate_model(engine, pictures, size=size))


def _written(model: Model, proofs: tuple[Proof, ...], order: Order) -> Exported:
    if "openvino-int8" in order.task.wanted:
        calibration = order.task.calibration
        origins = sorted({path.parent.name for path in calibration})
        facts = {"calibration": {"pictures": len(calibration), "origins": origins}}
        model = _stating(model, training={**model.manifest.training, **facts})
    manifest = Manifest.model_validate(model.manifest.model_dump())
    contents = {str(kind): graph for kind, graph in model.graphs.items()} | {
        "f32": model.onnx,
        "check": model.check or b"",
    }
    files = {file.file: contents[kind] for kind, file in manifest.pinned().items()}
    # The manifest comes last: until then the one before stands, or none.
    files[order.path.name] = manifest.model_dump_json(indent=2).encode() + b"\n"
    kinds = ("f16.onnx", "int8.onnx", "check.npz")
    write_together(order.output, files, stale=[f"{order.name}.{kind}" for kind in kinds])
    return Exported(order.path, manifest, proofs)
