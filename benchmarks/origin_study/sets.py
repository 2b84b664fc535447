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
TRAINING_SIDE = 104
"""Training takes crops between 64x64 px and the whole of it, scaled to 64x64: few pictures last longer so."""
GROUPS = ("male", "female", "unspecified")
MALE_TEST, FEMALE_TEST = 90, 200
FACES_TEST = {"male": 80, "female": 57, "unspecified": 23}
"""In proportion to the groups; those of the first two lie in their own test sets as well."""
SUBSETS = (200, 800)
SEEN_PICTURES = 160
"""Of each set to train on, how many are also written as they are tested on: what was learnt by heart shows there."""
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
    folders = _face_folders(faces, work / "archives")
    sets = _face_sets(
        _squares(folders, work / "faces", SIDE), _squares(folders, work / "training-faces", TRAINING_SIDE)
    )
    wanted = {str(path.resolve()) for path in development_pictures([scenes])}
    squares = _squares(sorted({Path(path).parent for path in wanted}), work / "scenes", SIDE)
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


def _squares(folders: list[Path], target: Path, side: int) -> list[Path]:
    """The pictures of `folders` in colour, each once, as squares of `side` px."""
    prepare(folders, target, DatasetConfig(size=side, split=(1.0, 0.0, 0.0)))
    return find_pictures([target])


def _face_sets(faces: Iterable[Path], larger: Iterable[Path]) -> dict[str, list[Path]]:
    """Sets to test on out of `faces`, and sets to train on out of the same pictures, `larger`."""
    groups: dict[str, list[Path]] = {group: [] for group in GROUPS}
    for path in _by_hash(faces):
        groups[path.parent.name].append(path)
    male_test, female_test = groups["male"][:MALE_TEST], groups["female"][:FEMALE_TEST]
    faces_test = [path for group, count in FACES_TEST.items() for path in groups[group][:count]]
    tests = {"male-test": male_test, "female-test": female_test, "faces-test": faces_test}
    tested = {_key(path) for paths in tests.values() for path in paths}
    trained = [path for path in _by_hash(larger) if _key(path) not in tested]
    training = {
        "male": [path for path in trained if path.parent.name == "male"],
        "faces": trained,
        **{f"faces-{count}": trained[:count] for count in SUBSETS},
    }
    small = {_key(path): path for paths in groups.values() for path in paths}
    seen = {
        f"{name}-seen": [small[_key(path)] for path in paths if _key(path) in small][:SEEN_PICTURES]
        for name, paths in training.items()
    }
    return training | seen | tests


def _by_hash(paths: Iterable[Path]) -> list[Path]:
    # Not crc32, by which training halves its pictures and keeps some aside: a set would fall into one half.
    return sorted(paths, key=lambda path: hashlib.sha256(_key(path).encode()).digest())


def _key(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def _require_apart(sets: Mapping[str, list[Path]]) -> None:
    names = {name: {_key(path) for path in paths} for name, paths in sets.items()}
    tested = set().union(*(names[key] for key in TEST_SETS))
    for key in names.keys() - set(TEST_SETS):
        assert not names[key] & tested, f"{key}: holds pictures that are tested on"
