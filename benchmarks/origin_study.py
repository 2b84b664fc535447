"""The experiment that this project began with, repeated with every recipe, and what came of it.

    python benchmarks/origin_study.py --faces FACES --scenes SCENES --out STUDY [--only NAME ...] [--threads N]

FACES holds faces_male.tar, faces_female.tar and faces_unspecified.tar, or folders named male, female and unspecified;
SCENES holds folders of photographs. Prepares 64x64 pictures, trains every run of `origin_study/runs.py` by the command
line, exports them and measures the models through the engine: STUDY/report.md, results.json and contact sheets.
The same command goes on where it stopped. `--report-only` measures what is trained so far.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from origin_study.measure import Results, measure
from origin_study.report import fill, report
from origin_study.runs import RUNS, export, is_trained, train
from origin_study.sets import prepare_sets
from origin_study.sheets import draw_sheets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--faces", type=Path, required=True)
    parser.add_argument("--scenes", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for pictures, runs, models and the report")
    parser.add_argument("--only", nargs="+", choices=[run.name for run in RUNS], help="train these runs only")
    parser.add_argument("--threads", type=int, help="of a training run; by default as many as there are cores")
    parser.add_argument("--steps-scale", type=float, default=1.0, help="multiplies the steps of every run")
    parser.add_argument("--report-only", action="store_true", help="train nothing")
    parser.add_argument("--pictures-for-docs", action="store_true", help="also sheets of pictures free of rights")
    parser.add_argument("--fill", type=Path, help="a Markdown page to put the tables into")
    arguments = parser.parse_args()
    study = arguments.out
    sizes = prepare_sets(arguments.faces, arguments.scenes, study / "data")
    print(", ".join(f"{name}: {count}" for name, count in sizes.items()), flush=True)
    runs = [run for run in RUNS if not arguments.only or run.name in arguments.only]
    for run in () if arguments.report_only else runs:
        train(run, study, arguments.steps_scale, arguments.threads)
    _report(study, arguments.fill, for_docs=arguments.pictures_for_docs)


def _report(study: Path, page: Path | None, *, for_docs: bool) -> None:
    """Everything that is trained, also by calls before this one."""
    saved, data = study / "results.json", study / "data"
    before: Results = json.loads(saved.read_text(encoding="utf-8")) if saved.is_file() else {}
    results: Results = {}
    models = {run.name: export(run, study) for run in RUNS if is_trained(run, study)}
    for run in RUNS:
        if run.name in models:
            results[run.name] = measure(run, models[run.name], data, before.get(run.name))
            saved.write_text(json.dumps({**before, **results}, indent=1) + "\n", encoding="utf-8")
    saved.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (study / "report.md").write_text(report(results), encoding="utf-8")
    if page is not None:
        fill(page, results)
    draw_sheets(models, data, study, public=False)
    if for_docs:
        draw_sheets(models, data, study / "docs", public=True)
    print(f"look at {study / 'report.md'} and {study}/*.png")


if __name__ == "__main__":
    main()
