"""The whole daemon, from settings to those who receive: keys, several endpoints, and streams that go on as video."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
import pytest

from daemon.client import RefusedError, Subscriber
from daemon.config import load_config
from daemon.keys import Keys, KeysError, new_keys
from daemon.service import run

WAIT_S = 60.0
ENGINE = "[engine]\nname = 'identity'\n"
CAMERA = "[[streams]]\nname = 'cam'\nsource = 'test:128x96@50'\n"


@contextmanager
def running(folder: Path, settings: str) -> Iterator[None]:
    """A daemon with these settings, until the end of the block."""
    path = folder / "config.toml"
    path.write_text(ENGINE + settings, encoding="utf-8")
    config, stop, failed = load_config(path), threading.Event(), list[BaseException]()

    def serve() -> None:
        try:
            run(config, stop)
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits
            failed.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if failed:
        raise failed[0]


def test_frames_come_in_the_form_of_each_endpoint(tmp_path: Path) -> None:
    first, second = f"ipc://{tmp_path}/raw", f"ipc://{tmp_path}/gray"
    endpoints = f"[[publish]]\nendpoint = '{first}'\n[[publish]]\nendpoint = '{second}'\npixel_format = 'gray8'\n"
    with running(tmp_path, endpoints + CAMERA), Subscriber(first) as colour, Subscriber(second) as gray:
        red, green, _ = np.moveaxis(colour.receive(WAIT_S).pixels, 2, 0)
        assert red.shape == (96, 128)
        assert (red != green).any()
        red, green, blue = np.moveaxis(gray.receive(WAIT_S).pixels, 2, 0)
        assert red.shape == (96, 128)
        assert (red == green).all()
        assert (red == blue).all()


def test_only_those_on_the_list_receive(tmp_path: Path) -> None:
    allowed = tmp_path / "allowed"
    allowed.mkdir(mode=0o700)
    server_public, server_secret = new_keys(tmp_path / "daemon")
    _, friend = new_keys(allowed / "friend")
    _, stranger = new_keys(tmp_path / "stranger")
    endpoint = f"ipc://{tmp_path}/frames"
    settings = f"[publish]\nendpoint = '{endpoint}'\nkeys = '{server_secret}'\nallow = '{allowed}'\n"
    with running(tmp_path, settings + CAMERA):
        with Subscriber(endpoint, keys=Keys.load(friend, server_public)) as subscriber:
            assert subscriber.receive(WAIT_S).stream == "cam"
        with (
            Subscriber(endpoint, keys=Keys.load(stranger, server_public)) as subscriber,
            pytest.raises(RefusedError, match="key"),
        ):
            subscriber.receive(WAIT_S)


def test_keys_that_cannot_be_read_end_the_start(tmp_path: Path) -> None:
    settings = f"[publish]\nendpoint = 'ipc://{tmp_path}/frames'\nkeys = '{tmp_path}/none'\nallow = '{tmp_path}'\n"
    with pytest.raises(KeysError, match="none: cannot be read"), running(tmp_path, settings + CAMERA):
        pass


def test_a_stream_also_goes_on_as_video(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    endpoint = f"ipc://{tmp_path}/frames"
    publish = f"[publish]\nendpoint = '{endpoint}'\n[log]\nstatistics_s = 0.2\n"
    settings = publish + CAMERA + f"forward = ['{tmp_path}/{{stream}}-%Y.mkv']\n"
    written = threading.Event()

    class Watch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            line = record.getMessage()
            if "frames written" in line and ", 0 frames" not in line:
                written.set()

    watch = Watch()
    logging.getLogger("daemon.service").addHandler(watch)
    try:
        with running(tmp_path, settings):
            assert written.wait(WAIT_S)
    finally:
        logging.getLogger("daemon.service").removeHandler(watch)
    (file,) = tmp_path.glob("cam-*.mkv")
    with av.open(str(file)) as container:
        frames = [(frame.width, frame.height) for frame in container.decode(video=0)]
    assert frames
    assert set(frames) == {(128, 96)}
    (said,) = (line for line in caplog.messages if "publishing at" in line)
    assert said.endswith(f"publishing at {endpoint}")  # its own endpoint is nobody else's business
