"""Build a plan: an ONNX graph compiled for one GPU.

Knows TensorRT's builder; nothing of devices in use, or of where plans are kept. One source for TensorRT 8.6, 10 and
11, and for TensorRT-RTX: what they have differs, and is asked for by presence.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import DeviceMemoryError, EngineError, ModelError
from ..model import Model, Precision
from .library import Library
from .profiles import Profiles, fitted

log = logging.getLogger(__name__)

WORKSPACE_BYTES = 2 << 30
PROGRESS_EVERY_S = 10.0


def build(
    library: Library, model: Model, precision: Precision, profiles: Profiles, timing: bytes
) -> tuple[bytes, bytes]:
    """Compile the graph of `precision` for the current device; gives the plan, and the times of kernels, learnt.

    `timing` is what an earlier build learnt, or empty. Raises ModelError for a graph that TensorRT does not take,
    EngineError if it cannot build it here.
    """
    trt, onnx = library.module, model.graph(precision)
    library.why()  # what was said before does not count
    try:
        builder = trt.Builder(library.logger)
    except TypeError as error:  # the factory gave nothing: there is no driver
        raise EngineError(f"{library.version} does not start{library.why()}") from error
    network = builder.create_network(_flags(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", "STRONGLY_TYPED"))
    parser = trt.OnnxParser(network, library.logger)
    if not parser.parse(onnx):
        raise ModelError(f"{library.version} does not take the graph{_fault(parser)}")
    _check_graph(trt, network, model)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    _set_precision(trt, config, precision)
    _add_profiles(library, builder, network, config, profiles)
    times = not hasattr(trt, "IRuntimeCache")  # TensorRT-RTX, which has that one, chooses kernels without timing them
    if times and not _take_times(config, timing):  # another build of this version learnt it
        _take_times(config, b"")
    with _progress(trt, config):
        plan = builder.build_serialized_network(network, config)
    if plan is None and library.lacks_memory():
        raise DeviceMemoryError(f"{library.version} has too little memory to build{library.why()}")
    if plan is None:
        raise EngineError(f"{library.version} cannot build the graph here{library.why()}")
    return bytes(plan), bytes(config.get_timing_cache().serialize()) if times else b""


def _take_times(config: Any, timing: bytes) -> bool:
    cache = config.create_timing_cache(timing)
    return cache is not None and bool(config.set_timing_cache(cache, False))


def _fault(parser: Any) -> str:
    """The first of what the parser found, with the node that it found it in where this version tells."""
    if not parser.num_errors:
        return ""
    error = parser.get_error(0)
    node = " ".join(filter(None, (getattr(error, name, str)() for name in ("node_operator", "node_name"))))
    return f": {' '.join(error.desc().split())}{f' (at {node})' if node else ''}"


def _flags(kind: Any, *names: str) -> int:
    """Those of the flags `names` that this version has: 8 needs EXPLICIT_BATCH, 10 STRONGLY_TYPED, 11 neither."""
    return sum(1 << int(kind.__members__[name]) for name in names if name in kind.__members__)


def _set_precision(trt: Any, config: Any, precision: Precision) -> None:
    flags = trt.BuilderFlag
    if precision == "f32":
        config.clear_flag(flags.TF32)  # has 10 bits of mantissa
    if "REQUIRE_USER_ALLOCATION" in flags.__members__:  # TensorRT-RTX: else what allocates cannot be captured
        config.set_flag(flags.REQUIRE_USER_ALLOCATION)
    if "STRONGLY_TYPED" in trt.NetworkDefinitionCreationFlag.__members__:
        return  # the graph's own types are obeyed
    # Before 10, a profile belongs to one context alone unless the plan allows more.
    config.set_preview_feature(trt.PreviewFeature.PROFILE_SHARING_0806, True)
    for name in {"f16": ("FP16",), "int8": ("INT8", "FP16")}.get(precision, ()):
        config.set_flag(getattr(flags, name))


def _check_graph(trt: Any, network: Any, model: Model) -> None:
    manifest = model.manifest
    takes = {tensor.name: tensor for tensor in map(network.get_input, range(network.num_inputs))}
    gives = {tensor.name: tensor for tensor in map(network.get_output, range(network.num_outputs))}
    need_in = {"frames", *(state.input for state in manifest.states)}
    need_out = {"restored", *(state.output for state in manifest.states)}
    if need_in != set(takes) or need_out != set(gives):
        raise ModelError(
            f"the graph must take {', '.join(sorted(need_in))} and give {', '.join(sorted(need_out))},"
            f" got {', '.join(sorted(takes)) or 'nothing'} and {', '.join(sorted(gives)) or 'nothing'}"
        )
    for state in manifest.states:
        if takes[state.input].dtype != gives[state.output].dtype:
            raise ModelError(f"{state.input!r} and {state.output!r} must be of one type")
    types = takes["frames"].dtype, gives["restored"].dtype
    wanted = trt.DataType.FLOAT if model.floating else trt.DataType.UINT8
    if types != (wanted, wanted):
        raise ModelError(f"'frames' and 'restored' must be {model.dtype}, got {types[0].name} and {types[1].name}")


def _add_profiles(library: Library, builder: Any, network: Any, config: Any, profiles: Profiles) -> None:
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    for ranges in profiles.ranges:
        profile = builder.create_optimization_profile()
        for tensor in inputs:
            profile.set_shape(tensor.name, *fitted(tuple(tensor.shape), ranges[tensor.name]))
        if config.add_optimization_profile(profile) < 0:
            raise EngineError(f"{library.version} refuses the frame sizes {ranges['frames']}{library.why()}")


@contextmanager
def _progress(trt: Any, config: Any) -> Iterator[None]:
    """Log how far the build is, now and then, and how long it took; steps only where this version tells them."""
    step = [""]
    monitor = _monitor(trt, step) if hasattr(trt, "IProgressMonitor") else None  # must outlive the build
    if monitor is not None:
        config.progress_monitor = monitor
    began, over = time.monotonic(), threading.Event()

    def tell() -> None:
        while not over.wait(PROGRESS_EVERY_S):
            log.info("building for this GPU, once: %.0f s%s", time.monotonic() - began, step[0])

    teller = threading.Thread(target=tell, name="build progress")
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()
    log.info("built in %.0f s", time.monotonic() - began)


def _monitor(trt: Any, step: list[str]) -> Any:
    """A progress monitor that keeps `step[0]` up to date, as the end of a line."""
    steps: dict[str, int] = {}

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:  # noqa: ARG002
            steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step_number: int) -> bool:
            step[0] = f", {phase_name}: {step_number + 1} of {steps.get(phase_name, step_number + 1)}"
            return True  # go on

        def phase_finish(self, phase_name: str) -> None:
            steps.pop(phase_name, None)

    return Monitor()
