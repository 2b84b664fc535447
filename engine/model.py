"""Model files: an ONNX file and the manifest beside it that says what it is.

Knows files and their rules; runs nothing.

A model `NAME` is `NAME.json`, the manifest, and the files that it names in the same folder: the ONNX graph, the
graphs of the precisions that need one of their own, and a check pair. Shipped models lie in `engine/models/`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .errors import ModelError

SHIPPED = Path(__file__).with_name("models")

WHOLE_FRAME_PX = 4096
"""Greatest side of a frame for a model that cannot be tiled. A bound on memory: at 3840x2160 one layer of 64
channels at full resolution takes 2 GB in f32, and a few live at once."""


Precision = Literal["f32", "bf16", "f16", "int8"]
GraphPrecision = Literal["f16", "int8"]
"""The precisions that a graph states itself, in its types or in its Q/DQ nodes. The others run the f32 graph."""

EXTERNAL_WEIGHTS = b"\n\x08location\x12"
"""How ONNX's protobuf spells a tensor's entry `location`: the path of a file that holds its values."""


class PinnedFile(BaseModel):
    """A file beside the manifest, by name and hash."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str = Field(min_length=1)
    sha256: str = Field(min_length=64, max_length=64)


class StateTensor(BaseModel):
    """A hidden state: graph input and output names, and the shape (N, `channels`, H / `scale`, W / `scale`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: str
    output: str
    channels: int = Field(ge=1)
    scale: int = Field(ge=1)


class Manifest(BaseModel):
    """What a model file is. Unknown keys are refused: a newer format says so in `format`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    id: str = Field(min_length=1)
    file: str = Field(min_length=1)
    sha256: str = Field(min_length=64, max_length=64)
    layout: Literal["NHWC"] = "NHWC"
    dtype: Literal["uint8"] = "uint8"
    colour: Literal["RGB"] = "RGB"
    stride: int = Field(ge=1, le=1024)
    overlap_px: int = Field(ge=0)
    """How much tiles must overlap for seams to vanish."""
    whole_frame: bool = False
    """Whether a pixel depends on the whole frame, so that tiles would differ from it: engines take it in one piece."""
    fixed_tile: tuple[int, int] | None = None
    """The only (H, W) that the graph takes, if it was exported so."""
    precisions: tuple[Precision, ...] = ("f32", "bf16")
    """In which precisions the model was proven to compute what its checkpoint does; engines run it in no other."""
    graphs: dict[GraphPrecision, PinnedFile] = Field(default_factory=dict)
    """The graphs of the precisions that need their own."""
    check: PinnedFile | None = None
    """The check pair: what an engine must make of a picture (`engine.selfcheck`)."""
    states: tuple[StateTensor, ...] = ()
    recipe: str = ""
    architecture: dict[str, Any] = Field(default_factory=dict)
    parameters: int = 0
    mac_per_pixel: float = 0
    training: dict[str, Any] = Field(default_factory=dict)
    """What it was trained on, and how: origins, number of pictures, steps, blurs, seed."""
    gain_db: dict[str, float] = Field(default_factory=dict)
    """Mean PSNR gain over the blurred input per blur; for `sharp`, the PSNR at which a sharp input is kept."""
    licence: str = ""

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Manifest:
        if "f32" not in self.precisions:  # every device has it
            raise ValueError(f"precisions must hold f32, got {', '.join(self.precisions) or 'none'}")
        graphless = [name for name in ("f16", "int8") if (name in self.precisions) != (name in self.graphs)]
        if graphless:
            raise ValueError(f"precisions and graphs must both hold {graphless[0]}, or neither")
        if self.fixed_tile and any(side < 1 or side % self.stride for side in self.fixed_tile):
            raise ValueError(f"fixed_tile must be multiples of {self.stride}, got {self.fixed_tile}")
        return self

    def pinned(self) -> dict[str, PinnedFile]:
        """Every file of the model, by what it is: `f32`, other graphs by their precision, and `check`."""
        files: dict[str, PinnedFile] = {"f32": PinnedFile(file=self.file, sha256=self.sha256)}
        files |= {str(precision): graph for precision, graph in self.graphs.items()}
        return files | ({"check": self.check} if self.check else {})

    def tile(self, tile_px: int) -> tuple[int, int]:
        """Greatest (H, W) that an engine takes where frames are cut at `tile_px`; whole-frame models are not cut."""
        if self.fixed_tile:
            return self.fixed_tile
        side = WHOLE_FRAME_PX if self.whole_frame else tile_px
        side = max(self.stride, side // self.stride * self.stride)
        return side, side


@dataclass(frozen=True)
class Model:
    """A model whose files have been read and checked: `onnx` holds the f32 graph's bytes, `check` the check pair's.

    floating: its graphs take levels in float32 and give a residual; no files are such (`engine.residual`).
    """

    manifest: Manifest
    path: Path
    onnx: bytes
    graphs: Mapping[GraphPrecision, bytes] = field(default_factory=dict)
    check: bytes | None = None
    floating: bool = False

    def graph(self, precision: Precision) -> bytes:
        """The ONNX graph that computes in `precision`."""
        return self.graphs[precision] if precision in ("f16", "int8") else self.onnx

    @property
    def dtype(self) -> Literal["uint8", "float32"]:
        """What its graphs take and give."""
        return "float32" if self.floating else "uint8"

    def graph_path(self, precision: Precision) -> Path:
        """Where that graph lies, or belongs."""
        pinned = self.manifest.pinned()
        return self.path.with_name(pinned[precision if precision in self.graphs else "f32"].file)


def shipped_models() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.json"))


def find_manifest(name: str) -> Path:
    """The manifest of a shipped model's name, or of a path to a manifest or its ONNX file."""
    path = Path(name)
    if path.suffix == ".onnx":
        path = path.with_suffix(".json")
        if not path.is_file() and Path(name).is_file():
            raise ModelError(
                f"{name}: an ONNX file needs its manifest {path.name} beside it; 'deblurd export' writes one"
            )
    if path.suffix == ".json":
        if not path.is_file():
            raise ModelError(f"{name}: no such model file")
        return path
    shipped = SHIPPED / f"{name}.json"
    if path.name != name or not shipped.is_file():
        raise ModelError(
            f"model must be one of {', '.join(shipped_models())} or a path to a .json or .onnx, got {name!r}"
        )
    return shipped


def load_model(name: str) -> Model:
    """Read a model by shipped name or path; ModelError if it is missing, damaged or of another format."""
    path = find_manifest(name)
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ModelError(f"{path}: not readable ({error.strerror})") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        rule = first["msg"].removeprefix("Value error, ")
        raise ModelError(f"{path}: not a model manifest ({f'{where}: {rule}' if where else rule})") from error
    files = {kind: _read_pinned(path, pinned) for kind, pinned in manifest.pinned().items()}
    for kind, data in files.items():
        if kind != "check" and EXTERNAL_WEIGHTS in data:
            raise ModelError(f"{path.with_name(manifest.pinned()[kind].file)}: must hold its weights itself")
    return Model(
        manifest,
        path,
        files["f32"],
        {precision: files[precision] for precision in manifest.graphs},
        files.get("check"),
    )


def _read_pinned(manifest_path: Path, pinned: PinnedFile) -> bytes:
    if Path(pinned.file).name != pinned.file:
        raise ModelError(f"{manifest_path}: 'file' must be a name in the manifest's own folder, got {pinned.file!r}")
    path = manifest_path.with_name(pinned.file)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: not readable ({error.strerror})") from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != pinned.sha256:
        raise ModelError(
            f"{path}: sha256 must be {pinned.sha256[:12]}… as its manifest says, got {digest[:12]}…;"
            " the file is damaged or of another export"
        )
    return data
