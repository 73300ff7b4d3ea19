"""What is computed from weights alone, as position embeddings resized to the image, is computed here and once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray
from onnx_ir.external_data import load_to_model

from quantize.linears import add_initializer
from quantize.nodes import constant
from runtimes.coreml.translate.palettes import palette_of
from toolkit.types import Step

__all__ = ["fold_constants"]

_STORED = frozenset({"DequantizeLinear", "QuantizeLinear"})
_VIEWS = frozenset({"Cast", "Transpose"})


def fold_constants(model: ir.Model) -> list[Step]:
    """Replace nodes that read weights only by what they answer; what a weight is stored in is left alone."""
    fixed = _fixed(model.graph)
    wanted = [value for node in fixed for value in node.outputs if _leaves(value, fixed)]
    if not wanted:
        return []
    part = ir.convenience.extract(model.graph, [], wanted)
    # ONNX Runtime takes no weights from beside a model that it is given as bytes.
    whole = load_to_model(ir.Model(part, ir_version=model.ir_version))
    for value, array in zip(wanted, _answers(whole), strict=True):
        folded = add_initializer(model.graph, f"{value.name}_folded", ir.tensor(array, dtype=value.dtype))
        ir.convenience.replace_all_uses_with(value, folded)
    return [Step("lower", "tensors computed from weights alone", len(wanted), "Core ML need not compute them")]


def _answers(model: ir.Model) -> list[NDArray[Any]]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    answers: list[NDArray[Any]] = session.run(None, {})
    return answers


def _fixed(graph: ir.Graph) -> dict[ir.Node, None]:
    """The nodes, in order, all of whose inputs are weights or answered by such nodes."""
    found: dict[ir.Node, None] = {}
    for node in graph:
        read = [value for value in node.inputs if value is not None]
        plain = node.op_type not in _STORED and not node.domain and palette_of(node) is None
        if read and plain and all(constant(value) is not None or value.producer() in found for value in read):
            found[node] = None
    return found


def _leaves(value: ir.Value, fixed: dict[ir.Node, None]) -> bool:
    """Whether a node that computes reads it; casts and transpositions of weights, and indices, are no computing."""
    if value.is_graph_output() or not _computes(value):
        return False
    return any(reader not in fixed and palette_of(reader) is None for reader in value.consumers())


def _computes(value: ir.Value) -> bool:
    return any(node.op_type not in _VIEWS for node in _behind(value))


def _behind(value: ir.Value) -> Iterator[ir.Node]:
    node = value.producer()
    if node is not None:
        yield node
        for read in node.inputs:
            if read is not None:
                yield from _behind(read)
