"""The runs of the study: what each one trains, and the real command line that does it.

Knows commands and folders; nothing of pictures.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

DEBLURD = [sys.executable, "-m", "daemon"]
VALIDATIONS = 10
"""In a run; the best checkpoint of them is exported."""

AS_IMG2IMG = (
    *("blur.gaussian_sigma_px=3", "blur.linear_light=0", "blur.noise=0", "blur.jpeg=0"),
    *("margin_px=0", "augment=zoom", "keep_grey=false"),
)
GAUSSIAN = ("blur.kind=gaussian", *AS_IMG2IMG)
BOTH = ("blur.kind=mixed", "blur.weights={gaussian=1, resize=1}", "blur.resize_factor=[4,4]", *AS_IMG2IMG)
# Half of the papers' channels, as many halvings as 64 pixels allow, the paper's blocks for small pictures: with the
# full networks, ten minutes of a core were a few hundred steps.
UNET = (*GAUSSIAN, "network.downs=6", "network.width=32")
RESNET = (*GAUSSIAN, "network.blocks=6", "network.width=32", "discriminator.width=32")


@dataclass(frozen=True)
class Run:
    """A run: `recipe` on the set `data`; the steps are those of ten to twenty minutes of one processor core."""

    name: str
    recipe: str
    data: str
    steps: int
    batch: int
    settings: tuple[str, ...]

    def scaled(self, scale: float) -> int:
        return max(1, round(self.steps * scale))

    def command(self, study: Path, scale: float) -> list[str]:
        steps = self.scaled(scale)
        settings = (*self.settings, f"validate_every={max(1, steps // VALIDATIONS)}")
        return [
            *(*DEBLURD, "train", "--recipe", self.recipe, "--data", str(study / "data" / self.data)),
            *("--out", str(study / "runs" / self.name), "--steps", str(steps), "--batch", str(self.batch)),
            *("--patch", "64", "--workers", "0"),
            *(word for setting in settings for word in ("--set", setting)),
        ]


RUNS = (
    Run("img2img-male", "img2img", "male", 3200, 64, GAUSSIAN),
    Run("restore-male", "restore", "male", 6000, 16, GAUSSIAN),
    Run("pix2pix-all", "pix2pix", "faces", 3000, 8, (*UNET, "discriminator.width=32")),
    Run("img2img-200", "img2img", "faces-200", 500, 64, GAUSSIAN),
    Run("img2img-800", "img2img", "faces-800", 500, 64, GAUSSIAN),
    Run("img2img-all", "img2img", "faces", 500, 64, GAUSSIAN),
    Run("pix2pix-200", "pix2pix", "faces-200", 3000, 8, (*UNET, "discriminator.width=32")),
    Run("img2img-male-both", "img2img", "male", 600, 64, BOTH),
    Run("cyclegan-all", "cyclegan", "faces", 700, 2, RESNET),
    Run("dualgan-all", "dualgan", "faces", 1600, 4, (*UNET, "critic.width=32")),
)
"""Those that differ in the number of pictures alone have the same number of steps."""


def train(run: Run, study: Path, scale: float, threads: int | None) -> None:
    """Train `run` to its end, from where it stopped. Ends the program if it is interrupted or fails."""
    if _reached(run, study) >= run.scaled(scale):
        print(f"{run.name}: trained already", flush=True)
        return
    command = run.command(study, scale)
    print(f"{run.name}: {' '.join(command[3:])}", flush=True)
    if status := _call(command, threads):
        sys.exit(f"{run.name}: stopped with status {status}; the same command goes on")


def is_trained(run: Run, study: Path) -> bool:
    """Whether there is a checkpoint, of a run that ended or not."""
    return _reached(run, study) > 0


def _reached(run: Run, study: Path) -> int:
    checkpoints = (study / "runs" / run.name).glob("checkpoint-*")
    return max((int(path.name.partition("-")[2]) for path in checkpoints), default=0)


def export(run: Run, study: Path) -> Path:
    """Make a model of the run's best checkpoint, unless it is newer than that; returns its manifest."""
    folder, manifest = study / "runs" / run.name, study / "models" / f"{run.name}.json"
    checkpoint = folder / "best"
    if not checkpoint.is_dir():  # too few pictures to keep any aside
        checkpoint = folder
    if not manifest.is_file() or manifest.stat().st_mtime < checkpoint.stat().st_mtime:
        command = [*DEBLURD, "export", str(checkpoint), "-o", str(manifest.parent), "--name", run.name, "--quiet"]
        if status := _call(command, None):
            sys.exit(f"{run.name}: not exported, status {status}")
    return manifest


def _call(command: list[str], threads: int | None) -> int:
    """Run a command to its end; an interrupt is handed on once, so that a training run saves before it ends."""
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    # In a session of its own: Ctrl-C in a terminal would reach it a second time, which ends it without saving.
    with subprocess.Popen(command, env=environment, start_new_session=True) as child:
        before = {
            number: signal.signal(number, lambda *_: child.terminate()) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            return child.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
