"""From folders to what a run learns from: which pictures, and in which pairs.

Knows folders and datasets; nothing of networks or of how a pair is learnt.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from .data import BlurredPairs, Cropping, MatchedPairs, UnpairedPictures
from .errors import ExportError
from .pictures import halves, read_split, split_by_origin
from .recipes.config import TrainConfig
from .store import PictureStore, build_matched, match
from .videos import find_material

log = logging.getLogger(__name__)

Pairs = Dataset[tuple[Tensor, Tensor]]

ADVISED_PICTURES = 1000
VALIDATION_SHARE = 0.02
VALIDATION_PICTURES = 64
"""At most so many are kept aside where the user names none."""
VALIDATION_CROPS = 96
_VALIDATION_SEED = 1


@dataclass(frozen=True)
class Sources:
    """Where a run learns from: folders of pictures and videos, at any depth.

    data: sharp ones.
    blurred: really blurred ones; then no blur is made. Recipes that learn from pairs match them by name.
    validation: sharp ones to choose the best checkpoint by; without any, a few of the others are kept aside.
    """

    data: tuple[Path, ...]
    blurred: tuple[Path, ...] = ()
    validation: tuple[Path, ...] = ()


class Material:
    """The decoded pictures of a run, in its folder.

    One process builds them; others, and the loader's, open what lies there.
    """

    def __init__(self, run: Path, config: TrainConfig, *, paired: bool) -> None:
        self._config, self._paired = config, paired
        self._stop: threading.Event | None = None
        self._cropping = Cropping(config.patch, config.margin_px, config.augment)
        self._sharp, self._blurred, self._sharp_aside, self._blurred_aside = (
            run / f"{name}.u8"
            for name in ("pictures.sharp", "pictures.blurred", "validation.sharp", "validation.blurred")
        )

    def build(self, sources: Sources, stop: threading.Event | None = None) -> dict[str, Any]:
        """Decode what `sources` name; returns facts for the checkpoint. ExportError for data that cannot serve.

        Every origin that the development split names is left out. Files that cannot be used are named in the log.
        InterruptedByUserError if `stop` is set before all is decoded.
        """
        self._stop = stop
        for stale in (self._sharp, self._blurred, self._sharp_aside, self._blurred_aside):
            stale.unlink(missing_ok=True)
        matched: dict[Path, Path] = {}
        if self._paired and sources.blurred:
            if len(sources.blurred) != 1 or len(sources.data) != 1:
                raise ExportError(
                    f"pairs are matched by name between one blurred folder and one sharp one,"
                    f" got {len(sources.blurred)} and {len(sources.data)}"
                )
            pairs, skipped = match(sources.blurred[0], sources.data[0])
            _report(skipped)
            if not pairs:
                raise ExportError(f"{sources.blurred[0]} and {sources.data[0]}: no file has a counterpart of its name")
            matched = {sharp: blurred for blurred, sharp in pairs}
        material = list(matched) or find_material(sources.data)
        found, development = split_by_origin(material, read_split())
        kept, aside = (found, development) if sources.validation or development else _keep_aside(found)
        if sources.validation:
            aside = find_material(sources.validation)
            apart = {path.resolve() for path in aside}
            kept = [path for path in kept if path.resolve() not in apart]
        if not aside:
            log.warning("too few pictures to keep any aside for validation: the newest checkpoint counts as the best")
        elif matched and not sources.validation:
            self._store_pairs([(matched[path], path) for path in aside], self._blurred_aside, self._sharp_aside)
        else:
            self._store(aside, self._sharp_aside)
        if matched:
            count = self._store_pairs([(matched[path], path) for path in kept], self._blurred, self._sharp)
        elif self._paired:
            count = self._store(kept, self._sharp)
        elif sources.blurred:
            count = self._store(kept, self._sharp)
            self._store(find_material(sources.blurred), self._blurred)
        else:
            count = self._store_halves(kept)
        left_out = sorted({path.parent.name for path in material} - {path.parent.name for path in found})
        if left_out:
            log.info("left out for the development split: %s", ", ".join(left_out))
        log.info("%d pictures to train on, %d files for validation", count, len(aside))
        if count < ADVISED_PICTURES:
            log.warning(
                "fewer than %d pictures (%d): expect the network to learn them by heart", ADVISED_PICTURES, count
            )
        return {"pictures": count, "held_out": len(aside), "origins": sorted({path.parent.name for path in kept})}

    def validation_id(self) -> str:
        """Says whether two validations can be compared: of the same pairs, for the same network."""
        config = self._config
        settings = config.model_dump_json(include={"recipe", "network", "blur", "patch", "margin_px"})
        digest = hashlib.sha256(settings.encode())
        for store in (self._sharp_aside, self._blurred_aside):
            if store.exists():
                digest.update(PictureStore.open(store).pixels.data)
        return digest.hexdigest()

    def training(self, *, made_blur: bool) -> Pairs:
        """What a run learns from, from its first item to its last; `made_blur`: there are no really blurred ones."""
        config, sharp = self._config, PictureStore.open(self._sharp)
        length, seed = config.steps * config.batch, config.seed
        if self._paired and made_blur:
            return BlurredPairs(sharp, config.blur, self._cropping, length, seed)
        blurred = PictureStore.open(self._blurred)
        if self._paired:
            return MatchedPairs(blurred, sharp, self._cropping, length, seed)
        degradation = config.blur if made_blur else None
        return UnpairedPictures(blurred, sharp, self._cropping, length, seed, degradation=degradation)

    def validation(self) -> Pairs | None:
        """Pairs to choose the best checkpoint by; the same for every step. None where no picture was kept aside."""
        if not self._sharp_aside.exists():
            return None
        cropping = Cropping(self._config.patch, self._config.margin_px, "mirror")
        sharp = PictureStore.open(self._sharp_aside)
        if self._blurred_aside.exists():
            blurred = PictureStore.open(self._blurred_aside)
            return MatchedPairs(blurred, sharp, cropping, VALIDATION_CROPS, _VALIDATION_SEED)
        return BlurredPairs(sharp, self._config.blur, cropping, VALIDATION_CROPS, _VALIDATION_SEED)

    def _store(self, paths: Sequence[Path], target: Path) -> int:
        store, skipped = PictureStore.build(
            paths, target, self._cropping.extent_px, keep_grey=self._config.keep_grey, stop=self._stop
        )
        _report(skipped)
        return len(store)

    def _store_pairs(self, pairs: Sequence[tuple[Path, Path]], blurred: Path, sharp: Path) -> int:
        targets, keep_grey = (blurred, sharp), self._config.keep_grey
        store, _, skipped = build_matched(
            pairs, targets, self._cropping.extent_px, keep_grey=keep_grey, stop=self._stop
        )
        _report(skipped)
        return len(store)

    def _store_halves(self, paths: Sequence[Path]) -> int:
        """Two sets that share no scene: of one only the blurred side is seen, of the other only the sharp one."""
        parts = halves(paths)
        if not all(parts):
            raise ExportError(f"too few pictures to make two sets of, got {len(paths)}; or name blurred ones")
        return sum(self._store(part, target) for part, target in zip(parts, (self._sharp, self._blurred), strict=True))


def _report(skipped: Sequence[str]) -> None:
    for line in skipped:
        log.warning("passed over %s", line)


def _keep_aside(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """(most of `paths`, a few for validation), chosen by a hash of their names so that a run that goes on agrees."""
    count = min(VALIDATION_PICTURES, round(VALIDATION_SHARE * len(paths)))
    ordered = sorted(paths, key=lambda path: zlib.crc32(os.fsencode(f"{path.parent.name}/{path.name}")))
    return sorted(ordered[count:]), sorted(ordered[:count])
