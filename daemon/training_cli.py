"""The commands of the training stage: `deblurd dataset prepare`, `train`, `export`, `evaluate`.

Knows their words; the work is the package `export`, which is imported when a command runs, so that the daemon
never loads it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .options import ConfigFile, EngineName, ModelName, Quiet, Verbose, given, start_logging
from .signals import interruptible, stopping

training = typer.Typer()
dataset = typer.Typer(help="Prepare pictures to train on.", no_args_is_help=True)
training.add_typer(dataset, name="dataset")


@dataset.command()
def prepare(
    folders: Annotated[list[Path], typer.Argument(help="Folders of pictures and videos.", metavar="FOLDER...")],
    out: Annotated[Path, typer.Option(help="The folder to write; must be empty or absent.")],
    size: Annotated[int | None, typer.Option(help="Scale the largest centred square to this side.")] = None,
    min_side: Annotated[int | None, typer.Option(help="Least side of a picture; 64 unless given.")] = None,
    keep_grey: Annotated[bool, typer.Option("--keep-grey", help="Keep grey pictures: infrared cameras.")] = False,
    split: Annotated[str | None, typer.Option(help="Shares of train, val and test; 0.8,0.1,0.1 unless given.")] = None,
    val: Annotated[list[str] | None, typer.Option(help="A folder's name to keep whole for validation.")] = None,
    test: Annotated[list[str] | None, typer.Option(help="A folder's name to keep whole for the test.")] = None,
    frames_per_video: Annotated[int | None, typer.Option(help="Frames to take of a video; 16 unless given.")] = None,
    quiet: Quiet = False,
) -> None:
    """Make a clean set: no grey, small, damaged or doubled pictures, split into train, val and test.

    Needs the extra `train`. OUT appears when it is complete; `OUT/dataset.json` names everything left out.

    **Example**: `deblurd dataset prepare pictures clips --out set --size 64`
    """
    stage = _stage("export.commands_dataset")
    start_logging("error" if quiet else "warning")
    values = given(
        size=size,
        min_side=min_side,
        keep_grey=keep_grey or None,
        split=split,
        val=val or None,
        test=test or None,
        frames_per_video=frames_per_video,
    )
    with interruptible():
        stage.prepare(values, folders, out, quiet=quiet)


@training.command()
def train(
    data: Annotated[list[Path], typer.Option(help="Folders of sharp pictures and videos; may be given again.")],
    out: Annotated[Path, typer.Option(help="The run's folder; a run that is there already goes on.")],
    recipe: Annotated[
        str | None, typer.Option(help="restore (unless given), img2img, pix2pix, cyclegan or dualgan.")
    ] = None,
    blurred: Annotated[
        list[Path] | None,
        typer.Option(help="Folders of really blurred ones, instead of blur made on the fly."),
    ] = None,
    validation: Annotated[
        list[Path] | None, typer.Option(help="Folders to choose the best checkpoint by; else a few of --data.")
    ] = None,
    blur: Annotated[
        str | None, typer.Option(help="gaussian, random_gaussian, resize, motion, defocus or mixed.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="How long.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Crops in a step.")] = None,
    patch: Annotated[int | None, typer.Option(min=32, help="Side of a crop in pixels.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of all that is random.")] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any other setting, e.g. blur.noise=0.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that make the pairs; on a GPU as many as there are cores.")
    ] = None,
    save_every: Annotated[float, typer.Option(min=0, help="Seconds between checkpoints.")] = 120.0,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Train an image translator on sharp pictures and videos; the blur is made on the fly.

    Needs the extra `train`. The same command goes on where it stopped: Ctrl-C loses nothing, a kill at most two
    minutes. Several GPUs: `torchrun --nproc-per-node 4 -m daemon train …`.

    **Example**: `deblurd train --data pictures --out runs/first`
    """
    stage = _stage("export.commands")
    start_logging("debug" if verbose else "error" if quiet else "info")
    values = given(recipe=recipe, steps=steps, batch=batch, patch=patch, seed=seed) | (
        {"blur.kind": blur} if blur else {}
    )
    sources = stage.Sources(tuple(data), tuple(blurred or ()), tuple(validation or ()))
    with stopping() as stop:
        stage.train(
            values,
            change or [],
            sources,
            out,
            device=device,
            workers=workers,
            save_every_s=save_every,
            quiet=quiet,
            stop=stop,
        )
    if stop.is_set():
        raise typer.Exit(130)


@training.command()
def export(
    source: Annotated[
        Path, typer.Argument(help="A run, one of its checkpoints, or a model to add to.", metavar="CHECKPOINT|MODEL")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for NAME.json and what it names.")],
    name: Annotated[str, typer.Option(help="The model's name.")],
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="onnx, openvino, openvino-int8 or tensorrt; may be given again. Unless given: onnx and openvino,"
            " without what fails its proof."
        ),
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folders of pictures that it was not trained on, to prove it and measure the gain; int8 also needs"
            " others there."
        ),
    ] = None,
    tile: Annotated[
        str | None, typer.Option(help="The only size that the graphs will take; any unless given.", metavar="HxW")
    ] = None,
    licence: Annotated[str, typer.Option(help="Licence of the weights, stated in the manifest.")] = "",
    config: ConfigFile = None,
    quiet: Quiet = False,
) -> None:
    """Turn a checkpoint into a model that engines run, and prove that it computes the same.

    Needs the extra `train`; `openvino-int8` also `int8`, and --data: it calibrates on those of the pictures that do
    not prove it. `tensorrt` builds the engine for this machine's GPU and keeps it where `run` looks for it. Nothing
    is written if the proof fails.

    **Example**: `deblurd export runs/first -o models --name mine`, then `deblurd run --model models/mine.json …`
    """
    stage = _stage("export.commands")
    from engine.protocol import EngineOptions

    from .config import load_config

    start_logging("error" if quiet else "info")
    settings = load_config(config).engine
    wish = stage.Wish(
        output=output,
        name=name,
        targets=tuple(target or ()),
        data=tuple(data or ()),
        tile=tile,
        licence=licence,
        engine=EngineOptions(slots=settings.slots, tile_px=settings.tile_px, cache=settings.cache),
    )
    with interruptible():
        stage.export(source, wish, quiet=quiet)


@training.command()
def evaluate(
    truth: Annotated[Path | None, typer.Argument(help="Sharp picture, video or folder.")] = None,
    restored: Annotated[Path | None, typer.Argument(help="Its restored counterpart, matched by name.")] = None,
    data: Annotated[
        list[Path] | None, typer.Option(help="Folders of sharp pictures to blur and restore; may be given again.")
    ] = None,
    sheet: Annotated[Path | None, typer.Option(help="Write a contact sheet (PNG): sharp, blurred, restored.")] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Use all pictures of --data, not only the development split's.")
    ] = False,
    blur: Annotated[list[str] | None, typer.Option(help="Only this blur, e.g. 'motion 9'; may be given again.")] = None,
    grey: Annotated[bool, typer.Option("--grey", help="Measure --data in grey, as infrared cameras see.")] = False,
    low_light: Annotated[bool, typer.Option("--low-light", help="Measure --data at a quarter of the levels.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on standard output instead of a table.")] = False,
    config: ConfigFile = None,
    engine: EngineName = None,
    model: ModelName = None,
) -> None:
    """Measure: how close restored files come to the truth, or how well a model undoes each kind of blur.

    **Examples**: `deblurd evaluate sharp.mp4 restored.mp4`, and `deblurd evaluate --model fast --data pictures`
    """
    from export.commands_measure import Choice, evaluate_model, evaluate_pair

    from .config import load_config
    from .errors import ConfigError
    from .service import engine_from

    start_logging("warning")
    if data:
        settings = load_config(config, {"engine": given(name=engine, model=model)})
        with interruptible(), engine_from(settings.engine) as opened:
            choice = Choice(tuple(blur or ()), grey=grey, low_light=low_light)
            evaluate_model(opened, data, everything=everything, sheet=sheet, as_json=as_json, choice=choice)
    elif truth is not None and restored is not None:
        evaluate_pair(truth, restored, as_json=as_json)
    else:
        raise ConfigError("evaluate needs TRUTH and RESTORED, or --data with folders of sharp pictures")


def _stage(module: str) -> Any:
    import importlib

    from .errors import ConfigError

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"this needs the training extra ({error.name} is missing): pip install 'deblurd[train]'"
        ) from error
