"""Model files: an ONNX file and the manifest beside it that says what it is.

Knows files and their rules; runs nothing.

A model `NAME` is the pair `NAME.json` (the manifest) and the ONNX file that it names, in one folder. Shipped
models lie in `engine/models/`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from .errors import ModelError

SHIPPED = Path(__file__).with_name("models")

WHOLE_FRAME_PX = 4096
"""Greatest side of a frame for a model that cannot be tiled. A bound on memory: at 3840x2160 one layer of 64
channels at full resolution takes 2 GB in f32, and a few live at once."""


Precision = Literal["f32", "bf16"]


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
    precisions: tuple[Precision, ...] = ("f32", "bf16")
    """In which precisions the graph computes what its checkpoint does; engines run it in no other."""
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

    @field_validator("precisions")
    @classmethod
    def _every_device_has_one(cls, precisions: tuple[Precision, ...]) -> tuple[Precision, ...]:
        if "f32" not in precisions:
            raise ValueError(f"must hold f32, got {', '.join(precisions) or 'none'}")
        return precisions

    def tile(self, tile_px: int) -> tuple[int, int]:
        """Greatest (H, W) that an engine takes where frames are cut at `tile_px`; whole-frame models are not cut."""
        side = WHOLE_FRAME_PX if self.whole_frame else tile_px
        side = max(self.stride, side // self.stride * self.stride)
        return side, side


@dataclass(frozen=True)
class Model:
    """A model whose files have been read and checked: `onnx` holds the graph's bytes."""

    manifest: Manifest
    path: Path
    onnx: bytes


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
        where = ".".join(str(part) for part in first["loc"]) or "file"
        raise ModelError(f"{path}: not a model manifest ({where}: {first['msg']})") from error
    if Path(manifest.file).name != manifest.file:
        raise ModelError(f"{path}: 'file' must be a name in the manifest's own folder, got {manifest.file!r}")
    try:
        onnx = path.with_name(manifest.file).read_bytes()
    except OSError as error:
        raise ModelError(f"{path.with_name(manifest.file)}: not readable ({error.strerror})") from error
    digest = hashlib.sha256(onnx).hexdigest()
    if digest != manifest.sha256:
        raise ModelError(
            f"{path.with_name(manifest.file)}: sha256 must be {manifest.sha256[:12]}… as its manifest says,"
            f" got {digest[:12]}…; the file is damaged or of another export"
        )
    return Model(manifest, path, onnx)
