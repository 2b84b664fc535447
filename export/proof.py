"""The proof of an export: how near what an engine makes of real pictures comes to what it should make of them.

Knows pictures, engines and what is expected; nothing of how a graph was made, or of files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch

from engine.backends import open_backend
from engine.model import Manifest, Model, Precision
from engine.protocol import Engine, EngineOptions, Frames, State
from engine.selfcheck import self_check

from .blur import CASES, Picture
from .leaves import dead_leaves
from .metrics import psnr
from .networks.generator import FrameNet, Generator
from .pictures import read_picture

TOLERANCE_DB: dict[Precision, float] = {"f32": 60.0, "f16": 55.0, "bf16": 48.0, "int8": 48.0}
"""How near an engine must come to what is expected, by precision; 48 dB is an error of one level everywhere."""

PROOF_CASES = ("sharp", "gaussian 3", "motion 9")
PROOF_PICTURES = 6
PROOF_SIDE_PX = 384
HISTORY_FRAMES = 3
"""Length of a stream where the model has a history."""

Reference = Callable[[Frames], Frames]
"""What a stream of frames, uint8 (T, H, W, 3), should become."""


@dataclass(frozen=True)
class Pair:
    """A stream of frames, uint8 (T, H, W, 3), and what it should become."""

    blurred: Frames
    restored: Frames


@dataclass(frozen=True)
class Proof:
    """How an engine's output compares with what is expected: the greatest error in levels, and the PSNR."""

    precision: Precision
    backend: str
    frames: int
    max_error: int
    psnr_db: float

    @property
    def holds(self) -> bool:
        """Whether the engine is within tolerance, so that the model may run in this precision."""
        return self.psnr_db >= TOLERANCE_DB[self.precision]

    def __str__(self) -> str:
        return (
            f"in {self.precision} the engine must be within {TOLERANCE_DB[self.precision]:.0f} dB of its checkpoint,"
            f" got {self.psnr_db:.1f} dB (greatest error {self.max_error} levels, {self.backend})"
        )


def reference_of(generator: Generator) -> Reference:
    """What torch makes of frames in f32."""
    net = FrameNet(generator).eval()

    def restore(stream: Frames) -> Frames:
        with torch.no_grad():
            return np.concatenate([net(torch.from_numpy(frame[None])).numpy() for frame in stream])

    return restore


def run_stream(engine: Engine, stream: Frames) -> Frames:
    """What `engine` makes of a stream, its history carried along."""
    restored = []
    states: Sequence[State | None] | None = None
    for frame in stream:
        with engine.submit(frame[None], states).result() as result:
            restored.append(result.frames[0].copy())
            states = result.states
    return np.stack(restored)


def prove(
    backend: str, precision: Precision, model: Model, pairs: Sequence[Pair], options: EngineOptions | None = None
) -> Proof:
    """Run `model` on a back-end beside what is expected; one that holds also passes the model's check pair.

    Raises EngineError if the back-end cannot run the model here.
    """
    options = replace(options or EngineOptions(), precision=precision)
    # The check pair comes last: it would refuse what is far off before it has been measured.
    with open_backend(backend, replace(model, check=None), options) as engine:
        got = np.concatenate([run_stream(engine, pair.blurred).ravel() for pair in pairs])
        wanted = np.concatenate([pair.restored.ravel() for pair in pairs])
        frames = sum(len(pair.blurred) for pair in pairs)
        error = int(cv2.absdiff(wanted, got).max())
        proof = Proof(precision, engine.spec.backend, frames, error, psnr(wanted, got))
        if proof.holds:
            self_check(engine, model)
    return proof


def proof_streams(pictures: Sequence[Path], manifest: Manifest) -> list[Frames]:
    """A few pictures, or a drawn one, each sharp and blurred, in sizes that the model takes."""
    rng = np.random.default_rng(0)
    sources: list[Picture] = [read_picture(path) for path in chosen(pictures)]
    if not sources:
        sources = [dead_leaves(PROOF_SIDE_PX, PROOF_SIDE_PX, rng)]
    streams = []
    for source in sources:
        whole = fitted(source, manifest, PROOF_SIDE_PX)
        streams += [as_stream(CASES[case](whole, rng), manifest) for case in PROOF_CASES]
    return streams


def chosen(pictures: Sequence[Path]) -> list[Path]:
    """The pictures that a proof is made on."""
    return list(pictures)[:: max(1, len(pictures) // PROOF_PICTURES)][:PROOF_PICTURES]


def fitted(picture: Picture, manifest: Manifest, side_px: int) -> Picture:
    """`picture` cut to the model's fixed tile, or to whole strides and at most `side_px`; mirrored where it is less."""
    stride = manifest.stride
    height, width = manifest.fixed_tile or (max(1, min(side, side_px) // stride) * stride for side in picture.shape[:2])
    cut = picture[:height, :width]
    missing = height - cut.shape[0], width - cut.shape[1]
    return np.asarray(cv2.copyMakeBorder(cut, 0, missing[0], 0, missing[1], cv2.BORDER_REFLECT_101), np.uint8)


def as_stream(picture: Picture, manifest: Manifest) -> Frames:
    """The picture alone, or moving by two pixels a frame where the model has a history; (T, H, W, 3)."""
    frames = HISTORY_FRAMES if manifest.states else 1
    return np.stack([np.roll(picture, 2 * number, axis=1) for number in range(frames)])
