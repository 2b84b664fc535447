from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from shapes import blurred, shapes

from daemon.animations import AnimationSource, AnimationWriter
from daemon.enhance import Job, Settings, enhance, expand
from daemon.errors import SinkError, SourceError
from engine.backends import open_engine

DURATIONS_MS = [40, 70, 100, 40, 1000]


def moving(path: Path, *, see_through: bool = False, frames: int = 5, **options: Any) -> Path:
    """A bright square on its way, in few colours; its durations differ."""
    images = []
    for i in range(frames):
        pixels = np.full((24, 32, 4), (30, 60, 90, 255), np.uint8)
        if see_through:
            pixels[:, :10, 3] = 0
        pixels[4:12, 12 + 3 * i : 20 + 3 * i] = (200, 40 * i, 0, 255)
        images.append(Image.fromarray(pixels if see_through else pixels[..., :3]))
    lossless = {"lossless": True} if path.suffix == ".webp" else {"disposal": 2} if see_through else {}
    times = {"duration": DURATIONS_MS[:frames]} if frames > 1 else {}
    images[0].save(path, save_all=frames > 1, append_images=images[1:], **times, **lossless, **options)
    return path


def seen(path: Path) -> list[np.ndarray]:
    """Every frame, RGBA."""
    with Image.open(path) as picture:
        found = []
        for i in range(getattr(picture, "n_frames", 1)):
            picture.seek(i)
            found.append(np.asarray(picture.convert("RGBA")))
        return found


def times(path: Path) -> list[int]:
    with Image.open(path) as picture:
        found = []
        for i in range(picture.n_frames):
            picture.seek(i)
            picture.load()
            found.append(round(picture.info["duration"]))
        return found


def plays(path: Path) -> Any:
    with Image.open(path) as picture:
        return picture.info.get("loop")


def copy(source: Path, target: Path) -> AnimationSource:
    with AnimationSource(source) as frames, AnimationWriter(source, target, frames.description) as writer:
        for frame in frames:
            buffer = writer.lend(frame)
            np.copyto(buffer, frame.pixels)
            writer.send(replace(frame, pixels=buffer))
        writer.close()
        writer.commit()
    return frames


KINDS = [".gif", ".webp", ".png"]


@pytest.mark.parametrize("after", KINDS)
@pytest.mark.parametrize("before", KINDS)
@pytest.mark.parametrize("see_through", [False, True], ids=["opaque", "transparent"])
def test_frames_times_and_transparency_are_kept(tmp_path: Path, before: str, after: str, see_through: bool) -> None:
    source, target = moving(tmp_path / f"a{before}", see_through=see_through), tmp_path / f"b{after}"
    copy(source, target)
    assert times(target) == DURATIONS_MS
    for old, new in zip(seen(source), seen(target), strict=True):
        assert (old[..., 3] == new[..., 3]).all()
        differing = np.abs(old.astype(int) - new)[old[..., 3] > 0]
        assert differing.max() == 0 if after != ".webp" else differing.mean() < 12


@pytest.mark.parametrize("suffix", KINDS)
@pytest.mark.parametrize("loop", [0, 3])
def test_how_often_it_is_shown_is_kept(tmp_path: Path, suffix: str, loop: int) -> None:
    source = moving(tmp_path / f"a{suffix}", loop=loop)
    copy(source, tmp_path / f"b{suffix}")
    assert plays(tmp_path / f"b{suffix}") == loop


@pytest.mark.parametrize(("after", "once"), [(".gif", None), (".webp", 1), (".png", 1)])
@pytest.mark.parametrize(("before", "options"), [(".gif", {}), (".webp", {"loop": 1}), (".png", {"loop": 1})])
def test_what_is_shown_once_is_shown_once(
    tmp_path: Path, before: str, options: dict[str, int], after: str, once: int | None
) -> None:
    copy(moving(tmp_path / f"a{before}", **options), tmp_path / f"b{after}")
    assert plays(tmp_path / f"b{after}") == once


def test_a_gif_of_one_picture_stays_one(tmp_path: Path) -> None:
    source = moving(tmp_path / "a.gif", frames=1)
    copy(source, tmp_path / "b.gif")
    (old,), (new,) = seen(source), seen(tmp_path / "b.gif")
    assert (old == new).all()


def test_presentation_times_are_the_sums_of_the_durations(tmp_path: Path) -> None:
    with AnimationSource(moving(tmp_path / "a.gif")) as frames:
        assert [frame.time_s for frame in frames] == pytest.approx([0, 0.04, 0.11, 0.21, 0.25])
        assert frames.frames_expected == 5


def test_what_can_be_read_of_a_damaged_animation_is_read(tmp_path: Path) -> None:
    noise = [Image.fromarray(np.random.default_rng(i).integers(0, 255, (50, 50, 3), np.uint8)) for i in range(6)]
    noise[0].save(tmp_path / "whole.gif", save_all=True, append_images=noise[1:], duration=40)
    data = (tmp_path / "whole.gif").read_bytes()
    (tmp_path / "a.gif").write_bytes(data[: len(data) * 2 // 3])
    frames = copy(tmp_path / "a.gif", tmp_path / "b.gif")
    assert 1 <= len(seen(tmp_path / "b.gif")) < 6
    assert len(frames.damage) == 1


@pytest.mark.parametrize("suffix", KINDS)
@pytest.mark.parametrize("data", [b"", b"no picture at all", b"GIF89a", b"GIF89a\x10\0\x10\0\0\0\0,"])
def test_what_is_no_animation_is_refused_in_one_line(tmp_path: Path, suffix: str, data: bytes) -> None:
    (tmp_path / f"a{suffix}").write_bytes(data)
    with pytest.raises(SourceError, match=rf"a\{suffix}: must be a picture, got [^\n]*$"):
        AnimationSource(tmp_path / f"a{suffix}")


def test_a_huge_animation_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    images = [Image.new("P", (8000, 8000), i) for i in range(5)]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:])
    with pytest.raises(SourceError, match=r"at most 268435456 pixels in all its frames, got 5 of 8000x8000"):
        AnimationSource(tmp_path / "a.gif")


def test_a_result_that_exists_is_not_replaced(tmp_path: Path) -> None:
    source = moving(tmp_path / "a.gif")
    (tmp_path / "b.gif").write_bytes(b"precious")
    with pytest.raises(SinkError, match="must not exist yet"):
        copy(source, tmp_path / "b.gif")
    assert (tmp_path / "b.gif").read_bytes() == b"precious"


def test_enhance_restores_animations_and_leaves_sharp_ones_alone(tmp_path: Path) -> None:
    sharp, soft = shapes(120, 160), blurred(shapes(120, 160), 2)
    for name, picture in (("sharp", sharp), ("soft", soft)):
        images = [Image.fromarray(np.roll(picture, 4 * i, axis=1)) for i in range(3)]
        images[0].save(tmp_path / f"{name}.png", save_all=True, append_images=images[1:], duration=[40, 50, 60])
    with open_engine("openvino", "fast") as engine:
        for job in expand([tmp_path], tmp_path / "out"):
            assert enhance(job, engine).frames == 3
    for name, changed in (("sharp", False), ("soft", True)):
        target = tmp_path / "out" / f"{name}.png"
        assert times(target) == [40, 50, 60]
        pairs = zip(seen(tmp_path / f"{name}.png"), seen(target), strict=True)
        assert any((old != new).any() for old, new in pairs) == changed


def test_a_gif_can_become_a_video(tmp_path: Path) -> None:
    source = moving(tmp_path / "a.gif")
    with open_engine("identity", "fast") as engine:
        assert enhance(Job(source, tmp_path / "b.mkv"), engine, Settings()).frames == 5
    with av.open(str(tmp_path / "b.mkv")) as video:
        assert [round(float(frame.time) * 1000) for frame in video.decode(video=0)] == [0, 40, 110, 210, 250]


def test_a_picture_that_does_not_move_takes_the_way_of_pictures(tmp_path: Path) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (24, 32)).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "a.png")
    with open_engine("identity", "fast") as engine:
        enhance(Job(tmp_path / "a.png", tmp_path / "b.png"), engine)
    assert (np.asarray(Image.open(tmp_path / "b.png")) == deep).all()
