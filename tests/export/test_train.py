"""Training: it learns, goes on where it stopped, and refuses what cannot serve."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import scenes

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from export import checkpoint  # noqa: E402
from export.blur import CASES, MARGIN_PX  # noqa: E402
from export.errors import ExportError  # noqa: E402
from export.metrics import psnr  # noqa: E402
from export.networks.generator import FrameNet  # noqa: E402
from export.networks.restore import RestoreNet, RestoreNetConfig  # noqa: E402
from export.pictures import read_picture  # noqa: E402
from export.train import RestoreLoss, TrainConfig, Trainer, schedule, train  # noqa: E402

CONFIG = TrainConfig(
    network=RestoreNetConfig(unshuffle=2, widths=(16, 16), blocks=(1, 1)),
    blurs={"gaussian": 1.0},
    steps=60,
    batch=8,
    patch=48,
    learning_rate=3e-3,
    warmup_steps=5,
    average_decay=0.9,
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    scenes.write_scenes(tmp_path / "data" / "drawn", 4)
    return tmp_path / "data"


def short(steps: int) -> TrainConfig:
    return CONFIG.model_copy(update={"steps": steps, "batch": 2})


def run(config: TrainConfig, data: Path, out: Path) -> list[tuple[int, float]]:
    return list(train(config, [data], out, workers=0, save_every_s=0))


def weights(out: Path) -> dict[str, torch.Tensor]:
    return checkpoint.find(out).weights()


def test_a_short_run_improves_pictures_that_it_never_saw(data: Path, tmp_path: Path) -> None:
    run(CONFIG, data, tmp_path / "run")
    network = RestoreNet(CONFIG.network)
    network.load_state_dict(weights(tmp_path / "run"))
    gains = []
    for path in scenes.write_scenes(tmp_path / "unseen", 3, first_seed=50):
        sharp = read_picture(path)
        blurred = CASES["gaussian 1.6"](sharp, np.random.default_rng(0))
        with torch.no_grad():
            restored = FrameNet(network)(torch.from_numpy(blurred)[None])[0].numpy()
        gains.append(psnr(sharp, restored) - psnr(sharp, blurred))
    assert min(gains) > 0.2


def test_steps_are_counted_from_one_to_the_last(data: Path, tmp_path: Path) -> None:
    assert [step for step, _ in run(short(3), data, tmp_path / "run")] == [1, 2, 3]


def test_a_run_that_was_interrupted_ends_as_one_that_was_not(data: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(short(8), data, whole)
    stopped = train(short(8), [data], broken, workers=0, save_every_s=0)
    for step, _ in stopped:
        if step == 3:
            break
    stopped.close()
    assert [step for step, _ in run(short(8), data, broken)] == [4, 5, 6, 7, 8]
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(broken)[name]), name


def test_a_finished_run_has_nothing_left_to_do(data: Path, tmp_path: Path) -> None:
    run(short(2), data, tmp_path)
    assert run(short(2), data, tmp_path) == []


def test_a_seed_repeats_a_run(data: Path, tmp_path: Path) -> None:
    assert run(short(2), data, tmp_path / "a") == run(short(2), data, tmp_path / "b")


def test_a_checkpoint_says_what_it_was_trained_on(data: Path, tmp_path: Path) -> None:
    run(short(1), data, tmp_path)
    info = checkpoint.find(tmp_path).info
    assert info["step"] == 1
    assert info["data"]["pictures"] == 4
    assert info["data"]["origins"] == ["drawn"]
    assert TrainConfig.model_validate(info["config"]) == short(1)


def test_only_the_newest_checkpoint_is_kept(data: Path, tmp_path: Path) -> None:
    run(short(3), data, tmp_path)
    assert [path.name for path in tmp_path.glob("*checkpoint*")] == ["checkpoint-0000003"]


def test_origins_of_the_development_split_are_left_out(data: Path, tmp_path: Path) -> None:
    scenes.write_scenes(data / "brighton-drone", 2, first_seed=20)
    run(short(1), data, tmp_path)
    assert checkpoint.find(tmp_path).info["data"]["origins"] == ["drawn"]


def test_a_run_of_another_network_is_not_gone_on_with(data: Path, tmp_path: Path) -> None:
    run(short(1), data, tmp_path)
    other = short(2).model_copy(update={"network": RestoreNetConfig(unshuffle=2, widths=(16, 32), blocks=(1, 1))})
    with pytest.raises(ExportError, match="another recipe or network; choose another --out"):
        run(other, data, tmp_path)


def test_a_checkpoint_whose_tensors_are_missing_is_refused(data: Path, tmp_path: Path) -> None:
    run(short(1), data, tmp_path)
    folder = checkpoint.find(tmp_path).folder
    shutil.copy(folder / "weights.safetensors", folder / "training.safetensors")
    with pytest.raises(ExportError, match=r"do not fit the network it names$"):
        run(short(2), data, tmp_path)


def test_a_truncated_checkpoint_is_refused(data: Path, tmp_path: Path) -> None:
    run(short(1), data, tmp_path)
    file = checkpoint.find(tmp_path).folder / "training.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ExportError, match=r"training\.safetensors: not a readable safetensors file"):
        run(short(2), data, tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", json.dumps({"format": 2}), json.dumps({"format": 1})])
def test_a_checkpoint_of_another_format_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "checkpoint.json").write_text(text, encoding="utf-8")
    with pytest.raises(ExportError) as caught:
        checkpoint.find(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="neither a checkpoint nor a run"):
        checkpoint.find(tmp_path / "absent")


def test_a_full_disk_leaves_the_checkpoint_before(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(short(1), data, tmp_path)
    before = weights(tmp_path)

    replace = os.replace

    def refuse(source: Path, target: Path) -> None:
        if "checkpoint-" in str(target):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        with pytest.raises(ExportError, match=r"No space left on device.*the one before it stands"):
            run(short(2), data, tmp_path)
    assert [path.name for path in tmp_path.glob("*checkpoint*")] == ["checkpoint-0000001"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(tmp_path).items())


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="absent: data must be a folder of pictures"):
        run(CONFIG, tmp_path / "absent", tmp_path / "run")


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ExportError, match=r"^no usable picture among 0 found$"):
        run(CONFIG, tmp_path / "empty", tmp_path / "run")


def test_pictures_that_are_too_small_are_refused_with_one_line(tmp_path: Path) -> None:
    scenes.write_scenes(tmp_path / "data", 3, side=64)
    with pytest.raises(ExportError) as caught:
        run(CONFIG, tmp_path / "data", tmp_path / "run")
    smallest = CONFIG.patch + 2 * MARGIN_PX
    assert f"must be at least {smallest} px on each side, got 64x64" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_damaged_picture_is_passed_over_by_name(data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (data / "torn.jpg").write_bytes(b"\xff\xd8\xff torn")
    (data / "empty.png").touch()
    with caplog.at_level(logging.WARNING):
        run(short(1), data, tmp_path / "run")
    assert "torn.jpg: not a picture that decodes" in caplog.text
    assert "empty.png: not a picture that decodes" in caplog.text


def test_the_loss_of_an_even_error_is_as_by_hand() -> None:
    """All of an even error lies in one of the spectrum's 4x3 terms, whose real part is 0.1 * 4 (orthonormal)."""
    restored, sharp = torch.full((1, 1, 4, 4), 0.6), torch.full((1, 1, 4, 4), 0.5)
    charbonnier = (0.1**2 + 1e-6) ** 0.5
    assert RestoreLoss(0.0)(restored, sharp).item() == pytest.approx(charbonnier, rel=1e-4)
    spectral = 0.1 * 4 / (4 * 3 * 2)
    assert RestoreLoss(0.5)(restored, sharp).item() == pytest.approx(charbonnier + 0.5 * spectral, rel=1e-4)


def test_the_learning_rate_rises_then_falls() -> None:
    config = CONFIG.model_copy(update={"steps": 100, "warmup_steps": 10})
    rates = [schedule(config, step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] or max(rates) == rates[10]
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == pytest.approx(0.01)


def test_the_average_follows_the_network(data: Path) -> None:
    trainer = Trainer(CONFIG, "cpu")
    pair = torch.zeros(1, 48, 48, 3, dtype=torch.uint8), torch.full((1, 48, 48, 3), 200, dtype=torch.uint8)
    for _ in range(5):
        trainer.learn(*pair)
    own, average = trainer.network.tail.bias.detach(), trainer.average.tail.bias
    assert (average > 0).all()
    assert (average < own).all()


@pytest.mark.parametrize(
    ("settings", "rule"),
    [({"steps": 0}, "steps"), ({"patch": 8}, "patch"), ({"step": 5}, "step"), ({"recipe": "x"}, "recipe")],
)
def test_a_configuration_that_makes_no_sense_is_refused(settings: dict[str, object], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        TrainConfig.model_validate(settings)
