"""From folders to what a run learns from: which pictures, and in which pairs.

Knows folders and datasets; nothing of networks or of how a pair is learnt.
"""

from __future__ import annotations

import logging
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
from .store import PictureStore, build_matched
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
    validation: sharp ones to choose the best checkpoint by; without any, a few of `data` are kept aside.
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
        self._cropping = Cropping(config.patch, config.margin_px, config.augment)
        self._sharp, self._blurred, self._validation = (
            run / f"{name}.u8" for name in ("pictures.sharp", "pictures.blurred", "validation")
        )

    def build(self, sources: Sources) -> dict[str, Any]:
        """Decode what `sources` name; returns facts for the checkpoint. ExportError for data that cannot serve.

        Every origin that the development split names is left out. Files that cannot be used are named in the log.
        """
        for stale in (self._sharp, self._blurred, self._validation):
            stale.unlink(missing_ok=True)
        if self._paired and sources.blurred:
            if len(sources.blurred) != 1 or len(sources.data) != 1:
                raise ExportError("pairs are matched by name between one blurred folder and one sharp one")
            target = self._sharp.with_name("pictures.u8")
            _, sharp, skipped = build_matched(sources.blurred[0], sources.data[0], target, self._cropping.extent_px)
            _report(skipped)
            return {"pictures": len(sharp), "origins": [sources.data[0].name]}
        found, development = split_by_origin(find_material(sources.data), read_split())
        kept, aside = (found, development) if sources.validation or development else _keep_aside(found)
        if sources.validation:
            aside = find_material(sources.validation)
        if aside:
            self._store(aside, self._validation)
        else:
            log.warning("too few pictures to keep any aside for validation: the newest checkpoint counts as the best")
        count = 0
        if self._paired:
            count = self._store(kept, self._sharp)
        elif sources.blurred:
            count = self._store(kept, self._sharp)
            self._store(find_material(sources.blurred), self._blurred)
        else:  # two sets that share no scene
            for part, target in zip(halves(kept), (self._sharp, self._blurred), strict=True):
                count += self._store(part, target)
        log.info("%d pictures to train on, %d files for validation", count, len(aside))
        if count < ADVISED_PICTURES:
            log.warning(
                "fewer than %d pictures (%d): expect the network to learn them by heart", ADVISED_PICTURES, count
            )
        return {"pictures": count, "held_out": len(aside), "origins": sorted({path.parent.name for path in kept})}

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
        if not self._validation.exists():
            return None
        cropping = Cropping(self._config.patch, self._config.margin_px, "mirror")
        store = PictureStore.open(self._validation)
        return BlurredPairs(store, self._config.blur, cropping, VALIDATION_CROPS, _VALIDATION_SEED)

    def _store(self, paths: Sequence[Path], target: Path) -> int:
        store, skipped = PictureStore.build(paths, target, self._cropping.extent_px, keep_grey=self._config.keep_grey)
        _report(skipped)
        return len(store)


def _report(skipped: Sequence[str]) -> None:
    for line in skipped:
        log.warning("passed over %s", line)


def _keep_aside(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """(most of `paths`, a few for validation), chosen by a hash of their names so that a run that goes on agrees."""
    count = min(VALIDATION_PICTURES, round(VALIDATION_SHARE * len(paths)))
    ordered = sorted(paths, key=lambda path: zlib.crc32(f"{path.parent.name}/{path.name}".encode()))
    return sorted(ordered[count:]), sorted(ordered[:count])
