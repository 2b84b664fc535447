"""The table of back-ends, and how one is opened.

Knows names only: a back-end's module is imported when it is chosen.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Protocol

from .driver import why_no_gpu
from .errors import DeviceMemoryError, EngineError
from .model import Model, load_model
from .protocol import Engine, EngineOptions, Sizes
from .selfcheck import self_check
from .standby import Standby

log = logging.getLogger(__name__)

BACKENDS = {
    "tensorrt": "engine.tensorrt.engine:TensorRtEngine",
    "torch": "engine.torch.engine:TorchEngine",
    "openvino": "engine.openvino.engine:OpenVinoEngine",
    "identity": "engine.identity:IdentityEngine",
}
AUTO = ("tensorrt", "torch", "openvino")
"""What `auto` tries, best first."""
CUDA = ("tensorrt", "torch")
"""Those that `auto` tries only where there is an NVIDIA GPU."""

LEAST_TILE_PX = 256
"""Tiles are made smaller for want of memory down to this."""

Reasons = dict[str, str]
"""Back-ends that do not serve, and why."""


class Backend(Protocol):
    """What a back-end's class must be callable as.

    It may have a static method `must_build(model, options) -> bool`: whether opening would take long, because an
    engine has to be built for this machine first; the log then says how far it is. Raises EngineError where it could
    not be opened at all.
    """

    def __call__(self, model: Model, options: EngineOptions) -> Engine: ...


def open_engine(name: str, model: str, options: EngineOptions | None = None) -> Engine:
    """Open back-end `name` (`auto` for the best that works here) on `model`, a shipped name or a path.

    What is opened has restored the model's check pair. Raises EngineError if the back-end or the model is unknown
    or cannot run here.
    """
    loaded = load_model(model)
    options = options or EngineOptions()
    reasons: Reasons = {}
    if name == "auto":
        engine = _first(AUTO, lambda each: _open_if_it_could(each, loaded, options, reasons), reasons)
        if engine is None:
            raise EngineError("no engine works here: " + "; ".join(f"{each}: {why}" for each, why in reasons.items()))
    else:
        engine = _open(name, loaded, options, reasons)
    if name == "auto" or reasons:
        log.info("engine %s%s", engine.spec.backend, f" ({_folded(reasons)})" if reasons else "")
    return engine


def _first(names: Iterable[str], open_one: Callable[[str], Engine], reasons: Reasons) -> Engine | None:
    for name in names:
        try:
            engine = open_one(name)
        except EngineError as error:
            reasons[name] = str(error)
            continue
        return engine
    return None


def _open_if_it_could(name: str, model: Model, options: EngineOptions, reasons: Reasons) -> Engine:
    if name in CUDA:
        if options.device != "auto" and not options.device.startswith("cuda"):
            raise EngineError(f"device must be cuda, got {options.device!r}")
        reason = why_no_gpu()
        if reason:
            raise EngineError(reason)
        # Told so, torch does not fall back to the processor, which OpenVINO makes better use of.
        options = replace(options, device="cuda" if options.device == "auto" else options.device)
    return _open(name, model, options, reasons)


def _open(name: str, model: Model, options: EngineOptions, reasons: Reasons) -> Engine:
    """Open one back-end; while it is built in the background, the next best serves, and `reasons` says so."""
    if options.build == "wait":
        return open_backend(name, model, options)
    if _must_build(name, model, options):
        stand_in = _open_stand_in(name, model, options, reasons)
        if stand_in:
            reasons[name] = "it is being built"
            standby = _standby(stand_in, name, model, options)
            standby.prepare(options.sizes)
            return standby
    engine = open_backend(name, model, options)
    return engine if engine.spec.sizes is None else _standby(engine, name, model, options)


def _standby(engine: Engine, name: str, model: Model, options: EngineOptions) -> Standby:
    """Serve with `engine`, and with `name` when it is built, for the very tiles that frames are cut into by then."""
    tile_px = min(options.tile_px, max(engine.spec.tile))

    def open_for(sizes: Sizes) -> Engine:
        backend, exact = _backend(name), replace(options, sizes=sizes, tile_px=tile_px)
        return _checked(backend(model, exact), name, model)  # smaller tiles would be of no use

    return Standby(engine, name, open_for)


def _open_stand_in(name: str, model: Model, options: EngineOptions, reasons: Reasons) -> Engine | None:
    """The best engine that can serve at once instead of `name`."""
    # Where the device or precision asked for is a GPU's, OpenVINO stands in with its own.
    on_cpu = replace(
        options,
        device="auto" if options.device.startswith("cuda") else options.device,
        precision="auto" if options.precision == "f16" else options.precision,
    )

    def open_at_once(other: str) -> Engine:
        theirs = replace(options if other in CUDA else on_cpu, build="wait")
        if _must_build(other, model, theirs):
            raise EngineError("it must be built first")
        return _open_if_it_could(other, model, theirs, reasons)

    return _first([other for other in AUTO if other not in (name, *reasons)], open_at_once, reasons)


def open_backend(name: str, model: Model, options: EngineOptions) -> Engine:
    """Open one back-end, with smaller tiles where the device's memory asks for them, and check that it computes."""
    return _checked(_open_within_memory(_backend(name), model, options), name, model)


def _checked(engine: Engine, name: str, model: Model) -> Engine:
    if name == "identity":  # computes nothing
        return engine
    try:
        self_check(engine, model)
    except BaseException:
        engine.close()
        raise
    return engine


def _open_within_memory(backend: Backend, model: Model, options: EngineOptions) -> Engine:
    while True:
        try:
            return backend(model, options)
        except DeviceMemoryError as error:
            lacking = str(error)  # and not the error, which holds on to what was allocated
        smaller = options.tile_px // 2
        if model.manifest.whole_frame or model.manifest.fixed_tile or smaller < LEAST_TILE_PX:
            raise EngineError(f"{lacking}; no smaller tile is left to try")
        log.warning("%s; trying tiles of %d px instead of %d", lacking, smaller, options.tile_px)
        options = replace(options, tile_px=smaller)


def _must_build(name: str, model: Model, options: EngineOptions) -> bool:
    ask = getattr(_backend(name), "must_build", None)
    return ask is not None and bool(ask(model, options))


def _folded(reasons: Reasons) -> str:
    """`not tensorrt, torch: no NVIDIA driver; not openvino: …`: those of one reason share it."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name)
    return "; ".join(f"not {', '.join(those)}: {reason}" for reason, those in names.items())


def _backend(name: str) -> Backend:
    if name not in BACKENDS:
        raise EngineError(f"engine must be one of auto, {', '.join(BACKENDS)}, got {name!r}")
    module, _, attribute = BACKENDS[name].partition(":")
    try:
        backend: Backend = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise EngineError(f"engine {name!r} needs a package that is not installed ({error.name})") from error
    return backend
