"""A quantized graph into ONNX Runtime's dialect: the rules in order, the contract, the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import onnx_ir as ir
from onnx_ir.external_data import unload_from_model
from onnx_ir.passes.common import RemoveUnusedNodesPass, RemoveUnusedOpsetsPass

from runtimes._onnxruntime.emit import Emitter
from runtimes._onnxruntime.kernels import DOMAIN as KERNELS
from toolkit.errors import StageError
from toolkit.hashing import data_path
from toolkit.types import LoweredGraph, QuantizedGraph, Step

__all__ = ["GRAPH_FILE", "Rule", "lower_graph"]

GRAPH_FILE = "model.onnx"
_PAGE = 4096
_SMALL = 256
"""Bytes up to which a tensor stays in the graph's own file."""
_MICROSOFT = "com.microsoft"

Rule = Callable[[ir.Model, Emitter], list[Step]]
"""A lowering rule: rewrites the model in place and answers what it did."""


def lower_graph(graph: QuantizedGraph, folder: Path, runtime: str, rules: Sequence[Rule]) -> LoweredGraph:
    """Apply the rules and write `model.onnx` with its weights beside it into `folder`.

    Weights that no rule touches are streamed from the source's data file, never held together in memory.
    Raises StageError where a rule's contract breaks or a `toolkit` node is left.
    """
    path = folder / GRAPH_FILE
    if path.resolve() == graph.path.resolve():
        raise StageError("lower", f"{path} would overwrite its own source", hint="Lower into another folder.")
    model = ir.load(graph.path)
    emit = Emitter(model)
    steps = tuple(step for rule in rules for step in rule(model, emit))
    _clean(model)
    _write(model, path, emit.aliases)
    return LoweredGraph(path, graph.spec, graph.steps + steps, graph.scheme, runtime)


def _clean(model: ir.Model) -> None:
    RemoveUnusedNodesPass()(model)
    if any(node.domain == _MICROSOFT for node in ir.traversal.RecursiveGraphIterator(model.graph)):
        model.opset_imports[_MICROSOFT] = 1
    RemoveUnusedOpsetsPass()(model)
    left = any(node.domain == "toolkit" for node in ir.traversal.RecursiveGraphIterator(model.graph))
    # The kernels' functions stay: they are what a runtime without the kernels computes.
    if left or any(domain != KERNELS for domain, _, _ in model.functions):
        raise StageError("lower", "toolkit nodes or functions are left in the lowered graph", hint="This is a bug.")


def _write(model: ir.Model, path: Path, aliases: Mapping[str, str]) -> None:
    """Pages are aligned so that ONNX Runtime can map large weights instead of copying them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = model.graph.initializers
    again = {name: values.pop(name) for name in aliases if name in values and aliases[name] in values}
    unload_from_model(
        model, path.parent, data_path(path).name, size_threshold_bytes=_SMALL, alignment=_PAGE, align_threshold=_PAGE
    )
    for name, value in again.items():
        value.const_value = _elsewhere(values[aliases[name]].const_value, value)
        values[name] = value
    ir.save(model, path)


def _elsewhere(owner: ir.TensorProtocol | None, value: ir.Value) -> ir.TensorProtocol | None:
    """The owner's bytes in the data file as a tensor of the value's shape; small ones are not in that file."""
    if not isinstance(owner, ir.ExternalTensor) or value.shape is None:
        return value.const_value
    return ir.ExternalTensor(
        owner.location,
        owner.offset,
        owner.length,
        owner.dtype,
        shape=value.shape,
        name=value.name or "",
        base_dir=owner.base_dir,
    )
