"""The table of back-ends, and how one is opened.

Knows names only: a back-end's module is imported when it is chosen.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Protocol

from .errors import EngineError
from .model import Model, load_model
from .protocol import Engine, EngineOptions

BACKENDS = {
    "openvino": "engine.openvino:OpenVinoEngine",
    "identity": "engine.identity:IdentityEngine",
}
AUTO = ("openvino",)
"""What `auto` tries, best first."""


class Backend(Protocol):
    """What a back-end's class must be callable as."""

    def __call__(self, model: Model, options: EngineOptions) -> Engine: ...


def open_engine(name: str, model: str, options: EngineOptions | None = None) -> Engine:
    """Open back-end `name` (`auto` for the best that works here) on `model`, a shipped name or a path.

    Raises EngineError if the back-end or the model is unknown or cannot run here.
    """
    loaded = load_model(model)
    options = options or EngineOptions()
    if name != "auto":
        return _backend(name)(loaded, options)
    reasons = []
    for candidate in AUTO:
        try:
            return _backend(candidate)(loaded, options)
        except EngineError as error:
            reasons.append(f"{candidate}: {error}")
    raise EngineError("no engine works here: " + "; ".join(reasons))


def _backend(name: str) -> Backend:
    if name not in BACKENDS:
        raise EngineError(f"engine must be one of auto, {', '.join(BACKENDS)}, got {name!r}")
    module, _, attribute = BACKENDS[name].partition(":")
    try:
        backend: Backend = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise EngineError(f"engine {name!r} needs a package that is not installed ({error.name})") from error
    return backend
