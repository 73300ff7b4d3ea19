"""Which nodes of a graph run in float16 or bfloat16, and why the others stay in float32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from ml_dtypes import bfloat16
from numpy.typing import NDArray
from onnx import defs

from exporters.fused_attention.node import is_attention
from quantize.hidden_ranges import Kind
from quantize.histogram import Range
from quantize.nodes import constant, kept_in_fp32, map_tensor

__all__ = [
    "ATTENTION_MASK",
    "HALF",
    "HALF_MAX",
    "HEADROOM",
    "Decision",
    "cast_error",
    "decide",
    "float_values",
    "half_inputs",
]

HALF = ir.DataType.FLOAT16

HALF_MAX = float(np.finfo(np.float16).max)
HEADROOM = 4.0
"""A tensor stays in fp32 once it reached 1/4 of fp16's largest number: calibration does not see every input."""

_LIMIT = HALF_MAX / HEADROOM

ATTENTION_MASK = 3
"""Index of FusedAttention's mask among its inputs."""

_CAST_ERROR = 1e-3
"""Most relative L2 error that rounding a constant to fp16 may cause; normal numbers give 3e-4 (2^-11 at most)."""

_STATISTICS = frozenset(
    {
        "ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceProd", "ReduceLogSum",
        "ReduceLogSumExp", "CumSum", "GlobalAveragePool", "GlobalLpPool",
    }
)  # fmt: skip
_NORMALISATIONS = frozenset(
    {
        "LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization", "GroupNormalization",
        "InstanceNormalization", "BatchNormalization", "MeanVarianceNormalization", "LpNormalization", "LRN",
        "Softmax", "LogSoftmax",
    }
)  # fmt: skip
_STEEP = frozenset({"Pow", "Exp", "Log", "Reciprocal", "Sqrt", "Softplus"})
_ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Div", "Min", "Max", "Clip", "Sqrt", "Reciprocal", "Pow", "Abs", "Neg"})
_VIEWS = frozenset({"Reshape", "Transpose", "Unsqueeze", "Squeeze", "Flatten", "Identity", "Expand", "Slice", "Gather"})
_COMPUTE = frozenset(
    {"MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "Attention", "Gelu", "Erf", "Tanh", "Sigmoid"}
)
_OWN_TYPE = frozenset({"Cast", "CastLike", "ConstantOfShape", "QuantizeLinear", "DequantizeLinear", "OneHot", "Range"})


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a node runs in 16 bits; `why` says what kept it in fp32, empty where it only follows its inputs.

    `why` is a kind, and after a colon what was found; `magnitude` is the number in it.
    """

    half: bool
    why: str = ""
    magnitude: float = 0.0


def float_values(graph: ir.Graph) -> Iterator[ir.Value]:
    """Every float32 value that a node of the graph computes."""
    for node in graph:
        yield from (value for value in node.outputs if value.dtype == ir.DataType.FLOAT and value.name)


def half_inputs(node: ir.Node, opset: int, dtype: ir.DataType = HALF) -> list[int]:
    """The indices of the inputs that turn `dtype` with the node: float32 ones that its schema lets be that."""
    return [
        index
        for index, value in enumerate(node.inputs)
        if value is not None and value.dtype == ir.DataType.FLOAT and _takes_half(node, index, opset, dtype)
    ]


def decide(
    model: ir.Model,
    ranges: Mapping[str, Range],
    proven: Mapping[str, float] | None = None,
    hidden: Mapping[ir.Node, Mapping[Kind, float]] | None = None,
    dtype: ir.DataType = HALF,
) -> dict[ir.Node, Decision]:
    """Decide node by node, in graph order; `ranges` holds what calibration measured, by value name.

    `proven` bounds values that were not measured, infinite where nothing is known. `hidden` holds the largest
    magnitude inside fused nodes: an attention whose scores came near 65504 stays in fp32.
    bfloat16 has the range of float32 and needs none of them, but for constants within a rounding of its end.
    """
    opset = model.opset_imports.get("", 0)
    policy = _Policy(ranges, opset, dtype, proven or {}, hidden or {})
    decisions = policy.decisions
    for node in model.graph:
        decisions[node] = policy.decide(node)
    return decisions


class _Policy:
    """Holds what was decided so far, since light operators follow what they read."""

    def __init__(
        self,
        ranges: Mapping[str, Range],
        opset: int,
        dtype: ir.DataType,
        proven: Mapping[str, float],
        hidden: Mapping[ir.Node, Mapping[Kind, float]],
    ) -> None:
        self._ranges, self._proven, self._hidden = ranges, proven, hidden
        self._opset, self._dtype = opset, dtype
        self._statistics: set[ir.Value] = set()
        self._cast_errors: dict[ir.Value, str] = {}
        self._beyond: dict[ir.Value, Decision] = {}
        self.decisions: dict[ir.Node, Decision] = {}

    def decide(self, node: ir.Node) -> Decision:
        """The node's precision, and whether its output is a statistic (a mean, a norm) of a normalisation."""
        inputs = half_inputs(node, self._opset, self._dtype)
        kept = self._reason(node, inputs)
        if node.op_type in _STATISTICS or self._continues_statistic(node):
            self._statistics.update(node.outputs)
        return kept or Decision(self._runs_half(node, inputs))

    def _reason(self, node: ir.Node, inputs: list[int]) -> Decision | None:
        """The decision to keep the node in fp32, or None where nothing asks for it."""
        if kept_in_fp32(node):
            return Decision(False, "recipe: named fp32")
        if any(attribute.type in _GRAPHS for attribute in node.attributes.values()):
            return Decision(False, "control flow")
        if node.op_type in _NORMALISATIONS | _STATISTICS | _STEEP:
            return self._normalisation(node)
        if node.op_type in _ELEMENTWISE and any(value in self._statistics for value in node.inputs):
            return Decision(False, "normalisation")
        if node.op_type in _OWN_TYPE:
            return None
        if self._dtype != HALF:
            return self._near_the_end(node, inputs)
        return self._overflow(node) or self._scores_overflow(node) or self._constant_lost(node, inputs)

    def _normalisation(self, node: ir.Node) -> Decision:
        """Kept in fp32 whatever was measured: small terms are lost too. The number is for whoever asks why."""
        inside = self._hidden.get(node, {})
        if not inside:
            return Decision(False, "normalisation")
        largest, total = inside["squares"], inside["sum of squares"]
        return Decision(False, f"normalisation: squares reach {largest:.4g}, their sum {total:.4g}", total)

    def _continues_statistic(self, node: ir.Node) -> bool:
        computed = [value for value in node.inputs if value is not None and constant(value) is None]
        if node.op_type in _VIEWS:
            return bool(computed) and computed[0] in self._statistics
        return node.op_type in _ELEMENTWISE and bool(computed) and all(v in self._statistics for v in computed)

    def _runs_half(self, node: ir.Node, inputs: list[int]) -> bool:
        """Compute runs in fp16, a looked-up constant is stored in it, and light operators follow what they read."""
        if node.op_type in _OWN_TYPE or not inputs:
            return False
        if node.op_type in _COMPUTE or is_attention(node):
            return True
        computed = [node.inputs[index] for index in inputs if constant(node.inputs[index]) is None]
        producers = [value.producer() for value in computed if value is not None]
        return not computed or any(producer is not None and self.decisions[producer].half for producer in producers)

    def _overflow(self, node: ir.Node) -> Decision | None:
        """What keeps the node in fp32: the largest of the tensors that it reads and writes."""
        mask = node.inputs[ATTENTION_MASK:][:1] if is_attention(node) else ()
        values = [value for value in (*node.inputs, *node.outputs) if value is not None and value not in mask]
        found = [decision for value in values if (decision := self._too_large(_source(value).name or ""))]
        return max(found, key=lambda decision: decision.magnitude, default=None)

    def _too_large(self, name: str) -> Decision | None:
        seen, bound = self._ranges.get(name), self._proven.get(name, 0.0)
        if seen is not None and seen.absmax > _LIMIT:
            return Decision(False, f"range: |{name}| reached {seen.absmax:.4g}", seen.absmax)
        if seen is None and bound > _LIMIT:
            return Decision(False, f"range not proven: |{name}| may reach {bound:.4g}", bound)
        return None

    def _scores_overflow(self, node: ir.Node) -> Decision | None:
        reached = self._hidden.get(node, {}).get("scores", 0.0)
        if reached <= _LIMIT:
            return None
        return Decision(False, f"scores: |q·kᵀ·scale| reached {reached:.4g}", reached)

    def _near_the_end(self, node: ir.Node, inputs: list[int]) -> Decision | None:
        """A constant that bfloat16 cannot hold, or what comes of one on its way to a softmax, as a mask on scores."""
        mask = ATTENTION_MASK if is_attention(node) else None
        read = [node.inputs[index] for index in inputs if index != mask]
        found = (self._beyond[value] for value in read if value in self._beyond)
        kept = self._constant_lost(node, inputs) or next(found, None)
        if kept is not None and node.op_type in _VIEWS | _ELEMENTWISE | {"Where"}:
            self._beyond.update(dict.fromkeys(node.outputs, kept))
        return kept

    def _constant_lost(self, node: ir.Node, inputs: list[int]) -> Decision | None:
        for index in inputs:
            value = node.inputs[index]
            tensor = constant(value)
            if value is None or tensor is None or (is_attention(node) and index == ATTENTION_MASK):
                continue
            if value not in self._cast_errors:
                self._cast_errors[value] = map_tensor(tensor, cast_error if self._dtype == HALF else _beyond_bf16)
            if self._cast_errors[value]:
                return Decision(False, f"constant: {value.name} {self._cast_errors[value]}")
        return None


_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def _takes_half(node: ir.Node, index: int, opset: int, dtype: ir.DataType) -> bool:
    if is_attention(node):
        return True
    if node.domain not in {"", "ai.onnx"} or not defs.has(node.op_type, ""):
        return False
    schema = defs.get_schema(node.op_type, opset, "")
    parameter = schema.inputs[min(index, len(schema.inputs) - 1)]
    return f"tensor({dtype.name.lower()})" in parameter.types


def _source(value: ir.Value) -> ir.Value:
    """The value that this one is a rearrangement of."""
    producer = value.producer()
    while producer is not None and producer.op_type in _VIEWS and producer.inputs[0] is not None:
        if constant(producer.inputs[0]) is not None:
            return value
        value = producer.inputs[0]
        producer = value.producer()
    return value


def _beyond_bf16(weight: NDArray[Any]) -> str:
    """What bfloat16 would do to the constant: fp32's lowest number, which models write into masks, becomes -inf there.

    A zero times that is NaN, and so is a softmax of nothing else.
    """
    with np.errstate(over="ignore"):
        rounded = weight.astype(bfloat16)
    return "is beyond 3.39e38" if (np.isfinite(weight) & ~np.isfinite(rounded)).any() else ""


def cast_error(weight: NDArray[Any]) -> str:
    """What float16 would do to the constant, or nothing where it only rounds."""
    with np.errstate(over="ignore"):
        rounded = weight.astype(np.float16)
    if not np.isfinite(rounded).all():
        return "is beyond 65504"
    norm = float(np.linalg.norm(weight.astype(np.float64)))
    lost = float(np.linalg.norm(weight - rounded.astype(np.float32)))
    return f"would lose {lost / norm:.1%}" if lost > _CAST_ERROR * norm else ""
