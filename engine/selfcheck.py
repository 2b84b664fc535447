"""The self-check: an engine that does not compute what its checkpoint computes is refused before it serves.

Knows engines and the check pair that lies beside a model; no back-end.

A check pair is an `.npz` file of two arrays, `blurred` and `restored`, both uint8 RGB (T, H, W, 3): T frames of one
stream, and what the checkpoint makes of them. `deblurd export` writes it.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Sequence

import numpy as np

from .errors import EngineError, ModelError
from .model import Model
from .protocol import Engine, Frames, Levels, State

LEAST_PSNR_DB = 40.0
"""How near the engine must come to the checkpoint. Every allowed precision reaches 48 dB; a broken engine, none."""


def self_check(engine: Engine, model: Model, *, levels: bool = False) -> None:
    """Restore the model's check pair. Raises EngineError if the result is wrong, black or noise.

    levels: as `Levels`, which engines serve with something that the check without has not seen.

    A model without a check pair only has to make a picture of a picture; so has an engine whose tiles are smaller
    than the pair, because a part of it would be restored in other surroundings.
    """
    if model.check is None:
        _check_alive(engine, model, levels)
        return
    blurred, wanted = read_check_pair(model)
    if blurred.shape[1] > engine.spec.tile[0] or blurred.shape[2] > engine.spec.tile[1]:
        _check_alive(engine, model, levels)
        return
    states: Sequence[State | None] | None = None
    for number, (frame, truth) in enumerate(zip(blurred, wanted, strict=True)):
        restored, states = _restore(engine, frame, states, levels)
        psnr_db = _psnr_db(truth, restored)
        if psnr_db < LEAST_PSNR_DB:
            raise EngineError(
                f"{engine.spec.backend} does not compute what model {model.manifest.id!r} should: its self-check must"
                f" come within {LEAST_PSNR_DB:.0f} dB of the checkpoint, got {psnr_db:.1f} dB"
                f"{', ' + _flat(restored) if _flat(restored) else ''} (frame {number + 1} of {len(blurred)})"
            )


def read_check_pair(model: Model) -> tuple[Frames, Frames]:
    """The arrays `blurred` and `restored`; ModelError for anything else."""
    assert model.check is not None
    assert model.manifest.check is not None
    path = model.path.with_name(model.manifest.check.file)
    try:
        with np.load(io.BytesIO(model.check), allow_pickle=False) as arrays:
            blurred, restored = arrays["blurred"], arrays["restored"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ModelError(f"{path}: not a check pair ({error})") from error
    for frames in (blurred, restored):
        if frames.dtype != np.uint8 or frames.ndim != 4 or not frames.size or frames.shape != blurred.shape:
            raise ModelError(
                f"{path}: a check pair must be uint8 (T, H, W, 3) twice, got {frames.dtype} {frames.shape}"
            )
    return blurred, restored


def _check_alive(engine: Engine, model: Model, levels: bool) -> None:
    """Refuse black, and what NaN becomes in uint8, for a soft pattern of the smallest allowed size of about 128 px."""
    spec = engine.spec
    height, width = spec.tile if spec.fixed_tile else (math.ceil(128 / spec.stride) * spec.stride,) * 2
    y, x = np.mgrid[: min(height, spec.tile[0]), : min(width, spec.tile[1])]
    waves = [128 + 60 * np.sin(x / (11 + 3 * channel)) * np.cos(y / (17 - 4 * channel)) for channel in range(3)]
    restored, _ = _restore(engine, np.stack(waves, axis=-1).round().astype(np.uint8), None, levels)
    if _flat(restored):
        raise EngineError(
            f"{spec.backend} does not compute what model {model.manifest.id!r} should: its self-check must give a"
            f" picture, got {_flat(restored)}"
        )


def _restore(
    engine: Engine, frame: Frames, states: Sequence[State | None] | None, levels: bool
) -> tuple[Frames, Sequence[State | None]]:
    batch: Frames | Levels = frame[None].astype(np.float32) if levels else frame[None]
    with engine.submit(batch, states).result() as result:
        if not levels:
            return result.frames[0].copy(), result.states
        restored = np.nan_to_num(np.rint(frame + result.frames[0]))  # NaN is black, as in uint8
        return np.clip(restored, 0, 255).astype(np.uint8), result.states


def _psnr_db(truth: Frames, restored: Frames) -> float:
    error = float(np.mean(np.square(truth.astype(np.float32) - restored)))
    return 10 * math.log10(255**2 / error) if error else math.inf


def _flat(picture: Frames) -> str:
    """What a dead output, or NaN once it is uint8, looks like; nothing for a picture."""
    least, most = int(picture.min()), int(picture.max())
    if least != most:
        return ""
    return "all black" if most == 0 else f"every pixel {most}"
