"""The production engine: TensorRT on an NVIDIA GPU.

Knows how plan, cache, device and slots go together; nothing of video.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

from ..cache import Cache, Key, open_cache
from ..errors import DeviceMemoryError, EngineError
from ..model import Manifest, Model, Precision
from ..protocol import EngineOptions, EngineSpec, Frames, Levels, Result, State, Ticket, check_batch, is_floating
from ..slots import Slots
from .contexts import Contexts
from .device import Device, find_device
from .history import HistoryPool
from .library import Library
from .plan import build
from .profiles import Profiles
from .slot import Shape, Slot

if TYPE_CHECKING:
    from typing import Self

    from numpy.typing import NDArray

    from ..residual import Variant

log = logging.getLogger(__name__)

MAX_BATCH = 4

SETTINGS = 1
"""To be raised when `plan.build` asks TensorRT for something else, so that older plans are not used."""


class _Ticket:
    def __init__(
        self, engine: TensorRtEngine, slot: Slot, frames: NDArray[Any], states: Sequence[State | None]
    ) -> None:
        self._engine, self._slot, self._frames, self._states = engine, slot, frames, states

    def result(self) -> Result:
        slots = self._engine._slots
        try:
            with self._engine._device.current():
                self._slot.wait()
        except BaseException:
            slots.give(self._slot)
            raise
        return Result(self._frames, self._states, lambda: slots.give(self._slot))


class TensorRtEngine:
    """A model on an NVIDIA GPU through TensorRT, or through TensorRT-RTX where only that is installed.

    The plan is built for this GPU when it is first needed, and comes from the cache afterwards. Every slot has a
    stream of its own, so that upload, compute and download of neighbouring batches overlap.
    """

    @staticmethod
    def must_build(model: Model, options: EngineOptions) -> bool:
        """Whether opening takes long, because the plan is not in the cache. Raises EngineError."""
        device, library = find_device(options.device), Library()
        try:
            cache = Cache(options.cache) if options.cache else None
        except EngineError:  # it is said when the engine opens
            cache = None
        return cache is None or cache.get(_Order(model, options).key(device, library)) is None

    def __init__(self, model: Model, options: EngineOptions) -> None:
        self._device, self._library = find_device(options.device), Library()
        self._variant = _variant(model, options)
        order = _Order(model, options)
        self.spec = order.spec(f"tensorrt/{self._device.name} {order.precision}", options)
        self.spec = replace(self.spec, floating=model.floating or self._variant is not None)
        states = model.manifest.states
        with self._device.current():
            self._cache = open_cache(options.cache)
            self._engine = _open(self._device, self._library, order, self._cache)
            self._kernels_key = {**order.key(self._device, self._library), "kind": "kernels"}
            kept = self._cache.get(self._kernels_key) if self._cache else None
            self._contexts: Contexts | None = Contexts(self._library, self._engine, kept)
            bytes_of = [(_bytes(self._engine, state.input), state.scale) for state in states]
            self._pool = HistoryPool(self._device, bytes_of)
            self._made = [
                Slot(self._device, self._library, self._engine, self._contexts, order.profiles, states, self._pool)
                for _ in range(options.slots)
            ]
            self._slots = Slots(self._made)
            try:
                self.spec = replace(self.spec, best_batch=self._best_batch())
            except BaseException:
                self.close()
                raise

    def submit(self, batch: Frames | Levels, states: Sequence[State | None] | None = None) -> Ticket:
        check_batch(self.spec, batch, states)
        if is_floating(batch) and self._variant:
            return self._variant.engine().submit(batch, states)
        size = batch.shape[1], batch.shape[2]
        before = [self._pool.checked(state, size) for state in states or [None] * len(batch)]
        slot = self._slots.take()
        try:
            with self._device.current():
                restored, after = slot.start(batch, before)
        except BaseException:
            self._slots.give(slot)
            raise
        return _Ticket(self, slot, restored, after)

    def close(self) -> None:
        if self._variant:
            self._variant.close()
        self._slots.close()
        made, self._made = self._made, []
        with self._device.current():
            for slot in made:
                slot.close()
            self._pool.close()
            self._keep_kernels()
            self._engine = self._contexts = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _keep_kernels(self) -> None:
        kernels = self._contexts.kernels() if self._contexts else b""
        if self._cache and kernels:
            self._cache.put(self._kernels_key, kernels)

    def _best_batch(self) -> int:
        """The greatest batch of the greatest tiles for which the device's memory suffices in all slots at once.

        Not for whole frames: their limit is far from what comes. DeviceMemoryError if a single tile is too much.
        """
        if self.spec.whole_frame:
            return MAX_BATCH
        for count in range(MAX_BATCH, 1, -1):
            with suppress(DeviceMemoryError):
                self._try_batch((count, *self.spec.tile))
                return count
        self._try_batch((1, *self.spec.tile))
        return 1

    def _try_batch(self, shape: Shape) -> None:
        try:
            for slot in self._made:
                slot.lane(shape)
        finally:
            for slot in self._made:
                slot.forget(shape)


def _variant(model: Model, options: EngineOptions) -> Variant | None:
    """What serves `Levels`: an engine like this one, built when they first come. None where there cannot be one."""
    try:
        residual = importlib.import_module("engine.residual")
    except ImportError:  # the package onnx is not there
        return None
    if model.floating or residual.lacking(model):
        return None
    variant: Variant = residual.Variant(model, lambda variant: TensorRtEngine(variant, options))
    return variant


class _Order:
    """What is to be built: a model's graph in one precision, for some shapes."""

    def __init__(self, model: Model, options: EngineOptions) -> None:
        manifest = model.manifest
        self.model = model
        self.precision = _choose_precision(manifest, options.precision)
        self.profiles = Profiles.of(manifest, manifest.tile(options.tile_px), MAX_BATCH, options.sizes)

    def key(self, device: Device, library: Library) -> Key:
        """Everything that a plan depends on."""
        pinned = self.model.manifest.pinned()
        graph = pinned[self.precision if self.precision in pinned else "f32"]
        ranges = [{name: [list(shape) for shape in span] for name, span in one.items()} for one in self.profiles.ranges]
        return {
            "kind": "plan",
            "library": library.version,
            **device.facts,
            "onnx": graph.sha256,
            "precision": self.precision,
            "profiles": ranges,
            "settings": SETTINGS,
        }

    def spec(self, backend: str, options: EngineOptions) -> EngineSpec:
        manifest = self.model.manifest
        return EngineSpec(
            model=manifest.id,
            backend=backend,
            stride=manifest.stride,
            tile=manifest.tile(options.tile_px),
            fixed_tile=manifest.fixed_tile is not None,
            overlap_px=manifest.overlap_px,
            max_batch=MAX_BATCH,
            best_batch=MAX_BATCH,
            slots=options.slots,
            recurrent=bool(manifest.states),
            whole_frame=manifest.whole_frame,
            sizes=None if manifest.fixed_tile else self.profiles.sizes,
        )


def _open(device: Device, library: Library, order: _Order, cache: Cache | None) -> Any:
    """The engine of `order`: from the cache if there is one that this library takes, or else built now."""

    def make() -> bytes:
        log.info("building %s for %s with %s", order.model.manifest.id, device.facts["gpu"], library.version)
        timing_key = {"kind": "timing", "library": library.version, **device.facts}
        known = cache.get(timing_key) if cache else None
        plan, learnt = build(library, order.model, order.precision, order.profiles, known or b"")
        if cache and learnt:
            cache.put(timing_key, learnt)
        return plan

    key = order.key(device, library)
    engine = _deserialize(device, library, cache.get_or_make(key, make) if cache else make())
    if engine is None and cache:  # whole, but not for this library: it may have been built by another build of it
        cache.drop(key)
        engine = _deserialize(device, library, cache.get_or_make(key, make))
    if engine is None:
        raise EngineError(f"{library.version} does not take the plan that it built{library.why()}")
    return engine


def _deserialize(device: Device, library: Library, plan: bytes) -> Any:
    library.why()  # what was said before does not count
    runtime = library.module.Runtime(library.logger)
    runtime.engine_host_code_allowed = False  # a plan may bring code for the host: ours never does
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None and library.lacks_memory():  # the plan is good: to build it again would not help
        raise device.out_of_memory()
    return engine


def _choose_precision(manifest: Manifest, wanted: str) -> Precision:
    allowed = tuple(name for name in ("f16", "int8", "f32") if name in manifest.precisions)
    if wanted == "auto":
        return "f16" if "f16" in allowed else "f32"
    if wanted not in allowed:
        raise EngineError(
            f"precision must be auto or {' or '.join(allowed)} for model {manifest.id!r} on TensorRT, got {wanted!r}"
        )
    return cast("Precision", wanted)


def _bytes(engine: Any, name: str) -> int:
    """Bytes of all channels of one pixel of the tensor `name`."""
    return int(engine.get_tensor_shape(name)[1]) * int(engine.get_tensor_dtype(name).itemsize)
