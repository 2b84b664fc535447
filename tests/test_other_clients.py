"""Claims about the clients in C++ and JavaScript: each is built as its README says, and watches a real publisher.

Where what they are built with is not installed, the tests are skipped, visibly.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from publishing import SIZE, PublisherProcess, pixels
from watching import WAIT_S, Command, Desk, Watch, a_frame, a_message

from daemon import control, wire
from daemon.allow_list import AllowList
from daemon.gate import Admission
from daemon.keys import Keys, new_keys
from daemon.parcel import Format, convert, encode_jpeg

pytestmark = pytest.mark.long

CLIENTS = Path(__file__).parents[1] / "clients"
MODES = ["newest", "paced", "shared"]
SHARED_MEMORY = Path("/dev/shm").is_dir()
SANITIZED = "-Wall -Wextra -Wpedantic -Wshadow -Werror -g1 -fsanitize=address,undefined -fno-sanitize-recover"


# Building.


def test_the_package_for_javascript_agrees_with_the_one_for_python() -> None:
    ours = json.loads((CLIENTS / "javascript" / "package.json").read_text(encoding="utf-8"))
    theirs = tomllib.loads((CLIENTS / "python" / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert [ours[key] for key in ("name", "version", "license")] == [
        theirs[key] for key in ("name", "version", "license")
    ]
    assert (CLIENTS / "javascript" / "LICENSE").read_bytes() == (CLIENTS / "python" / "LICENSE").read_bytes()


def tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"needs {name}")
    return path


def run(*command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=240, **options)


@pytest.fixture(scope="session")
def cpp(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """`watch` in C++: every warning is an error, and so is every access that the sanitizers do not like."""
    cmake, compiler = tool("cmake"), tool("c++")
    headers = "#include <zmq.hpp>\n#include <nlohmann/json.hpp>\n"
    if run(compiler, "-E", "-x", "c++", "-", input=headers).returncode:
        pytest.skip("needs the headers of libzmq, cppzmq and nlohmann-json")
    folder = tmp_path_factory.mktemp("cpp")
    for step in (
        [cmake, "-S", str(CLIENTS / "cpp"), "-B", str(folder), f"-DCMAKE_CXX_FLAGS={SANITIZED}"],
        [cmake, "--build", str(folder)],
    ):
        answer = run(*step)
        assert answer.returncode == 0, answer.stdout + answer.stderr
    return [str(folder / "watch")]


@pytest.fixture(scope="session")
def javascript(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """`watch` in JavaScript, from the package that would be published."""
    node, npm = tool("node"), tool("npm")
    folder = tmp_path_factory.mktemp("javascript")
    packed = run(npm, "pack", "--silent", str(CLIENTS / "javascript"), cwd=folder)
    assert packed.returncode == 0, packed.stderr
    # Without scripts: zeromq.js brings its binaries, and would else try to build them where it does not.
    quiet = ["--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier", "--loglevel=error"]
    installed = run(npm, "install", *quiet, str(folder / packed.stdout.strip()), cwd=folder)
    loads = run(node, "--input-type=module", "-e", "import 'zeromq'", cwd=folder)
    if installed.returncode or loads.returncode:
        pytest.skip(f"zeromq.js cannot be installed: {(installed.stderr or loads.stderr).strip()}")
    return [node, str(folder / "node_modules" / "deblurd-client" / "watch.js")]


@pytest.fixture(params=["cpp", "javascript"])
def client(request: pytest.FixtureRequest) -> Command:
    command: Command = request.getfixturevalue(request.param)
    return command


# With a publisher.


@pytest.fixture
def publisher() -> Iterator[PublisherProcess]:
    with PublisherProcess() as publisher:
        yield publisher


@pytest.mark.parametrize("mode", MODES)
def test_every_frame_comes_as_it_was_sent(client: Command, publisher: PublisherProcess, mode: str) -> None:
    with Watch(client, publisher.endpoint, "cam", "--mode", mode) as watch:
        publisher.await_receivers()
        for seq in range(10):
            publisher.publish(seq)
            frame = watch.frame()
            assert 0 <= frame.pop("age_ms") < WAIT_S * 1000
            assert frame == {
                "stream": "cam",
                "seq": seq,
                "width": SIZE[1],
                "height": SIZE[0],
                "pixel_format": "rgb24",
                "encoding": "shared" if mode == "shared" and SHARED_MEMORY else "raw",
                "sum": int(pixels(seq).sum()),
            }


@pytest.mark.parametrize("mode", MODES)
def test_who_names_no_stream_gets_all_in_turn(client: Command, publisher: PublisherProcess, mode: str) -> None:
    names = ["a", "b", "c"]
    for name in names:
        publisher.publish(0, stream=name)
    with Watch(client, publisher.endpoint, "--mode", mode) as watch:
        publisher.await_receivers(3 if mode == "newest" else 1)
        for name in names:
            publisher.publish(1, stream=name)
        assert sorted(watch.frame()["stream"] for _ in names) == names


@pytest.mark.parametrize("mode", MODES)
def test_a_stream_whose_name_begins_alike_is_another_one(
    client: Command, publisher: PublisherProcess, mode: str
) -> None:
    with Watch(client, publisher.endpoint, "cam1", "--mode", mode) as watch:
        publisher.await_receivers()
        publisher.publish(0, stream="cam10")
        publisher.publish(1, stream="cam1")
        assert watch.frame()["stream"] == "cam1"


@pytest.mark.parametrize("mode", ["paced", "shared"])
def test_who_was_held_up_goes_on_with_the_newest_frame(client: Command, publisher: PublisherProcess, mode: str) -> None:
    with Watch(client, publisher.endpoint, "cam", "--mode", mode) as watch:
        publisher.await_receivers()
        publisher.publish(0)
        assert watch.frame()["seq"] == 0
        watch.process.send_signal(signal.SIGSTOP)
        publisher.publish(1, 20)
        watch.process.send_signal(signal.SIGCONT)
        assert watch.frame()["seq"] == 20 or watch.frame()["seq"] == 20  # one at most was on its way already


@pytest.mark.parametrize(
    "options", [{"pixel_format": "gray8"}, {"pixel_format": "bgr24"}, {"encoding": "jpeg"}], ids=str
)
def test_every_format_that_is_published_is_understood(client: Command, options: dict[str, Any]) -> None:
    with PublisherProcess(**options) as publisher, Watch(client, publisher.endpoint, "cam") as watch:
        publisher.await_receivers()
        publisher.publish(3)
        frame = watch.frame()
    asked = Format(**options)
    sent = np.empty(asked.size(*SIZE), np.uint8)
    if asked.encoding == "jpeg":
        sent = np.frombuffer(encode_jpeg(a_frame(3), asked), np.uint8)
    else:
        convert(a_frame(3), asked.pixel_format, sent)
    assert (frame["pixel_format"], frame["encoding"]) == (asked.pixel_format, asked.encoding)
    assert frame["sum"] == int(sent.sum())


@pytest.mark.parametrize("mode", MODES)
def test_a_killed_daemon_is_noticed_and_its_successor_found(
    client: Command, publisher: PublisherProcess, mode: str
) -> None:
    with Watch(client, publisher.endpoint, "cam", "--mode", mode) as watch:
        assert watch.await_state("live")["run_id"] == publisher.run_id
        publisher.kill()
        killed_s = time.monotonic()
        watch.await_state("lost")
        assert time.monotonic() - killed_s < 10  # 2 s, where nothing else runs
        publisher.start()
        assert watch.await_state("live")["run_id"] == publisher.run_id
        publisher.await_receivers()
        publisher.publish(7)
        assert watch.frame()["sum"] == int(pixels(7).sum())


@pytest.mark.parametrize("mode", MODES)
def test_a_lost_daemon_is_an_error_for_who_wants_it(client: Command, publisher: PublisherProcess, mode: str) -> None:
    with Watch(client, publisher.endpoint, "cam", "--mode", mode, "--on-lost", "throw") as watch:
        watch.await_state("live")
        publisher.kill()
        assert "the daemon answers no more" in watch.end()


def test_a_daemon_that_hangs_is_noticed_and_found_again(client: Command, publisher: PublisherProcess) -> None:
    with Watch(client, publisher.endpoint, "cam", "--mode", "shared") as watch:
        watch.await_state("live")
        publisher.freeze()
        watch.await_state("lost")
        publisher.thaw()
        watch.await_state("live")
        publisher.await_receivers()
        publisher.publish(7)
        assert watch.frame()["seq"] == 7


def test_who_finds_no_room_is_told_so(client: Command) -> None:
    with PublisherProcess(max_clients=1) as publisher, Watch(client, publisher.endpoint, "a", "b") as watch:
        assert "it has as many clients as it takes" in watch.end()


def test_the_daemon_may_start_later(client: Command, tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/frames"
    with Watch(client, endpoint, "cam", "--mode", "paced") as watch, PublisherProcess(endpoint) as publisher:
        publisher.await_receivers()
        publisher.publish(5)
        assert watch.frame()["seq"] == 5


# With bytes that no publisher of today sends.


def test_what_is_not_known_yet_is_passed_over(client: Command) -> None:
    elsewhere = {"file": "../../etc/passwd", "offset": 0, "size": 16, "token": 1}
    with Desk() as desk, desk.watch(client) as watch:
        desk.give(
            control.pack_answer("weather", of=["tomorrow"]),
            a_message(kind="sound"),
            a_message(encoding="av3"),
            a_message(pixel_format="p016"),
            a_message(encoding="shared", shared=elsewhere),
            a_message(1, captured_by="a camera of the future", spent_ns={"dreaming": 1}, pts=None),
        )
        assert watch.frame()["seq"] == 1


def test_what_does_not_lie_in_shared_memory_is_passed_over_and_given_back(client: Command, tmp_path: Path) -> None:
    (tmp_path / "deblurd-run-probe").write_text("sesame")
    (tmp_path / "deblurd-run-0").write_bytes(bytes(64) + pixels(9).tobytes())
    (tmp_path / "deblurd-run-1").write_bytes(bytes(100))
    (tmp_path / "deblurd-run-2").symlink_to("deblurd-run-0")
    (tmp_path / "deblurd-run-3").mkdir()

    def lent(number: int, offset: int = 64) -> bytes:
        place = {"file": f"deblurd-run-{number}", "offset": offset, "size": pixels(9).nbytes, "token": number}
        return a_message(number, encoding="shared", shared=place)

    shared = {"folder": str(tmp_path), "probe": "deblurd-run-probe", "probe_value": "sesame"}
    with Desk(shared=shared) as desk, desk.watch(client, "shared") as watch:
        desk.give(lent(1), lent(2), lent(3), lent(4), lent(0, offset=65), lent(0))
        frame = watch.frame()
        assert (frame["seq"], frame["encoding"], frame["sum"]) == (0, "shared", int(pixels(9).sum()))
        assert sorted(desk.released) == [0, 1, 2, 3, 4]


def test_who_sees_another_shared_memory_asks_for_bytes(client: Command, tmp_path: Path) -> None:
    (tmp_path / "deblurd-run-probe").write_text("another host's")
    shared = {"folder": str(tmp_path), "probe": "deblurd-run-probe", "probe_value": "sesame"}
    with Desk(shared=shared) as desk, desk.watch(client, "shared"):
        while (asked := desk.answer(a_message()))["kind"] != "next":
            pass
        assert not asked["shared"]


@pytest.mark.parametrize("mode", ["newest", "paced"])
def test_a_newer_format_is_refused_by_name(client: Command, mode: str) -> None:
    with Desk() as desk, desk.watch(client, mode) as watch:
        send = desk.publish if mode == "newest" else desk.give
        send(a_message(version=2))
        assert "wire format 2, this client 1: update the client" in watch.end()


def test_no_bytes_make_it_crash(client: Command) -> None:
    random_ = random.Random(6)
    messages = [random_.randbytes(random_.randrange(200)) for _ in range(50)]
    for _ in range(250):
        message = bytearray(a_message())
        for _ in range(random_.randrange(1, 4)):
            message[random_.randrange(700)] = random_.randrange(256)
        messages.append(bytes(message[: random_.choice([random_.randrange(800), len(message)])]))
    with Desk() as desk, desk.watch(client) as watch:
        desk.give(*(message for message in messages if not is_newer(message)), a_message(12345))
        while watch.frame()["seq"] != 12345:
            pass


def is_newer(message: bytes) -> bool:
    try:
        wire.unpack(message)
    except wire.VersionError:
        return True
    except wire.WireError:
        return False
    return False


# In JavaScript alone.


def evaluate(javascript: Command, module: str, program: str, *words: str) -> Any:
    """What `program` prints in JSON; `client` is a module of the package, and `words` are its words."""
    node, watch = javascript
    program = f"const client = await import(process.argv[1]); const words = process.argv.slice(2); {program}"
    answer = run(node, "--input-type=module", "-e", program, str(Path(watch).with_name(module)), *words)
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)


def test_times_of_64_bits_are_exact_in_javascript(javascript: Command) -> None:
    header: dict[str, Any] = {"captured_ns": 2**63 - 1, "pts": -(2**62) - 1, "model": 'a "pts": 7, \\', "seq": 5}
    program = """
        const { header } = client.unpack(Buffer.from(words[0], "hex"))
        console.log(JSON.stringify(header, (name, value) => typeof value === "bigint" ? `${value}` : value))
    """
    read = evaluate(javascript, "wire.js", program, a_message(**header).hex())
    assert {name: read[name] for name in header} == {
        **header,
        "captured_ns": str(header["captured_ns"]),
        "pts": str(header["pts"]),
    }


def test_waiting_ends_in_time_and_when_a_subscriber_is_closed(javascript: Command, tmp_path: Path) -> None:
    program = """
        const subscriber = new client.Subscriber(words[0])
        const answers = [await subscriber.receive(0), await subscriber.receive(20)]
        setTimeout(() => subscriber.close(), 20)
        for await (const frame of subscriber) answers.push(frame)
        console.log(JSON.stringify([...answers, subscriber.state]))
    """
    assert evaluate(javascript, "index.js", program, f"ipc://{tmp_path}/nobody") == [None, None, "connecting"]


# With keys.


@pytest.fixture
def daemons(tmp_path: Path) -> Path:
    """The daemon's secret keys."""
    return new_keys(tmp_path / "daemon")[1]


@pytest.fixture
def guarded(tmp_path: Path, daemons: Path) -> Iterator[Desk]:
    """A daemon that lets in who has `friend.key_secret`, and nobody else."""
    friend = Keys.load(new_keys(tmp_path / "friend")[1])
    (tmp_path / "allowed").write_text(friend.public)
    (tmp_path / "allowed").chmod(0o644)
    with Desk(Admission(Keys.load(daemons), AllowList(tmp_path / "allowed"))) as desk:
        yield desk


@pytest.mark.parametrize("mode", ["newest", "paced"])
def test_who_has_keys_is_let_in(client: Command, guarded: Desk, tmp_path: Path, mode: str) -> None:
    keys = ["--keys", str(tmp_path / "friend.key_secret"), "--server", str(tmp_path / "daemon.key")]
    with guarded.watch(client, mode, *keys) as watch:
        send = guarded.publish if mode == "newest" else guarded.give
        send(a_message(3))
        assert watch.frame()["seq"] == 3


def test_who_has_none_or_others_is_told_so(client: Command, guarded: Desk, tmp_path: Path) -> None:
    for name in ("stranger", "impostor"):
        new_keys(tmp_path / name)
    keys = {name: ["--keys", str(tmp_path / f"{name}.key_secret")] for name in ("friend", "stranger")}
    server = ["--server", str(tmp_path / "daemon.key")]
    with guarded.watch(client, "newest", *keys["stranger"], *server) as watch:
        assert "this client's key is not allowed" in watch.end()
    with guarded.watch(client, "newest") as watch:
        assert "it wants keys, this client has none" in watch.end()
    with guarded.watch(client, "newest", *keys["friend"], "--server", str(tmp_path / "impostor.key")) as watch:
        assert "its key is another, or it has none" in watch.end()


def test_who_brings_keys_to_a_daemon_without_is_told_so(client: Command, tmp_path: Path) -> None:
    new_keys(tmp_path / "friend")
    keys = ["--keys", str(tmp_path / "friend.key_secret"), "--server", str(tmp_path / "friend.key")]
    with Desk() as desk, desk.watch(client, "newest", *keys) as watch:
        assert "it has no" in watch.end()
