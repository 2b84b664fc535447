"""The sections of the settings: their defaults and their rules.

Knows values only; nothing is opened, bound or started here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Literal, Self, TypeVar

from platformdirs import user_cache_path
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from .address import Address
from .credentials import filled, password_in
from .errors import DaemonError
from .strength import StrengthSetting
from .target import Target
from .tls import check_ca_file

T = TypeVar("T")


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class EngineConfig(Section):
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


class RestoreConfig(Section):
    """`[restore]`: how much of what the engine changes is let through."""

    strength: StrengthSetting = "auto"

    @field_validator("strength", mode="plain")
    @classmethod
    def _a_share_or_auto(cls, strength: object) -> StrengthSetting:
        if strength == "auto":
            return "auto"
        if isinstance(strength, int | float) and not isinstance(strength, bool) and 0 <= strength <= 1:
            return float(strength)
        raise ValueError("must be auto, or from 0 to 1")


class PublishConfig(Section):
    """One `[publish]`: an endpoint, and how frames reach subscribers there."""

    endpoint: str = "tcp://127.0.0.1:5555"
    control: str = "auto"
    encoding: Literal["raw", "jpeg"] = "raw"
    jpeg_quality: int = Field(default=90, ge=1, le=100)
    pixel_format: Literal["rgb24", "bgr24", "gray8"] = "rgb24"
    shared_memory: bool = True
    high_water_mark: int = Field(default=2, ge=1, le=1000)
    max_clients: int = Field(default=64, ge=1, le=10000)
    keys: str = ""
    allow: str = ""
    await_subscribers: int = Field(default=0, ge=0, le=1000)

    @field_validator("endpoint")
    @classmethod
    def _zeromq_address(cls, endpoint: str) -> str:
        return _zeromq(endpoint)

    @field_validator("control")
    @classmethod
    def _zeromq_address_or_auto(cls, control: str) -> str:
        return control if control == "auto" else _zeromq(control)

    @model_validator(mode="after")
    def _keys_have_a_list(self) -> Self:
        if bool(self.keys) != bool(self.allow):
            missing, given = ("keys", "allow") if self.allow else ("allow", "keys")
            raise _wrong(missing, f"must be given with '{given}': who has keys lets in those on the list")
        return self


class ForwardConfig(Section):
    """`[forward]`: how streams are encoded that go on as video, and when a file is followed by the next."""

    encoder: Literal["libx264", "libx265", "libsvtav1", "h264_nvenc", "hevc_nvenc"] = "libx264"
    crf: float = Field(default=20.0, ge=1, le=51)
    every_s: float = Field(default=600.0)
    max_mb: float = Field(default=0.0)
    stall_s: float = Field(default=10.0, ge=1, le=3600)

    @field_validator("every_s", "max_mb")
    @classmethod
    def _never_or_enough(cls, value: float) -> float:
        if value and value < 1:
            raise ValueError("must be 0 for never, or at least 1")
        return value


class LogConfig(Section):
    """`[log]`: what is said while the daemon runs."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    statistics_s: float = Field(default=10.0, ge=0)


class StreamConfig(Section):
    """One of `[[streams]]`: a source, its name, and how it is read."""

    name: str = Field(default="", max_length=64)
    password_file: str = ""  # before the source, which is read with it
    source: str = Field(min_length=1, repr=False)
    forward: tuple[str, ...] = Field(default=(), strict=False, repr=False)
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

    @field_validator("forward")
    @classmethod
    def _videos(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        for target in targets:
            _or_value_error(Target.parse, _or_value_error(filled, target))
        return targets

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


def _zeromq(endpoint: str) -> str:
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    is_tcp = endpoint.startswith("tcp://") and host and (port == "*" or (port.isdecimal() and int(port) < 1 << 16))
    if not is_tcp and not (endpoint.startswith("ipc://") and len(endpoint) > len("ipc://")):
        raise ValueError("must be tcp://HOST:PORT (PORT 0 to 65535 or *) or ipc://PATH")
    return endpoint


def _wrong(setting: str, rule: str) -> PydanticCustomError:
    return PydanticCustomError("setting", "{rule}", {"setting": setting, "rule": rule})


def _or_value_error(read: Callable[..., T], *arguments: str) -> T:
    """What pydantic takes for a broken rule is a ValueError only."""
    try:
        return read(*arguments)
    except DaemonError as error:
        raise ValueError(str(error)) from error
