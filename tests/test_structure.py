"""Claims about the house itself: who may import whom, and what is light."""

from __future__ import annotations

import ast
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
MAY_IMPORT = {"daemon": {"daemon", "engine"}, "engine": {"engine"}, "export": {"export", "engine"}}
COMMAND_LINE = {"cli.py", "training_cli.py"}
CLIENT = (
    *("async_client", "asking", "client", "connection", "control", "frame", "keys", "pulse", "shared", "subscription"),
    "wire",
)


def imports(path: Path) -> set[str]:
    """Top-level names of all packages that a module imports, wherever the import stands."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_packages_import_only_those_they_may_know(package: str) -> None:
    for path in (REPOSITORY / package).rglob("*.py"):
        allowed = set(MAY_IMPORT) if path.name in COMMAND_LINE else MAY_IMPORT[package]
        assert imports(path) & set(MAY_IMPORT) <= allowed, path.name


def test_the_clients_files_need_numpy_and_pyzmq_and_each_other_only() -> None:
    for name in CLIENT:
        path = REPOSITORY / "daemon" / f"{name}.py"
        foreign = imports(path) - set(sys.stdlib_module_names) - {"numpy", "zmq", "cv2"}
        assert not foreign, name
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert {node.module or alias.name for alias in node.names} <= set(CLIENT)


def test_no_other_distribution_claims_the_names_of_the_packages() -> None:
    owners = importlib.metadata.packages_distributions()
    for package in MAY_IMPORT:
        assert set(owners.get(package, ["deblurd"])) == {"deblurd"}


@pytest.mark.parametrize("command", ["run", "watch", "enhance", "evaluate", "config", "doctor"])
def test_no_command_but_those_of_training_loads_torch(command: str) -> None:
    program = (
        "import sys\n"
        f"sys.argv = ['deblurd', {command!r}] + {_arguments(command)!r}\n"
        "from daemon.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=REPOSITORY, capture_output=True, timeout=120)


def _arguments(command: str) -> list[str]:
    media = str(REPOSITORY / "tests" / "media" / "demo_sharp.mp4")
    return {
        "run": ["no-such-file.mp4"],
        "watch": ["ipc:///nowhere/at-all", "--timeout", "0.1"],
        "enhance": ["no-such-file.mp4", "-o", "out.mp4"],
        "evaluate": [media, media],
    }.get(command, [])
