"""Folders of drawn pictures, for tests that read pictures from files."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from export.leaves import dead_leaves


def write_scenes(folder: Path, count: int, *, side: int = 160, first_seed: int = 0) -> list[Path]:
    """Write `count` pictures of `side` px as PNG; the same numbers give the same pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for seed in range(first_seed, first_seed + count):
        path = folder / f"scene{seed:03d}.png"
        cv2.imwrite(str(path), dead_leaves(side, side, np.random.default_rng(seed), leaves=400)[..., ::-1])
        paths.append(path)
    return paths
