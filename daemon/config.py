"""The settings of the daemon: their defaults, their rules, and how a file of them is read.

Knows values only; nothing is opened, bound or started here.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from platformdirs import user_cache_path
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from .address import Address, redact
from .credentials import filled, password_in
from .errors import ConfigError, DaemonError
from .tls import check_ca_file

T = TypeVar("T")


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
    """One of `[[streams]]`: a source, its name, and how it is read."""

    name: str = Field(default="", max_length=64)
    password_file: str = ""  # before the source, which is read with it
    source: str = Field(min_length=1, repr=False)
    realtime: bool = False
    loop: bool = False
    overload: Literal["auto", "newest", "block"] = "auto"
    transport: Literal["tcp", "udp"] = "tcp"
    client: Literal["auto", "ffmpeg", "rtp"] = "auto"
    tls_verify: bool = True
    tls_ca_file: str = ""
    timeout_s: float = Field(default=5.0, ge=0.1, le=3600)
    open_timeout_s: float = Field(default=5.0, ge=0.1, le=3600)
    retry_min_s: float = Field(default=0.5, ge=0.01, le=3600)
    retry_max_s: float = Field(default=10.0, ge=0.01, le=86400)
    retry_attempts: int = Field(default=0, ge=0)
    max_pixels: int = Field(default=8192 * 8192, ge=1)
    deinterlace: bool = False
    size: str = Field(default="", pattern=r"^([1-9]\d{0,4}x[1-9]\d{0,4})?$")
    rate: float = Field(default=0.0, ge=0, le=1000)
    pixel_format: str = Field(default="", pattern=r"^([ -~]{4})?$")

    @field_validator("name")
    @classmethod
    def _printable(cls, name: str) -> str:
        if not name.isprintable():
            raise ValueError("must be printable")
        return name

    @field_validator("password_file")
    @classmethod
    def _holds_a_password(cls, path: str) -> str:
        if path:
            _or_value_error(password_in, path)
        return path

    @field_validator("tls_ca_file")
    @classmethod
    def _holds_certificates(cls, path: str) -> str:
        if path:
            _or_value_error(check_ca_file, path)
        return path

    @field_validator("source")
    @classmethod
    def _an_address(cls, source: str, info: ValidationInfo) -> str:
        _or_value_error(Address.parse, _or_value_error(filled, source, info.data.get("password_file", "")))
        return source

    @model_validator(mode="after")
    def _of_the_sources_kind(self) -> Self:
        kind = self.address.kind
        for setting, (kinds, what) in _ONLY_FOR.items():
            if kind not in kinds and getattr(self, setting) != type(self).model_fields[setting].default:
                raise _wrong(setting, f"is for {what}, got {self.address}")
        if kind == "rtsps" and self.transport == "udp":
            raise _wrong("transport", "must be tcp for rtsps")
        if self.transport == "udp" and self.client == "ffmpeg":
            raise _wrong("client", "must be rtp (or auto) with the transport udp: FFmpeg does not see what is lost")
        if self.tls_ca_file and not self.tls_verify:
            raise _wrong("tls_ca_file", "must be empty where tls_verify is false: nothing is checked then")
        if self.retry_max_s < self.retry_min_s:
            raise _wrong(
                "retry_max_s", f"must be at least retry_min_s ({self.retry_min_s:g}), got {self.retry_max_s:g}"
            )
        return self

    @cached_property
    def address(self) -> Address:
        """The source, with the secrets that it names."""
        return Address.parse(filled(self.source, self.password_file))

    @property
    def label(self) -> str:
        """The name, or one made from the source."""
        address = self.address
        if self.name or address.path is None:
            place = address.text.partition("://")[2].partition("?")[0].rstrip("/")
            return self.name or place[:64] or address.kind
        return address.path.stem[:64] or "stream"

    @property
    def frame_size(self) -> tuple[int, int] | None:
        """(H, W) that a camera is asked for."""
        width, separator, height = self.size.partition("x")
        return (int(height), int(width)) if separator else None


_FILES = ("file", "folder")
_RTSP = ("rtsp", "rtsps")
_NETWORK = (*_RTSP, "http", "https")
_MAYBE_TLS = ("rtsps", "https", "http")  # which may lead to https
_CAMERAS = (*_NETWORK, "v4l2")

_ONLY_FOR = {
    "password_file": (_NETWORK, "addresses in the network"),
    "realtime": (_FILES, "files and folders"),
    "loop": (_FILES, "files and folders"),
    "transport": (_RTSP, "rtsp addresses"),
    "client": (_RTSP, "rtsp addresses"),
    "tls_verify": (_MAYBE_TLS, "rtsps and https"),
    "tls_ca_file": (_MAYBE_TLS, "rtsps and https"),
    "timeout_s": (_CAMERAS, "cameras"),
    "open_timeout_s": (_CAMERAS, "cameras"),
    "retry_min_s": (_CAMERAS, "cameras"),
    "retry_max_s": (_CAMERAS, "cameras"),
    "retry_attempts": (_CAMERAS, "cameras"),
    "deinterlace": (_NETWORK, "addresses in the network"),
    "size": (("v4l2",), "cameras of this machine"),
    "rate": (("v4l2", "folder"), "cameras of this machine and folders"),
    "pixel_format": (("v4l2",), "cameras of this machine"),
}


def _wrong(setting: str, rule: str) -> PydanticCustomError:
    return PydanticCustomError("setting", "{rule}", {"setting": setting, "rule": rule})


def _or_value_error(read: Callable[..., T], *arguments: str) -> T:
    """What pydantic takes for a broken rule is a ValueError only."""
    try:
        return read(*arguments)
    except DaemonError as error:
        raise ValueError(str(error)) from error


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
    name = ".".join(str(part) for part in (*first["loc"], *first.get("ctx", {}).get("setting", "").split()))
    where = f" ({path})" if path else ""
    if first["type"] == "extra_forbidden":
        return f"'{name}' is no setting{where}; 'deblurd config' prints them all"
    if first["type"] == "missing":
        return f"'{name}' must be given{where}"
    rule = first["msg"].removeprefix("Value error, ").replace("Input should be ", "must be ")
    rule = rule.replace("a valid integer", "a whole number").replace("a valid ", "a ")
    rule = rule.replace("greater than or equal to", "at least").replace("less than or equal to", "at most")
    if not name:
        return f"{rule}{where}"
    if first["type"] == "string_pattern_mismatch":
        rule = "must be WIDTHxHEIGHT, e.g. 1280x720" if name.endswith(".size") else "must be four letters, e.g. MJPG"
    if name.endswith((".source", ".password_file", ".tls_ca_file")) or first["type"] == "setting":
        return f"'{name}' {rule}{where}"  # it says itself what may be said of a secret
    got = first["input"]
    shown = type(got).__name__ if isinstance(got, dict | list) else redact(repr(got))
    return f"'{name}' {rule[0].lower()}{rule[1:]}, got {shown}{where}"
