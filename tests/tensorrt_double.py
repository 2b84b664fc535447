"""A TensorRT that computes in host memory, behind the real classes of TensorRT.

NVIDIA's own bindings decide which classes, methods, arguments and properties there are: they import without their
library when stand-ins for its nine entry points are there, which `gcc` makes. What is behind them is here: a plan is
the ONNX graph and its profiles, and a context runs it with ONNX's reference evaluator on the device of `cuda_double`.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.machinery
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import cuda_double
import numpy as np
import pytest

LIBRARIES = ("libnvinfer", "libnvonnxparser", "libnvinfer_plugin")
ENTRY_POINTS = """
#define NOTHING(name) void *name(void) { return 0; }
NOTHING(createInferBuilder_INTERNAL) NOTHING(createInferRefitter_INTERNAL) NOTHING(createInferRuntime_INTERNAL)
NOTHING(createNvOnnxParserRefitter_INTERNAL) NOTHING(createNvOnnxParser_INTERNAL) NOTHING(getBuilderPluginRegistry)
NOTHING(getPluginRegistry) NOTHING(getNvOnnxParserVersion) NOTHING(initLibNvInferPlugins)
"""


def real_classes() -> Any:
    """The module `tensorrt_bindings` without its library; skips the test where it cannot be had."""
    if "tensorrt_bindings" in sys.modules:
        return sys.modules["tensorrt_bindings"]
    spec = importlib.util.find_spec("tensorrt_bindings")
    if spec is None or spec.origin is None:
        pytest.skip("needs NVIDIA's classes: pip install tensorrt-cu13-bindings")
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc, for stand-ins of the library of tensorrt-cu13-bindings")
    (major,) = re.findall(r'^__version__ = "(\d+)\.', Path(spec.origin).read_text(encoding="utf-8"), re.MULTILINE)
    with tempfile.TemporaryDirectory() as folder:
        for library in LIBRARIES:
            name = f"{library}.so.{major}"
            # Loaded for these bindings alone: TensorRT-RTX has the same entry points, and may be in this process.
            command = ["gcc", "-w", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", f"{folder}/{name}", "-x", "c", "-"]
            subprocess.run(command, input=ENTRY_POINTS if library == LIBRARIES[0] else "", text=True, check=True)
            ctypes.CDLL(f"{folder}/{name}")
        return importlib.import_module("tensorrt_bindings")


def overloads(method: Any) -> list[tuple[list[str], int]]:
    """(names of the arguments, how many are required) of each overload, from pybind11's docstring, where it has one."""
    found = []
    for line in re.findall(r"^(?:\d+\. )?\w+\((.*)\) ->", method.__doc__ or "", re.MULTILINE):
        arguments, depth, current = [], 0, ""
        for character in line + ",":
            depth += (character in "[(<") - (character in "])>")
            if character == "," and not depth:
                arguments.append(current.strip())
                current = ""
            else:
                current += character
        arguments = [argument for argument in arguments if argument and not argument.startswith("self")]
        if arguments[:1] != ["*args"]:
            found.append(
                ([argument.split(":")[0].strip() for argument in arguments], sum("=" not in a for a in arguments))
            )
    return found


class Checked:
    """Hands on to `double` what the real class has, and refuses what it has not, as the real class would."""

    def __init__(self, real: type, double: Any) -> None:
        object.__setattr__(self, "_real", real)
        object.__setattr__(self, "_double", double)

    def __getattr__(self, name: str) -> Any:
        if not hasattr(self._real, name):
            raise AttributeError(f"TensorRT has no {self._real.__name__}.{name}")
        value, real = getattr(self._double, name), getattr(self._real, name)
        if isinstance(self._real.__dict__.get(name), property) or not callable(value):
            return value

        def call(*arguments: Any, **named: Any) -> Any:
            known = overloads(real)
            fits = any(
                need <= len(arguments) + len(named) <= len(names) and set(named) <= set(names[len(arguments) :])
                for names, need in known
            )
            if known and not fits:
                raise TypeError(f"{self._real.__name__}.{name} takes {known}, got {len(arguments)} and {sorted(named)}")
            return value(*arguments, **named)

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        attribute = self._real.__dict__.get(name)
        if not isinstance(attribute, property) or attribute.fset is None:
            raise AttributeError(f"{self._real.__name__}.{name} cannot be set")
        setattr(self._double, name, value)


def behind(checked: Any) -> Any:
    """The double that stands behind a checked object."""
    return object.__getattribute__(checked, "_double")


class Double:
    """The stand-in: install it with `installed`, and look at what was asked of it."""

    def __init__(self) -> None:
        self.trt = real_classes()
        self.device = cuda_double.Device()
        self.library = "one"
        """Which build of the library this is: it takes no plan of another."""
        self.builds = 0
        self.captures_work = True
        self.timings: list[bytes] = []
        """What each build was told of earlier ones."""

    def module(self) -> ModuleType:
        module: Any = ModuleType("tensorrt")
        for name in dir(self.trt):
            value = getattr(self.trt, name)
            if not name.startswith("_") and isinstance(value, type):
                setattr(module, name, value)
        trt = self.trt
        module.__version__ = trt.__version__
        module.Builder = lambda logger: Checked(trt.Builder, Builder(self, logger))
        module.OnnxParser = lambda network, logger: Checked(trt.OnnxParser, Parser(self, network))
        module.Runtime = lambda logger: Checked(trt.Runtime, Runtime(self, logger))
        return module  # type: ignore[no-any-return]


def forget_devices() -> None:
    """Let the engine look at its devices anew."""
    from engine.tensorrt import device

    device._device.cache_clear()


@contextmanager
def installed() -> Iterator[Double]:
    """Let `tensorrt`, `pycuda` and `cuda.bindings` be the stand-ins, and the GPU be there."""
    from engine.tensorrt import device

    double = Double()
    pycuda: Any = ModuleType("pycuda")
    pycuda.driver = cuda_double.pycuda_driver(double.device)
    tensorrt = double.module()
    tensorrt.__spec__ = importlib.machinery.ModuleSpec("tensorrt", None)
    bindings: Any = ModuleType("cuda.bindings")
    bindings.driver = cuda_double.GraphDriver(double.device)
    with pytest.MonkeyPatch.context() as patch:
        for name, module in {
            "pycuda": pycuda,
            "pycuda.driver": pycuda.driver,
            "tensorrt": tensorrt,
            "cuda": ModuleType("cuda"),
            "cuda.bindings": bindings,
        }.items():
            patch.setitem(sys.modules, name, module)
        patch.setattr(device, "why_no_gpu", lambda: None)
        forget_devices()
        try:
            yield double
        finally:
            forget_devices()


class Tensor:
    def __init__(self, double: Double, value: Any) -> None:
        kinds = {2: "UINT8", 1: "FLOAT", 10: "HALF"}
        self.name = value.name
        tensor = value.type.tensor_type
        self.shape = tuple(side.dim_value or -1 for side in tensor.shape.dim)
        self.dtype = getattr(double.trt.DataType, kinds[tensor.elem_type])


class Network:
    def __init__(self, double: Double) -> None:
        self._double = double
        self.onnx = b""
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []

    num_inputs = property(lambda self: len(self.inputs))
    num_outputs = property(lambda self: len(self.outputs))

    def get_input(self, index: int) -> Any:
        return self.inputs[index]

    def get_output(self, index: int) -> Any:
        return self.outputs[index]


class Parser:
    def __init__(self, double: Double, network: Any) -> None:
        self._double, self._network = double, behind(network)
        self._errors: list[str] = []

    num_errors = property(lambda self: len(self._errors))

    def get_error(self, index: int) -> Any:
        text = self._errors[index]

        class ParserError:
            def desc(self) -> str:
                return text

        return ParserError()

    def parse(self, model: bytes) -> bool:
        import onnx

        try:
            graph = onnx.load_from_string(model).graph
        except Exception as error:  # noqa: BLE001 - protobuf's
            self._errors.append(f"cannot be parsed: {error}")
            return False
        self._network.onnx = model
        tensor = self._double.trt.ITensor
        self._network.inputs = [Checked(tensor, Tensor(self._double, value)) for value in graph.input]
        self._network.outputs = [Checked(tensor, Tensor(self._double, value)) for value in graph.output]
        return True


class Profile:
    def __init__(self) -> None:
        self.ranges: dict[str, list[list[int]]] = {}

    def set_shape(self, input: str, min: Sequence[int], opt: Sequence[int], max: Sequence[int]) -> None:  # noqa: A002
        self.ranges[input] = [list(min), list(opt), list(max)]


class Config:
    def __init__(self, double: Double) -> None:
        self._double = double
        self.profiles: list[dict[str, list[list[int]]]] = []
        self.progress_monitor: Any = None
        self._timing = b""

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        pass

    def clear_flag(self, flag: Any) -> None:
        pass

    def add_optimization_profile(self, profile: Any) -> int:
        self.profiles.append(behind(profile).ranges)
        return len(self.profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> Any:
        self._double.timings.append(serialized_timing_cache)
        return self

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        self._timing = b"learnt"
        return True

    def get_timing_cache(self) -> Any:
        timing = self._timing

        class Cache:
            def serialize(self) -> bytes:
                return timing

        return Checked(self._double.trt.ITimingCache, Cache())


class Builder:
    def __init__(self, double: Double, logger: Any) -> None:
        self._double, self._logger = double, logger

    def create_network(self, flags: int) -> Any:
        return Checked(self._double.trt.INetworkDefinition, Network(self._double))

    def create_builder_config(self) -> Any:
        return Checked(self._double.trt.IBuilderConfig, Config(self._double))

    def create_optimization_profile(self) -> Any:
        return Checked(self._double.trt.IOptimizationProfile, Profile())

    def build_serialized_network(self, network: Any, config: Any) -> bytes | None:
        plain, settings = behind(network), behind(config)
        self._double.device.demand_context("cuCtxGetCurrent")
        for tensor in plain.inputs:
            if -1 in tensor.shape and not settings.profiles:
                self._logger.log(self._double.trt.ILogger.Severity.ERROR, "Network has dynamic inputs, but no profile")
                return None
        self._double.builds += 1
        if settings.progress_monitor is not None:
            settings.progress_monitor.phase_start("Building", None, 2)
            assert settings.progress_monitor.step_complete("Building", 0)
            settings.progress_monitor.phase_finish("Building")
        header = {"library": self._double.library, "gpu": self._double.device.name, "profiles": settings.profiles}
        return json.dumps(header).encode() + b"\n" + plain.onnx


class Runtime:
    engine_host_code_allowed = True

    def __init__(self, double: Double, logger: Any) -> None:
        self._double, self._logger = double, logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:
        assert not self.engine_host_code_allowed
        header, _, onnx = serialized_engine.partition(b"\n")
        facts = json.loads(header)
        if (facts["library"], facts["gpu"]) != (self._double.library, self._double.device.name):
            self._logger.log(self._double.trt.ILogger.Severity.ERROR, "the plan was built by another library")
            return None
        return Checked(self._double.trt.ICudaEngine, Engine(self._double, facts["profiles"], onnx))


class Engine:
    def __init__(self, double: Double, profiles: list[dict[str, list[list[int]]]], onnx_bytes: bytes) -> None:
        import onnx
        import onnx.reference

        self.double, self.profiles = double, profiles
        model = onnx.load_from_string(onnx_bytes)
        self.evaluator = onnx.reference.ReferenceEvaluator(model)
        self.inputs = [Tensor(double, value) for value in model.graph.input]
        self.outputs = [Tensor(double, value) for value in model.graph.output]
        self._tensors = {tensor.name: tensor for tensor in (*self.inputs, *self.outputs)}

    num_io_tensors = property(lambda self: len(self._tensors))

    @property
    def device_memory_size(self) -> int:
        return 10 * max(int(np.prod(profile["frames"][2])) for profile in self.profiles)

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_dtype(self, name: str) -> Any:
        return self._tensors[name].dtype

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def create_execution_context(self, strategy: Any) -> Any:
        assert strategy == self.double.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        return Checked(self.double.trt.IExecutionContext, Context(self))


class Context:
    def __init__(self, engine: Engine) -> None:
        self._engine, self._device = engine, engine.double.device
        self._profile: int | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._scratch: tuple[int, int] | None = None
        self._needed = engine.device_memory_size
        self._changes = 0
        self._runs = 0

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        assert stream_handle in self._device.streams
        self._profile = profile_index
        return profile_index < len(self._engine.profiles)

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        assert self._profile is not None
        least, _, greatest = self._engine.profiles[self._profile][name]
        self._changes += 1
        self._shapes[name] = tuple(shape)
        return all(low <= side <= high for low, side, high in zip(least, shape, greatest, strict=True))

    def infer_shapes(self) -> list[str]:
        return [tensor.name for tensor in self._engine.inputs if tensor.name not in self._shapes]

    def update_device_memory_size_for_shapes(self) -> int:
        self._needed = 10 * int(np.prod(self._shapes["frames"]))
        return self._needed

    def set_device_memory(self, memory: int, size: int) -> None:
        self._scratch = (memory, size)

    def _set_memory(self, memory: int) -> None:
        self._scratch = (memory, self._needed)

    device_memory = property(None, _set_memory)  # before TensorRT 10.1

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        count, height, width, _ = self._shapes["frames"]
        if name in self._shapes:
            return self._shapes[name]
        if name == "restored":
            return (count, height, width, 3)
        fed = {key: np.zeros(shape, self._dtype(key)) for key, shape in self._shapes.items()}
        names = [tensor.name for tensor in self._engine.outputs]
        return tuple(self._engine.evaluator.run(names, fed)[names.index(name)].shape)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._changes += 1
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        stream = self._device.streams[stream_handle]
        assert self._scratch is not None
        self._device.at(*self._scratch)
        if stream.recording is not None and not (self._runs and self._engine.double.captures_work):
            return False
        self._runs += 1
        seen = self._changes

        def compute() -> None:
            assert seen == self._changes, "a graph is void after its context has changed"
            memory = {
                name: cuda_double.read(self._device, address, self.get_tensor_shape(name), self._dtype(name))
                for name, address in self._addresses.items()
            }
            names = [tensor.name for tensor in self._engine.outputs]
            fed = {tensor.name: memory[tensor.name].copy() for tensor in self._engine.inputs}
            for name, array in zip(names, self._engine.evaluator.run(names, fed), strict=True):
                memory[name][...] = array

        stream.add(compute)
        return True

    def _dtype(self, name: str) -> Any:
        kinds = self._engine.double.trt.DataType
        return {kinds.UINT8: np.uint8, kinds.FLOAT: np.float32, kinds.HALF: np.float16}[
            self._engine.get_tensor_dtype(name)
        ]
