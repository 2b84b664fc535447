"""Claims about the settings."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from daemon.config import Config, load_config, shipped_config
from daemon.errors import ConfigError
from daemon.settings import EngineConfig, ForwardConfig, LogConfig, PublishConfig, RestoreConfig


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_shipped_file_equals_the_defaults(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, shipped_config())) == Config()


def test_the_shipped_file_names_every_setting() -> None:
    shipped = tomllib.loads(shipped_config())
    sections = {
        "engine": EngineConfig,
        "restore": RestoreConfig,
        "publish": PublishConfig,
        "forward": ForwardConfig,
        "log": LogConfig,
    }
    assert {*sections, "streams"} == set(Config.model_fields)
    for name, section in sections.items():
        assert set(shipped[name]) == set(section.model_fields)


def test_every_setting_in_the_shipped_file_has_a_comment() -> None:
    for line in shipped_config().splitlines():
        assert "=" not in line or "#" in line, line


def test_the_example_streams_in_the_shipped_file_are_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = shipped_config()
    example = text[text.index("# [[streams]]") :].replace("# ", "", 1).replace("\n# ", "\n").replace("\n#\n", "\n")
    monkeypatch.setenv("CAM_PASSWORD", "secret")
    cameras_and_files = load_config(write(tmp_path, example)).streams
    assert [stream.label for stream in cameras_and_files] == ["porch", "recording"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[engin]\n", "'engin' is no setting"),
        ("[engine]\nspeed = 1\n", "'engine.speed' is no setting"),
        ("[restore]\nstrength = 1.5\n", "'restore.strength' must be auto, or from 0 to 1, got 1.5"),
        ("[restore]\nstrength = true\n", "'restore.strength' must be auto, or from 0 to 1, got True"),
        ("[restore]\nstrength = 'full'\n", "'restore.strength' must be auto, or from 0 to 1, got 'full'"),
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


@pytest.mark.parametrize(
    ("stream", "reason"),
    [
        ({"source": "udp://h/1"}, "'streams.0.source' udp://…: the kind of source must be known, got 'udp'"),
        ({"source": "rtsp://user:SECRET@"}, "'streams.0.source' rtsp://: the address must have a host"),
        ({"source": "rtsp://u:SECRET@h:x/1"}, "the port must be a number from 1 to 65535"),
        ({"source": "rtsp://u:${NONE}@h/1"}, "needs the environment variable NONE, which is not set"),
        ({"source": "rtsp://h/1", "password_file": "/none"}, "'streams.0.password_file' cannot be read"),
        ({"source": "rtsp://u:SECRET@h/1", "realtime": True}, "'streams.0.realtime' is for files and folders"),
        ({"source": "a.mp4", "timeout_s": 2.0}, "'streams.0.timeout_s' is for cameras, got a.mp4"),
        ({"source": "rtsp://h/1", "size": "640x480"}, "'streams.0.size' is for cameras of this machine"),
        ({"source": "v4l2:0", "size": "640"}, "'streams.0.size' must be WIDTHxHEIGHT, e.g. 1280x720, got '640'"),
        ({"source": "v4l2:0", "pixel_format": "jpeg2"}, "'streams.0.pixel_format' must be four letters, e.g. MJPG"),
        (
            {"source": "rtsp://h/1", "retry_min_s": 20.0},
            "'streams.0.retry_max_s' must be at least retry_min_s (20), got 10",
        ),
        ({"source": "rtsps://h/1", "transport": "udp"}, "'streams.0.transport' must be tcp for rtsps"),
        ({"source": "rtsp://h/1", "transport": "udp", "client": "ffmpeg"}, "'streams.0.client' must be rtp (or auto)"),
        ({"source": "rtsp://h/1", "tls_verify": False}, "'streams.0.tls_verify' is for rtsps and https"),
        ({"source": "http://h/1", "transport": "udp"}, "'streams.0.transport' is for rtsp addresses"),
        ({"source": "rtsp://h/1", "overload": "drop"}, "'streams.0.overload' must be 'auto', 'newest' or 'block'"),
    ],
)
def test_a_stream_that_cannot_be_is_refused_by_its_setting_and_without_its_secrets(
    stream: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError) as refusal:
        load_config(None, {}, [stream])
    assert reason in str(refusal.value)
    assert "SECRET" not in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_names_that_are_made_from_addresses_hold_no_secret() -> None:
    config = load_config(None, {}, [{"source": "rtsp://user:SECRET@camera:8554/1"}, {"source": "test:"}])
    assert [stream.label for stream in config.streams] == ["camera:8554/1", "test"]
    assert "SECRET" not in repr(config)


def test_a_password_may_come_from_the_environment_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAM_PASSWORD", "p@ss/word")
    (tmp_path / "secret").write_text("p@ss/word\n", encoding="utf-8")
    config = load_config(
        None,
        {},
        [
            {"source": "rtsp://cam:${CAM_PASSWORD}@h/1"},
            {"source": "rtsp://cam@h/2", "password_file": str(tmp_path / "secret")},
        ],
    )
    for stream in config.streams:
        assert (stream.address.user, stream.address.password) == ("cam", "p@ss/word")
    assert "p@ss" not in repr(config)


def test_frames_may_be_published_at_several_endpoints(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "[[publish]]\nendpoint = 'ipc:///run/deblurd/a'\n[[publish]]\nendpoint = 'tcp://127.0.0.1:5600'\n"
        "encoding = 'jpeg'\n",
    )
    first, second = load_config(path, {"publish": {"endpoint": "tcp://127.0.0.1:5700"}}).publish
    assert (first.endpoint, first.encoding) == ("tcp://127.0.0.1:5700", "raw")  # the command line is about the first
    assert (second.endpoint, second.encoding) == ("tcp://127.0.0.1:5600", "jpeg")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "[[publish]]\n[[publish]]\n",
            "'publish.endpoint' must differ from one to the next, got 'tcp://127.0.0.1:5555'",
        ),
        ("[[publish]]\n[[publish]]\nmax_clients = 0\n", "'publish.1.max_clients' must be at least 1, got 0"),
        ("[publish]\nmax_clients = 0\n", "'publish.max_clients' must be at least 1, got 0"),
        ("publish = []\n", "'publish' "),
        ("[publish]\nkeys = 'daemon.key_secret'\n", "'publish.allow' must be given with 'keys'"),
        ("[publish]\ncontrol = 'here'\n", "'publish.control' must be tcp://HOST:PORT"),
    ],
)
def test_endpoints_that_cannot_be_are_refused(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, text))
    assert reason in str(caught.value)
