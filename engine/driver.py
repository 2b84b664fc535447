"""Whether an NVIDIA GPU can be used here, asked of the driver itself, before any large library is loaded.

Knows the driver's C interface; nothing of TensorRT, pycuda or torch.
"""

from __future__ import annotations

import ctypes


def why_no_gpu() -> str | None:
    """The reason why CUDA cannot run here; None if it can."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver (libcuda.so.1)"
    status = driver.cuInit(0)
    if status:
        return f"the NVIDIA driver does not start (cuInit: error {status})"
    count = ctypes.c_int(0)
    if driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return "no NVIDIA GPU is visible to this process"
    return None
