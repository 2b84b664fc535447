"""Make the check pair of a model: the picture that every engine has to restore before it serves.

Knows what a check pair holds (`engine.selfcheck` reads it); nothing of engines or graphs.
"""

from __future__ import annotations

import io

import numpy as np

from engine.model import Manifest

from .blur import CASES
from .leaves import dead_leaves
from .proof import Reference, as_stream

PICTURE_PX = 128, 192
STREAM_PX = 64, 128
"""Height and width, of one frame and of several: files of less than 150 kB."""


def check_pair(manifest: Manifest, reference: Reference) -> bytes:
    """An `.npz` of a drawn scene, blurred, and of what `reference` makes of it; a drawing, so that it may be passed on.

    At least `PICTURE_PX` in whole strides, or the model's fixed tile; a stream where the model has a history.
    """
    stride, least = manifest.stride, STREAM_PX if manifest.states else PICTURE_PX
    height, width = manifest.fixed_tile or (-(-side // stride) * stride for side in least)
    rng = np.random.default_rng(0)
    blurred = as_stream(CASES["gaussian 1.6"](dead_leaves(height, width, rng), rng), manifest)
    file = io.BytesIO()
    np.savez_compressed(file, blurred=blurred, restored=reference(blurred))
    return file.getvalue()
