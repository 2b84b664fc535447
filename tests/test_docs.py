"""Claims about the pages: their links lead somewhere, their commands exist, and their example client works."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from pydantic import BaseModel
from streams import numbered

from daemon import wire
from daemon.cli import app
from daemon.config import Config, load_config, shipped_config
from daemon.publisher import Publisher
from daemon.settings import StreamConfig
from engine.model import Manifest

REPOSITORY = Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"
PAGES = sorted([*DOCS.glob("*.md"), *REPOSITORY.glob("*.md"), *(REPOSITORY / "clients").rglob("*.md")])
WIRE_FORMAT = DOCS / "2-wire-format.md"
TRAINING = DOCS / "4-train-and-export.md"
SETTINGS = DOCS / "5-settings.md"
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def name(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of one language."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [block for found, block in fenced if found == language]


def fields(page: Path, heading: str) -> set[str]:
    """What stands in the first column of the table below a heading."""
    section = page.read_text(encoding="utf-8").split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    firsts = [row.split("|")[1] for row in section.splitlines() if row.startswith("| `")]
    return {field for first in firsts for field in re.findall(r"`(\w+)`", first)}


def commands() -> list[tuple[str, str]]:
    """Every `deblurd …` of the pages' shell blocks, with its page."""
    lines = [(name(page), line) for page in PAGES for block in blocks(page, "sh") for line in block.splitlines()]
    return [(page, line) for page, line in lines if line.startswith("deblurd ")]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_relative_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not re.match(r"[a-z]+:", target) and not target.startswith("#"):
            assert (page.parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_to_headings_lead_to_one(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)\s:#]*)#([\w-]+)\)", page.read_text(encoding="utf-8")):
        there = (page.parent / target if target else page).read_text(encoding="utf-8")
        headings = re.findall(r"^#+ (.+)$", there, re.MULTILINE)
        assert anchor in {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(("page", "line"), commands())
def test_every_command_line_of_a_page_is_one_that_deblurd_takes(page: str, line: str) -> None:
    _, command, *rest = shlex.split(line.partition(" >")[0], comments=True)
    COMMANDS[command].make_context(command, rest)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_command_and_option_that_a_page_mentions_is_there(page: Path) -> None:
    for name, rest in re.findall(r"`deblurd ([a-z]+)([^`]*)`", page.read_text(encoding="utf-8")):
        command = COMMANDS[name]
        for word in rest.split():  # the command of a group
            command = getattr(command, "commands", {}).get(word, command)
        there = {option for parameter in command.params for option in parameter.opts}
        assert set(re.findall(r"--[a-z-]+", rest)) <= there


@pytest.mark.parametrize("block", [block for page in PAGES for block in blocks(page, "toml")])
def test_every_settings_block_is_one_that_deblurd_takes(
    block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAM_PASSWORD", "secret")
    (tmp_path / "config.toml").write_text(block, encoding="utf-8")
    load_config(tmp_path / "config.toml")


def test_the_settings_page_names_every_setting_and_no_other() -> None:
    page = SETTINGS.read_text(encoding="utf-8")
    named = set(re.findall(r"`(engine|restore|publish|forward|log|streams)\.(\w+)", page))
    for block in blocks(SETTINGS, "toml"):
        table = tomllib.loads(block)
        for section, given in table.items():
            named |= {(section, key) for values in (given if isinstance(given, list) else [given]) for key in values}
    sections = {
        "engine": Config().engine,
        "restore": Config().restore,
        "publish": Config().publish[0],
        "forward": Config().forward,
        "log": Config().log,
    }
    known = {(section, key) for section, values in sections.items() for key in type(values).model_fields}
    assert named == known | {("streams", key) for key in StreamConfig.model_fields}
    assert all(key in shipped_config() for _, key in named)


def test_the_wire_page_describes_every_header_field_and_no_other() -> None:
    publisher = Publisher("tcp://127.0.0.1:*", "fast")
    header = wire.frame_header(numbered(0), publisher.publication(), "raw")
    publisher.close()
    assert fields(WIRE_FORMAT, "The header") == set(header)


def test_the_wire_pages_bytes_are_a_message() -> None:
    (literal,) = (block for block in blocks(WIRE_FORMAT, "") if re.fullmatch(r"[0-9a-f\s]+", block))
    message = bytes.fromhex(literal)
    assert message == wire.pack_head(b"cam\0", {"version": 1, "kind": "frame"})
    assert wire.unpack(message).topic == "cam"


def test_the_training_page_describes_every_field_of_a_manifest() -> None:
    described = fields(TRAINING, "The manifest")
    assert set(Manifest.model_fields) <= described


def test_every_setting_of_training_that_a_page_mentions_is_there() -> None:
    pytest.importorskip("torch")
    from export.recipes import RECIPES

    page = TRAINING.read_text(encoding="utf-8")
    keys = set(re.findall(r"--set ([a-z][\w.]*)=|`(blur\.\w+)`", page))
    known = {name for recipe in RECIPES.values() for name in _keys(recipe.settings())}
    assert keys
    assert {first or second for first, second in keys} <= known


def _keys(settings: BaseModel, prefix: str = "") -> Iterator[str]:
    for name in type(settings).model_fields:
        yield prefix + name
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            yield from _keys(value, f"{prefix}{name}.")


def test_the_training_page_describes_every_recipe_and_blur() -> None:
    pytest.importorskip("torch")
    from export.degradation import BLURS
    from export.recipes import RECIPES

    page = TRAINING.read_text(encoding="utf-8")
    assert set(RECIPES) <= set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    assert {*BLURS, "mixed"} - {"sharp"} <= set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))


def test_the_wire_pages_example_receives_frames_without_deblurd(tmp_path: Path) -> None:
    (example,) = blocks(WIRE_FORMAT, "python")
    assert "deblurd" not in example
    (tmp_path / "receive.py").write_text(example, encoding="utf-8")
    publisher = Publisher("tcp://127.0.0.1:*", "fast")
    frame, other = numbered(7, (33, 47), stream="cam1"), numbered(8, stream="cam10")
    command = [sys.executable, str(tmp_path / "receive.py"), publisher.endpoint, "cam1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as client:
        publisher.await_subscribers(1, threading.Event())
        for sent in (other, frame):
            sink = publisher.stream(sent.stream)
            buffer = sink.lend(sent)
            buffer[:] = sent.pixels
            sink.send(replace(sent, pixels=buffer))
        assert client.stdout is not None
        printed = client.stdout.readline().split()
        client.kill()
    publisher.close()
    assert printed[:2] == ["cam1", "7"]
    assert "".join(printed[2:5]) == "(33,47,3)"
    assert 0 <= int(printed[5]) < 60_000
    assert int(printed[6]) == int(frame.pixels.sum())
