"""What looks at each token alone, on [B*S, H] instead of [B, S, H], so that a biased product is one `Gemm`.

On three axes ONNX Runtime keeps a product and its bias apart, and joins the sum with the LayerNormalization behind it
to `SkipLayerNormalization`, which is slower than the two. docs/ort-lowering.md has the measurements.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import onnx_ir as ir

from runtimes._onnxruntime.emit import Emitter
from runtimes._onnxruntime.rules.float_linear import FloatLinear, float_linear_at
from toolkit.types import Step

__all__ = ["use_token_rows"]

_ELEMENTWISE = frozenset({"Add", "Div", "Erf", "Gelu", "Mul", "Relu", "Sigmoid", "Sub", "Tanh"})
_OWN_ELEMENTWISE = frozenset({"BiasGelu", "FastGelu", "QuickGelu"})
_INT8 = "MatMulIntegerToFloat"
_PRODUCTS = frozenset({"MatMul", _INT8})
_MICROSOFT = "com.microsoft"


def use_token_rows(model: ir.Model, emit: Emitter) -> list[Step]:
    """Rewrite every node whose rows are tokens, with a Reshape (which copies nothing) where such nodes begin and end.

    Values whose first two sizes have no name stay as they are.
    """
    nodes = list(model.graph)
    if not _pays(nodes):
        return []
    rule = _Rule(emit)
    for node in nodes:
        rule.visit(node)
    rule.finish()
    steps = [
        Step("lower", "nodes on [B*S, H] instead of [B, S, H]", sum(rule.made.values()), "measured: faster"),
        Step("lower", "product and bias -> Gemm", rule.made["Gemm"], "measured: faster"),
    ]
    return [step for step in steps if step.count]


class _Rule:
    def __init__(self, emit: Emitter) -> None:
        self._emit = emit
        self._rows: dict[ir.Value, ir.Value] = {}
        self._sizes: dict[tuple[int | str, ...], ir.Value] = {}
        self._replaced: list[ir.Node] = []
        self.made: Counter[str] = Counter()

    def visit(self, node: ir.Node) -> None:
        """Write the node on rows, if it can be, beside the old one, which still has readers."""
        old = node.outputs[0]
        if old in self._rows:
            self._replaced.append(node)
            return
        linear = float_linear_at(node)
        if linear is not None and _is_biased_on_tokens(linear):
            inputs: list[ir.Value | None] = [self._of(node, linear.x), linear.weight, linear.bias]
            self._note(linear.last.outputs[0], self._emit.before(node, "Gemm", inputs))
        elif _by_token(node):
            inputs = [
                self._of(node, value) if value is not None and _leading(value) else value for value in node.inputs
            ]
            attributes = dict(node.attributes) | ({"axis": -1} if "axis" in node.attributes else {})
            self._note(old, self._emit.before(node, node.op_type, inputs, attributes, domain=node.domain))
            self._replaced.append(node)

    def finish(self) -> None:
        """Remove what was replaced, the last first; what else reads it gets its three axes back."""
        for node in reversed(self._replaced):
            old = node.outputs[0]
            if old.uses() or old.is_graph_output():
                inputs = [self._rows[old], self._whole(node, old)]
                self._emit.replace(old, self._between(node, "Reshape", inputs, {"allowzero": 1}, like=old))
            if node.graph is not None:
                node.graph.remove(node, safe=True)

    def _note(self, old: ir.Value, made: ir.Node) -> None:
        self._rows[old] = _as_rows(made.outputs[0], old)
        self.made[made.op_type] += 1

    def _of(self, anchor: ir.Node, value: ir.Value) -> ir.Value:
        if value not in self._rows:
            self._measure(anchor, value)
            sizes = self._emit.constant(np.asarray([-1, _width(value)], np.int64))
            self._rows[value] = _as_rows(self._between(anchor, "Reshape", [value, sizes]), value)
        return self._rows[value]

    def _measure(self, anchor: ir.Node, value: ir.Value) -> None:
        """Have [B, S] computed, once, from the first value of these sizes."""
        if (key := _leading(value)) in self._sizes:
            return
        self._sizes[key] = self._between(anchor, "Shape", [value], {"end": 2})

    def _whole(self, anchor: ir.Node, value: ir.Value) -> ir.Value:
        """[B, S, H]; a zero among them is a size. ONNX Runtime keeps one of all that are equal."""
        width = self._emit.constant(np.asarray([_width(value)], np.int64))
        return self._between(anchor, "Concat", [self._sizes[_leading(value)], width], {"axis": 0})

    def _between(
        self,
        anchor: ir.Node,
        op_type: str,
        inputs: list[ir.Value],
        attributes: dict[str, Any] | None = None,
        like: ir.Value | None = None,
    ) -> ir.Value:
        """The output of a node of no module: a module's output is what it computes, not that on other axes."""
        return self._emit.before(anchor, op_type, inputs, attributes, like=like, metadata={}).outputs[0]


def _pays(nodes: list[ir.Node]) -> bool:
    """Whether there is a `Gemm` to win, or a LayerNormalization to keep apart from the sum of an integer product."""
    linears = (linear for node in nodes if (linear := float_linear_at(node)) is not None)
    if any(_is_biased_on_tokens(linear) for linear in linears):
        return True
    kinds = {node.op_type for node in nodes if node.op_type in {_INT8, "LayerNormalization"} and _by_token(node)}
    return len(kinds) > 1


def _is_biased_on_tokens(linear: FloatLinear) -> bool:
    sizes = _leading(linear.x)
    return linear.bias is not None and bool(sizes) and sizes == _leading(linear.last.outputs[0])


def _by_token(node: ir.Node) -> bool:
    """Whether each row of the result depends on the same row of the inputs alone, and on constants."""
    result = node.outputs[0]
    tokens = [value for value in node.inputs if value is not None and _leading(value)]
    others = [value for value in node.inputs if value is not None and not _leading(value)]
    if not tokens or {_leading(value) for value in tokens} != {_leading(result)}:
        return False
    if len(node.outputs) > 1 or len({_width(value) for value in tokens}) > 1:
        return False
    return _kind_fits(node, tokens) and all(_is_row(value, node) for value in others)


def _kind_fits(node: ir.Node, tokens: list[ir.Value]) -> bool:
    if node.op_type in _PRODUCTS:
        return tokens == [node.inputs[0]] and node.domain == (_MICROSOFT if node.op_type == _INT8 else "")
    if node.domain:
        return node.domain == _MICROSOFT and node.op_type in _OWN_ELEMENTWISE
    if node.op_type == "LayerNormalization":
        return node.attributes.get_int("axis", -1) in {-1, 2}
    if node.op_type == "QuantizeLinear":
        scale = node.inputs[1]
        return scale is not None and scale.shape is not None and scale.shape.rank() == 0
    return node.op_type in _ELEMENTWISE


def _is_row(value: ir.Value, node: ir.Node) -> bool:
    """Whether the value means the same beside [B*S, H]: a number, one number a column, or a product's matrix."""
    if value.shape is None:
        return False
    return value.shape.rank() <= 1 or (node.op_type in _PRODUCTS and value is node.inputs[1] and value.is_initializer())


def _leading(value: ir.Value) -> tuple[int | str, ...]:
    """Batch and tokens of an fp32 or integer value [B, S, H], H a number; nothing for any other value."""
    shape = value.shape
    typed = value.dtype in {ir.DataType.FLOAT, ir.DataType.UINT8, ir.DataType.INT8}
    if value.is_initializer() or not typed or shape is None or shape.rank() != 3 or not isinstance(shape[2], int):
        return ()
    sizes = [size if isinstance(size, int) else size.value for size in list(shape)[:2]]
    return tuple(size for size in sizes if size is not None) if None not in sizes else ()


def _width(value: ir.Value) -> int:
    width: Any = value.shape[2] if value.shape is not None else None
    return width if isinstance(width, int) else 0


def _as_rows(made: ir.Value, old: ir.Value) -> ir.Value:
    """The value has as many rows as all others of the same sizes, and their number a name that says so."""
    sizes = _leading(old)
    numbers = [size for size in sizes if isinstance(size, int)]
    rows = math.prod(numbers) if len(numbers) == len(sizes) else "*".join(f"({size})" for size in sizes)
    made.dtype, made.shape = old.dtype, ir.Shape([rows, _width(old)])
    return made
