"""Compiles the kernels with the user's own compiler, once, into the user's cache; without one the graph runs as it is.

A library is only ever loaded from there: one that came with a bundle would be a stranger's code.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import platformdirs

__all__ = ["SOURCES", "SWITCH", "instructions", "library", "library_key", "reason"]

SOURCES = tuple(sorted(path for end in ("cpp", "h") for path in Path(__file__).parent.glob(f"*.{end}")))
SWITCH = "TOOLKIT_KERNELS"
"""Environment: `0` turns the kernels off, `portable` takes their plain C++ form, `avx2` at most that.

Anything else takes the fastest form.
"""

_FLAGS = ("-O3", "-std=c++17", "-fPIC", "-shared", "-fvisibility=hidden")
# gcc would otherwise regroup sums of products so that they no longer fit in the registers.
_GCC_FLAGS = ("-fno-tree-reassoc",)
_COMPILERS = ("c++", "g++", "clang++")
_SECONDS = 300
_PORTABLE = 0
_NAMES = {_PORTABLE: "plain C++", 1: "AVX2", 2: "AVX512-VNNI"}


class _UnavailableError(Exception):
    """Why there is no library; never leaves this module."""


def library() -> Path | None:
    """The compiled kernels, or None where there are none: `reason` says why. Never raises.

    The first call on a machine compiles for some seconds. $CXX chooses the compiler.
    """
    return _found(os.environ.get(SWITCH, ""), os.environ.get("CXX", ""))[0]


def reason() -> str:
    """Why `library` answers None; empty where it answers a path."""
    return _found(os.environ.get(SWITCH, ""), os.environ.get("CXX", ""))[1]


def instructions(path: Path) -> str:
    """Which instructions a library's kernels use on this processor. Raises OSError where it cannot be loaded."""
    number = ctypes.CDLL(str(path)).toolkit_kernels_instructions()
    return _NAMES.get(number, "unknown")


@cache
def _found(switch: str, chosen: str) -> tuple[Path | None, str]:
    try:
        if switch == "0":
            raise _UnavailableError(f"turned off by {SWITCH}=0")
        folder = Path(platformdirs.user_cache_dir("transformer-export-toolkit")) / "kernels"
        path = _built(folder, _compiler(chosen))
        fast = instructions(path) != _NAMES[_PORTABLE]
    except (_UnavailableError, OSError, AttributeError, ValueError) as error:
        return None, str(error) or type(error).__name__
    if not fast and switch != "portable":
        return None, "this processor has no AVX2, without which ONNX Runtime's own kernels are faster"
    return path, ""


def library_key(source: bytes, compiler_version: str) -> str:
    """Names one build: the source, the compiler, its flags and the kind of machine."""
    facts = (compiler_version, *_FLAGS, *_GCC_FLAGS, platform.machine(), sys.platform)
    return hashlib.sha256(source + "\0".join(facts).encode()).hexdigest()[:16]


def _compiler(chosen: str) -> tuple[str, ...]:
    if os.name != "posix":
        raise _UnavailableError("the kernels are written for Linux and macOS")
    if chosen:
        return tuple(shlex.split(chosen))
    for name in _COMPILERS:
        if found := shutil.which(name):
            return (found,)
    raise _UnavailableError(f"no C++ compiler: none of {', '.join(_COMPILERS)} is installed")


def _built(folder: Path, compiler: tuple[str, ...]) -> Path:
    """The library in the cache; compiled there under a temporary name, so that nobody ever loads half of one."""
    version = _run((*compiler, "--version"))
    source = b"".join(path.read_bytes() for path in SOURCES)
    path = folder / f"kernels-{library_key(source, version)}.so"
    if path.is_file():
        return path
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    flags = (*_FLAGS, *(() if "clang" in version else _GCC_FLAGS))
    with tempfile.TemporaryDirectory(dir=folder, prefix="building-") as temporary:
        made = Path(temporary) / path.name
        _run((*compiler, *flags, *(str(path) for path in SOURCES if path.suffix == ".cpp"), "-o", str(made)))
        if not made.is_file():
            raise _UnavailableError(f"{compiler[0]} said nothing and wrote no library")
        made.replace(path)
    return path


def _run(command: tuple[str, ...]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False, errors="replace")
    except subprocess.TimeoutExpired as error:
        raise _UnavailableError(f"{command[0]} took more than {_SECONDS} s") from error
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        said = next((line for line in lines if "error" in line), lines[0] if lines else "no message")
        raise _UnavailableError(f"{command[0]} failed with code {done.returncode}: {said}")
    return done.stdout
