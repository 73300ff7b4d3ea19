"""Static int8 Linears and what surrounds them to the toolkit's own operators, which fall back to the stock chain.

Taken in: the rounding of the input with a multiplication before it, the bias, a constant factor behind the product, the
activation, the residual, and the rounding of the output for the next Linear. Three Linears of one input become one.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from runtimes._onnxruntime.emit import Emitter
from runtimes._onnxruntime.kernels import DOMAIN
from runtimes._onnxruntime.kernels.expanded import scopes_by_part
from runtimes._onnxruntime.kernels.function import attach
from runtimes._onnxruntime.kernels.int8_function import Int8Variant, int8_function
from runtimes._onnxruntime.rules.linear_parts import (
    GELU_OPSET,
    Rounding,
    activation_behind,
    constant_array,
    factor_behind,
    is_int8_linear,
    is_token_linear,
    only_use,
    residual_behind,
    rounding_of,
)
from toolkit.errors import StageError
from toolkit.types import Step

__all__ = ["use_int8_linear"]

_QKV = 3


def use_int8_linear(model: ir.Model, emit: Emitter) -> list[Step]:
    """Replace every `MatMulIntegerToFloat` of constant scales and zero points, or of each token's; attach functions.

    Runs after `lower_int8_linears`. Where one range is a tensor's as it comes, Linears stay, as do those of more than
    32768 inputs.
    """
    if model.opset_imports.get("", 0) < GELU_OPSET:
        return []
    _remove_unread(model.graph)
    rule = _Rule(emit)
    for node in list(model.graph):
        if node.graph is not None and is_int8_linear(node):
            rule.apply(node)
    _remove_unread(model.graph)
    _refuse_tokens_left(model)
    for variant in rule.variants:
        attach(model, int8_function(variant, model.opset_imports[""]))
    return [Step("lower", what, count, "own kernel") for what, count in rule.counts.items()]


def _remove_unread(graph: ir.Graph) -> None:
    """Roundings that the rules before have left behind would look like readers of what they read.

    Constants stay, unlike with the pass of `onnx_ir`: the emitter may hand one of them out again.
    """
    for node in reversed(graph):
        if not any(output.uses() or output.is_graph_output() for output in node.outputs):
            graph.remove(node, safe=True)


def _refuse_tokens_left(model: ir.Model) -> None:
    """No kernel of ONNX Runtime takes a scale for each token."""
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if is_token_linear(node):
            raise StageError(
                "lower",
                f"quantized Linear '{node.name}' measures each token's range, and its weight or bias is computed",
                hint="Leave it out of the scheme (exclude), or take ranges=per-tensor.",
            )


@dataclass(slots=True)
class _Chain:
    """A Linear and the nodes behind it that its operator takes in; `last` makes what the operator then makes."""

    linear: ir.Node
    nodes: list[ir.Node]
    factor: ir.Value | None = None
    variant: Int8Variant = field(default_factory=Int8Variant)
    residual: ir.Value | None = None
    result: Rounding | None = None

    @property
    def last(self) -> ir.Node:
        return self.nodes[-1]

    @property
    def output(self) -> ir.Value:
        return self.last.outputs[0]


class _Rule:
    def __init__(self, emit: Emitter) -> None:
        self._emit = emit
        self.variants: dict[Int8Variant, None] = {}
        self.counts: Counter[str] = Counter()
        self._shared: set[ir.Value | None] = set()

    def apply(self, node: ir.Node) -> None:
        siblings, rounding = _readers(node), rounding_of(node.inputs[0])
        if len(siblings) not in {1, _QKV} or not all(map(is_int8_linear, siblings)):
            self._shared.add(node.inputs[0])
        shared = node.inputs[0] in self._shared
        if shared and rounding is not None and not rounding.of_tokens:
            rounding = None
        if len(siblings) == _QKV and not shared:
            # This node is the first of them in the graph, whichever was first to read.
            self._write([_Chain(each, [each]) for each in siblings], rounding, node)
        else:
            chain = _chain_of(node)
            self._write([chain], rounding, chain.last)

    def _write(self, chains: list[_Chain], rounding: Rounding | None, anchor: ir.Node) -> None:
        first = chains[0]
        smoothed = rounding is not None and rounding.multiplier is not None
        qkv = len(chains) == _QKV
        tokens = rounding is not None and rounding.of_tokens
        variant = replace(first.variant, qkv=qkv, smoothed=smoothed, of_codes=rounding is None, tokens=tokens)
        inputs = [*_input_of(first.linear, rounding)]
        for chain in chains:
            inputs += self._weight_of(chain)
        inputs += [first.residual] if first.residual is not None else []
        inputs += first.result.constants if first.result is not None else []
        metadata = dict(first.last.metadata_props)
        for index, chain in enumerate(chains):
            metadata |= _scopes_of(chain, index)
        made = self._emit.before(anchor, variant.name, inputs, domain=DOMAIN, outputs=len(chains), metadata=metadata)
        self._count(variant, first.factor is not None)
        self._replace(made, chains)
        self.variants[variant] = None

    def _weight_of(self, chain: _Chain) -> list[ir.Value | None]:
        """Weight, scales [N] and bias [N], both times the factor behind the product."""
        weight, scales, bias = (chain.linear.inputs[i] if len(chain.linear.inputs) > i else None for i in (1, 3, 6))
        columns = weight.shape[1] if weight is not None and weight.shape is not None else 0
        numbers = [constant_array(scales, 1.0), constant_array(bias, 0.0)]
        factor = constant_array(chain.factor, 1.0)
        if chain.factor is None and numbers[0].shape == (columns,) and bias is not None:
            return [weight, scales, bias]
        spread = [np.broadcast_to(each.reshape(-1) * factor.reshape(-1), (int(columns),)) for each in numbers]
        return [weight, *(self._emit.constant(np.ascontiguousarray(each, np.float32)) for each in spread)]

    def _replace(self, made: ir.Node, chains: list[_Chain]) -> None:
        for chain, new in zip(chains, made.outputs, strict=True):
            old = chain.output
            new.shape, new.type = old.shape, ir.TensorType(ir.DataType.UINT8 if chain.result else ir.DataType.FLOAT)
            self._emit.replace(old, new)
            for dead in reversed(chain.nodes):
                if dead.graph is not None:
                    dead.graph.remove(dead, safe=True)

    def _count(self, variant: Int8Variant, factor: bool) -> None:
        told = {
            f"MatMulIntegerToFloat -> {DOMAIN}::Int8Linear": _QKV if variant.qkv else 1,
            "three Linears of one input in one": variant.qkv,
            "int8 Linears that measure each token's range": (_QKV if variant.qkv else 1) * variant.tokens,
            "multiplications before an int8 Linear taken in": variant.smoothed,
            "multiplications behind an int8 Linear taken in": factor,
            "activations behind an int8 Linear taken in": bool(variant.activation),
            "residuals behind an int8 Linear taken in": variant.residual,
            "int8 Linears that write uint8 for the next": variant.to_codes,
        }
        self.counts.update({what: int(count) for what, count in told.items() if count})


def _scopes_of(chain: _Chain, index: int) -> dict[str, str]:
    """Which PyTorch modules the parts are from, for who looks into the operator."""
    linear = chain.nodes[0 if chain.factor is None else 1]
    parts = {f"linear{index}": linear}
    if chain.residual is not None:
        parts["residual"] = chain.last
    elif chain.variant.activation:
        parts["activation"] = chain.nodes[1 if chain.factor is None else 2]
    if chain.result is not None:
        parts["result"] = chain.last
    return scopes_by_part(parts)


def _readers(linear: ir.Node) -> list[ir.Node]:
    """Every reader of the same codes."""
    codes = linear.inputs[0]
    return [use.node for use in codes.uses()] if codes is not None else []


def _input_of(linear: ir.Node, rounding: Rounding | None) -> list[ir.Value | None]:
    if rounding is None:
        return [linear.inputs[0], linear.inputs[2], linear.inputs[4]]
    return [rounding.source, *rounding.constants]


def _chain_of(linear: ir.Node) -> _Chain:
    chain = _Chain(linear, [linear])
    _take_factor(chain)
    if _take_residual(chain):
        return chain
    name, nodes = activation_behind(chain.output)
    chain.nodes += nodes
    chain.variant = replace(chain.variant, activation=name)
    _take_result(chain)
    return chain


def _take_factor(chain: _Chain) -> None:
    found = factor_behind(chain.output)
    if found is not None:
        chain.nodes.append(found[0])
        chain.factor = found[1]


def _take_residual(chain: _Chain) -> bool:
    found = residual_behind(chain.output)
    if found is None:
        return False
    chain.nodes.append(found[0])
    chain.residual = found[1]
    chain.variant = replace(chain.variant, residual=True)
    return True


def _take_result(chain: _Chain) -> None:
    """The rounding behind y, where everything that reads y reads the codes and an int8 Linear is among the readers."""
    use = only_use(chain.output, "QuantizeLinear") or only_use(chain.output, "Mul")
    smoothing = use.node if use is not None and use.node.op_type == "Mul" else None
    if smoothing is not None:
        use = only_use(smoothing.outputs[0], "QuantizeLinear")
    codes = use.node.outputs[0] if use is not None and use.idx == 0 else None
    rounding = rounding_of(codes)
    if use is None or codes is None or rounding is None or rounding.source is not chain.output:
        return
    if not any(is_int8_linear(each.node) for each in codes.uses()):
        return
    chain.nodes += [smoothing, use.node] if smoothing is not None else [use.node]
    chain.result = rounding
    smoothed = rounding.multiplier is not None
    chain.variant = replace(chain.variant, to_codes=True, smoothed_codes=smoothed)
