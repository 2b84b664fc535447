"""The recipes by name, and what is made of their names in settings and checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from ..checkpoint import Checkpoint
from ..errors import ExportError, broken_rule
from ..networks.generator import Generator
from .config import TrainConfig
from .cyclegan import CycleGan
from .dualgan import DualGan
from .img2img import Img2Img
from .pix2pix import Pix2Pix
from .recipe import Recipe
from .restore import Restore

RECIPES: Mapping[str, type[Recipe]] = {
    "restore": Restore,
    "img2img": Img2Img,
    "pix2pix": Pix2Pix,
    "cyclegan": CycleGan,
    "dualgan": DualGan,
}


def configure(values: Mapping[str, Any]) -> TrainConfig:
    """The recipe's own configuration, changed by `values`; `recipe` among them names it."""
    settings = _recipe(values.get("recipe", "restore")).settings
    try:
        return settings.model_validate(_changed(settings(), values))  # type: ignore[call-arg]
    except ValidationError as error:
        raise ExportError(broken_rule(error.errors()[0])) from error


def _changed(default: BaseModel, values: Mapping[str, Any]) -> dict[str, Any]:
    """`values`, completed in every group of settings by what the recipe, not the group, has as defaults."""
    own = {name: getattr(default, name) for name in type(default).model_fields}
    return own | {
        name: _changed(own[name], value)
        if isinstance(own.get(name), BaseModel) and isinstance(value, Mapping)
        else value
        for name, value in values.items()
    }


def load_generator(checkpoint: Checkpoint) -> Generator:
    """The generator of `checkpoint` with its averaged weights, for inference.

    ExportError if they do not fit the configuration, or are not finite.
    """
    name = checkpoint.info["recipe"]
    recipe = _recipe(name, where=f"{checkpoint.folder}: ")
    try:
        size = recipe.settings.model_fields["network"].annotation
        assert size is not None
        generator = recipe.build(size.model_validate(checkpoint.info["config"]["network"]))
    except (KeyError, TypeError, ValidationError) as error:
        raise ExportError(f"{checkpoint.folder}: the configuration is not one of the recipe {name!r}") from error
    weights = checkpoint.weights()
    try:
        generator.load_state_dict(weights)
    except RuntimeError as error:
        raise ExportError(f"{checkpoint.folder}: the weights are not those of the network it names") from error
    for key, tensor in weights.items():
        if not tensor.isfinite().all():
            raise ExportError(f"{checkpoint.folder}: weights must be finite, {key} is not")
    generator.eval()
    return generator


def _recipe(name: object, *, where: str = "") -> type[Recipe]:
    if not isinstance(name, str) or name not in RECIPES:
        raise ExportError(f"{where}recipe must be one of {', '.join(RECIPES)}, got {name!r}")
    return RECIPES[name]
