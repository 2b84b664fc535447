"""Whether making the data ever holds up the training step.

    python benchmarks/loader.py PICTURES [--recipes restore img2img] [--steps 30] [--rounds 5] [--workers N]

For each recipe, by turns, the same number of steps on one ready batch again and again, and on what the loader of
`deblurd train` makes of PICTURES; medians over the rounds. The target is 95% of the speed on ready data.

Each recipe runs with its default settings. On a processor, the networks of pix2pix, cyclegan and dualgan are narrower
(NARROW), so that a step takes seconds at most; their crops stay, so the loader has the same work and less time for it.

Where the training itself keeps all cores busy, as on a machine without a GPU, the loader's processor time comes out
of the step's: the ratio then says what the data costs, even if no step ever waits for it.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, repeat
from pathlib import Path
from statistics import median
from typing import Any

from accelerate import Accelerator
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader

from export.material import Material, Pairs, Sources
from export.recipes import RECIPES, configure
from export.recipes.config import TrainConfig
from export.train import loader_for
from export.trainer import Trainer, accelerator_for

TARGET = 0.95
WARM_UP = 3
NARROW: Mapping[str, dict[str, Any]] = {
    "pix2pix": {"network": {"width": 32}, "discriminator": {"width": 32}},
    "cyclegan": {"network": {"width": 16}, "discriminator": {"width": 16}},
    "dualgan": {"network": {"width": 32}, "critic": {"width": 32}},
}

Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Figures:
    """Medians over the rounds; `ratio` is of the two speeds of a round."""

    loader_items_s: float
    ready_s: float
    loaded_s: float
    ratio: float


@dataclass(frozen=True)
class Bench:
    """A recipe, and what it learns from."""

    config: TrainConfig
    accelerator: Accelerator
    pairs: Pairs
    workers: int | None

    def measure(self, steps: int, rounds: int) -> Figures:
        trainer = Trainer(self.config, self.accelerator)
        ready = next(iter(self._loader(0)))
        _step_s(trainer, repeat(ready, WARM_UP))
        items_s, ready_s, loaded_s = [], [], []
        for _ in range(rounds):
            items_s.append(self._items_s(steps))
            ready_s.append(_step_s(trainer, repeat(ready, steps)))
            loaded_s.append(self._loaded_s(trainer, steps))
        ratio = median(one / other for one, other in zip(ready_s, loaded_s, strict=True))
        return Figures(median(items_s), median(ready_s), median(loaded_s), ratio)

    def _items_s(self, steps: int) -> float:
        """What the loader gives while no step runs."""
        batches = iter(self._loader(0))
        next(batches)
        began = time.perf_counter()
        for _ in islice(batches, steps):
            pass
        return self.config.batch * steps / (time.perf_counter() - began)

    def _loaded_s(self, trainer: Trainer, steps: int) -> float:
        # A loader of its own for each round: none works ahead while the others are timed.
        loader = self._loader(trainer.step)
        batches = iter(loader)
        # As many as are made ahead, so that the loader has to keep up with those that are timed.
        _step_s(trainer, islice(batches, max(WARM_UP, loader.num_workers * (loader.prefetch_factor or 0))))
        return _step_s(trainer, islice(batches, steps))

    def _loader(self, step: int) -> DataLoader[tuple[Tensor, Tensor]]:
        return loader_for(self.pairs, self.config, self.accelerator, step, self.workers)


def _step_s(trainer: Trainer, batches: Batches) -> float:
    first, began = trainer.step, time.perf_counter()
    for blurred, sharp in batches:
        trainer.learn(blurred, sharp)
    return (time.perf_counter() - began) / (trainer.step - first)


def benches(recipes: list[str], pictures: list[Path], device: str, workers: int | None) -> Iterator[Bench]:
    """One recipe after the other, its pictures decoded as `deblurd train` does."""
    for recipe in recipes:
        accelerator = accelerator_for(configure({"recipe": recipe}), device)
        narrow = NARROW.get(recipe, {}) if accelerator.device.type == "cpu" else {}
        config = configure({"recipe": recipe, **narrow})
        with tempfile.TemporaryDirectory(prefix="deblurd-") as folder:
            material = Material(Path(folder), config, paired=RECIPES[recipe].paired)
            material.build(Sources(tuple(pictures)))
            yield Bench(config, accelerator, material.training(made_blur=True), workers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("pictures", type=Path, nargs="+")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, help="as of 'deblurd train'")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)  # of pictures that are passed over, or too few to learn from
    workers = "as training takes" if arguments.workers is None else arguments.workers
    table = Table(
        *("recipe", "batch", "patch", "loader alone\nitems/s", "step takes\nitems/s"),
        *("ready data\nms/step", "loaded data\nms/step", f"speed\n(target {TARGET:.0%})"),
        title=f"loader processes: {workers}; {arguments.rounds} rounds of {arguments.steps} steps",
        title_justify="left",
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for bench in benches(arguments.recipes, arguments.pictures, arguments.device, arguments.workers):
        config, figures = bench.config, bench.measure(arguments.steps, arguments.rounds)
        table.add_row(
            *(config.recipe, str(config.batch), str(config.patch)),
            *(f"{figures.loader_items_s:.0f}", f"{config.batch / figures.ready_s:.0f}"),
            *(f"{1000 * figures.ready_s:.1f}", f"{1000 * figures.loaded_s:.1f}", f"{figures.ratio:.1%}"),
        )
    Console().print(table)


if __name__ == "__main__":
    main()
