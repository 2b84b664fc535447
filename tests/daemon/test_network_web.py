from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import clips
import cv2
import pytest
from live_clips import Mark, picture, read_mark
from rtsp_server import self_signed
from web_server import Answer, WebServer

from daemon.address import Address
from daemon.errors import SourceError
from daemon.network_source import NetworkSource
from daemon.source import LiveOptions

USUAL = LiveOptions()
SOON = LiveOptions(timeout_s=1.0, open_timeout_s=2.0)
AT_ONCE = LiveOptions(timeout_s=0.3, open_timeout_s=0.5)
M3U8 = "application/vnd.apple.mpegurl"


def source_of(url: str, options: LiveOptions = USUAL, on_state=lambda _: None) -> NetworkSource:
    return NetworkSource(Address.parse(url), options, stream="cam", on_state=on_state)


def take(count: int, url: str, options: LiveOptions = USUAL):
    with source_of(url, options) as source:
        return [frame for _, frame in zip(range(count), source, strict=False)]


def numbers(frames) -> list[int]:
    return [read_mark(frame.pixels).number for frame in frames]


def refusal(url: str, options: LiveOptions = SOON) -> str:
    with source_of(url, options) as source, pytest.raises(SourceError) as caught:
        for _ in source:
            pass
    text = str(caught.value)
    assert text.startswith(f"{Address.parse(url)}: ")
    assert text.isprintable()
    assert "s3cret" not in text
    return text


@contextmanager
def untouched() -> Iterator[int]:
    """A port that nobody may connect to."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


# MJPEG


def jpeg(number: int) -> bytes:
    rgb = picture(Mark(number, 0), 320, 240).to_ndarray(format="bgr24")
    return cv2.imencode(".jpg", rgb)[1].tobytes()


def jpegs(count: int = 30, rate: int = 50, then=lambda: None) -> Iterator[bytes]:
    pace = threading.Event()
    for number in range(count):
        yield jpeg(number)
        pace.wait(1 / rate)
    then()


def parts(pictures: Iterator[bytes], boundary: str = "--frame", *, sized: bool = True, line: str = "\r\n"):
    for data in pictures:
        length = f"Content-Length: {len(data)}{line}" if sized else ""
        head = f"{boundary}{line}Content-Type: image/jpeg{line}{length}{line}"
        yield head.encode() + data + line.encode()


MULTIPART = "multipart/x-mixed-replace; boundary="
MJPEG = {
    "/as it should be": Answer(lambda: parts(jpegs()), MULTIPART + "frame"),
    "/dashes in the header": Answer(lambda: parts(jpegs()), MULTIPART + "--frame"),
    "/without lengths": Answer(lambda: parts(jpegs(), sized=False), MULTIPART + "frame"),
    "/bare line feeds": Answer(lambda: parts(jpegs(), line="\n"), MULTIPART + "frame"),
    "/named as something else": Answer(lambda: parts(jpegs())),
    "/no dashes at all": Answer(lambda: parts(jpegs(), "frame"), MULTIPART + "frame"),
    "/another boundary than announced": Answer(lambda: parts(jpegs(), "--other"), MULTIPART + "frame"),
    "/bare pictures": Answer(lambda: jpegs(60, 100), "video/x-motion-jpeg"),
}


@pytest.mark.parametrize("path", MJPEG, ids=lambda path: path[1:])
def test_mjpeg_is_known_by_what_it_is(path):
    answers = {path.replace(" ", "_"): answer for path, answer in MJPEG.items()}
    with WebServer(answers) as server:
        frames = take(20, server.url(path.replace(" ", "_")))
    assert numbers(frames) == list(range(20))


def test_mjpeg_without_times_has_those_of_arrival():
    with WebServer({"/cam": MJPEG["/as it should be"]}) as server:
        frames = take(20, server.url("/cam"))
    for sooner, later in pairwise(frames):
        assert later.time_s > sooner.time_s
        arrival_s = (later.captured_ns - sooner.captured_ns) / 1e9
        assert later.time_s - sooner.time_s == pytest.approx(arrival_s, abs=2e-3)
    assert {frame.clock for frame in frames} == {"arrival"}


def test_mjpeg_that_ends_is_a_closed_connection():
    with WebServer({"/cam": Answer(lambda: parts(jpegs(10)), MULTIPART + "frame")}) as server:
        assert "the server closed the connection" in refusal(server.url("/cam"))


def test_mjpeg_that_stops_is_noticed_within_twice_the_set_time():
    thaw = threading.Event()
    answer = Answer(lambda: parts(jpegs(10, then=lambda: thaw.wait(20))), MULTIPART + "frame")
    states: list[str] = []
    last = 0.0
    with WebServer({"/cam": answer}) as server:
        with source_of(server.url("/cam"), SOON, states.append) as source, pytest.raises(SourceError, match="frozen"):
            for frame in source:
                last = frame.arrived_ns / 1e9
        noticed = time.monotonic()
        thaw.set()
    assert states == ["connecting", "live", "frozen"]
    assert 0.9 < noticed - last < 2


def test_closing_ends_mjpeg_that_stopped():
    thaw, there, ended = threading.Event(), threading.Event(), threading.Event()
    answer = Answer(lambda: parts(jpegs(10, then=lambda: (there.set(), thaw.wait(20)))), MULTIPART + "frame")
    with WebServer({"/cam": answer}) as server:
        source = source_of(server.url("/cam"))
        thread = threading.Thread(target=lambda: (list(source), ended.set()))
        thread.start()
        assert there.wait(10)
        source.close()
        assert ended.wait(1)
        thread.join()
        thaw.set()


# Answers


@pytest.mark.parametrize("scheme", ["basic", "digest"])
def test_a_user_and_password_may_be_of_any_letters(scheme):
    answers = {"/cam": MJPEG["/as it should be"]}
    with WebServer(answers, auth=("op@site", "s3cret/p@ss%", scheme)) as server:
        assert numbers(take(5, server.url("/cam", "op%40site:s3cret%2Fp%40ss%25"))) == list(range(5))
        assert "refuses this user and password" in refusal(server.url("/cam", "op:s3cret"))
        assert "asks for a user and password" in refusal(server.url("/cam"))


@pytest.mark.parametrize(
    ("status", "what"), [(403, "forbidden"), (404, "check the path"), (500, "refuses"), (429, "refuses")], ids=str
)
def test_refusals_say_what_to_do(status, what):
    with WebServer({"/cam": Answer(status=status)}) as server:
        assert what in refusal(server.url("/cam", "cam:s3cret") + "?token=s3cret")


def test_a_page_is_no_video():
    with WebServer({"/": Answer(b"<html><body>Welcome</body></html>" * 100, "text/html")}) as server:
        assert "nothing that can be read as video" in refusal(server.url("/"))


def test_sound_is_no_video(tmp_path):
    sound = clips.write_audio(tmp_path / "a.mp4").read_bytes()
    with WebServer({"/a.mp4": Answer(sound, "video/mp4")}) as server:
        assert "must have a video stream, got only audio" in refusal(server.url("/a.mp4"))


def test_a_redirect_is_followed():
    moved = Answer(status=302, headers={"Location": "/new"})
    with WebServer({"/cam": moved, "/new": MJPEG["/as it should be"]}) as server:
        assert numbers(take(5, server.url("/cam"))) == list(range(5))


def test_a_redirect_in_a_circle_is_refused():
    with WebServer({"/cam": Answer(status=302, headers={"Location": "/cam"})}) as server:
        refusal(server.url("/cam"))


@pytest.mark.parametrize("scheme", ["file", "rtsp", "ftp", "gopher", "data", "concat", "tcp"])
def test_a_redirect_leads_to_nothing_but_http(scheme):
    with untouched() as inner:
        place = f"{scheme}://127.0.0.1:{inner}/etc/passwd"
        with WebServer({"/cam": Answer(status=302, headers={"Location": place})}) as server:
            refusal(server.url("/cam"))


def test_https_never_leads_to_http(tmp_path):
    with WebServer({"/cam": MJPEG["/as it should be"]}) as plain:
        moved = Answer(status=302, headers={"Location": plain.url("/cam")})
        with WebServer({"/cam": moved}, tls=self_signed(tmp_path)) as server:
            refusal(server.url("/cam", "cam:s3cret"), LiveOptions(tls_verify=False))
        assert plain.requests == []


def test_http_may_lead_to_https(tmp_path):
    with WebServer({"/cam": MJPEG["/as it should be"]}, tls=self_signed(tmp_path)) as safe:
        moved = Answer(status=302, headers={"Location": safe.url("/cam")})
        with WebServer({"/cam": moved}) as server:
            unchecked = LiveOptions(tls_verify=False)
            assert numbers(take(5, server.url("/cam"), unchecked)) == list(range(5))
            assert "the certificate is not trusted" in refusal(server.url("/cam"))


def test_a_redirect_leads_to_no_other_host_inside():
    with untouched() as inner:
        place = f"http://127.0.0.2:{inner}/admin"
        with WebServer({"/cam": Answer(status=302, headers={"Location": place})}) as server:
            assert "leads to 127.0.0.2, a host inside" in refusal(server.url("/cam"))


def test_a_redirect_that_comes_later_is_not_followed():
    with untouched() as inner:
        later = Answer(status=302, headers={"Location": f"http://127.0.0.1:{inner}/admin"})

        def first() -> Iterator[bytes]:
            server.answers["/cam"] = later
            yield from parts(jpegs(1))

        with WebServer({"/cam": Answer(first, MULTIPART + "frame")}) as server:
            refusal(server.url("/cam"))


def test_a_name_that_comes_to_mean_a_host_inside_is_not_followed(monkeypatch):
    places = iter(["127.0.0.1", "127.0.0.1", "127.0.0.2"])
    looked_up: list[str] = []

    def look_up(host, port, **_):
        looked_up.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(places), port))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with WebServer({"/cam": Answer(status=302, headers={"Location": "/new"}), "/new": Answer(b"")}) as server:
        url = server.url("/cam").replace("127.0.0.1", "camera.example")
        assert "leads to camera.example, a host inside" in refusal(url)
    assert looked_up == ["camera.example"] * 3
    assert server.requests == ["/cam"]


def test_a_camera_is_asked_once():
    with WebServer({"/cam": MJPEG["/as it should be"]}) as server:
        assert take(5, server.url("/cam"))
    assert server.requests == ["/cam"]


def test_a_redirect_takes_no_password_elsewhere():
    with WebServer({"/cam": MJPEG["/as it should be"]}, auth=("other", "other", "basic")) as elsewhere:
        moved = Answer(status=302, headers={"Location": elsewhere.url("/cam")})
        with WebServer({"/cam": moved}, auth=("cam", "s3cret", "basic")) as server:
            refusal(server.url("/cam", "cam:s3cret"))
            assert server.logins
        assert elsewhere.requests
        assert elsewhere.logins == []


# Files


def test_a_file_on_a_web_server_comes_at_its_own_speed_and_ends(tmp_path):
    data = clips.write_video(tmp_path / "a.mp4", count=15).read_bytes()
    with WebServer({"/a.mp4": Answer(data, "video/mp4")}) as server, source_of(server.url("/a.mp4")) as source:
        frames = list(source)
    assert [frame.seq for frame in frames] == list(range(15))
    assert frames[-1].arrived_ns - frames[0].arrived_ns == pytest.approx(14 / 25 * 1e9, abs=0.2e9)
    assert all(frame.age_s() >= 0 for frame in frames)


def test_a_file_that_breaks_off_has_not_ended(tmp_path):
    data = clips.write_video(tmp_path / "a.mkv", count=50).read_bytes()
    whole = {"Content-Length": str(len(data))}
    with WebServer({"/a.mkv": Answer(lambda: [data[: len(data) // 2]], "video/x-matroska", headers=whole)}) as server:
        assert "the server closed the connection" in refusal(server.url("/a.mkv"))


def test_a_file_whose_index_is_at_its_end_is_read_by_parts(tmp_path):
    data = clips.write_video(tmp_path / "a.mp4", count=15, width=640, height=480).read_bytes()
    assert data.index(b"moov") > data.index(b"mdat")
    with WebServer({"/a.mp4": Answer(data, "video/mp4")}, auth=("cam", "s3cret", "digest")) as server:
        assert len(take(50, server.url("/a.mp4", "cam:s3cret"))) == 15
        assert len(server.requests) > 2  # which the login alone takes


# HLS


def segments(folder: Path, count: int = 50, audio: str | None = None, **options: str) -> dict[str, bytes]:
    """A playlist and its segments of a second, as files by name."""
    folder.mkdir(exist_ok=True)
    clips.write_video(
        folder / "live.m3u8",
        count=count,
        audio=audio,
        options={"preset": "ultrafast", "g": "25"},
        container_options={"hls_time": "1", "hls_list_size": "0", **options},
    )
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def served(files: dict[str, bytes]) -> dict[str, Answer]:
    kinds = {"m3u8": M3U8, "ts": "video/mp2t", "m4s": "video/mp4", "mp4": "video/mp4"}
    return {f"/{name}": Answer(data, kinds.get(name.rpartition(".")[2], "")) for name, data in files.items()}


def playlist(*lines: str, ended: bool = True) -> bytes:
    head = ["#EXTM3U", "#EXT-X-VERSION:3", "#EXT-X-TARGETDURATION:1", "#EXT-X-MEDIA-SEQUENCE:0"]
    return "\n".join([*head, *lines, *(["#EXT-X-ENDLIST"] if ended else []), ""]).encode()


@pytest.mark.parametrize("kind", ["mpegts", "fmp4"])
def test_a_complete_playlist_comes_at_its_own_speed_and_ends(tmp_path, kind):
    files = segments(tmp_path, audio="aac", hls_segment_type=kind)
    with WebServer(served(files)) as server, source_of(server.url("/live.m3u8")) as source:
        frames = list(source)
    assert len(frames) == 50
    assert all(later.pts > sooner.pts for sooner, later in pairwise(frames))
    assert frames[-1].arrived_ns - frames[0].arrived_ns == pytest.approx(49 / 25 * 1e9, abs=0.3e9)


def test_encrypted_segments_are_refused(tmp_path):
    key, info = tmp_path / "key.bin", tmp_path / "info.txt"
    key.write_bytes(bytes(range(16)))
    with WebServer({}) as server:
        info.write_text(f"{server.url('/key.bin')}\n{key}\n")
        files = segments(tmp_path / "hls", hls_key_info_file=str(info))
        server.answers.update(served(files) | {"/key.bin": Answer(key.read_bytes())})
        assert "choose a stream without encryption" in refusal(server.url("/live.m3u8"))


def test_a_live_playlist_goes_on_as_it_grows(tmp_path):
    files = segments(tmp_path, count=150)
    listed = [name for name in sorted(files) if name.endswith(".ts")]
    assert len(listed) == 6
    answers = served(files)
    times: list[float] = []

    def growing() -> Iterator[bytes]:
        times.append(time.monotonic())
        there = min(6, 3 + int(times[-1] - times[0]))
        lines = [line for name in listed[:there] for line in ("#EXTINF:1.0,", name)]
        yield playlist(*lines, ended=False)

    answers["/live.m3u8"] = Answer(growing, M3U8)
    with WebServer(answers) as server:
        frames = take(140, server.url("/live.m3u8"))
    assert len(frames) == 140
    steps = {round((later.time_s - sooner.time_s) * 25) for sooner, later in pairwise(frames)}
    assert steps == {1}


def test_a_playlist_that_stops_growing_is_noticed(tmp_path):
    files = segments(tmp_path, count=50)
    answers = served(files)
    names = sorted(name for name in files if name.endswith(".ts"))
    answers["/live.m3u8"] = Answer(playlist(*(x for name in names for x in ("#EXTINF:1.0,", name)), ended=False), M3U8)
    with WebServer(answers) as server:
        assert "frozen" in refusal(server.url("/live.m3u8"))


def test_segments_may_have_any_name_and_be_found_by_a_redirect(tmp_path):
    files = segments(tmp_path)
    names = sorted(name for name in files if name.endswith(".ts"))
    with WebServer({"/cam": Answer(status=302, headers={"Location": "/deep/list"})}) as server:
        server.answers["/deep/list"] = Answer(playlist(*(x for n in range(2) for x in ("#EXTINF:1.0,", f"s?n={n}"))))
        server.answers["/deep/s"] = Answer(files[names[0]])
        assert take(5, server.url("/cam"))


def test_the_login_of_the_address_is_that_of_its_segments(tmp_path):
    with WebServer(served(segments(tmp_path)), auth=("cam", "s3cret/", "digest")) as server:
        assert take(5, server.url("/live.m3u8", "cam:s3cret%2F"))


def test_closing_hls_ends_it_at_once_and_leaves_nothing_behind(tmp_path):
    with WebServer(served(segments(tmp_path))) as server:
        before = None
        for _ in range(10):
            began = time.monotonic()
            assert take(2, server.url("/live.m3u8"))
            assert time.monotonic() - began < 5
            before = before or settled()
        deadline = time.monotonic() + 5
        while settled() > before:
            assert time.monotonic() < deadline


def settled() -> int:
    """Open descriptors, once the readers have ended."""
    for thread in threading.enumerate():
        if thread.name == "network-reader":
            thread.join(10)
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("ended", [True, False], ids=["complete", "live"])
@pytest.mark.parametrize(
    "place",
    [
        "file:///etc/passwd",
        "/etc/passwd",
        "file:{folder}/secret.ts",
        "{folder}/secret.ts",
        "concat:http://{web}/header.ts|file:{folder}/secret.ts",
        "concat:{folder}/secret.ts|{folder}/secret.ts",
        "subfile,,start,0,end,100000,,:{folder}/secret.ts",
        "data:video/mp2t;base64,AAAA",
        "crypto:{folder}/secret.ts",
        "crypto+file:{folder}/secret.ts",
        "cache:{folder}/secret.ts",
        "async:file:{folder}/secret.ts",
        "rtsp://127.0.0.1:{inner}/secret.ts",
        "tcp://127.0.0.1:{inner}/secret.ts",
        "udp://127.0.0.1:{inner}/secret.ts",
        "ftp://127.0.0.1:{inner}/secret.ts",
        "gopher://127.0.0.1:{inner}/secret.ts",
        "rtmp://127.0.0.1:{inner}/secret.ts",
        "tls://127.0.0.1:{inner}/secret.ts",
        "unix:{folder}/socket.ts",
        "pipe:0.ts",
        "http://127.0.0.2:{inner}/secret.ts",
        "http://[::ffff:127.0.0.2]:{inner}/secret.ts",
        "http://10.255.255.1:{inner}/secret.ts",
        "http://169.254.169.254/secret.ts",
    ],
)
def test_a_playlist_reads_no_files_and_speaks_no_other_protocol(tmp_path, place, ended):
    secret = next(data for name, data in segments(tmp_path / "hls").items() if name.endswith(".ts"))
    (tmp_path / "secret.ts").write_bytes(secret)  # which would be shown, if it were read
    with untouched() as inner, WebServer({"/header.ts": Answer(secret[: 188 * 20], "video/mp2t")}) as server:
        where = place.format(folder=tmp_path, inner=inner, web=f"127.0.0.1:{server.port}")
        for name, lines in {
            "/segment.m3u8": ("#EXTINF:1.0,", where),
            "/map.m3u8": (f'#EXT-X-MAP:URI="{where}"', "#EXTINF:1.0,", where),
            "/key.m3u8": (f'#EXT-X-KEY:METHOD=AES-128,URI="{where}"', "#EXTINF:1.0,", where),
            "/variant.m3u8": ("#EXT-X-STREAM-INF:BANDWIDTH=100000", where),
        }.items():
            server.answers[name] = Answer(playlist(*lines, ended=ended), M3U8)
            with source_of(server.url(name), AT_ONCE) as source, pytest.raises(SourceError) as caught:
                for _ in source:
                    raise AssertionError(f"{where} was shown")
            assert str(caught.value).startswith(server.url(name))


@pytest.mark.parametrize(
    "text",
    [
        "ffconcat version 1.0\nfile '{folder}/secret.ts'\n",
        "ffconcat version 1.0\nfile rtsp://127.0.0.1:{inner}/cam\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {inner} RTP/AVP 33\n",
        '<?xml version="1.0"?><MPD type="static"><Period><BaseURL>file://{folder}/</BaseURL></Period></MPD>',
    ],
    ids=["list of files", "list of streams", "session description", "dash"],
)
def test_no_other_format_that_names_places_is_read(tmp_path, text):
    with untouched() as inner:
        body = text.format(folder=tmp_path, inner=inner).encode()
        with WebServer({"/cam": Answer(body)}) as server:
            refusal(server.url("/cam"))


def test_what_is_too_large_is_refused(tmp_path):
    data = clips.write_video(tmp_path / "a.mp4", count=5).read_bytes()
    with WebServer({"/a.mp4": Answer(data, "video/mp4")}) as server:
        assert "at most 1000 pixels, got 64x48" in refusal(server.url("/a.mp4"), LiveOptions(max_pixels=1000))
