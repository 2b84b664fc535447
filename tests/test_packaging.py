"""Claims about the two distributions: what is in them, and that they run where nothing of this checkout is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
import zlib
from pathlib import Path

import pytest

from daemon.file_source import FileSource

REPOSITORY = Path(__file__).parents[1]
CLIENT = REPOSITORY / "clients" / "python"
CLIENT_FILES = {
    *("async_client.py", "asking.py", "client.py", "connection.py", "control.py", "frame.py", "keys.py", "pulse.py"),
    *("shared.py", "subscription.py", "wire.py"),
}
CLIP = REPOSITORY / "tests" / "media" / "demo_blurred.mp4"
MODULES = {
    package: {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / package).rglob("*.py")}
    for package in ("daemon", "engine", "export")
}
WAIT_S = 120

Contents = dict[str, bytes]


def project(folder: Path) -> dict[str, object]:
    table: dict[str, object] = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return table


@pytest.mark.parametrize("key", ["version", "license", "requires-python"])
def test_both_distributions_agree(key: str) -> None:
    assert project(CLIENT)[key] == project(REPOSITORY)[key]


def test_the_client_asks_for_the_versions_that_the_daemon_asks_for() -> None:
    light, whole = (project(folder)["dependencies"] for folder in (CLIENT, REPOSITORY))
    assert isinstance(light, list)
    assert isinstance(whole, list)
    assert set(light) <= set(whole)


def test_the_client_comes_with_the_same_licence() -> None:
    assert (CLIENT / "LICENSE").read_bytes() == (REPOSITORY / "LICENSE").read_bytes()


def test_the_files_that_the_client_shares_are_there_once_only() -> None:
    for name in CLIENT_FILES:
        assert not list(CLIENT.rglob(name))


# What follows builds with the tool that publishes, in environments that it makes, from the package index.


@pytest.fixture(scope="session", params=[REPOSITORY, CLIENT], ids=["deblurd", "deblurd-client"])
def tree(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.param
    return folder


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source archive and the wheel of deblurd, the wheel built from the archive."""
    return build(REPOSITORY, tmp_path_factory.mktemp("deblurd"))


@pytest.fixture(scope="session")
def light(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of deblurd-client."""
    return build(CLIENT, tmp_path_factory.mktemp("client"))


def build(folder: Path, out: Path, *options: str) -> Path:
    command = [sys.executable, "-m", "build", *options, "--outdir", str(out), str(folder)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return out


def wheel(out: Path) -> Path:
    (path,) = out.glob("*.whl")
    return path


def contents(path: Path) -> Contents:
    """Every file of a wheel."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/RECORD")}


def members(out: Path) -> set[str]:
    """Every file of a source archive, without the folder that they all lie in."""
    (path,) = out.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        return {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}


def environment(folder: Path) -> dict[str, str]:
    """Where this checkout cannot be found."""
    hidden = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return {**hidden, "COLUMNS": "300", "HOME": str(folder)}


def installed(folder: Path, *wheels: Path | str) -> Path:
    """The `bin` of a new environment with only these wheels and what they ask for."""
    venv.create(folder, with_pip=True)
    command = [folder / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", *wheels]
    subprocess.run(list(map(str, command)), check=True, timeout=900, cwd=folder)
    return folder / "bin"


def run(folder: Path, *command: str | Path) -> str:
    """Run a program in `folder` and give what it prints."""
    answer = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=WAIT_S, cwd=folder, env=environment(folder)
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


@pytest.mark.long
def test_the_wheel_holds_the_three_packages_and_nothing_else(whole: Path) -> None:
    names = set(contents(wheel(whole)))
    assert {name.split("/")[0] for name in names} == {*MODULES, "deblurd-0.1.0.dist-info"}
    assert {name for name in names if name.endswith(".py")} == set.union(*MODULES.values())


@pytest.mark.long
def test_the_wheel_holds_what_the_code_reads(whole: Path) -> None:
    held = contents(wheel(whole))
    models = {f"engine/models/{path.name}" for path in (REPOSITORY / "engine" / "models").glob("*.*")}
    assert {Path(name).suffix for name in models} == {".json", ".onnx", ".npz"}
    assert models | {"export/development.txt", "daemon/config.toml"} <= set(held)
    assert held["daemon/config.toml"] == (REPOSITORY / "config.toml").read_bytes()


@pytest.mark.long
def test_the_wheel_names_its_command_and_its_licence(whole: Path) -> None:
    held = contents(wheel(whole))
    information = "deblurd-0.1.0.dist-info"
    assert b"deblurd = daemon.cli:main" in held[f"{information}/entry_points.txt"]
    assert held[f"{information}/licenses/LICENSE"] == (REPOSITORY / "LICENSE").read_bytes()


@pytest.mark.long
def test_the_source_archive_holds_what_is_needed_to_test_and_to_document(whole: Path) -> None:
    wanted = {"tests/test_packaging.py", "docs/2-wire-format.md", "clients/python/pyproject.toml", "config.toml"}
    assert wanted <= members(whole)
    assert {name.split("/")[0] for name in members(whole)} <= {
        *MODULES,
        *("tests", "docs", "clients", "benchmarks", "config.toml", "Makefile", "README.md", "CHANGELOG.md"),
        *("LICENSE", "PKG-INFO", "pyproject.toml", ".gitignore"),
    }


@pytest.mark.long
def test_the_clients_wheel_holds_the_daemons_own_files(light: Path) -> None:
    held = contents(wheel(light))
    for name in CLIENT_FILES:
        assert held[f"deblurd_client/{name}"] == (REPOSITORY / "daemon" / name).read_bytes()
    python = {name.removeprefix("deblurd_client/") for name in held if name.endswith(".py")}
    assert python == {*CLIENT_FILES, "__init__.py"}
    assert {name.split("/")[0] for name in held} == {"deblurd_client", "deblurd_client-0.1.0.dist-info"}
    assert held["deblurd_client-0.1.0.dist-info/licenses/LICENSE"] == (REPOSITORY / "LICENSE").read_bytes()


@pytest.mark.long
def test_a_wheel_from_the_source_archive_equals_one_from_the_tree(
    tree: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    from_archive: Path = request.getfixturevalue("whole" if tree == REPOSITORY else "light")
    from_tree = build(tree, tmp_path, "--wheel")
    assert contents(wheel(from_archive)) == contents(wheel(from_tree))


@pytest.fixture(scope="session")
def deblurd(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command of a deblurd that was installed from its wheel, as a user does."""
    return installed(tmp_path_factory.mktemp("user"), wheel(whole)) / "deblurd"


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_an_installed_deblurd_prints_its_settings(deblurd: Path, tmp_path: Path) -> None:
    assert run(tmp_path, deblurd, "config") == (REPOSITORY / "config.toml").read_text(encoding="utf-8")


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_an_installed_deblurd_finds_its_engine_and_model(deblurd: Path, tmp_path: Path) -> None:
    findings = {check["name"]: check for check in json.loads(run(tmp_path, deblurd, "doctor", "--json"))}
    assert findings["engine"]["ok"]
    assert "package names" not in findings


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_an_installed_deblurd_enhances_a_file(deblurd: Path, tmp_path: Path) -> None:
    run(tmp_path, deblurd, "enhance", CLIP, "-o", "restored.mp4")
    with FileSource(tmp_path / "restored.mp4") as restored, FileSource(CLIP) as blurred:
        assert restored.frames_expected == blurred.frames_expected


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_an_installed_deblurd_says_what_training_needs(deblurd: Path, tmp_path: Path) -> None:
    answer = subprocess.run(
        [deblurd, "train", "--data", tmp_path, "--out", tmp_path / "run"],
        capture_output=True, text=True, timeout=WAIT_S, cwd=tmp_path, env=environment(tmp_path),
    )  # fmt: skip
    assert answer.returncode == 1
    assert "pip install 'deblurd[train]'" in answer.stderr


@pytest.fixture(scope="session")
def client(light: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with deblurd-client and what it asks for."""
    return installed(tmp_path_factory.mktemp("client"), wheel(light)) / "python"


@pytest.mark.long
@pytest.mark.timeout(600)
def test_an_installed_client_brings_numpy_and_pyzmq_alone(client: Path, tmp_path: Path) -> None:
    listed = {package["name"] for package in json.loads(run(tmp_path, client, "-m", "pip", "list", "--format", "json"))}
    assert listed - {"pip", "setuptools"} == {"deblurd-client", "numpy", "pyzmq"}


RECEIVE = """
import sys, zlib
from deblurd_client import Subscriber

with Subscriber(sys.argv[1], ["demo"], mode="queued") as subscriber:
    frame = subscriber.receive(60)
print(frame.stream, frame.seq, *frame.pixels.shape, zlib.crc32(frame.pixels))
"""


@pytest.mark.long
@pytest.mark.timeout(600)
def test_an_installed_client_receives_from_a_daemon(client: Path, tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/frames"
    serve = ["run", f"demo={CLIP}", "--engine", "identity", "--await-subscribers", "1", "--publish", endpoint]
    with subprocess.Popen([sys.executable, "-m", "daemon", *serve, "--quiet"], cwd=REPOSITORY) as daemon:
        received = run(tmp_path, client, "-c", RECEIVE, endpoint).split()
        daemon.kill()
    with FileSource(CLIP) as source:
        sent = next(iter(source)).pixels
    assert received == ["demo", "0", *map(str, sent.shape), str(zlib.crc32(sent))]


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_an_installed_client_passes_the_clients_tests(light: Path, tmp_path: Path) -> None:
    python = installed(tmp_path / "client", wheel(light), "pytest") / "python"
    tests = tmp_path / "tests"
    tests.mkdir()
    for name in ("publishing.py", "daemon/test_client.py", "daemon/test_async_client.py"):
        shutil.copy(REPOSITORY / "tests" / name, tests)
    # The daemon is that of this checkout, in other processes: nothing of it can be imported here.
    there = {"DEBLURD_REPOSITORY": str(REPOSITORY), "DEBLURD_PYTHON": sys.executable}
    answer = subprocess.run(
        [python, "-m", "pytest", "-q", "-W", "error", tests],
        capture_output=True, text=True, timeout=900, cwd=tests, env={**environment(tmp_path), **there},
    )  # fmt: skip
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert " passed" in answer.stdout
