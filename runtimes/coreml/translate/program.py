"""The lowered graph as a whole ML Program: what is fed, what is kept, every node in order, what is answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from quantize.nodes import module_path
from runtimes.coreml.names import coreml_name
from runtimes.coreml.translate.mil import TARGET, Var, ct, dtype_name, mb, types
from runtimes.coreml.translate.operators import OPERATORS
from runtimes.coreml.translate.stored import stored_of
from runtimes.coreml.translate.values import Node, Scope
from toolkit.cache_names import is_past, is_present
from toolkit.errors import StageError, ToolkitError, UnsupportedError
from toolkit.types import Dim

__all__ = ["translate"]

_MAIN = "main"


def translate(model: ir.Model, dims: Mapping[str, Dim]) -> Any:
    """The `mil.Program` of a lowered graph whose dynamic dimensions have these ranges.

    Caches become states: they are neither fed nor answered. Raises UnsupportedError that names an operator, its node
    and its module where there is no form of it, StageError where coremltools refuses a node.
    """
    # The builder counts names over the life of a process; the same program is to have the same names.
    mb.name_count.clear()
    interface = _Interface.of(model.graph, dims)
    program, scope = ct.converters.mil.mil.Program(), Scope()
    with ct.converters.mil.mil.Function(interface.placeholders, opset_version=TARGET) as function:
        interface.feed(function, scope)
        needed = _needed(model.graph)
        for node in model.graph:
            if node in needed:
                _append(Node(node, scope))
        function.set_outputs(
            [_answer(scope, value) for value in model.graph.outputs if not is_present(str(value.name))]
        )
    function.set_input_types(tuple(interface.types))
    program.add_function(_MAIN, function)
    return program


@dataclass(slots=True)
class _Interface:
    """What goes into the program: a placeholder a name, its range, and the graph's values that they stand for."""

    values: dict[str, ir.Value] = field(default_factory=dict)
    placeholders: dict[str, Any] = field(default_factory=dict)
    types: list[Any] = field(default_factory=list)

    @classmethod
    def of(cls, graph: ir.Graph, dims: Mapping[str, Dim]) -> _Interface:
        made, ranges = cls(), _ranges(dims)
        for value in graph.inputs:
            name = str(value.name)
            shape = [_size(value, dim, ranges) for dim in value.shape or ()]
            made.values[name] = value
            if is_past(name):
                made.placeholders[coreml_name(name)] = mb.state_tensor_placeholder(_fixed(value, shape), types.fp16)
            else:
                made._tensor(name, value, shape)
        return made

    def _tensor(self, name: str, value: ir.Value, shape: list[Any]) -> None:
        kind = types.string_to_builtin(_fed(value))
        sizes = [size.symbol if isinstance(size, ct.RangeDim) else size for size in shape]
        self.placeholders[coreml_name(name)] = mb.placeholder(sizes, kind)
        self.types.append(ct.TensorType(name=coreml_name(name), shape=ct.Shape(shape), dtype=kind))

    def feed(self, function: Any, scope: Scope) -> None:
        for name, value in self.values.items():
            scope.unused_name(coreml_name(name))
            if is_past(name):
                scope.states[name] = function.inputs[coreml_name(name)]
                continue
            var = function.inputs[coreml_name(name)]
            for axis, dim in enumerate(value.shape or ()):
                if isinstance(dim, ir.SymbolicDim):
                    scope.measure(str(dim.value), var, axis)
            scope.bind(value, _as_declared(scope, value, var))


def _ranges(dims: Mapping[str, Dim]) -> dict[str, Any]:
    """A size, or a range that all inputs share, for each named dimension."""
    return {
        name: dim.min if dim.min == dim.max else ct.RangeDim(dim.min, dim.max, default=dim.opt)
        for name, dim in dims.items()
    }


def _size(value: ir.Value, dim: int | ir.SymbolicDim, ranges: Mapping[str, Any]) -> Any:
    if isinstance(dim, int):
        return dim
    if dim.value not in ranges:
        raise UnsupportedError(
            f"input '{value.name}' has a dimension '{dim.value}' of no known range",
            hint=f"Export with --dim {dim.value}=MIN:OPT:MAX.",
        )
    return ranges[str(dim.value)]


def _fixed(value: ir.Value, shape: list[Any]) -> list[int]:
    if any(not isinstance(size, int) for size in shape):
        raise UnsupportedError(
            f"the cache '{value.name}' has no fixed shape", hint="A state of Core ML is for one row: --dim batch=1."
        )
    return shape


def _fed(value: ir.Value) -> str:
    """An app feeds float32, float16 or int32, whatever the graph makes of it."""
    kind = dtype_name(value.dtype, f"input '{value.name}'")
    return kind if kind in ("fp32", "fp16") else "int32"


def _as_declared(scope: Scope, value: ir.Value, var: Var) -> Var:
    kind = dtype_name(value.dtype, f"input '{value.name}'")
    if var.dtype.__name__ == kind or kind not in ("bool", "int32", "fp32", "fp16"):
        return var
    return mb.cast(x=var, dtype=kind, name=scope.unused_name(f"{value.name}_{kind}"))


def _needed(graph: ir.Graph) -> set[ir.Node]:
    """The nodes that compute what is answered, without those that are but how a weight is stored."""
    found: set[ir.Node] = set()
    waiting = list(graph.outputs)
    while waiting:
        value = waiting.pop()
        node = value.producer()
        if node is not None and node not in found and stored_of(value) is None:
            found.add(node)
            waiting += [each for each in node.inputs if each is not None]
    return found


def _append(node: Node) -> None:
    """Translate one node and bind what it answers."""
    operator = OPERATORS.get(node.node.op_type) if not node.node.domain else None
    if operator is None:
        raise node.refusal("no operator of this name is known here")
    try:
        made = operator(node)
    except ToolkitError:
        raise
    except Exception as error:  # the builder has no exception of its own
        raise StageError(
            "build",
            f"coremltools refuses {node.node.op_type} '{node.node.name}' of {module_path(node.node)}: {error}",
            hint="Report the model; `toolkit export` for another runtime may do meanwhile.",
        ) from error
    for value, var in zip(node.node.outputs, made if isinstance(made, (tuple, list)) else [made], strict=False):
        node.scope.bind(value, var)


def _answer(scope: Scope, value: ir.Value) -> Var:
    """The variable under the output's own name, as an app takes it: float32 or int32."""
    var = scope.var(value)
    kind = "fp32" if var.dtype.__name__ in ("fp16", "fp32") else "int32"
    if var.dtype.__name__ == kind:
        answered = mb.identity(x=var, name=f"{value.name}_answer")
    else:
        answered = mb.cast(x=var, dtype=kind, name=f"{value.name}_answer")
    answered.name = coreml_name(str(value.name))
    return answered
