"""All settings of the daemon, and how a file of them is read.

Knows values only; nothing is opened, bound or started here.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from .address import redact
from .errors import ConfigError
from .settings import EngineConfig, ForwardConfig, LogConfig, PublishConfig, RestoreConfig, Section, StreamConfig


class Config(Section):
    """All settings. `Config()` equals config.toml as it is shipped."""

    engine: EngineConfig = EngineConfig()
    restore: RestoreConfig = RestoreConfig()
    publish: tuple[PublishConfig, ...] = Field(default=(PublishConfig(),), min_length=1, strict=False)
    forward: ForwardConfig = ForwardConfig()
    log: LogConfig = LogConfig()
    streams: tuple[StreamConfig, ...] = Field(default=(), strict=False)

    @model_validator(mode="after")
    def _endpoints_differ(self) -> Self:
        endpoints = [each.endpoint for each in self.publish if not each.endpoint.endswith(":*")]
        twice = next((endpoint for endpoint in endpoints if endpoints.count(endpoint) > 1), None)
        if twice is not None:
            raise ValueError(f"'publish.endpoint' must differ from one to the next, got {twice!r} twice")
        return self

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
        values[section] = _changed(values.get(section, {}), change)
    given = values.get("streams", [])
    values["streams"] = [*given, *streams] if isinstance(given, list) else given
    publish = values.get("publish", {})
    try:
        # A single one may be written as a section of its own.
        return Config.model_validate({**values, "publish": [publish] if isinstance(publish, dict) else publish})
    except ValidationError as error:
        raise ConfigError(_explain(error, path)) from error


def _changed(given: Any, change: dict[str, Any]) -> Any:
    """A section with `change` on top; of several, the first. What is no section is refused later, by its name."""
    if isinstance(given, list) and given:
        return [_changed(given[0], change), *given[1:]]
    return {**given, **change} if isinstance(given, dict) else given


def _explain(error: ValidationError, path: Path | None) -> str:
    first = error.errors(include_url=False)[0]
    name = ".".join(str(part) for part in (*first["loc"], *first.get("ctx", {}).get("setting", "").split()))
    name = name.replace("publish.0.", "publish.")
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
    if name.endswith((".source", ".password_file", ".tls_ca_file", ".forward")) or first["type"] == "setting":
        return f"'{name}' {rule}{where}"  # it says itself what may be said of a secret
    got = first["input"]
    shown = type(got).__name__ if isinstance(got, dict | list) else redact(repr(got))
    return f"'{name}' {rule[0].lower()}{rule[1:]}, got {shown}{where}"
