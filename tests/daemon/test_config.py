"""Claims about the settings."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from daemon.config import Config, EngineConfig, load_config, shipped_config
from daemon.errors import ConfigError


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_shipped_file_equals_the_defaults(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, shipped_config())) == Config()


def test_the_shipped_file_names_every_setting() -> None:
    shipped = tomllib.loads(shipped_config())
    for section, fields in Config.model_fields.items():
        if section != "streams":
            assert set(shipped[section]) == set(fields.annotation.model_fields)  # type: ignore[union-attr]


def test_every_setting_in_the_shipped_file_has_a_comment() -> None:
    for line in shipped_config().splitlines():
        assert "=" not in line or "#" in line, line


def test_an_example_stream_in_the_shipped_file_is_valid(tmp_path: Path) -> None:
    text = shipped_config()
    example = text[text.index("# [[streams]]") :].replace("# ", "", 1).replace("\n# ", "\n")
    (stream,) = load_config(write(tmp_path, example)).streams
    assert stream.label == "porch"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[engin]\n", "'engin' is no setting"),
        ("[engine]\nspeed = 1\n", "'engine.speed' is no setting"),
        ("[engine]\nslots = 0\n", "'engine.slots' must be at least 1, got 0"),
        ("[engine]\nslots = 2.5\n", "'engine.slots' must be a whole number, got 2.5"),
        ("[engine]\nslots = true\n", "'engine.slots' must be a whole number, got True"),
        ("[engine]\ngoal = 'speed'\n", "'engine.goal' must be 'latency' or 'throughput', got 'speed'"),
        ("[engine]\nbuild = 'later'\n", "'engine.build' must be 'background' or 'wait', got 'later'"),
        ("[engine]\ncache_dir = 3\n", "'engine.cache_dir' must be a string, got 3"),
        ("[engine]\ncache_dir = '~nobody/x'\n", "'engine.cache_dir' must be a folder, none, or empty"),
        ('[engine]\ncache_dir = "a\\u0000b"\n', "'engine.cache_dir' must be a folder, none, or empty"),
        (
            "[publish]\nendpoint = 'udp://1.2.3.4:5'\n",
            "'publish.endpoint' must be tcp://HOST:PORT (PORT 0 to 65535 or *) or ipc://PATH",
        ),
        ("[publish]\njpeg_quality = 101\n", "'publish.jpeg_quality' must be at most 100, got 101"),
        ("[log]\nstatistics_s = nan\n", "'log.statistics_s' must be a finite number"),
        ("[[streams]]\nname = 'a'\n", "'streams.0.source' must be given"),
        ("[[streams]]\nsource='a.mp4'\n[[streams]]\nsource='b/a.mp4'\n", "'streams.name' must differ"),
        ("engine = 3\n", "'engine'"),
        ("streams = 3\n", "'streams'"),
        ("x = " + "[" * 5000, "not TOML"),
        ("[publish]\nendpoint = 'tcp://127.0.0.1:99999'\n", "PORT 0 to 65535"),
        ("[publish]\nendpoint = 'tcp://127.0.0.1:-1'\n", "PORT 0 to 65535"),
        ("[engine\n", "not TOML"),
    ],
)
def test_a_bad_setting_is_refused_by_name_in_one_line(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        load_config(write(tmp_path, text))
    assert reason in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_built_engines_are_kept_in_the_users_cache_unless_the_settings_say_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folders = {"": tmp_path / "cache" / "deblurd", "~/engines": tmp_path / "engines", "/e": Path("/e"), "none": None}
    for written, folder in folders.items():
        assert EngineConfig(cache_dir=written).cache == folder
    assert not list(tmp_path.iterdir())  # settings touch nothing


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: not readable"):
        load_config(tmp_path / "none.toml")


def test_the_command_line_overrides_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "[engine]\nmodel = 'a'\nslots = 3\n")
    overrides: dict[str, Any] = {"engine": {"model": "b"}}
    config = load_config(path, overrides)
    assert (config.engine.model, config.engine.slots) == ("b", 3)


def test_an_address_that_may_hold_a_password_is_never_repeated() -> None:
    with pytest.raises(ConfigError) as refusal:
        load_config(None, {}, [{"source": "rtsp://user:SECRET@camera/1"}] * 2)
    assert "SECRET" not in str(refusal.value)
    assert "'streams.0.source' must be a video file, got a rtsp address" in str(refusal.value)
