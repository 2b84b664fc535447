"""Claims about the model that ships, on the bundled clips: it helps, and it does no harm."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from clips import frames_of

from daemon.colour import to_rgb
from daemon.tiles import TilePlan
from engine.backends import open_engine
from engine.errors import EngineError
from engine.model import load_model, shipped_models
from engine.protocol import Engine, EngineOptions
from export.blur import CASES, Picture
from export.evaluate import restore
from export.metrics import colour_shift, psnr

MEDIA = Path(__file__).parent / "media"


def pictures(name: str, every: int = 10) -> list[Picture]:
    return [to_rgb(frame) for frame in frames_of(MEDIA / name)[::every]]


@pytest.fixture(scope="module")
def sharp() -> list[Picture]:
    return pictures("demo_sharp.mp4")


@pytest.fixture(scope="module", params=shipped_models())
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    with open_engine("auto", request.param) as engine:
        yield engine


def test_the_blurred_clip_becomes_clearer_by_more_than_a_decibel(engine: Engine) -> None:
    pairs = zip(pictures("demo_sharp.mp4", every=1), pictures("demo_blurred.mp4", every=1), strict=True)
    gains = [psnr(sharp, restore(engine, blurred)) - psnr(sharp, blurred) for sharp, blurred in pairs]
    assert np.mean(gains) > 1.3
    assert min(gains) > 0


def test_sharp_pictures_come_out_as_they_went_in(engine: Engine, sharp: list[Picture]) -> None:
    assert np.mean([psnr(picture, restore(engine, picture)) for picture in sharp]) > 38


@pytest.mark.parametrize("case", [case for case in CASES if case != "sharp"])
def test_no_kind_of_blur_gets_worse(engine: Engine, sharp: list[Picture], case: str) -> None:
    gains = []
    for i, picture in enumerate(sharp):
        blurred = CASES[case](picture, np.random.default_rng(i))
        gains.append(psnr(picture, restore(engine, blurred)) - psnr(picture, blurred))
    assert np.mean(gains) > 0


def test_colours_stay_where_they_are(engine: Engine, sharp: list[Picture]) -> None:
    for blurred in pictures("demo_blurred.mp4"):
        assert colour_shift(blurred, restore(engine, blurred)) < 0.5


def test_tiles_leave_no_seam(engine: Engine) -> None:
    picture = pictures("demo_blurred.mp4")[3]
    whole = restore(engine, picture)
    plan = TilePlan.for_frame(
        picture.shape[0],
        picture.shape[1],
        stride=engine.spec.stride,
        limit=(256, 256),
        overlap=engine.spec.overlap_px,
    )
    assert plan.count > 4
    tiled = plan.merge(np.stack([restore(engine, tile) for tile in plan.split(picture)]))
    assert psnr(whole, tiled) > 50


@pytest.mark.parametrize(("backend", "precision"), [("openvino", "bf16"), ("openvino", "int8"), ("torch", "f16")])
def test_precisions_agree(sharp: list[Picture], backend: str, precision: str) -> None:
    name = shipped_models()[0]
    options = EngineOptions(precision=precision, device="CPU" if backend == "openvino" else "cpu")
    reference = open_engine("openvino", name, EngineOptions(precision="f32"))
    try:
        other = open_engine(backend, name, options)
    except EngineError as error:
        pytest.skip(f"not here: {error}")
    with reference, other:
        assert psnr(restore(reference, sharp[0]), restore(other, sharp[0])) > (55 if precision == "f16" else 48)


@pytest.mark.parametrize("name", shipped_models())
def test_the_manifest_says_what_the_model_was_trained_on_and_what_it_gains(name: str) -> None:
    manifest = load_model(name).manifest
    assert manifest.licence
    assert manifest.training["origins"]
    assert set(manifest.gain_db) == set(CASES)
    assert len(load_model(name).onnx) < 5_000_000


@pytest.mark.parametrize("name", shipped_models())
def test_the_model_brings_what_every_engine_needs(name: str) -> None:
    model = load_model(name)
    assert model.check is not None
    assert set(model.manifest.precisions) >= {"f32", "bf16", "f16"}
