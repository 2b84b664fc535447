"""Contact sheets: the same pictures sharp, blurred, and restored by one model after the other.

Knows models and pictures; nothing of figures beyond the PSNR beneath a picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from export.blur import Picture
from export.metrics import psnr

from .measure import GAUSSIAN, RESIZE, restored
from .sets import pictures_of

ENLARGED, GAP_PX, CAPTION_PX = 3, 4, 20
ROWS = 6

OPEN_FACES = ("congress_",)
OPEN_FOLDERS = ("wallpapers-budgie",)
"""What may be shown in a public page: official portraits of a government, which are in the public domain, and CC0."""


@dataclass(frozen=True)
class Sheet:
    """One sheet: the models by their column's caption."""

    name: str
    pictures: str
    models: dict[str, str]
    case: str = GAUSSIAN
    view: str = "colour"


ARTICLE = {"img2img": "img2img-male", "img2img both": "img2img-male-both", "restore": "restore-male"}
RECIPES = {
    "img2img": "img2img-male",
    "restore": "restore-male",
    "pix2pix": "pix2pix-all",
    "cyclegan": "cyclegan-all",
    "dualgan": "dualgan-all",
}
SIZES = {
    "img2img 200": "img2img-200",
    "img2img 800": "img2img-800",
    "img2img all": "img2img-all",
    "pix2pix 200": "pix2pix-200",
    "pix2pix all": "pix2pix-all",
    "cyclegan 200": "cyclegan-200",
    "cyclegan all": "cyclegan-all",
}
SHEETS = (
    Sheet("article-male", "male-test", ARTICLE),
    Sheet("article-female", "female-test", ARTICLE),
    Sheet("article-scenes", "scenes-test", ARTICLE),
    Sheet("article-female-grey", "female-test", ARTICLE, view="grey"),
    Sheet("article-scenes-grey", "scenes-test", ARTICLE, view="grey"),
    Sheet("article-female-resize", "female-test", ARTICLE, case=RESIZE),
    Sheet("recipes-faces", "faces-test", RECIPES),
    Sheet("recipes-scenes", "scenes-test", RECIPES),
    Sheet("sizes-faces", "faces-test", SIZES),
)


def draw_sheets(models: dict[str, Path], data: Path, out: Path, *, public: bool) -> list[Path]:
    """Write each sheet that has a model, with the models that are there; `public`: of free pictures only, as JPEG."""
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for sheet in SHEETS:
        pictures = [path for path in pictures_of(data, sheet.pictures) if not public or _open(path)][:ROWS]
        columns = {title: models[name] for title, name in sheet.models.items() if name in models}
        if columns and pictures:
            written.append(out / f"{sheet.name}.{'jpg' if public else 'png'}")
            cv2.imwrite(str(written[-1]), _drawn(sheet, columns, pictures)[..., ::-1])
    return written


def _open(path: Path) -> bool:
    return path.name.startswith(OPEN_FACES) or path.parent.name in OPEN_FOLDERS


def _drawn(sheet: Sheet, columns: dict[str, Path], pictures: list[Path]) -> Picture:
    stacks: dict[str, list[Picture]] = {"sharp": [], f"blurred: {sheet.case}": []}
    sharp, blurred = stacks.values()
    for title, model in columns.items():
        triples = list(restored(model, pictures, sheet.case, sheet.view))
        sharp[:] = [_cell(triple.sharp, "") for triple in triples]
        blurred[:] = [_cell(triple.blurred, f"{psnr(triple.sharp, triple.blurred):.1f} dB") for triple in triples]
        stacks[title] = [_cell(triple.restored, f"{psnr(triple.sharp, triple.restored):.1f} dB") for triple in triples]
    return np.hstack([np.vstack([_strip(cells[0].shape[1], title), *cells]) for title, cells in stacks.items()])


def _cell(picture: Picture, caption: str) -> Picture:
    large = picture.repeat(ENLARGED, axis=0).repeat(ENLARGED, axis=1)
    framed = cv2.copyMakeBorder(large, 0, 0, 0, GAP_PX, cv2.BORDER_CONSTANT, value=(255,) * 3)
    return np.vstack([framed, _strip(framed.shape[1], caption)])


def _strip(width: int, text: str) -> Picture:
    strip = np.full((CAPTION_PX, width, 3), 255, np.uint8)
    cv2.putText(strip, text, (2, CAPTION_PX - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (32,) * 3, 1, cv2.LINE_AA)
    return strip
