"""The pictures of the study: 64x64, in sets to train on and sets to test on that share none.

Knows files; nothing of recipes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from export.dataset import DatasetConfig, prepare
from export.evaluate import development_pictures
from export.pictures import find_pictures

SIDE = 64
GROUPS = ("male", "female", "unspecified")
MALE_TEST, FEMALE_TEST = 90, 200
FACES_TEST = {"male": 80, "female": 57, "unspecified": 23}
"""In proportion to the groups; those of the first two lie in their own test sets as well."""
SUBSETS = (200, 800)
TEST_SETS = ("male-test", "female-test", "faces-test", "scenes-test")


def prepare_sets(faces: Path, scenes: Path, data: Path) -> dict[str, int]:
    """Write every set below `data`, as `SET/ORIGIN/NAME.png`, unless it is there; returns their sizes.

    Which picture goes where depends on the hash of its name alone.
    """
    if not data.exists():
        partial = data.with_name(f".{data.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
        partial.mkdir(parents=True)
        _write_sets(faces, scenes, partial)
        partial.replace(data)
    found = {folder.name: pictures_of(data, folder.name) for folder in sorted(data.iterdir()) if folder.is_dir()}
    _require_apart(found)
    return {name: len(paths) for name, paths in found.items()}


def pictures_of(data: Path, name: str) -> list[Path]:
    """The pictures of a set, those with the least hash first: a part of them is a fair draw."""
    return _by_hash(find_pictures([data / name]))


def _write_sets(faces: Path, scenes: Path, data: Path) -> None:
    work = data / "work"
    sets = _face_sets(_squares(_face_folders(faces, work / "archives"), work / "faces"))
    wanted = {str(path.resolve()) for path in development_pictures([scenes])}
    squares = _squares(sorted({Path(path).parent for path in wanted}), work / "scenes")
    sources = json.loads((work / "scenes" / "dataset.json").read_text(encoding="utf-8"))["kept"]
    sets["scenes-test"] = [path for path in squares if sources[str(path.relative_to(work / "scenes"))] in wanted]
    for name, paths in sets.items():
        for path in paths:
            target = data / name / path.parent.name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    shutil.rmtree(work)


def _face_folders(faces: Path, unpacked: Path) -> list[Path]:
    folders = []
    for group in GROUPS:
        archive = next(iter(sorted(faces.rglob(f"faces_{group}.tar"))), None)
        if archive is not None:
            with tarfile.open(archive) as tar:
                tar.extractall(unpacked, filter="data")
        found = [path for root in (unpacked, faces) if root.is_dir() for path in sorted(root.rglob(group))]
        folder = next((path for path in found if path.is_dir()), None)
        if folder is None:
            sys.exit(f"{faces}: must hold faces_{group}.tar or a folder named {group!r}")
        folders.append(folder)
    return folders


def _squares(folders: list[Path], target: Path) -> list[Path]:
    """The pictures of `folders` in colour, each once, as squares of `SIDE` px."""
    prepare(folders, target, DatasetConfig(size=SIDE, split=(1.0, 0.0, 0.0)))
    return find_pictures([target])


def _face_sets(faces: Iterable[Path]) -> dict[str, list[Path]]:
    groups: dict[str, list[Path]] = {group: [] for group in GROUPS}
    for path in _by_hash(faces):
        groups[path.parent.name].append(path)
    male_test, female_test = groups["male"][:MALE_TEST], groups["female"][:FEMALE_TEST]
    faces_test = [path for group, count in FACES_TEST.items() for path in groups[group][:count]]
    tested = {*male_test, *female_test, *faces_test}
    kept = {group: [path for path in paths if path not in tested] for group, paths in groups.items()}
    trained = _by_hash(path for paths in kept.values() for path in paths)
    return {
        "male": kept["male"],
        "faces": trained,
        **{f"faces-{count}": trained[:count] for count in SUBSETS},
        "male-test": male_test,
        "female-test": female_test,
        "faces-test": faces_test,
    }


def _by_hash(paths: Iterable[Path]) -> list[Path]:
    # Not crc32, by which training halves its pictures and keeps some aside: a set would fall into one half.
    return sorted(paths, key=lambda path: hashlib.sha256(f"{path.parent.name}/{path.name}".encode()).digest())


def _require_apart(sets: Mapping[str, list[Path]]) -> None:
    names = {key: {f"{path.parent.name}/{path.name}" for path in paths} for key, paths in sets.items()}
    tested = set().union(*(names[key] for key in TEST_SETS))
    for key in names.keys() - set(TEST_SETS):
        assert not names[key] & tested, f"{key}: holds pictures that are tested on"
