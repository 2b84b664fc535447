"""Make a data set of folders of pictures and videos: leave out what cannot teach, then split the rest.

Knows files and pictures; nothing of torch, training or the terminal.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, Self, get_args

import cv2
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from .blur import Picture
from .copies import Copies
from .errors import ExportError
from .pictures import is_grey, read_picture
from .videos import FRAMES_PER_VIDEO, find_material, is_video, read_frames

log = logging.getLogger(__name__)

Reason = Literal["corrupt", "small", "grey", "duplicate"]
REASONS: Final[tuple[Reason, ...]] = get_args(Reason)
Split = Literal["train", "val", "test"]
SPLITS: Final[tuple[Split, ...]] = get_args(Split)

FRACTIONS: Final = (0.8, 0.1, 0.1)
SMALLEST_SET: Final = 10
LEARNT_BY_HEART: Final = 1000
"""Below so many pictures to train on, a network clearly overfits."""


class DatasetConfig(BaseModel):
    """What is kept, how it is cropped, and how it is split."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int | None = Field(None, ge=8, le=8192)
    """Scale the largest centred square to this side; without it, pictures stay as they are."""
    min_side: int = Field(64, ge=1)
    keep_grey: bool = False
    split: tuple[float, float, float] | None = None
    """Shares of train, val and test; 0.8, 0.1 and 0.1 where no folder is named."""
    val: tuple[str, ...] = ()
    """Folders, by name, whose pictures all go to val."""
    test: tuple[str, ...] = ()
    frames_per_video: int = Field(FRAMES_PER_VIDEO, ge=1, le=100_000)

    @model_validator(mode="after")
    def _one_rule_decides(self) -> Self:
        if self.split is not None:
            if self.val or self.test:
                raise ValueError("a split goes either by shares ('split') or by folders ('val', 'test'), got both")
            # Every comparison with nan is false, so what must hold is asked for.
            if not (min(self.split) >= 0 and self.split[0] > 0 and abs(sum(self.split) - 1) <= 1e-6):
                raise ValueError(
                    "'split' must be the shares of train, val and test, which sum to 1, train above 0,"
                    f" got {','.join(map(str, self.split))}"
                )
        both = sorted(set(self.val) & set(self.test))
        if both:
            raise ValueError(f"a folder goes to 'val' or to 'test', got {both[0]!r} in both")
        return self

    @property
    def smallest_px(self) -> int:
        """No picture may be smaller on either side: none is ever enlarged."""
        return max(self.min_side, self.size or 0)


@dataclass(frozen=True)
class Dropped:
    """What was left out, and why; `detail` is the rule and the value, or the file that it repeats."""

    source: str
    reason: Reason
    detail: str


@dataclass
class Report:
    """What became of everything that was found, a picture or a video's frame each."""

    found: int = 0
    dropped: list[Dropped] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    """Source by file, which is `split/origin/name`."""

    def counts(self) -> dict[str, int]:
        """found, one for each reason, and kept."""
        by_reason = Counter(drop.reason for drop in self.dropped)
        return {"found": self.found, **{reason: by_reason[reason] for reason in REASONS}, "kept": len(self.kept)}

    def splits(self) -> dict[Split, dict[str, int]]:
        """Pictures by split and origin."""
        return {
            split: dict(sorted(Counter(n.split("/")[1] for n in self.kept if n.split("/")[0] == split).items()))
            for split in SPLITS
        }


def prepare(
    folders: Sequence[Path],
    out: Path,
    config: DatasetConfig,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Write `OUT/{train,val,test}/ORIGIN/NAME` and `OUT/dataset.json`; an origin is the folder a file lies in.

    OUT appears when it is complete. A split by shares goes by a hash of each picture's content (of a video's, by
    that of its first frame, so that its frames stay together): pictures that are added move no other. A split by
    folders keeps origins whole. `progress` is called with the files done and all.

    ExportError if OUT is not empty or lies inside a folder, or if too little is left.
    """
    roots = [folder.resolve() for folder in folders]
    _require_free(out, roots)
    sources = find_material(roots)
    _require_origins(sources, config)
    partial = out.resolve().with_name(f".{out.resolve().name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
        partial.mkdir(parents=True)
        sorter = _Sorter(config, partial)
        for done, source in enumerate(sources):
            if progress is not None:
                progress(done, len(sources))
            sorter.take(source)
        if progress is not None:
            progress(len(sources), len(sources))
        report = sorter.report
        _require_enough(report, config, folders)
        (partial / "dataset.json").write_text(json.dumps(_description(report, config, roots), indent=1), "utf-8")
        partial.replace(out.resolve())
    except OSError as error:
        raise ExportError(f"{out}: not writable ({error.strerror})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    training = sum(report.splits()["train"].values())
    if training < LEARNT_BY_HEART:
        log.warning(
            "fewer than %d pictures to train on (%d): expect a network to learn them by heart",
            *(LEARNT_BY_HEART, training),
        )
    return report


class _Sorter:
    """Keeps or drops one file after the other."""

    def __init__(self, config: DatasetConfig, target: Path) -> None:
        self.config, self.target, self.report = config, target, Report()
        self._copies = Copies()

    def take(self, source: Path) -> None:
        share: float | None = None
        number = 0
        try:
            pictures = read_frames(source, self.config.frames_per_video) if is_video(source) else _one(source)
            for number, picture in enumerate(pictures, 1):
                share = _share(picture) if share is None else share
                self.report.found += 1
                name = f"{source}#{number}" if is_video(source) else str(source)
                if fault := self._fault(picture, name):
                    self.report.dropped.append(Dropped(name, *fault))
                else:
                    self._keep(source, number if is_video(source) else None, picture, share)
        except ExportError as error:
            self.report.found += 1
            name = str(source) if not number else f"{source}#{number + 1}"
            self.report.dropped.append(Dropped(name, "corrupt", str(error).removeprefix(f"{source}: ")))

    def _fault(self, picture: Picture, name: str) -> tuple[Reason, str] | None:
        """The first rule that a picture breaks."""
        height, width = picture.shape[:2]
        if min(height, width) < self.config.smallest_px:
            return "small", f"must be at least {self.config.smallest_px} px on each side, got {width}x{height}"
        if not self.config.keep_grey and is_grey(picture):
            return "grey", "must be in colour, got one whose colour follows from its brightness"
        copy = self._copies.of(picture, name)
        return None if copy is None else ("duplicate", copy)

    def _keep(self, source: Path, frame: int | None, picture: Picture, share: float) -> None:
        origin = source.parent.name
        split = self._split(origin, share)
        folder = self.target / split / origin
        folder.mkdir(parents=True, exist_ok=True)
        as_it_is = frame is None and self.config.size is None
        stem = source.stem if frame is None else f"{source.stem}-{frame:03d}"
        suffix = source.suffix if as_it_is else ".png"
        path, other = folder / f"{stem}{suffix}", 1
        while path.exists():  # folders of the same name in different places, or a.jpg and a.webp
            other += 1
            path = folder / f"{stem}-{other}{suffix}"
        if as_it_is:
            shutil.copyfile(source, path)
        else:
            path.write_bytes(_png(_square(picture, self.config.size) if self.config.size else picture))
        self.report.kept[path.relative_to(self.target).as_posix()] = (
            str(source) if frame is None else f"{source}#{frame}"
        )

    def _split(self, origin: str, share: float) -> Split:
        if self.config.val or self.config.test:
            return "val" if origin in self.config.val else "test" if origin in self.config.test else "train"
        train, _, test = self.config.split or FRACTIONS
        return "train" if share < train else "test" if share >= 1 - test else "val"


def _one(source: Path) -> Iterator[Picture]:
    yield read_picture(source)


def _share(picture: Picture) -> float:
    """A number from 0 to 1 that depends on the pixels alone."""
    digest = hashlib.sha256(b"split" + picture.tobytes()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _square(picture: Picture, size: int) -> Picture:
    """The largest centred square, scaled to `size` px by area."""
    height, width = picture.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = picture[top : top + side, left : left + side]
    return np.asarray(cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA), np.uint8)


def _png(picture: Picture) -> bytes:
    ok, data = cv2.imencode(".png", picture[..., ::-1])
    if not ok:
        raise ValueError(f"a picture of shape {picture.shape} does not encode as PNG")
    return data.tobytes()


def _require_free(out: Path, roots: Sequence[Path]) -> None:
    place = out.resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ExportError(f"{out}: must be an empty folder or not exist yet")
    for root in roots:
        if place.is_relative_to(root):
            raise ExportError(f"{out}: must not lie inside {root}, which is read")


def _require_origins(sources: Sequence[Path], config: DatasetConfig) -> None:
    origins = {source.parent.name for source in sources}
    for key, names in (("val", config.val), ("test", config.test)):
        for name in names:
            if name not in origins:
                known = ", ".join(sorted(origins)[:10]) or "none"
                raise ExportError(f"'{key}' must name folders that hold pictures or videos ({known}), got {name!r}")


def _require_enough(report: Report, config: DatasetConfig, folders: Sequence[Path]) -> None:
    kept, what = len(report.kept), ", ".join(map(str, folders))
    if kept < SMALLEST_SET:
        counts = ", ".join(f"{number} {name}" for name, number in report.counts().items())
        raise ExportError(f"{what}: a data set needs at least {SMALLEST_SET} pictures, got {kept} ({counts})")
    by_folder = bool(config.val or config.test)
    wanted = (1.0, float(bool(config.val)), float(bool(config.test))) if by_folder else config.split or FRACTIONS
    for (split, origins), share in zip(report.splits().items(), wanted, strict=True):
        if share and not origins:
            needed = (
                "" if by_folder else f"; a share of {share:g} takes about {round(3 / share)} (a video counts as one)"
            )
            raise ExportError(f"{what}: no picture is left for {split!r} of {kept}{needed}")


def _description(report: Report, config: DatasetConfig, roots: Sequence[Path]) -> dict[str, object]:
    """What dataset.json holds."""
    return {
        "format": 1,
        "folders": [str(root) for root in roots],
        "settings": config.model_dump(mode="json"),
        "counts": report.counts(),
        "splits": report.splits(),
        "dropped": [drop.__dict__ for drop in report.dropped],
        "kept": report.kept,
    }
