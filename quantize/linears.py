"""The nodes that 8-bit schemes quantize: Linears and the patch convolution, with int8 or fp8 weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from quantize.arithmetic import channel_absmax, symmetric_scale
from quantize.formats import INT8, Format
from quantize.nodes import constant, map_tensor, module_path, new_node, unused_name
from toolkit.errors import StageError
from toolkit.types import Step

__all__ = [
    "EXCLUDED",
    "Linear",
    "Rounded",
    "drop_unused",
    "excluded_step",
    "find_linears",
    "not_finite_weight",
    "quantize_activations",
    "quantize_linears",
    "quantize_weights",
    "split_excluded",
]

EXCLUDED = "kept in fp32: excluded"
"""What the log calls Linears that a pattern kept from the scheme."""

_MIXING = frozenset({"MatMul", "Gemm", "Conv", "FusedAttention", "Attention", "Einsum"})
"""Operators past which a tensor is no longer the image that was fed."""

QuantizeActivation = Callable[["Linear"], list[ir.Node]]
"""Answers the nodes that turn `linear.activation` into 8 bits and back; the last one's output is used."""


Rounded = tuple[NDArray[Any], NDArray[np.float32]]
"""The 8-bit numbers of a weight, shaped as it is, and the scales of its output channels."""


@dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """A node with a constant weight: y = activation · weight, the output channels along `axis` of the weight."""

    node: ir.Node
    activation: ir.Value
    weight: ir.Value
    axis: int

    @property
    def module(self) -> str:
        """The PyTorch module's path."""
        return module_path(self.node)

    @property
    def inputs(self) -> int:
        """K, of a MatMul's or Gemm's weight."""
        return int(self.tensor.shape[1 - self.axis])

    @property
    def tensor(self) -> ir.TensorProtocol:
        """The weight's data, as the node holds it. Raises ValueError where it has none."""
        tensor = self.weight.const_value
        if tensor is None:
            raise ValueError(f"weight {self.weight.name} has no data")
        return tensor

    def matrix(self) -> NDArray[np.float32]:
        """A copy of a MatMul's or Gemm's weight as [K, N], whichever way the node holds it."""
        return map_tensor(self.tensor, lambda array: np.array(array if self.axis == 1 else array.T, dtype=np.float32))


def find_linears(graph: ir.Graph, *, convolutions: bool = True) -> list[Linear]:
    """Every MatMul and Gemm with a constant [K, N] weight, and, where asked for, every Conv that the fed image reaches.

    Attention, products of two activations and later convolutions are not among them.
    """
    found = [linear for node in graph if (linear := _as_linear(node)) is not None]
    return [linear for linear in found if convolutions or linear.node.op_type != "Conv"]


def split_excluded(linears: Iterable[Linear], patterns: tuple[str, ...]) -> tuple[list[Linear], list[Linear]]:
    """Those to quantize, and those whose module path matches a pattern such as `*.classifier`."""
    kept: list[Linear] = []
    excluded: list[Linear] = []
    for linear in linears:
        matches = any(fnmatch(linear.module, pattern) for pattern in patterns)
        (excluded if matches else kept).append(linear)
    return kept, excluded


def excluded_step(excluded: list[Linear], patterns: tuple[str, ...]) -> list[Step]:
    """What the exclusion did, for the log; nothing where there are no patterns."""
    if not patterns:
        return []
    modules = ", ".join(sorted({linear.module for linear in excluded})) or "none"
    return [Step("quantize", EXCLUDED, len(excluded), f"{', '.join(patterns)} matched {modules}")]


def quantize_activations(graph: ir.Graph, linears: list[Linear], activation: QuantizeActivation) -> Step:
    """Put 8 bits and back before every Linear; those that read the same tensor share one quantized form of it."""
    made: dict[ir.Value, ir.Value] = {}
    for linear in linears:
        if linear.activation not in made:
            made[linear.activation] = _insert(graph, linear.node, activation(linear))
        linear.node.replace_input_with(0, made[linear.activation])
    return Step("quantize", "quantized activations", len(made), "one for all readers of a tensor")


def quantize_weights(
    graph: ir.Graph,
    linears: list[Linear],
    form: Format = INT8,
    rounded: Mapping[ir.Value, Rounded] = MappingProxyType({}),
) -> list[Step]:
    """Give every Linear an 8-bit weight behind DequantizeLinear; those that share a weight share that.

    `rounded` holds the 8-bit numbers and scales of weights that are not merely rounded to the nearest.
    """
    weights: dict[tuple[ir.Value, int], ir.Value] = {}
    for linear in linears:
        key = (linear.weight, linear.axis)
        if key not in weights:
            weights[key] = _dequantized_weight(graph, linear, form, rounded.get(linear.weight))
        linear.node.replace_input_with(1, weights[key])
    drop_unused(graph, [linear.weight for linear in linears])
    return _steps(linears, form, len(weights))


def quantize_linears(
    graph: ir.Graph, linears: list[Linear], activation: QuantizeActivation | None, form: Format = INT8
) -> list[Step]:
    """Both: 8-bit weights rounded to the nearest, and quantized activations unless those are None."""
    activations = [quantize_activations(graph, linears, activation)] if activation is not None else []
    return [*quantize_weights(graph, linears, form), *activations]


def _as_linear(node: ir.Node) -> Linear | None:
    if node.domain not in {"", "ai.onnx"} or len(node.inputs) < 2:
        return None
    activation, weight = node.inputs[0], node.inputs[1]
    tensor = constant(weight)
    if activation is None or weight is None or tensor is None or constant(activation) is not None:
        return None
    if tensor.dtype != ir.DataType.FLOAT:
        return None
    rank = len(tensor.shape)
    if node.op_type == "MatMul" and rank == 2:
        return Linear(node, activation, weight, axis=1)
    if node.op_type == "Gemm" and rank == 2:
        return Linear(node, activation, weight, axis=0 if node.attributes.get_int("transB", 0) else 1)
    if node.op_type == "Conv" and _is_fed(activation):
        return Linear(node, activation, weight, axis=0)
    return None


def _is_fed(value: ir.Value) -> bool:
    pending, seen = [value], {value}
    reaches_input = False
    while pending:
        current = pending.pop()
        reaches_input |= current.is_graph_input()
        producer = current.producer()
        if producer is None:
            continue
        if producer.op_type in _MIXING:
            return False
        fresh = [source for source in producer.inputs if source is not None and source not in seen]
        seen.update(fresh)
        pending.extend(fresh)
    return reaches_input


def _dequantized_weight(graph: ir.Graph, linear: Linear, form: Format, rounded: Rounded | None) -> ir.Value:
    axis, name = linear.axis, linear.weight.name or "weight"
    if rounded is not None:
        scale, stored = rounded[1], ir.tensor(rounded[0], dtype=form.dtype)
    else:
        scale, stored = _nearest(linear, form)
    inputs: list[ir.Value | None] = [
        add_initializer(graph, f"{name}_{form.name}", stored),
        add_initializer(graph, f"{name}_scale", ir.tensor(scale)),
        add_initializer(graph, f"{name}_zero_point", form.zeros(scale.shape)),
    ]
    output = unused_name(graph, f"{name}_dequantized")
    node = new_node("DequantizeLinear", inputs, output, linear.node, axis=axis)
    return _insert(graph, linear.node, [node], dtype=ir.DataType.FLOAT, shape=ir.Shape(stored.shape))


def _nearest(linear: Linear, form: Format) -> tuple[NDArray[np.float32], ir.TensorProtocol]:
    """The scales of the weight, and its nearest 8-bit numbers, which are made when they are read."""
    tensor, axis = linear.tensor, linear.axis
    absmax = map_tensor(tensor, lambda array: channel_absmax(array, axis))
    try:
        scale = symmetric_scale(absmax, form.largest)
    except ValueError as error:
        raise not_finite_weight(linear) from error
    stored = ir.LazyTensor(
        lambda: ir.tensor(map_tensor(tensor, lambda array: form.round(array, scale, axis)), dtype=form.dtype),
        dtype=form.dtype,
        shape=ir.Shape(tensor.shape),
    )
    return scale, stored


def not_finite_weight(linear: Linear) -> StageError:
    """The error for a weight that holds NaN or Inf."""
    return StageError(
        "quantize",
        f"weight '{linear.weight.name}' of module '{linear.module}' holds NaN or Inf",
        hint="Check the checkpoint: a weight that is not finite has no scale.",
    )


def add_initializer(graph: ir.Graph, wanted: str, tensor: ir.TensorProtocol) -> ir.Value:
    """A new initializer named `wanted`, or the nearest unused name."""
    name = unused_name(graph, wanted)
    tensor.name = name
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape), const_value=tensor)
    graph.register_initializer(value)
    return value


def _insert(
    graph: ir.Graph,
    before: ir.Node,
    nodes: list[ir.Node],
    dtype: ir.DataType = ir.DataType.FLOAT,
    shape: ir.Shape | None = None,
) -> ir.Value:
    graph.insert_before(before, nodes)
    output = nodes[-1].outputs[0]
    output.dtype = dtype
    output.shape = shape
    return output


def drop_unused(graph: ir.Graph, weights: Iterable[ir.Value]) -> None:
    """Remove initializers that nothing reads any more."""
    for weight in dict.fromkeys(weights):
        if weight.name in graph.initializers and not weight.uses() and not weight.is_graph_output():
            del graph.initializers[str(weight.name)]


def _steps(linears: list[Linear], form: Format, weights: int) -> list[Step]:
    convolutions = sum(linear.node.op_type == "Conv" for linear in linears)
    return [
        Step(
            "quantize", f"{form.name} Linears", len(linears) - convolutions, f"{weights} weights, one scale a channel"
        ),
        Step("quantize", f"{form.name} patch convolutions", convolutions, "one scale an output channel"),
    ]
