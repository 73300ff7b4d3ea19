"""Saves small ML Programs written with coremltools' builder; importing it skips a test where coremltools is not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

ct = pytest.importorskip("coremltools", reason="coremltools is not installed")

from coremltools.converters.mil import Builder as mb  # noqa: E402, N813 - its own documentation's name
from coremltools.converters.mil.mil import types  # noqa: E402

__all__ = ["ct", "mb", "save", "types"]


def save(build: Callable[..., Any], specs: Sequence[Any], package: Path) -> Path:
    """The program that `build` writes, as it is: no pass of coremltools touches it."""
    program = mb.program(input_specs=list(specs), opset_version=ct.target.iOS18)(build)
    model = ct.convert(
        program,
        minimum_deployment_target=ct.target.iOS18,
        compute_precision=ct.precision.FLOAT32,
        pass_pipeline=ct.PassPipeline.EMPTY,
        skip_model_load=True,
    )
    model.save(str(package))
    return package
