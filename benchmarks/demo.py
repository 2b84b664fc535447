"""The whole product in a minute: a daemon, a subscriber in another process, and an enhanced file.

    python benchmarks/demo.py [--out demo]

Plays the bundled blurred clip through a daemon at its own speed, receives the restored frames in a separate
process, enhances the same clip as a file, and measures both against the bundled sharp clip. Writes
`before-after.png`, `restored.mp4` and `report.json`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

from daemon.colour import to_rgb
from export.blur import Picture
from export.metrics import psnr

MEDIA = Path(__file__).parent.parent / "tests" / "media"
SHARP, BLURRED = MEDIA / "demo_sharp.mp4", MEDIA / "demo_blurred.mp4"
DEBLURD = [sys.executable, "-m", "daemon"]
SHOWN_AT = (0.15, 0.36, 0.62)  # of the clip: defocus, motion, Gaussian


def frames_of(path: Path) -> list[Picture]:
    with av.open(str(path)) as container:
        return [to_rgb(frame) for frame in container.decode(video=0)]


def stream(count: int) -> tuple[list[dict[str, Any]], dict[int, Picture], float]:
    """What a subscriber in another process got: a record a frame, the frames by number, and frames a second."""
    with tempfile.TemporaryDirectory(prefix="deblurd-") as folder:
        endpoint, saved = f"ipc://{folder}/frames", Path(folder) / "saved"
        watch = [*DEBLURD, "watch", endpoint, "--json", "--quiet", "--count", str(count), "--timeout", "20"]
        serve = [*DEBLURD, "run", f"demo={BLURRED}", "--realtime", "--await-subscribers", "1", "--publish", endpoint]
        with (
            subprocess.Popen([*watch, "--save", str(saved)], stdout=subprocess.PIPE, text=True) as watcher,
            subprocess.Popen([*serve, "--quiet"]) as daemon,
        ):
            assert watcher.stdout is not None
            records, times = [], []
            for line in watcher.stdout:
                records.append(json.loads(line))
                times.append(time.monotonic())
            if daemon.wait(60) or watcher.wait(60):
                sys.exit("the demo's daemon or subscriber failed; its message stands above")
        pictures = {record["seq"]: read(saved / f"demo-{record['seq']:08d}.png") for record in records}
    return records, pictures, (len(times) - 1) / (times[-1] - times[0])


def read(path: Path) -> Picture:
    return np.ascontiguousarray(cv2.imread(str(path))[..., ::-1])


def labelled(picture: Picture, text: str) -> Picture:
    picture = picture.copy()
    for colour, width in (((0, 0, 0), 4), ((255, 255, 255), 1)):
        cv2.putText(picture, text, (10, 26), cv2.FONT_HERSHEY_SIMPLEX, 0.7, colour, width, cv2.LINE_AA)
    return picture


def before_after(blurred: list[Picture], restored: dict[int, Picture], path: Path) -> None:
    """A picture with a row for each moment: what came in, what came out."""
    rows = []
    for share in SHOWN_AT:
        seq = min(restored, key=lambda number: abs(number - share * len(blurred)))
        rows.append(np.hstack([labelled(blurred[seq], "before"), labelled(restored[seq], "after")]))
    cv2.imwrite(str(path), np.vstack(rows)[..., ::-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for the results")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    sharp, blurred = frames_of(SHARP), frames_of(BLURRED)

    records, pictures, fps = stream(len(blurred))
    began = time.monotonic()
    subprocess.run(
        [*DEBLURD, "enhance", str(BLURRED), "-o", str(out / "restored.mp4"), "--overwrite", "--quiet"], check=True
    )
    seconds = time.monotonic() - began
    restored = frames_of(out / "restored.mp4")
    before_after(blurred, pictures, out / "before-after.png")

    ages_ms = np.array([record["age_s"] for record in records]) * 1000
    report = {
        "frames in the clip": len(blurred),
        "frames received": len(records),
        "frames dropped by the daemon": records[-1]["drops"],
        "frames per second": round(fps, 1),
        "frame age p50, ms": round(float(np.percentile(ages_ms, 50)), 1),
        "frame age p99, ms": round(float(np.percentile(ages_ms, 99)), 1),
        "PSNR blurred, dB": round(float(np.mean([psnr(*pair) for pair in zip(sharp, blurred, strict=True)])), 2),
        "PSNR restored stream, dB": round(float(np.mean([psnr(sharp[n], p) for n, p in pictures.items()])), 2),
        "PSNR restored file, dB": round(float(np.mean([psnr(*pair) for pair in zip(sharp, restored, strict=True)])), 2),
        "file: seconds in all": round(seconds, 1),
    }
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    table = Table("demo", "", title_justify="left")
    table.columns[1].justify = "right"
    for name, value in report.items():
        table.add_row(name, str(value))
    Console().print(table)
    Console().print(f"look at {out / 'before-after.png'} and {out / 'restored.mp4'}", highlight=False)


if __name__ == "__main__":
    main()
