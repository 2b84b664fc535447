"""Claims about whom an encrypted connection trusts, of every client that makes one, on real servers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import clips
import pytest
from certificates import certificate
from live_clips import make_clip
from rtsp_server import Auth, RtspServer
from web_server import Answer, WebServer

from daemon.address import Address
from daemon.config import load_config
from daemon.errors import ConfigError, SourceError
from daemon.network_source import NetworkSource
from daemon.rtsp.source import RtspSource
from daemon.source import LiveOptions

CLIENTS = ["ffmpeg", "rtp", "https"]
PASSWORD = "s3cret"


@contextmanager
def server(folder: Path, client: str, names: str = "IP:127.0.0.1", days: int = 1) -> Iterator[tuple[str, Path]]:
    """The address of a stream that `client` reads over TLS, and the file of the server's certificate."""
    tls, public = certificate(folder, names, days)
    if client == "https":
        video = clips.write_video(folder / "a.mp4", count=10).read_bytes()
        with WebServer({"/a.mp4": Answer(video, "video/mp4")}, tls=tls) as web:
            yield web.url("/a.mp4", f"cam:{PASSWORD}"), public
    else:
        with RtspServer(make_clip(rate=100), tls=tls, auth=Auth("cam", PASSWORD)) as rtsp:
            yield rtsp.url(), public


def first_frame(client: str, url: str, **options: object):
    kind = RtspSource if client == "rtp" else NetworkSource
    with kind(Address.parse(url), LiveOptions(**options), stream="cam") as source:
        return next(iter(source))


def refusal(client: str, url: str, **options: object) -> str:
    with pytest.raises(SourceError) as caught:
        first_frame(client, url, **options)
    assert caught.value.lasting
    text = str(caught.value)
    assert text.startswith(f"{Address.parse(url)}: the certificate is not trusted (")
    assert text.isprintable()
    assert PASSWORD not in text
    return text


@pytest.mark.parametrize("client", CLIENTS)
def test_a_camera_that_signed_its_own_certificate_is_not_trusted_and_the_error_says_what_to_set(tmp_path, client):
    with server(tmp_path, client) as (url, _):
        text = refusal(client, url)
    assert "self-signed certificate" in text.replace("self signed", "self-signed")
    assert "tls_ca_file" in text
    assert "tls_verify = false" in text


@pytest.mark.parametrize("client", CLIENTS)
def test_it_is_trusted_where_the_settings_say_so(tmp_path, client):
    with server(tmp_path, client) as (url, public):
        assert first_frame(client, url, tls_verify=False).seq == 0
        assert first_frame(client, url, tls_ca_file=str(public)).seq == 0


@pytest.mark.parametrize("client", CLIENTS)
def test_a_certificate_of_another_host_is_not_trusted(tmp_path, client):
    with server(tmp_path, client, names="DNS:elsewhere.example") as (url, public):
        assert "mismatch" in refusal(client, url, tls_ca_file=str(public))


@pytest.mark.parametrize("client", CLIENTS)
def test_a_certificate_of_another_authority_is_not_trusted(tmp_path, client):
    (tmp_path / "other").mkdir()
    _, other = certificate(tmp_path / "other")
    with server(tmp_path, client) as (url, _):
        refusal(client, url, tls_ca_file=str(other))


@pytest.mark.parametrize("client", CLIENTS)
def test_no_password_is_sent_to_whom_is_not_trusted(tmp_path, client):
    tls, _ = certificate(tmp_path)
    if client == "https":
        with WebServer({}, tls=tls, auth=("cam", PASSWORD, "basic")) as web:
            refusal(client, web.url("/a", f"cam:{PASSWORD}"))
            assert not web.requests
    else:
        with RtspServer(make_clip(), tls=tls, auth=Auth("cam", PASSWORD, scheme="basic")) as rtsp:
            refusal(client, rtsp.url())
            assert not rtsp.requests


def test_the_settings_refuse_a_file_that_holds_no_certificates(tmp_path):
    (tmp_path / "text.pem").write_text("no certificate")
    for path, reason in {
        str(tmp_path / "text.pem"): "must hold certificates as PEM, and does not",
        str(tmp_path / "none.pem"): "cannot be read (No such file or directory)",
        str(tmp_path): "cannot be read (Is a directory)",
    }.items():
        with pytest.raises(ConfigError) as caught:
            load_config(None, {}, [{"source": "rtsps://h/1", "tls_ca_file": path}])
        assert f"'streams.0.tls_ca_file' {reason}" in str(caught.value)
