"""Execution contexts of an engine: how they are made, and whose memory they work in.

Knows TensorRT's runtime; nothing of batches. A context is lent its memory: as much as its shapes need, not as much as
the greatest that its profile allows.
"""

from __future__ import annotations

from typing import Any

from .library import Library


class Contexts:
    """Makes contexts of `engine`, for where its device is current.

    TensorRT-RTX compiles its kernels where it runs: `kernels` are those that an earlier run compiled, if any are kept.
    """

    def __init__(self, library: Library, engine: Any, kernels: bytes | None = None) -> None:
        self._trt, self._engine = library.module, engine
        self._config = self._kernels = None
        if not hasattr(self._trt, "IRuntimeCache"):  # not TensorRT-RTX
            return
        self._config = engine.create_runtime_config()
        self._config.set_execution_context_allocation_strategy(
            self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        # Made lazily, they would come after the graph was captured, which would go on with slower ones.
        self._config.dynamic_shapes_kernel_specialization_strategy = (
            self._trt.DynamicShapesKernelSpecializationStrategy.EAGER
        )
        self._kernels = self._config.create_runtime_cache()
        if kernels:
            self._kernels.deserialize(kernels)  # what is of another environment, it refuses
        self._config.set_runtime_cache(self._kernels)

    def create(self) -> Any:
        """A context without memory; None if TensorRT cannot make one."""
        if self._config is not None:
            return self._engine.create_execution_context(self._config)
        if hasattr(self._trt, "ExecutionContextAllocationStrategy"):
            return self._engine.create_execution_context(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        return self._engine.create_execution_context_without_device_memory()

    def kernels(self) -> bytes:
        """What was compiled so far, to be kept; nothing where that is part of the plan."""
        return bytes(self._kernels.serialize()) if self._kernels is not None else b""

    def lend_memory(self, cuda: Any, context: Any) -> Any:
        """Give `context`, whose shapes are set, device memory for its intermediate results; returns it."""
        if hasattr(context, "update_device_memory_size_for_shapes"):
            size = context.update_device_memory_size_for_shapes()
        else:
            size = self._engine.device_memory_size
        size = max(size, 1)  # none at all is refused where another shape of the plan needs some
        memory = cuda.mem_alloc(size)
        if hasattr(context, "set_device_memory"):
            context.set_device_memory(int(memory), size)
        else:
            context.device_memory = int(memory)
        return memory
