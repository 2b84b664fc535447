"""Recipes: each learns, goes on where it stopped, exports and runs; each plays its own game."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scenes

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from engine.backends import open_engine  # noqa: E402
from export import checkpoint  # noqa: E402
from export.errors import ExportError  # noqa: E402
from export.evaluate import restore  # noqa: E402
from export.material import Sources  # noqa: E402
from export.metrics import psnr  # noqa: E402
from export.package import Order, export_model  # noqa: E402
from export.pictures import read_picture  # noqa: E402
from export.recipes import RECIPES, configure, load_generator  # noqa: E402
from export.recipes.config import TrainConfig  # noqa: E402
from export.train import Progress, train  # noqa: E402

BLUR = {"kind": "gaussian", "gaussian_sigma_px": 2.0, "linear_light": 0, "noise": 0, "jpeg": 0}
SMALL: dict[str, dict[str, Any]] = {
    "restore": {"network": {"unshuffle": 2, "widths": (16, 16), "blocks": (1, 1)}, "batch": 4},
    "img2img": {"network": {"widths": (16, 32)}, "batch": 4},
    "pix2pix": {"network": {"width": 8, "downs": 4}, "discriminator": {"width": 8}, "batch": 2},
    "cyclegan": {"network": {"width": 8, "blocks": 1}, "discriminator": {"width": 8}, "batch": 2, "pool": 3},
    "dualgan": {"network": {"width": 8, "downs": 4}, "critic": {"width": 8}, "batch": 2, "critic_steps": 2},
}


def small(recipe: str, **changes: Any) -> TrainConfig:
    common = {"recipe": recipe, "blur": BLUR, "patch": 32, "margin_px": 0, "augment": "mirror", "precision": "f32"}
    return configure({**common, **SMALL[recipe], **changes})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    scenes.write_scenes(tmp_path / "data" / "drawn", 8, side=64)
    return tmp_path / "data"


def run(config: TrainConfig, data: Path, out: Path, **options: Any) -> list[Progress]:
    return list(train(config, Sources((data,)), out, device="cpu", workers=0, **options))


def state(out: Path) -> dict[str, torch.Tensor]:
    saved = checkpoint.find(out)
    return {**saved.training(), **{f"average.{name}": tensor for name, tensor in saved.weights().items()}}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_that_was_interrupted_ends_as_one_that_was_not(recipe: str, data: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    config = small(recipe, steps=6)
    run(config, data, whole)
    stopped = train(config, Sources((data,)), broken, device="cpu", workers=0, save_every_s=0)
    for progress in stopped:
        if progress.step == 3:
            break
    stopped.close()
    assert [progress.step for progress in run(config, data, broken)] == [4, 5, 6]
    assert state(whole).keys() == state(broken).keys()
    for name, tensor in state(whole).items():
        assert torch.equal(tensor, state(broken)[name]), name


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_network_of_a_recipe_learns(recipe: str, data: Path, tmp_path: Path) -> None:
    config = small(recipe, steps=4)
    run(config.model_copy(update={"steps": 1}), data, tmp_path / "short")
    run(config, data, tmp_path / "long")
    before, after = state(tmp_path / "short"), state(tmp_path / "long")
    networks = {name.split(".network.")[0] + "." + name.split(".")[2] for name in before if ".network." in name}
    for network in networks:
        learner, name = network.split(".")
        prefix = f"{learner}.network.{name}."
        assert any(not torch.equal(before[key], after[key]) for key in before if key.startswith(prefix)), network


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_checkpoint_becomes_a_model_that_restores_frames_of_any_size(recipe: str, data: Path, tmp_path: Path) -> None:
    run(small(recipe, steps=2), data, tmp_path / "run")
    exported = export_model(tmp_path / "run", Order(tmp_path / "models", recipe))
    assert exported.manifest.recipe == recipe
    generator = load_generator(checkpoint.find(tmp_path / "run"))
    with open_engine("openvino", str(exported.path)) as engine:
        frame = read_picture(scenes.write_scenes(tmp_path / "frame", 1, side=200)[0])[:120]
        restored = restore(engine, frame)
    assert restored.shape == frame.shape
    with torch.no_grad():
        padded = np.pad(frame, ((0, -120 % generator.stride), (0, -200 % generator.stride), (0, 0)), mode="reflect")
        levels = torch.from_numpy(padded).permute(2, 0, 1)[None].float()
        expected = generator.restore_levels(levels).clamp(0, 255)[0].permute(1, 2, 0).numpy()[:120, :200]
    assert psnr(expected.round().astype(np.uint8), restored) > 45


def test_a_checkpoint_of_another_recipe_is_not_gone_on_with(data: Path, tmp_path: Path) -> None:
    run(small("pix2pix", steps=1), data, tmp_path)
    with pytest.raises(ExportError, match="another recipe or network; choose another --out"):
        run(small("dualgan", steps=2), data, tmp_path)


def test_a_critic_keeps_its_weights_small(data: Path, tmp_path: Path) -> None:
    run(small("dualgan", steps=2, clip_weight=0.02), data, tmp_path)
    critics = [tensor for name, tensor in state(tmp_path).items() if ".network." in name and "critics" in name]
    assert critics
    assert max(float(tensor.abs().max()) for tensor in critics) <= 0.02


def test_translators_of_dualgan_wait_for_their_critics(data: Path, tmp_path: Path) -> None:
    steps = run(small("dualgan", steps=6, critic_steps=3), data, tmp_path)
    assert [progress.step for progress in steps if "generator" in progress.losses] == [3, 6]


def test_generated_pictures_are_kept_between_runs(data: Path, tmp_path: Path) -> None:
    run(small("cyclegan", steps=1), data, tmp_path)
    held = {name: tensor.shape for name, tensor in state(tmp_path).items() if name.startswith("pools.")}
    assert held == {f"pools.0.{side}.pictures": (2, 3, 32, 32) for side in ("sharp", "blurred")}


def test_a_setting_changed_leaves_the_others_of_its_group_as_the_recipe_has_them() -> None:
    config = configure({"recipe": "dualgan", "network": {"downs": 6}, "patch": 64})
    assert config.network.downs == 6
    assert config.network.norm == "instance"


def test_grey_pictures_teach_all_but_img2img() -> None:
    assert {name for name in RECIPES if not small(name).keep_grey} == {"img2img"}


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ({"recipe": "paint"}, "recipe must be one of restore, img2img, pix2pix, cyclegan, dualgan, got 'paint'"),
        ({"recipe": "img2img", "muon_rate": 1}, "'muon_rate' is no setting here"),
        ({"blur": {"kind": "fog"}}, "'blur.kind' must be .*'gaussian'.*, got 'fog'"),
        ({"steps": 0}, "'steps' must be greater than or equal to 1, got 0"),
        ({"patch": 40}, "'patch' must be a multiple of the network's stride 16, got 40"),
        ({"recipe": "pix2pix", "patch": 64}, "'patch' must be a multiple of the network's stride 256, got 64"),
    ],
)
def test_settings_that_make_no_sense_are_refused(values: dict[str, Any], rule: str) -> None:
    with pytest.raises(ExportError, match=f"^{rule}$"):
        configure(values)
