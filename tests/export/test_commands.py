"""Settings on the command line: dotted keys, TOML values, one clear line for what makes no sense."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("accelerate")

from export import commands
from export.errors import ExportError
from export.material import Sources


def train(values: dict[str, Any], *assignments: str) -> None:
    options = {"device": "cpu", "workers": 0, "save_every_s": 1.0, "quiet": True, "stop": threading.Event()}
    commands.train(values, assignments, Sources((Path("absent"),)), Path("absent") / "run", **options)


@pytest.mark.parametrize(
    ("values", "assignment", "line"),
    [
        ({}, "recipe=paint", "recipe must be one of restore, img2img, pix2pix, cyclegan, dualgan, got 'paint'"),
        ({"recipe": "restore"}, "recipe=pix2pix", "'recipe' must be given once, got 'pix2pix' and 'restore'"),
        ({}, "=3", "settings must be KEY=VALUE, got '=3'"),
        ({}, "batch", "settings must be KEY=VALUE, got 'batch'"),
        ({}, "batch=abc", "'batch' must be a valid integer, unable to parse string as an integer, got 'abc'"),
        ({}, "steps=nan", "'steps' must be a finite number, got nan"),
        ({}, "learning_rate=inf", "'learning_rate' must be a finite number, got inf"),
        ({}, "network=5", "'network' must be a valid dictionary or instance of RestoreNetConfig, got 5"),
        ({}, "network.blocks=[1,1,1,1]", "'network': blocks must be one per width (3), got 4"),
        ({}, "fog=1", "'fog' is no setting here"),
        ({}, "blur.fog=1", "'blur.fog' is no setting here"),
        ({}, "blur.weights={}", "'blur.weights' must not all be 0, got {}"),
        (
            {},
            "blur.resize_factor=[3,1]",
            "'blur.resize_factor': must be two numbers above 0 and up to 200, the smaller one first, got [3.0, 1.0]",
        ),
        (
            {},
            "blur.gaussian_sigma_px=1e9",
            "'blur.gaussian_sigma_px' must be less than or equal to 200, got 1000000000.0",
        ),
        ({"blur.kind": "fog"}, "steps=1", "'blur.kind' must be 'gaussian', 'random_gaussian', 'resize', 'motion', "),
    ],
)
def test_a_setting_that_makes_no_sense_is_one_clear_line(values: dict[str, Any], assignment: str, line: str) -> None:
    with pytest.raises(ExportError) as caught:
        train(values, assignment)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_a_key_of_a_value_is_refused() -> None:
    with pytest.raises(ExportError, match=r"^'blur.kind' must be a group of settings or a value, got both$"):
        train({}, "blur=3", "blur.kind=motion")
