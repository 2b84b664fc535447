"""Secrets of addresses: where they may be kept, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon.credentials import filled, password_in
from daemon.errors import ConfigError


def test_a_variable_in_a_login_is_encoded_and_elsewhere_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PASSWORD", "a@b:c/d%")
    monkeypatch.setenv("CHANNEL", "1/main?x=1")
    assert filled("rtsp://cam:${PASSWORD}@h/${CHANNEL}") == "rtsp://cam:a%40b%3Ac%2Fd%25@h/1/main?x=1"


def test_what_names_no_variable_stays_as_it_is() -> None:
    for text in ("rtsp://h/$1", "a$b.mp4", "rtsp://u:p$w@h/1"):
        assert filled(text) == text


@pytest.mark.parametrize("text", ["rtsp://u:${}@h", "rtsp://u:${a b}@h", "rtsp://u:${A-}@h", "x${1}"])
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="names a variable that is none"):
        filled(text)


def test_a_password_file_completes_a_user(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s3cr:et", encoding="utf-8")
    assert filled("rtsp://cam@h/1", str(tmp_path / "secret")) == "rtsp://cam:s3cr%3Aet@h/1"


@pytest.mark.parametrize("text", ["rtsp://h/1", "rtsp://cam:given@h/1", "a.mp4"])
def test_a_password_file_needs_a_user_without_a_password(tmp_path: Path, text: str) -> None:
    (tmp_path / "secret").write_text("x", encoding="utf-8")
    with pytest.raises(ConfigError, match="needs a source with a user and without a password") as refusal:
        filled(text, str(tmp_path / "secret"))
    assert "given" not in str(refusal.value)


@pytest.mark.parametrize("data", [b"", b"\n", b"one\ntwo\n", b"\xff\xfe", b"x" * 5000])
def test_a_password_file_holds_one_line(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "secret").write_bytes(data)
    with pytest.raises(ConfigError, match="must hold one line, the password"):
        password_in(str(tmp_path / "secret"))
