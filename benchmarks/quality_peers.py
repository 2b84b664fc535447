"""What `quality.py` measures models beside: unsharp masking, a Wiener filter that knows the blur, and MAXIM.

Knows how each restores pictures; nothing of our engine.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

import cv2
import numpy as np

from export.blur import (
    Kernel,
    Picture,
    Rng,
    defocus_kernel,
    gaussian_kernel,
    motion_kernel,
    to_light,
    to_picture,
)
from export.metrics import psnr

UNSHARP_SIGMA_PX, UNSHARP_AMOUNT = 2.0, 1.0

KERNELS: Mapping[str, Callable[[Rng], Kernel]] = {
    "gaussian 1.6": lambda _: gaussian_kernel(1.6),
    "gaussian 3": lambda _: gaussian_kernel(3.0),
    "gaussian 0.8-4": lambda rng: gaussian_kernel(float(rng.uniform(0.8, 4))),
    "motion 9": lambda rng: motion_kernel(9, rng),
    "motion 21": lambda rng: motion_kernel(21, rng),
    "defocus 3": lambda _: defocus_kernel(3),
    "gaussian 2 + jpeg 80": lambda _: gaussian_kernel(2.0),
    "motion 12 + noise 4": lambda rng: motion_kernel(12, rng),
}
"""What the blurs of `export.blur.CASES` convolve with, given the same random numbers; the others have no kernel."""

NOISE_TO_SIGNAL = 10.0 ** np.arange(-5, -0.4, 0.5)
_RIM_PX = 32


def unsharp(blurred: Picture) -> Picture:
    """Unsharp masking: twice the picture less its blur."""
    light = to_light(blurred)
    soft = cv2.GaussianBlur(light, (0, 0), UNSHARP_SIGMA_PX)
    return to_picture(np.asarray(light + UNSHARP_AMOUNT * (light - soft), np.float32))


def wiener(blurred: Picture, kernel: Kernel, sharp: Picture) -> Picture:
    """Wiener's filter of `kernel`, with that one of `NOISE_TO_SIGNAL` that comes nearest to `sharp`.

    No filter could be told more: it bounds what linear methods that must estimate the blur can reach. The noise is
    taken to be white, and the spectrum of pictures to fall with the square of the frequency.
    """
    height, width = (side + 2 * _RIM_PX for side in blurred.shape[:2])
    light = cv2.copyMakeBorder(to_light(blurred), *(_RIM_PX,) * 4, cv2.BORDER_REFLECT_101)
    around = np.zeros((height, width))
    rows, columns = kernel.shape
    around[:rows, :columns] = kernel
    transfer = np.fft.rfft2(np.roll(around, (-(rows // 2), -(columns // 2)), (0, 1)))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    falling = (frequency / 0.1) ** 2  # of a tenth of the sampling rate, below which pictures have most of their power
    spectrum = np.fft.rfft2(light, axes=(0, 1))
    inner = slice(_RIM_PX, -_RIM_PX)
    best, best_db = blurred, -np.inf
    for ratio in NOISE_TO_SIGNAL:
        inverse = transfer.conj() / (np.abs(transfer) ** 2 + ratio * falling)
        inverse[0, 0] = 1.0
        restored = np.fft.irfft2(spectrum * inverse[..., None], (height, width), axes=(0, 1))[inner, inner]
        candidate = to_picture(restored.astype(np.float32))
        if (db := psnr(sharp, candidate)) > best_db:
            best, best_db = candidate, db
    return best


MAXIM = """
import json, sys
import numpy as np
import tensorflow as tf
from google.protobuf import json_format

folder = sys.argv[1]
model = json.load(open(f"{folder}/model.json"))
weights = {}
for group in model["weightsManifest"]:
    data = b"".join(open(f"{folder}/{path}", "rb").read() for path in group["paths"])
    at = 0
    for entry in group["weights"]:
        count = int(np.prod(entry["shape"], dtype=np.int64))
        weights[entry["name"]] = np.frombuffer(data, entry["dtype"], count, at).reshape(entry["shape"])
        at += count * 4  # all are float32 or int32
graph = json_format.ParseDict(model["modelTopology"], tf.compat.v1.GraphDef(), ignore_unknown_fields=True)
for nodes in (graph.node, *(function.node_def for function in graph.library.function)):
    for node in nodes:
        if node.op == "Const" and node.name in weights:
            node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(weights[node.name]))
restore = tf.compat.v1.wrap_function(lambda: tf.import_graph_def(graph, name=""), []).prune("xs_0:0", "Identity:0")
print("ready", flush=True)
for line in sys.stdin:
    path = line.strip()
    np.save(path, restore(tf.constant(np.load(path))).numpy())
    print("done", flush=True)
"""


class Maxim:
    """MAXIM-3S in a process of its own: `python` has TensorFlow, `folder` holds model.json and its weights."""

    def __init__(self, python: Path, folder: Path) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._process = subprocess.Popen(
            [python, "-c", MAXIM, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._expect("ready")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, blurred: Picture) -> Picture:
        """The picture restored; mirrored up to multiples of 64, which MAXIM needs."""
        height, width = blurred.shape[:2]
        below, beside = (-side % 64 for side in (height, width))
        padded = cv2.copyMakeBorder(to_light(blurred), 0, below, 0, beside, cv2.BORDER_REFLECT_101)
        path = Path(self._folder.name) / "picture.npy"
        np.save(path, padded[None])
        assert self._process.stdin is not None
        print(path, file=self._process.stdin, flush=True)
        self._expect("done")
        return to_picture(np.load(path)[0, :height, :width])

    def close(self) -> None:
        """End the process."""
        self._process.communicate()
        self._folder.cleanup()

    def _expect(self, word: str) -> None:
        assert self._process.stdout is not None
        if self._process.stdout.readline().strip() != word:
            raise SystemExit(f"MAXIM cannot run: its Python ended with status {self._process.wait()}")
