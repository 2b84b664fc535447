"""OpenVINO as a back-end. Knows that importing OpenVINO must be kept quiet.

It would tell its makers over the internet, and for that fork the process from a thread, while others hold locks.
"""

import sys

_NAME = "openvino_telemetry"
_before = sys.modules.get(_NAME)
sys.modules[_NAME] = None  # type: ignore[assignment]  # so that it cannot be imported, which OpenVINO puts up with
try:
    import openvino as openvino
finally:
    del sys.modules[_NAME]
    if _before is not None:
        sys.modules[_NAME] = _before
