"""Building the C++ project that `toolkit bundle --lang cpp` writes, once for all tests that run its programs."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import own_scripts
import pytest

ROOT = Path(__file__).resolve().parents[1]
TEMPLATES = ROOT / "toolkit" / "projects" / "cpp" / "templates"


def native(part: str) -> Path:
    """The folder of a part that scripts/fetch_native.py fetched; skips where it did not."""
    folder: Path = own_scripts.load("fetch_native").default_folder() / part
    if not folder.is_dir():
        pytest.skip(f"{part} is not here: run python scripts/fetch_native.py {part}")
    return folder


def require_compiler() -> None:
    missing = [tool for tool in ("g++", "cmake", "make") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} is not installed")


def runtime_library(folder: Path) -> Path:
    """The library of pip's onnxruntime under the name that a program asks for when it starts."""
    import onnxruntime

    found = list(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"))
    if not found:
        pytest.skip("this onnxruntime wheel ships no libonnxruntime.so")
    link = folder / "libonnxruntime.so.1"
    if not link.is_symlink():
        link.symlink_to(found[0])
    return link


def built(factory: pytest.TempPathFactory) -> Path:
    """The folder with the programs and the project's own tests, built once; skips where it cannot be."""
    require_compiler()
    headers = native("headers")
    base = factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cpp-program"
    root.mkdir(exist_ok=True)
    with (root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another worker may be building it
        if not (root / "done").exists():
            _build(root, headers)
            (root / "done").touch()
    return root / "build"


def _build(root: Path, headers: Path) -> None:
    # A header of ONNX Runtime takes seconds to read: all sources as one, read once.
    configured = [
        f"-DORT_INCLUDE_DIR={headers}",
        f"-DORT_LIBRARY={runtime_library(root)}",
        "-DCMAKE_BUILD_TYPE=None",
        "-DCMAKE_CXX_FLAGS=-O1 -Werror",
        "-DCMAKE_UNITY_BUILD=ON",
        "-DCMAKE_UNITY_BUILD_BATCH_SIZE=0",
    ]
    run("cmake", "-S", TEMPLATES, "-B", root / "build", *configured)
    run("cmake", "--build", root / "build", "--parallel", "2")


def run(
    *command: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """What a command said, which must end well."""
    parts = [str(part) for part in command]
    done = subprocess.run(parts, capture_output=True, text=True, check=False, cwd=cwd, env=env)
    assert done.returncode == 0, f"{parts}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done
