"""What `deblurd doctor` finds: which parts of the daemon work on this machine, and what would help.

Knows what to ask each library; changes nothing.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.markup import escape
from rich.table import Table

from engine.backends import open_engine
from engine.driver import why_no_gpu
from engine.errors import EngineError
from engine.model import shipped_models
from engine.protocol import EngineOptions

from .settings import EngineConfig


@dataclass(frozen=True)
class Check:
    """One finding; `help` says what to do where it is not `ok`. Without a `required` one nothing runs."""

    name: str
    ok: bool
    finding: str
    help: str = ""
    required: bool = False


def examine() -> list[Check]:
    """Look at everything, the most important first."""
    checks = [_python(), _packages_clash(), *_engines(), _processor(), _gpu(), *_gpu_engines(), *_codecs(), _training()]
    return [check for check in checks if check is not None]


def render(checks: list[Check]) -> Table:
    """The findings as a table."""
    table = Table(show_header=False, box=None, padding=(0, 1))
    for check in checks:
        mark = "[green]yes[/]" if check.ok else "[red]no[/]" if check.required else "[yellow]no[/]"
        table.add_row(mark, f"[bold]{escape(check.name)}[/]", escape(check.finding))
        if not check.ok and check.help:
            table.add_row("", "", f"[dim]{escape(check.help)}[/]")
    return table


def _python() -> Check:
    return Check("python", True, f"{platform.python_version()} on {platform.platform(terse=True)}")


def _packages_clash() -> Check | None:
    owners = importlib.metadata.packages_distributions()
    clashes = {name: owners.get(name, []) for name in ("daemon", "engine", "export")}
    foreign = sorted({owner for names in clashes.values() for owner in names} - {"deblurd"})
    if not foreign:
        return None
    return Check(
        "package names",
        False,
        f"{', '.join(foreign)} also installs a package named daemon, engine or export",
        f"pip uninstall {' '.join(foreign)}, or use an environment of its own",
        required=True,
    )


def _engines() -> Iterator[Check]:
    names = shipped_models()
    yield Check("models", bool(names), ", ".join(names) or "none shipped", "reinstall deblurd", required=True)
    if not names:
        return
    try:
        with open_engine("auto", names[0], EngineOptions(cache=EngineConfig().cache)) as engine:
            yield Check("engine", True, f"auto chooses {engine.spec.backend}", required=True)
    except EngineError as error:
        yield Check("engine", False, str(error), "pip install --force-reinstall openvino", required=True)
        return
    from engine.openvino import openvino as ov

    core = ov.Core()
    for device in core.available_devices:
        yield Check(f"openvino {device}", True, str(core.get_property(device, "FULL_DEVICE_NAME")).strip())


def _processor() -> Check:
    wanted = {
        "avx2": "AVX2",
        "avx512f": "AVX-512",
        "avx512_bf16": "bfloat16",
        "avx512_vnni": "INT8 (VNNI)",
        "amx_tile": "AMX",
    }
    try:
        flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split("flags", 1)[-1].split("\n", 1)[0].split())
    except OSError:
        return Check("processor", True, platform.processor() or platform.machine())
    found = [label for flag, label in wanted.items() if flag in flags]
    missing = [label for flag, label in wanted.items() if flag not in flags]
    text = f"has {', '.join(found) or 'none of the fast paths'}"
    return Check("processor", bool(found), text + (f"; lacks {', '.join(missing)}" if missing else ""))


def _gpu() -> Check:
    reason = why_no_gpu()
    if reason:
        return Check("NVIDIA GPU", False, reason, "not needed: without one the processor restores")
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return Check("NVIDIA GPU", True, "there is one")
    try:
        query = [tool, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return Check("NVIDIA GPU", True, f"there is one, but nvidia-smi does not answer ({error})")
    return Check("NVIDIA GPU", True, answer.stdout.strip().replace("\n", "; "))


def _gpu_engines() -> Iterator[Check]:
    """What a GPU is used through; nothing where there is none."""
    if why_no_gpu():
        return
    missing = [name for name in ("pycuda",) if not _is_installed(name)]
    library = next((name for name in ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings") if _is_installed(name)), "")
    missing += [] if library else ["tensorrt"]
    finding = f"{', '.join(missing)} not installed" if missing else library
    yield Check("TensorRT", not missing, finding, "the fastest on this GPU: pip install 'deblurd[tensorrt]'")
    missing = [name for name in ("torch", "onnx") if not _is_installed(name)]
    finding = f"{', '.join(missing)} not installed" if missing else f"torch {importlib.metadata.version('torch')}"
    yield Check("torch engine", not missing, finding, "not needed beside TensorRT: pip install 'deblurd[torch]'")


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _codecs() -> Iterator[Check]:
    encoders = ("libx264", "libx265", "libsvtav1", "libvpx-vp9", "prores_ks", "ffv1")
    found = [name for name in encoders if _has_codec(name, "w")]
    missing = [name for name in encoders if name not in found]
    text = ", ".join(found) + (f"; lacks {', '.join(missing)}" if missing else "")
    yield Check("encoders", bool(found), text, "pip install --force-reinstall av")
    decoders = ("h264", "hevc", "av1", "vp9", "mjpeg")
    readable = [name for name in decoders if _has_codec(name, "r")]
    yield Check("decoders", bool(readable), ", ".join(readable), "pip install --force-reinstall av")


def _has_codec(name: str, mode: Literal["r", "w"]) -> bool:
    import av

    try:
        av.Codec(name, mode)
    except ValueError:
        return False
    return True


def _training() -> Check:
    missing = [name for name in ("torch", "onnx", "safetensors") if not _is_installed(name)]
    if missing:
        return Check("training", False, f"{', '.join(missing)} not installed", "pip install 'deblurd[train]'")
    return Check("training", True, f"torch {importlib.metadata.version('torch')}")
