"""What this machine has: processor, memory, libraries, and what each runtime can do here."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from toolkit.plugins import listing, runtime

__all__ = ["Library", "base_requirements", "conflicts", "libraries", "machine", "runtimes"]

_DISTRIBUTION = "transformer-export-toolkit"
_CPU_FEATURES = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
)
_ONNXRUNTIMES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-openvino",
    "onnxruntime-directml",
    "onnxruntime-rocm",
)
_OPTIONAL = (
    "tensorrt-rtx-cu13",
    "tensorrt-cu13",
    "cuda-bindings",
    "onnxruntime-gpu",
    "onnxruntime-openvino",
    "openvino",
    "coremltools",
    "timm",
)


@dataclass(frozen=True, slots=True)
class Library:
    """A distribution, its version if it is installed, and whether the toolkit cannot do without it."""

    name: str
    version: str | None
    required: bool


def machine(folder: Path) -> dict[str, Any]:
    """Python, system, processor, cores, memory and the free space where `folder` lies; sizes in bytes."""
    import psutil

    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "os": platform.platform(),
        "cpu": _cpu_name(),
        "cpu_features": _cpu_features(),
        "cores": psutil.cpu_count(logical=False),
        "usable_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory": psutil.virtual_memory().total,
        "memory_available": psutil.virtual_memory().available,
        "disk_free": shutil.disk_usage(folder).free,
    }


def libraries() -> list[Library]:
    """Every base dependency, installed or not, then the optional ones."""
    base = base_requirements()
    return [_library(name, required=True) for name in base] + [
        _library(name, required=False) for name in _OPTIONAL if name not in base
    ]


def base_requirements() -> tuple[str, ...]:
    """Names of our dependencies: from the installed metadata, or from `pyproject.toml` in a source tree."""
    try:
        declared = importlib.metadata.requires(_DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        declared = _source_requirements(Path(__file__).parents[1] / "pyproject.toml")
    return tuple(re.split(r"[\s<>=!~;\[(]", line, maxsplit=1)[0] for line in declared if "extra ==" not in line)


def conflicts() -> list[str]:
    """Installations that break one another, each with what to type."""
    installed = [name for name in _ONNXRUNTIMES if _version(name)]
    if len(installed) < 2:
        return []
    return [
        f"{' and '.join(installed)} share one folder and break each other: "
        f"pip uninstall -y {' '.join(installed)}, then pip install the one you want"
    ]


def runtimes() -> list[dict[str, Any]]:
    """Every runtime with its readiness; one that fails to import is listed with its error."""
    return [{"name": name, **_readiness(name)} for name in listing("runtimes")]


def _readiness(name: str) -> Mapping[str, Any]:
    try:
        return {**asdict(runtime(name).readiness()), "error": ""}
    except Exception as error:  # a doctor reports what is broken and goes on
        return {
            "build": False, "run": False, "version": "", "device": "", "reason": "",
            "error": f"{type(error).__name__}: {error}",
        }  # fmt: skip


def _library(name: str, *, required: bool) -> Library:
    version = _version(name)
    if name == "onnxruntime" and version is None:
        version = next((f"{found} (as {other})" for other in _ONNXRUNTIMES if (found := _version(other))), None)
    return Library(name, version, required)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _source_requirements(path: Path) -> list[str]:
    if not path.is_file():
        return []
    declared = tomllib.loads(path.read_text(encoding="utf-8"))["project"]["dependencies"]
    return [str(line) for line in declared]


def _cpu_name() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", _cpuinfo(), re.MULTILINE)
    if found:
        return found.group(1)
    return _sysctl("machdep.cpu.brand_string") or platform.processor() or platform.machine()


def _cpu_features() -> list[str]:
    found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", _cpuinfo(), re.MULTILINE)
    words = set(found.group(1).split()) if found else set()
    return [name for name in _CPU_FEATURES if name in words]


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _sysctl(key: str) -> str:
    if platform.system() != "Darwin":
        return ""
    answer = subprocess.run(["/usr/sbin/sysctl", "-n", key], capture_output=True, text=True, check=False)
    return answer.stdout.strip()
