"""The settings of the daemon: their defaults, their rules, and how a file of them is read.

Knows values only; nothing is opened, bound or started here.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

from platformdirs import user_cache_path
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from .errors import ConfigError


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class EngineConfig(_Section):
    """`[engine]`: what computes, and how."""

    name: str = Field(default="auto", min_length=1)
    model: str = Field(default="fast", min_length=1)
    device: str = Field(default="auto", min_length=1)
    precision: Literal["auto", "f32", "bf16", "f16", "int8"] = "auto"
    goal: Literal["latency", "throughput"] = "latency"
    slots: int = Field(default=2, ge=1, le=16)
    tile_px: int = Field(default=2048, ge=64, le=8192)
    build: Literal["background", "wait"] = "background"
    cache_dir: str = ""

    @field_validator("cache_dir")
    @classmethod
    def _a_path(cls, path: str) -> str:
        if not path.isprintable() or (path.startswith("~") and not path.startswith("~/")):
            raise ValueError("must be a folder, none, or empty for the user's cache folder")
        return path

    @property
    def cache(self) -> Path | None:
        """The folder that `cache_dir` stands for; None keeps nothing."""
        if self.cache_dir == "none":
            return None
        return Path(self.cache_dir).expanduser() if self.cache_dir else user_cache_path("deblurd")


class PublishConfig(_Section):
    """`[publish]`: how frames reach subscribers."""

    endpoint: str = "tcp://127.0.0.1:5555"
    encoding: Literal["raw", "jpeg"] = "raw"
    jpeg_quality: int = Field(default=90, ge=1, le=100)
    high_water_mark: int = Field(default=2, ge=1, le=1000)
    await_subscribers: int = Field(default=0, ge=0, le=1000)

    @field_validator("endpoint")
    @classmethod
    def _zeromq_address(cls, endpoint: str) -> str:
        host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
        is_tcp = endpoint.startswith("tcp://") and host and (port == "*" or (port.isdecimal() and int(port) < 1 << 16))
        if not is_tcp and not (endpoint.startswith("ipc://") and len(endpoint) > len("ipc://")):
            raise ValueError("must be tcp://HOST:PORT (PORT 0 to 65535 or *) or ipc://PATH")
        return endpoint


class LogConfig(_Section):
    """`[log]`: what is said while the daemon runs."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    statistics_s: float = Field(default=10.0, ge=0)


class StreamConfig(_Section):
    """One of `[[streams]]`: a source and its name."""

    source: str = Field(min_length=1)
    name: str = Field(default="", max_length=64)
    realtime: bool = False

    @field_validator("source")
    @classmethod
    def _of_a_known_kind(cls, source: str) -> str:
        scheme, separator, _ = source.partition("://")
        if separator and scheme != "file":  # the rest may hold a password
            raise ValueError(f"must be a video file, got a {scheme} address")
        return source

    @field_validator("name")
    @classmethod
    def _printable(cls, name: str) -> str:
        if not name.isprintable():
            raise ValueError("must be printable")
        return name

    @property
    def label(self) -> str:
        """The name, or one made from the source."""
        return self.name or Path(self.source).stem[:64] or "stream"


class Config(_Section):
    """All settings. `Config()` equals config.toml as it is shipped."""

    engine: EngineConfig = EngineConfig()
    publish: PublishConfig = PublishConfig()
    log: LogConfig = LogConfig()
    streams: tuple[StreamConfig, ...] = Field(default=(), strict=False)

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        labels = [stream.label for stream in self.streams]
        twice = next((label for label in labels if labels.count(label) > 1), None)
        if twice is not None:
            raise ValueError(f"'streams.name' must differ from stream to stream, got {twice!r} twice")
        return self


def shipped_config() -> str:
    """The text of config.toml: every setting at its default, one comment each."""
    installed = Path(__file__).with_name("config.toml")
    path = installed if installed.is_file() else Path(__file__).parent.parent / "config.toml"
    return path.read_text(encoding="utf-8")


def load_config(
    path: Path | None = None,
    overrides: dict[str, dict[str, Any]] | None = None,
    streams: Sequence[dict[str, Any]] = (),
) -> Config:
    """Settings from a TOML file, with `overrides` (section -> key -> value) on top and `streams` added.

    Raises ConfigError that names the setting, its rule and the value got.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{path}: not readable ({error.strerror})") from error
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path}: not TOML ({error})") from error
    for section, change in (overrides or {}).items():
        given = values.get(section, {})
        values[section] = {**given, **change} if isinstance(given, dict) else given
    given = values.get("streams", [])
    values["streams"] = [*given, *streams] if isinstance(given, list) else given
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error, path)) from error


def _explain(error: ValidationError, path: Path | None) -> str:
    first = error.errors(include_url=False)[0]
    name = ".".join(str(part) for part in first["loc"])
    where = f" ({path})" if path else ""
    if first["type"] == "extra_forbidden":
        return f"'{name}' is no setting{where}; 'deblurd config' prints them all"
    rule = first["msg"].removeprefix("Value error, ").replace("Input should be ", "must be ")
    rule = rule.replace("a valid integer", "a whole number").replace("a valid ", "a ")
    rule = rule.replace("greater than or equal to", "at least").replace("less than or equal to", "at most")
    if not name:
        return f"{rule}{where}"
    if first["type"] == "missing":
        return f"'{name}' must be given{where}"
    rule = rule[0].lower() + rule[1:]
    if name.endswith(".source"):
        return f"'{name}' {rule}{where}"
    return f"'{name}' {rule}, got {first['input']!r}{where}"
