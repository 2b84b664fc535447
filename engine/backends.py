"""The table of back-ends, and how one is opened.

Knows names only: a back-end's module is imported when it is chosen.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from dataclasses import replace
from typing import Protocol

from .driver import why_no_gpu
from .errors import DeviceMemoryError, EngineError
from .model import Model, load_model
from .protocol import Engine, EngineOptions
from .selfcheck import self_check

log = logging.getLogger(__name__)

BACKENDS = {
    "tensorrt": "engine.tensorrt.engine:TensorRtEngine",
    "torch": "engine.torch:TorchEngine",
    "openvino": "engine.openvino:OpenVinoEngine",
    "identity": "engine.identity:IdentityEngine",
}
AUTO = ("tensorrt", "torch", "openvino")
"""What `auto` tries, best first."""
CUDA = ("tensorrt", "torch")
"""Those that `auto` tries only where there is an NVIDIA GPU."""

LEAST_TILE_PX = 256
"""Tiles are made smaller for want of memory down to this."""


class Backend(Protocol):
    """What a back-end's class must be callable as."""

    def __call__(self, model: Model, options: EngineOptions) -> Engine: ...


def open_engine(name: str, model: str, options: EngineOptions | None = None) -> Engine:
    """Open back-end `name` (`auto` for the best that works here) on `model`, a shipped name or a path.

    What is opened has restored the model's check pair. Raises EngineError if the back-end or the model is unknown
    or cannot run here.
    """
    loaded = load_model(model)
    options = options or EngineOptions()
    if name != "auto":
        return open_backend(name, loaded, options)
    reasons: list[str] = []
    for candidate in AUTO:
        try:
            engine = _open_if_it_could(candidate, loaded, options)
        except EngineError as error:
            reasons.append(f"{candidate}: {error}")
            continue
        log.info("engine %s%s", engine.spec.backend, f" (not {'; not '.join(reasons)})" if reasons else "")
        return engine
    raise EngineError("no engine works here: " + "; ".join(reasons))


def open_backend(name: str, model: Model, options: EngineOptions) -> Engine:
    """Open one back-end, with smaller tiles where the device's memory asks for them, and check that it computes."""
    engine = _open_within_memory(_backend(name), model, options)
    if name == "identity":  # computes nothing
        return engine
    try:
        self_check(engine, model)
    except BaseException:
        engine.close()
        raise
    return engine


def _open_within_memory(backend: Backend, model: Model, options: EngineOptions) -> Engine:
    try:
        return backend(model, options)
    except DeviceMemoryError as error:
        smaller = options.tile_px // 2
        if model.manifest.whole_frame or model.manifest.fixed_tile or smaller < LEAST_TILE_PX:
            raise EngineError(f"{error}; no smaller tile is left to try") from error
        log.warning("%s; trying tiles of %d px instead of %d", error, smaller, options.tile_px)
        return _open_within_memory(backend, model, replace(options, tile_px=smaller))


def _open_if_it_could(name: str, model: Model, options: EngineOptions) -> Engine:
    if name in CUDA:
        if options.device != "auto" and not options.device.startswith("cuda"):
            raise EngineError(f"device must be cuda, got {options.device!r}")
        reason = why_no_gpu()
        if reason:
            raise EngineError(reason)
    return open_backend(name, model, options)


def _backend(name: str) -> Backend:
    if name not in BACKENDS:
        raise EngineError(f"engine must be one of auto, {', '.join(BACKENDS)}, got {name!r}")
    module, _, attribute = BACKENDS[name].partition(":")
    try:
        backend: Backend = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise EngineError(f"engine {name!r} needs a package that is not installed ({error.name})") from error
    return backend
