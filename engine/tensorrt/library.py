"""The TensorRT library itself: which of its packages is here, and what it has to say.

Knows the names of packages and log levels; nothing of engines. What differs from version to version is found by
presence, never by version.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
from collections.abc import Sequence
from typing import Any

from ..errors import EngineError

log = logging.getLogger(__name__)

MODULES = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")
"""The modules that offer the interface; the first that is installed is taken. TensorRT-RTX is a library of its own."""

ERRORS_KEPT = 8


class Library:
    """An imported TensorRT, and the logger that everything made with it must be given.

    module: the Python module. version: e.g. `tensorrt 11.4.0`. logger: an `ILogger`.
    """

    def __init__(self, modules: Sequence[str] = MODULES) -> None:
        """Import the first of `modules` that is installed; EngineError if it does not import."""
        self.module = _import(modules)
        self.version = f"{self.module.__name__.removesuffix('_bindings')} {self.module.__version__}"
        self.logger, self._errors = _logger(self.module)

    def lacks_memory(self) -> bool:
        """Whether what TensorRT said was wrong is that the device has no memory left; forgets nothing."""
        return any("outofmemory" in error.replace(" ", "").lower() for error in self._errors)

    def why(self) -> str:
        """What TensorRT last said was wrong, as the end of a sentence; forgets it."""
        errors, self._errors[:] = list(self._errors), []
        return f" ({errors[-1]})" if errors else ""


def _import(names: Sequence[str]) -> Any:
    found = next((name for name in names if importlib.util.find_spec(name)), names[0])
    try:
        return importlib.import_module(found)
    except ImportError as error:
        raise EngineError(f"{found} does not import ({error})") from error


@functools.cache
def _logger(trt: Any) -> tuple[Any, list[str]]:
    """A logger of the library's own class that hands on to ours, and the list of errors that it keeps.

    One for the whole process: TensorRT goes on calling the first that it was given, and does not keep it alive.
    """
    errors: list[str] = []
    grave = trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # pybind11 asks for it by name

        def log(self, severity: Any, msg: str) -> None:
            line = " ".join(msg.split())
            if severity in grave:
                errors[:] = [*errors[-ERRORS_KEPT:], line]
            if severity in grave or severity == trt.ILogger.Severity.WARNING:
                log.debug("%s", line)  # what matters of it ends in the text of an EngineError

    return Logger(), errors
