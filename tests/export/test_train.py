"""Training: it learns, goes on where it stopped, and refuses what cannot serve."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import scenes

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from accelerate import Accelerator  # noqa: E402
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: E402

from export import checkpoint  # noqa: E402
from export.blur import CASES, MARGIN_PX  # noqa: E402
from export.degradation import Degradation  # noqa: E402
from export.errors import ExportError  # noqa: E402
from export.journal import Journal  # noqa: E402
from export.material import Sources  # noqa: E402
from export.metrics import psnr  # noqa: E402
from export.networks.generator import FrameNet  # noqa: E402
from export.networks.restore import RestoreNet, RestoreNetConfig  # noqa: E402
from export.pictures import read_picture  # noqa: E402
from export.recipes import configure  # noqa: E402
from export.recipes.config import TrainConfig  # noqa: E402
from export.recipes.restore import RestoreConfig  # noqa: E402
from export.train import train  # noqa: E402
from export.trainer import Trainer  # noqa: E402

CONFIG = RestoreConfig(
    network=RestoreNetConfig(unshuffle=2, widths=(16, 16), blocks=(1, 1)),
    blur=Degradation(kind="random_gaussian"),
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


def run(config: TrainConfig, data: Path, out: Path, **sources: tuple[Path, ...]) -> list[tuple[int, float]]:
    steps = train(config, Sources((data,), **sources), out, device="cpu", workers=0, save_every_s=0)
    return [(progress.step, progress.losses["loss"]) for progress in steps]


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
    stopped = train(short(8), Sources((data,)), broken, device="cpu", workers=0, save_every_s=0)
    for progress in stopped:
        if progress.step == 3:
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
    assert RestoreConfig.model_validate(info["config"]) == short(1)


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
    with pytest.raises(ExportError, match=r"do not fit the networks it names$"):
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
    with pytest.raises(ExportError, match="absent: data must be a folder of pictures or videos"):
        run(CONFIG, tmp_path / "absent", tmp_path / "run")


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ExportError, match=r"empty: no picture or video found$"):
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


def test_the_learning_rate_rises_then_falls() -> None:
    config = CONFIG.model_copy(update={"steps": 100, "warmup_steps": 10})
    rates = [config.rate(step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] or max(rates) == rates[10]
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("schedule", "half", "end"),
    [("cosine", 0.505, 0.01), ("linear", 1.0, 0.0), ("constant", 1.0, 1.0), ("hold", 1.0, 0.01)],
)
def test_a_schedule_ends_where_its_name_says(schedule: str, half: float, end: float) -> None:
    config = CONFIG.model_copy(update={"steps": 100, "warmup_steps": 0, "schedule": schedule, "decay_steps": 20})
    assert [config.rate(step) for step in (0, 50, 100)] == pytest.approx([1.0, half, end])


def test_a_rate_that_is_held_falls_straight_in_the_last_steps() -> None:
    config = CONFIG.model_copy(update={"steps": 100, "warmup_steps": 0, "schedule": "hold", "decay_steps": 20})
    assert [config.rate(step) for step in (79, 80, 90, 95)] == pytest.approx([1.0, 1.0, 0.5, 0.25])


def test_the_average_follows_the_network() -> None:
    trainer = Trainer(CONFIG, Accelerator(cpu=True))
    pair = torch.zeros(1, 48, 48, 3, dtype=torch.uint8), torch.full((1, 48, 48, 3), 200, dtype=torch.uint8)
    for _ in range(5):
        trainer.learn(*pair)
    own = trainer.recipe.generator.tail.bias.detach()
    average = trainer.average.tail.bias
    assert (average > 0).all()
    assert (average < own).all()


def test_the_running_statistics_of_batch_norm_are_averaged_too(data: Path, tmp_path: Path) -> None:
    values = {"recipe": "img2img", "network": {"widths": (8, 8)}, "patch": 32, "batch": 2, "steps": 3, "keep_grey": 1}
    run(configure(values), data, tmp_path)
    saved = checkpoint.find(tmp_path)
    own = saved.training()["translator.network.generator.encoder.3.running_mean"]
    average = saved.weights()["encoder.3.running_mean"]
    assert (average != 0).all()
    assert not torch.equal(own, average)


def test_the_best_checkpoint_by_validation_is_kept_and_exported_first(data: Path, tmp_path: Path) -> None:
    """A rate that destroys the network after the first steps: the newest checkpoint is the worst."""
    validation = (tmp_path / "validation",)
    scenes.write_scenes(validation[0], 2, first_seed=70)
    out = tmp_path / "run"
    run(CONFIG.model_copy(update={"steps": 20, "validate_every": 10}), data, out, validation=validation)
    good = checkpoint.find(out / "best").info
    assert good["step"] == 20
    ruined = CONFIG.model_copy(update={"steps": 40, "validate_every": 10, "learning_rate": 5.0, "muon_rate": 5.0})
    run(ruined, data, out, validation=validation)
    assert checkpoint.find(out).info["step"] == 40
    assert checkpoint.find_best(out).info == good


def test_pictures_kept_aside_for_validation_are_not_learnt_from(tmp_path: Path) -> None:
    scenes.write_scenes(tmp_path / "data" / "drawn", 60, side=100)
    run(short(1), tmp_path / "data", tmp_path / "run")
    facts = checkpoint.find(tmp_path / "run").info["data"]
    assert (facts["pictures"], facts["held_out"]) == (59, 1)
    assert (tmp_path / "run" / "best").is_dir()


def test_a_run_writes_losses_validation_and_samples_for_tensorboard(data: Path, tmp_path: Path) -> None:
    scenes.write_scenes(tmp_path / "validation", 1, first_seed=70)
    config = short(20).model_copy(update={"validate_every": 10})
    run(config, data, tmp_path / "run", validation=(tmp_path / "validation",))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert {"train/loss", "train/learning_rate", "validation/psnr_db"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("validation/psnr_db")] == [10, 20]
    assert [event.step for event in events.Images("validation/blurred_restored_sharp")] == [10, 20]


def test_really_blurred_pictures_are_learnt_from_by_name(data: Path, tmp_path: Path) -> None:
    """Pairs whose blurred side is black and whose sharp side is white: what is learnt is to brighten."""
    for name, level in (("blurred", 60), ("sharp", 200)):
        (tmp_path / name).mkdir()
        for i in range(3):
            cv2.imwrite(str(tmp_path / name / f"{i}.png"), np.full((96, 96, 3), level, np.uint8))
    out = tmp_path / "run"
    run(short(10), tmp_path / "sharp", out, blurred=(tmp_path / "blurred",))
    network = RestoreNet(CONFIG.network)
    network.load_state_dict(weights(out))
    grey = torch.full((1, 48, 48, 3), 60, dtype=torch.uint8)
    with torch.no_grad():
        assert FrameNet(network)(grey).float().mean() > 61


def test_some_pairs_are_kept_aside_and_measured_as_they_are(tmp_path: Path) -> None:
    """The blurred side is darker by 100 levels, which an untrained `restore` leaves: 20 log10(255 / 100) = 8.1 dB."""
    for name, level in (("blurred", 60), ("sharp", 160)):
        (tmp_path / name).mkdir()
        for i in range(50):
            cv2.imwrite(str(tmp_path / name / f"{i}.png"), np.full((96, 96, 3), level, np.uint8))
    run(short(1), tmp_path / "sharp", tmp_path / "run", blurred=(tmp_path / "blurred",))
    best = checkpoint.find(tmp_path / "run" / "best").info
    assert best["data"]["held_out"] == 1
    assert best["validation"]["psnr_db"] == pytest.approx(20 * np.log10(255 / 100), abs=0.3)


def test_folders_that_share_no_name_are_refused(data: Path, tmp_path: Path) -> None:
    scenes.write_scenes(tmp_path / "blurred", 1, first_seed=90)
    with pytest.raises(ExportError, match="no file has a counterpart of its name"):
        run(short(1), data, tmp_path / "run", blurred=(tmp_path / "blurred",))


def command(data: Path, out: Path, *more: str) -> list[str]:
    """`deblurd train` of tiny networks, as arguments of Python: two that learn in turn, and nothing random."""
    options = ["--recipe", "pix2pix", "--batch", "4", "--patch", "48", "--device", "cpu", "--workers", "0"]
    network = ["network.width=8", "network.downs=4", "network.norm=instance", "network.dropout=0"]
    settings = ["precision=f32", *network, "discriminator.width=8", "discriminator.norm=instance"]
    changes = [word for setting in settings for word in ("--set", setting)]
    return ["-m", "daemon", "train", "--data", str(data), "--out", str(out), *options, *changes, *more]


def alone(arguments: list[str]) -> str:
    """Run Python with `arguments` to its end; returns what it said."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *arguments], env=environment, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_two_processes_learn_what_one_does(data: Path, tmp_path: Path) -> None:
    """Each takes half of every batch; gradients are summed in another order, hence the tolerance.

    Half of the batch alone, in one process, ends 1e-3 away.
    """
    alone(command(data, tmp_path / "one", "--steps", "4"))
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    said = alone([*launcher, *command(data, tmp_path / "two", "--steps", "4")])
    assert said.count("too few pictures to keep any aside") == said.count("trained: ") == 1
    assert checkpoint.find(tmp_path / "two").info["step"] == 4
    for name, tensor in weights(tmp_path / "one").items():
        torch.testing.assert_close(weights(tmp_path / "two")[name], tensor, rtol=0, atol=1e-5)


def test_two_processes_train_every_convolution(data: Path, tmp_path: Path) -> None:
    """Those that Muon trains, too; what is left untrained ends 1e-3 and more away."""
    network = ["network.unshuffle=2", "network.widths=[16,16]", "network.blocks=[1,1]", "warmup_steps=0"]
    changes = [word for setting in ("precision=f32", *network) for word in ("--set", setting)]

    def arguments(out: Path, steps: int) -> list[str]:
        options = ["--batch", "4", "--patch", "32", "--device", "cpu", "--workers", "0", "--steps", str(steps)]
        return ["-m", "daemon", "train", "--data", str(data), "--out", str(out), *options, *changes]

    alone(arguments(tmp_path / "one", 3))
    alone(["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", *arguments(tmp_path / "two", 3)])
    for name, tensor in weights(tmp_path / "one").items():
        torch.testing.assert_close(weights(tmp_path / "two")[name], tensor, rtol=0, atol=1e-4)


def test_a_run_that_was_killed_ends_as_one_that_was_not(data: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    alone(command(data, whole, "--steps", "60"))
    arguments = command(data, killed, "--steps", "60")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, *arguments, "--save-every", "0"], env=environment) as process:
        deadline = time.monotonic() + 120
        while not any(killed.glob("checkpoint-000001?")) and time.monotonic() < deadline:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.005)
                pytest.fail("it ended before it could be killed")
        process.kill()
    assert 10 <= checkpoint.find(killed).info["step"] < 60
    alone(arguments)
    assert checkpoint.find(killed).info["step"] == 60
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(killed)[name]), name


def test_a_batch_that_processes_cannot_share_is_refused(data: Path, tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    done = subprocess.run(
        [*launcher, *command(data, tmp_path / "run", "--steps", "1", "--batch", "3")], capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "'batch' must be a multiple of the number of processes 2, got 3" in done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("precision", ["f32", "bf16", "fp16"])
def test_a_gpu_learns_in_every_precision(precision: str, data: Path, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"precision": precision})
    losses = [p.losses["loss"] for p in train(config, Sources((data,)), tmp_path, device="cuda", workers=0)]
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])


def test_a_run_that_begins_anew_forgets_the_best_of_one_that_left_no_checkpoint(data: Path, tmp_path: Path) -> None:
    validation = (tmp_path / "validation",)
    scenes.write_scenes(validation[0], 1, first_seed=70)
    out = tmp_path / "run"
    run(short(1), data, out, validation=validation)
    shutil.rmtree(checkpoint.find(out).folder)
    best = json.loads((out / "best" / "checkpoint.json").read_text())
    best["validation"]["psnr_db"] = 99.0
    (out / "best" / "checkpoint.json").write_text(json.dumps(best))
    run(short(2), data, out, validation=validation)
    assert checkpoint.find(out / "best").info["validation"]["psnr_db"] < 99


def test_a_best_measured_on_another_blur_is_not_compared_with(data: Path, tmp_path: Path) -> None:
    validation = (tmp_path / "validation",)
    scenes.write_scenes(validation[0], 1, first_seed=70)
    easy, hard = (
        short(n).model_copy(update={"blur": Degradation(kind=kind)}) for n, kind in ((1, "sharp"), (2, "motion"))
    )
    run(easy, data, tmp_path / "run", validation=validation)
    run(hard, data, tmp_path / "run", validation=validation)
    assert checkpoint.find(tmp_path / "run" / "best").info["step"] == 2


def test_what_validates_is_not_learnt_from(data: Path, tmp_path: Path) -> None:
    scenes.write_scenes(data / "val", 2, first_seed=70)
    run(short(1), data, tmp_path / "run", validation=(data / "val",))
    facts = checkpoint.find(tmp_path / "run").info["data"]
    assert (facts["pictures"], facts["held_out"], facts["origins"]) == (4, 2, ["drawn"])


def test_weights_that_are_not_finite_do_not_replace_a_checkpoint(data: Path, tmp_path: Path) -> None:
    run(short(1), data, tmp_path)
    ruinous = short(2).model_copy(update={"muon_rate": float("inf")})
    with pytest.raises(ExportError, match=r"tensors must be finite, .* is not; the checkpoint before it stands"):
        run(ruinous, data, tmp_path)
    assert checkpoint.find(tmp_path).info["step"] == 1


def test_a_run_that_is_stopped_while_it_decodes_ends_and_leaves_nothing_half_written(
    data: Path, tmp_path: Path
) -> None:
    stop = threading.Event()
    stop.set()
    assert list(train(short(2), Sources((data,)), tmp_path / "run", device="cpu", workers=0, stop=stop)) == []
    assert list((tmp_path / "run").iterdir()) == []


def test_what_a_kill_left_half_written_is_cleared_away(data: Path, tmp_path: Path) -> None:
    run(short(1), data, tmp_path)
    (tmp_path / ".checkpoint-0000002.partial").mkdir()
    checkpoint.find(tmp_path).folder.rename(tmp_path / ".checkpoint-0000001.old")
    assert [step for step, _ in run(short(2), data, tmp_path)] == [2]
    assert [path.name for path in tmp_path.glob("*checkpoint*")] == ["checkpoint-0000002"]


def test_the_newest_checkpoint_is_the_one_of_the_greatest_step(data: Path, tmp_path: Path) -> None:
    run(short(1), data, tmp_path)
    for step in (9_999_999, 10_000_000):
        folder = shutil.copytree(tmp_path / "checkpoint-0000001", tmp_path / f"checkpoint-{step:07d}")
        info = json.loads((folder / "checkpoint.json").read_text()) | {"step": step}
        (folder / "checkpoint.json").write_text(json.dumps(info))
    assert checkpoint.find(tmp_path).info["step"] == 10_000_000


def test_a_full_disk_is_one_line_for_the_journal_too(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").touch()
    with pytest.raises(ExportError, match="tensorboard: not writable"):
        Journal(tmp_path, 0)
