"""Small ONNX graphs built into Core ML packages; importing it skips a test where coremltools is not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

pytest.importorskip("coremltools", reason="coremltools is not installed")

from quantize.nodes import lift_constants
from runtimes.coreml.model import Interpreted
from runtimes.coreml.session import CoreMLSession
from runtimes.coreml.translate.package import Written, tidy, write_package
from runtimes.coreml.translate.program import translate
from toolkit.types import Dim

__all__ = ["built", "from_text", "interpreted"]

DIMS = {"batch": Dim(1, 2, 8), "steps": Dim(1, 4, 16)}


def from_text(text: str, weights: Mapping[str, NDArray[Any]] | None = None) -> ir.Model:
    """A model of opset 23 from ONNX's own text form, its constants lifted; `weights` are initializers besides."""
    header = '<ir_version: 10, opset_import: ["" : 24]>\n'
    model = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(header + text)))
    for name, array in (weights or {}).items():
        value = next(each for node in model.graph for each in node.inputs if each is not None and each.name == name)
        value.const_value = ir.tensor(array, name=name)
        value.dtype, value.shape = value.const_value.dtype, ir.Shape(array.shape)
        model.graph.register_initializer(value)
    lift_constants(model)
    return model


def built(model: ir.Model, package: Path, dims: Mapping[str, Dim] = DIMS) -> Written:
    """The package of a model that is taken to be lowered."""
    program = translate(model, dims)
    tidy(program)
    return write_package(program, package, {})


def interpreted(model: ir.Model, feeds: Mapping[str, NDArray[Any]], folder: Path) -> dict[str, NDArray[Any]]:
    """What the saved package of the model answers."""
    built(model, folder / "model.mlpackage")
    return CoreMLSession(Interpreted(folder / "model.mlpackage")).run(feeds)
