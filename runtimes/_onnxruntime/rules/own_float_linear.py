"""float32 Linears on rows and what follows them to the toolkit's own operators, which fall back to `Gemm`.

Taken in: the bias, the activation or the residual.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from runtimes._onnxruntime.emit import Emitter, same_dim
from runtimes._onnxruntime.kernels import DOMAIN
from runtimes._onnxruntime.kernels.expanded import scopes_by_part
from runtimes._onnxruntime.kernels.float_function import FLOAT_LINEAR, FloatVariant, float_function
from runtimes._onnxruntime.kernels.function import attach
from runtimes._onnxruntime.rules.linear_parts import GELU_OPSET, activation_behind, residual_behind
from toolkit.types import Step

__all__ = ["use_float_linear"]


def use_float_linear(model: ir.Model, emit: Emitter) -> list[Step]:
    """Replace every `Gemm` and `MatMul` of rows [M, K] with a constant matrix; attach the functions that are called.

    Runs after `use_token_rows`.
    """
    if model.opset_imports.get("", 0) < GELU_OPSET:
        return []
    counts: Counter[str] = Counter()
    variants: dict[FloatVariant, None] = {}
    for node in list(model.graph):
        if node.graph is not None and _fits(node):
            chain = _chain_of(node)
            _write(emit, chain)
            variants[chain.variant] = None
            counts.update(_told(chain))
    for variant in variants:
        attach(model, float_function(variant, model.opset_imports[""]))
    return [Step("lower", what, count, "own kernel") for what, count in counts.items() if count]


@dataclass(slots=True)
class _Chain:
    """A Linear and the nodes behind it that its operator takes in."""

    nodes: list[ir.Node]
    variant: FloatVariant
    residual: ir.Value | None = None


def _fits(node: ir.Node) -> bool:
    if node.domain or node.op_type not in {"Gemm", "MatMul"}:
        return False
    x, weight, bias = (*node.inputs, None)[:3]
    if x is None or weight is None or not _is_float(x, 2) or not _is_constant(weight, 2):
        return False
    neutral = node.op_type == "MatMul" or not _alters(node)
    return neutral and (bias is None or (_is_constant(bias, 1) and same_dim(bias, 0, weight, 1)))


def _alters(gemm: ir.Node) -> bool:
    turned = any(gemm.attributes.get_int(name, 0) for name in ("transA", "transB"))
    return turned or any(gemm.attributes.get_float(name, 1.0) != 1.0 for name in ("alpha", "beta"))


def _chain_of(linear: ir.Node) -> _Chain:
    found = residual_behind(linear.outputs[0])
    if found is not None:
        return _Chain([linear, found[0]], FloatVariant(residual=True), found[1])
    name, nodes = activation_behind(linear.outputs[0])
    return _Chain([linear, *nodes], FloatVariant(name))


def _write(emit: Emitter, chain: _Chain) -> None:
    linear, last = chain.nodes[0], chain.nodes[-1]
    x, weight, bias = (*linear.inputs, None)[:3]
    if bias is None and weight is not None and weight.shape is not None:
        bias = emit.constant(np.zeros(int(weight.shape[1]), np.float32))
    inputs = [x, weight, bias, *([chain.residual] if chain.residual is not None else [])]
    old = last.outputs[0]
    metadata = dict(last.metadata_props) | _scopes_of(chain)
    made = emit.before(last, chain.variant.name, inputs, domain=DOMAIN, like=old, metadata=metadata)
    emit.replace(old, made.outputs[0])
    for dead in reversed(chain.nodes):
        if dead.graph is not None:
            dead.graph.remove(dead, safe=True)


def _scopes_of(chain: _Chain) -> dict[str, str]:
    """Which PyTorch modules the parts are from, for who looks into the operator."""
    parts = {"linear0": chain.nodes[0]}
    if chain.variant.residual:
        parts["residual"] = chain.nodes[-1]
    elif chain.variant.activation:
        parts["activation"] = chain.nodes[1]
    return scopes_by_part(parts)


def _told(chain: _Chain) -> dict[str, int]:
    return {
        f"Gemm -> {DOMAIN}::{FLOAT_LINEAR}": 1,
        "activations behind a Linear taken in": int(bool(chain.variant.activation)),
        "residuals behind a Linear taken in": int(chain.variant.residual),
    }


def _is_constant(value: ir.Value, rank: int) -> bool:
    fixed = value.is_initializer() and not value.is_graph_input()
    return fixed and _is_float(value, rank) and 0 not in list(value.shape or ())


def _is_float(value: ir.Value, rank: int) -> bool:
    return value.dtype == ir.DataType.FLOAT and value.shape is not None and value.shape.rank() == rank
