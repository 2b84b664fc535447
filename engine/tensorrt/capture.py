"""Record what is queued on a stream as a CUDA graph, and replay it at the price of one call.

Knows cuda-bindings, because pycuda has no graphs; nothing of what is recorded.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)


class Graph:
    """A recorded graph; the addresses in it must stay valid until it is closed."""

    def __init__(self, driver: Any, executable: Any) -> None:
        self._driver, self._executable = driver, executable

    def launch(self, stream: int) -> None:
        """Queue everything that was recorded on `stream`, a CUstream handle. RuntimeError if CUDA refuses."""
        _checked(self._driver.cuGraphLaunch(self._executable, stream))

    def close(self) -> None:
        """Free the graph; it must have run to its end."""
        self._driver.cuGraphExecDestroy(self._executable)


def capture(stream: int, enqueue: Callable[[], None]) -> Graph | None:
    """Record what `enqueue` queues on `stream`, a CUstream handle; nothing of it runs.

    None where it cannot be recorded: without cuda-bindings, or if the work allows no capture. Whatever `enqueue`
    raises counts as that.
    """
    try:
        from cuda.bindings import driver
    except ImportError:
        return None
    try:
        # Only this thread is kept from what breaks a capture: other slots may allocate meanwhile.
        _checked(driver.cuStreamBeginCapture(stream, driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL))
        try:
            enqueue()
        finally:
            status, graph = driver.cuStreamEndCapture(stream)
        try:
            _checked((status,))
            return Graph(driver, _checked(driver.cuGraphInstantiate(graph, 0)))
        finally:
            driver.cuGraphDestroy(graph)
    except Exception as error:  # noqa: BLE001 - TensorRT and CUDA fail here in many ways, and none of them matters
        log.info("no CUDA graph: %s", error)
        return None


def _checked(answer: Any) -> Any:
    """The value of a call of the driver, if it has one. RuntimeError if it failed."""
    status, *values = answer
    if int(status):
        raise RuntimeError(f"CUDA says {getattr(status, 'name', status)}")
    return values[0] if values else None
