"""The library itself, which may be missing, and its failures told as the toolkit's own."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

from toolkit.bench_process import physical_cores
from toolkit.errors import MissingDependencyError, StageError
from toolkit.types import Readiness

__all__ = ["CPU", "INSTALL", "MODULE", "as_stage_error", "core", "library", "properties", "readiness", "version"]

CPU = "CPU"
INSTALL = "pip install 'transformer-export-toolkit[openvino]'"
_NUMBERS = {"BF16": "bf16", "INT8": "int8"}


def _imported() -> Any:
    try:
        return importlib.import_module("openvino")
    except ImportError:
        return None


MODULE = _imported()
"""None where it is not installed. Imported with the runtime, so that a session's memory is the session's alone."""


def library() -> Any:
    """The module `openvino`. Raises MissingDependencyError with the pip command."""
    if MODULE is None:
        raise MissingDependencyError("openvino is not installed", hint=INSTALL)
    return MODULE


@cache
def core() -> Any:
    """The one `openvino.Core` of this process; devices are looked for once."""
    return library().Core()


def version() -> str:
    """As `openvino 2026.4.1`: without the build's number and branch."""
    return f"openvino {library().__version__.partition('-')[0]}"


def properties() -> Mapping[str, Any]:
    """How every model is compiled: fp32 is never lowered in silence, as OpenVINO does by default where bf16 is fast.

    What the graph itself holds in bf16 or int8 stays so. Threads are the physical cores this process may use.
    """
    return {
        "INFERENCE_PRECISION_HINT": "f32",
        "EXECUTION_MODE_HINT": "ACCURACY",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": physical_cores(),
    }


def readiness() -> Readiness:
    """What works here, found out by asking the library for its CPU device."""
    try:
        name = core().get_property(CPU, "FULL_DEVICE_NAME")
        able = core().get_property(CPU, "OPTIMIZATION_CAPABILITIES")
    except MissingDependencyError as error:
        return Readiness(False, False, reason=f"{error} ({error.hint})")
    except RuntimeError as error:
        return Readiness(False, False, version(), reason=_first_line(error))
    numbers = [word for name, word in _NUMBERS.items() if name in able]
    return Readiness(True, True, version(), ", ".join([f"{CPU} {name}", *numbers]))


@contextmanager
def as_stage_error(stage: str, subject: str) -> Iterator[None]:
    """Raise StageError, `from` the original, for what OpenVINO raises inside the block."""
    try:
        yield
    except (RuntimeError, TypeError, ValueError) as error:
        raise StageError(
            stage,
            f"{subject}: {_first_line(error)}",
            hint="OpenVINO refused the graph or failed while running it; `toolkit doctor` says which version is here.",
        ) from error


def _first_line(error: Exception) -> str:
    """Its messages start with the places in its own sources where they passed."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith("Exception from ")]
    return " ".join(told or lines)[:500]
