"""Other ways to write what a lowered encoder computes, one small rule each, for `benchmarks/lowering.py` to race.

A rule rewrites a lowered graph in place and answers how many places it changed; one that pays moves to
`runtimes/_onnxruntime/rules/`. All forms compute the same up to rounding, but for those that say otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from runtimes._onnxruntime.emit import Emitter
from runtimes._onnxruntime.lowering import Rule
from runtimes._onnxruntime.rules.attention import lower_attention
from runtimes._onnxruntime.rules.column_scales import fold_column_scales
from runtimes._onnxruntime.rules.float_linear import FloatLinear, float_linear_at
from runtimes._onnxruntime.rules.int8_conv import fold_int8_conv_weights
from runtimes._onnxruntime.rules.int8_linear import lower_int8_linears
from runtimes._onnxruntime.rules.token_rows import use_token_rows

__all__ = ["FORMS", "PLAIN", "PLAIN_FORM", "Form", "FormRule"]

PLAIN: tuple[Rule, ...] = (lower_attention, lower_int8_linears, fold_int8_conv_weights)
"""What makes a graph of stock kernels, before any choice."""

_MICROSOFT = "com.microsoft"
_HEADS_APART = [0, 2, 1, 3]

FormRule = Callable[[ir.Model, Emitter], int]


@dataclass(frozen=True, slots=True)
class Form:
    """One alternative: rules on the graph, how the session is opened, or both.

    `entries` are session configuration entries, `attributes` those of `SessionOptions`, `without` the names of ONNX
    Runtime's own optimizers to leave out. `exact` is False where the arithmetic differs by more than rounding.
    """

    subject: str
    rules: tuple[FormRule, ...] = ()
    entries: Mapping[str, str] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    exact: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class _Heads:
    """An `Attention` on [B, S, H*D] with its attributes."""

    node: ir.Node
    values: tuple[ir.Value, ir.Value, ir.Value]
    mask: ir.Value | None
    count: int
    scale: float


def _attentions(model: ir.Model) -> list[_Heads]:
    found = []
    for node in list(model.graph):
        query, key, value, mask = (*node.inputs, None, None, None, None)[:4]
        if node.op_type != "Attention" or node.domain or query is None or key is None or value is None:
            continue
        attributes = node.attributes
        heads = attributes.get_int("q_num_heads", 0)
        plain = len(node.inputs) <= 4 and not attributes.get_int("is_causal", 0) and len(node.outputs) == 1
        if plain and heads and heads == attributes.get_int("kv_num_heads", 0):
            found.append(_Heads(node, (query, key, value), mask, heads, attributes.get_float("scale", 0.0)))
    return found


def _finish(emit: Emitter, node: ir.Node, new: ir.Value) -> None:
    old = node.outputs[0]
    new.shape, new.type = old.shape, old.type
    emit.replace(old, new)
    if node.graph is not None:
        node.graph.remove(node, safe=True)


def _op(emit: Emitter, anchor: ir.Node, op_type: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
    domain = attributes.pop("domain", "")
    return emit.before(anchor, op_type, inputs, attributes, domain=domain).outputs[0]


def _ints(emit: Emitter, *numbers: int) -> ir.Value:
    return emit.constant(np.asarray(numbers, np.int64))


def _split_heads(emit: Emitter, anchor: ir.Node, value: ir.Value, heads: int, order: Sequence[int]) -> ir.Value:
    apart = _op(emit, anchor, "Reshape", value, _ints(emit, 0, 0, heads, -1))
    return _op(emit, anchor, "Transpose", apart, perm=list(order))


def _join_heads(emit: Emitter, anchor: ir.Node, value: ir.Value) -> ir.Value:
    turned = _op(emit, anchor, "Transpose", value, perm=_HEADS_APART)
    return _op(emit, anchor, "Reshape", turned, _ints(emit, 0, 0, -1))


def attention_4d(model: ir.Model, emit: Emitter) -> int:
    """`Attention` on [B, H, S, D], with the head split as Reshape and Transpose."""
    attentions = _attentions(model)
    for each in attentions:
        apart = [_split_heads(emit, each.node, value, each.count, _HEADS_APART) for value in each.values]
        made = _op(emit, each.node, "Attention", *apart, each.mask, scale=each.scale)
        _finish(emit, each.node, _join_heads(emit, each.node, made))
    return len(attentions)


class _Biases:
    """Bool masks as numbers to add to the scores, each made once."""

    def __init__(self, emit: Emitter) -> None:
        self._emit, self._made = emit, dict[ir.Value, ir.Value]()

    def of(self, anchor: ir.Node, mask: ir.Value | None) -> ir.Value | None:
        # An expanded mask carries no type: the encoders' own are bool.
        if mask is None or mask.dtype == ir.DataType.FLOAT:
            return mask
        if mask not in self._made:
            numbers = [self._emit.constant(np.asarray(number, np.float32)) for number in (0, np.finfo(np.float32).min)]
            self._made[mask] = _op(self._emit, anchor, "Where", mask, *numbers)
        return self._made[mask]


def attention_multi_head(model: ir.Model, emit: Emitter) -> int:
    """`MultiHeadAttention` with query, key and value apart and the mask as numbers."""
    attentions, biases = _attentions(model), _Biases(emit)
    for each in attentions:
        inputs = [*each.values, None, None, biases.of(each.node, each.mask)]
        attributes = {"num_heads": each.count, "scale": each.scale, "domain": _MICROSOFT}
        _finish(emit, each.node, _op(emit, each.node, "MultiHeadAttention", *inputs, **attributes))
    return len(attentions)


def attention_decomposed(model: ir.Model, emit: Emitter) -> int:
    """Two products and a Softmax."""
    attentions, biases = _attentions(model), _Biases(emit)
    for each in attentions:
        orders = (_HEADS_APART, [0, 2, 3, 1], _HEADS_APART)
        apart = zip(each.values, orders, strict=True)
        query, key, value = (_split_heads(emit, each.node, one, each.count, order) for one, order in apart)
        scale = emit.constant(np.asarray(each.scale, np.float32))
        scores = _op(emit, each.node, "MatMul", _op(emit, each.node, "Mul", query, scale), key)
        bias = biases.of(each.node, each.mask)
        masked = scores if bias is None else _op(emit, each.node, "Add", scores, bias)
        shares = _op(emit, each.node, "Softmax", masked, axis=-1)
        _finish(emit, each.node, _join_heads(emit, each.node, _op(emit, each.node, "MatMul", shares, value)))
    return len(attentions)


def attention_with_projection(model: ir.Model, emit: Emitter) -> int:
    """The old `com.microsoft::Attention`, which multiplies with the packed weights itself."""
    done, biases = 0, _Biases(emit)
    for each in _attentions(model):
        linears = [_linear_of(value) for value in each.values]
        packed = _packed(linears)
        if packed is None or linears[0] is None:
            continue
        weight, bias = (emit.initializer(ir.tensor(array), f"{each.node.name}.{index}") for index, array in packed)
        inputs = [linears[0].x, weight, bias, None, None, biases.of(each.node, each.mask)]
        attributes = {"num_heads": each.count, "scale": each.scale, "domain": _MICROSOFT}
        _finish(emit, each.node, _op(emit, each.node, "Attention", *inputs, **attributes))
        done += 1
    return done


def mask_numbers(model: ir.Model, emit: Emitter) -> int:
    """`Attention` with a mask of numbers, made once for all layers, where each layer converts a bool one itself."""
    biases, done = _Biases(emit), 0
    for each in _attentions(model):
        bias = biases.of(each.node, each.mask)
        if bias is not each.mask:
            each.node.replace_input_with(3, bias)
            done += 1
    return done


def without_mask(model: ir.Model, emit: Emitter) -> int:
    """No mask at all: wrong where there is padding; what a mask costs."""
    masked = [each.node for each in _attentions(model) if each.mask is not None]
    for node in masked:
        node.replace_input_with(3, None)
    return len(masked)


def _linear_of(value: ir.Value) -> FloatLinear | None:
    node = value.producer()
    first = node.inputs[0] if node is not None and node.op_type == "Add" and node.inputs else None
    product = first.producer() if first is not None else node
    linear = float_linear_at(product) if product is not None else None
    return linear if linear is not None and linear.last is node else None


def _packed(linears: Sequence[FloatLinear | None]) -> Iterator[tuple[str, np.ndarray[Any, Any]]] | None:
    """Weights [K, 3N] and biases [3N] of three Linears of one tensor."""
    found = [linear for linear in linears if linear is not None and linear.bias is not None]
    if len(found) != 3 or len({id(linear.x) for linear in found}) != 1:
        return None
    weights = np.concatenate([_array(linear.weight) for linear in found], axis=1)
    biases = np.concatenate([_array(linear.bias) for linear in found])
    return iter((("weight", weights), ("bias", biases)))


def _array(value: ir.Value | None) -> np.ndarray[Any, Any]:
    if value is None or value.const_value is None:
        raise ValueError("not a constant")
    return value.const_value.numpy()


def merged(model: ir.Model, emit: Emitter) -> int:
    """Query, key and value as one Linear, of fp32 or int8, and a Split."""
    return _merged_fp32(model, emit) + _merged_int8(model, emit)


def _merged_fp32(model: ir.Model, emit: Emitter) -> int:
    done = 0
    for each in _attentions(model):
        linears = [_linear_of(value) for value in each.values]
        packed, first = _packed(linears), linears[0]
        if packed is None or first is None:
            continue
        weight, bias = (emit.initializer(ir.tensor(array), f"{each.node.name}.{index}") for index, array in packed)
        anchor = first.product
        whole = _op(emit, anchor, "Add", _op(emit, anchor, "MatMul", first.x, weight), bias)
        _split_into(emit, anchor, each.values, whole)
        done += 1
    return done


def _merged_int8(model: ir.Model, emit: Emitter) -> int:
    """Scales are per column and the activation is shared, so that nothing changes but the number of products."""
    done = 0
    for each in _attentions(model):
        nodes = [node for value in each.values if (node := value.producer()) is not None]
        if any(node.op_type != "MatMulIntegerToFloat" or len(node.inputs) != 7 for node in nodes) or len(nodes) != 3:
            continue
        if len({id(node.inputs[0]) for node in nodes}) != 1 or any(_array(n.inputs[3]).ndim != 1 for n in nodes):
            continue
        inputs = list(nodes[0].inputs)
        for index in (1, 3, 6):
            joined = np.concatenate([_array(node.inputs[index]) for node in nodes], axis=-1)
            inputs[index] = emit.initializer(ir.tensor(joined), f"{each.node.name}.{index}")
        whole = _op(emit, nodes[0], "MatMulIntegerToFloat", *inputs, domain=_MICROSOFT)
        _split_into(emit, nodes[0], each.values, whole)
        done += 1
    return done


def _split_into(emit: Emitter, anchor: ir.Node, values: Sequence[ir.Value], whole: ir.Value) -> None:
    sizes = [int(value.shape[-1]) for value in values if value.shape is not None]
    made = emit.before(anchor, "Split", [whole, _ints(emit, *sizes)], {"axis": -1}, outputs=3)
    for old, part in zip(values, made.outputs, strict=True):
        part.shape, part.type = old.shape, old.type
        emit.replace(old, part)


def linears_as_gemm(model: ir.Model, emit: Emitter) -> int:
    """`Gemm` with its bias on [B*S, K], a Reshape before and after each."""
    linears = [found for node in list(model.graph) if (found := float_linear_at(node)) is not None and found.bias]
    linears = [found for found in linears if found.x.shape is not None and found.x.shape.rank() == 3]
    for each in linears:
        width, columns = _array(each.weight).shape
        rows = _op(emit, each.last, "Reshape", each.x, _ints(emit, -1, width))
        product = _op(emit, each.last, "Gemm", rows, each.weight, each.bias)
        start = _op(emit, each.last, "Shape", each.x, end=2)
        shape = _op(emit, each.last, "Concat", start, _ints(emit, columns), axis=0)
        _finish(emit, each.last, _op(emit, each.last, "Reshape", product, shape))
    return len(linears)


def gelu_by_tanh(model: ir.Model, emit: Emitter) -> int:
    """`FastGelu`: not the same function, up to 5e-4 away."""
    return _replace_gelu(model, emit, lambda node, x: _op(emit, node, "FastGelu", x, domain=_MICROSOFT))


def gelu_decomposed(model: ir.Model, emit: Emitter) -> int:
    """Div, Erf, Add, Mul, Mul, which ONNX Runtime may fuse again."""
    root, one, half = (emit.constant(np.asarray(number, np.float32)) for number in (np.sqrt(2), 1, 0.5))

    def write(node: ir.Node, x: ir.Value | None) -> ir.Value:
        erf = _op(emit, node, "Erf", _op(emit, node, "Div", x, root))
        return _op(emit, node, "Mul", _op(emit, node, "Mul", x, _op(emit, node, "Add", erf, one)), half)

    return _replace_gelu(model, emit, write)


def _replace_gelu(model: ir.Model, emit: Emitter, write: Callable[[ir.Node, ir.Value | None], ir.Value]) -> int:
    nodes = [node for node in list(model.graph) if node.op_type == "Gelu" and not node.domain]
    for node in nodes:
        _finish(emit, node, write(node, node.inputs[0]))
    return len(nodes)


def gelu_with_bias(model: ir.Model, emit: Emitter) -> int:
    """`BiasGelu` written out, so that its product stays a `MatMul`."""
    done = 0
    for node in [node for node in list(model.graph) if node.op_type == "Gelu" and not node.domain]:
        linear = _linear_of(node.inputs[0]) if node.inputs[0] is not None else None
        if linear is not None and linear.bias is not None:
            product = linear.product.outputs[0]
            _finish(emit, node, _op(emit, node, "BiasGelu", product, linear.bias, domain=_MICROSOFT))
            done += 1
    return done


def patches_as_product(model: ir.Model, emit: Emitter) -> int:
    """The patch `Conv`, whose kernel and stride are one patch, as a product over the patches' pixels."""
    done = 0
    for node in [node for node in list(model.graph) if node.op_type == "Conv"]:
        pixels, weight, bias = (*node.inputs, None)[:3]
        kernel = _array(weight)
        size = kernel.shape[2]
        if list(node.attributes["strides"].as_ints()) != [size, size] or pixels is None or pixels.shape is None:
            continue
        rows, columns = (int(side) // size for side in list(pixels.shape)[2:])
        apart = _op(emit, node, "Reshape", pixels, _ints(emit, -1, kernel.shape[1], rows, size, columns, size))
        turned = _op(emit, node, "Transpose", apart, perm=[0, 2, 4, 1, 3, 5])
        flat = _op(emit, node, "Reshape", turned, _ints(emit, -1, rows * columns, kernel[0].size))
        matrix = emit.initializer(ir.tensor(np.ascontiguousarray(kernel.reshape(len(kernel), -1).T)), "patch.weight")
        product = _op(emit, node, "MatMul", flat, matrix)
        summed = product if bias is None else _op(emit, node, "Add", product, bias)
        channels = _op(emit, node, "Transpose", summed, perm=[0, 2, 1])
        _finish(emit, node, _op(emit, node, "Reshape", channels, _ints(emit, -1, len(kernel), rows, columns)))
        done += 1
    return done


def token_rows(model: ir.Model, emit: Emitter) -> int:
    """Everything that looks at one token alone on [B*S, H], Linears as `Gemm` with their bias."""
    return sum(step.count for step in use_token_rows(model, emit))


def folded_factors(model: ir.Model, emit: Emitter) -> int:
    """LayerScale inside the Linear before it."""
    return sum(step.count for step in fold_column_scales(model, emit))


def pooling_as_product(model: ir.Model, emit: Emitter) -> int:
    """The masked sum over tokens as mask [B, 1, S] times tokens [B, S, H], where it is Mul and ReduceSum."""
    done = 0
    for node in [node for node in list(model.graph) if node.op_type == "ReduceSum"]:
        masked = node.inputs[0].producer() if node.inputs[0] is not None else None
        if masked is None or masked.op_type != "Mul" or node.attributes.get_int("keepdims", 1):
            continue
        tokens, mask = masked.inputs
        if mask is None or mask.shape is None or mask.shape.rank() != 3 or mask.shape[2] != 1:
            continue
        turned = _op(emit, node, "Transpose", mask, perm=[0, 2, 1])
        product = _op(emit, node, "MatMul", turned, tokens)
        _finish(emit, node, _op(emit, node, "Squeeze", product, _ints(emit, 1)))
        done += 1
    return done


PLAIN_FORM = "plain"
FORMS = {
    PLAIN_FORM: Form("-"),
    "Attention 4-D": Form("attention", (attention_4d,)),
    "MultiHeadAttention": Form("attention", (attention_multi_head,)),
    "com.microsoft Attention, packed weights": Form("attention", (attention_with_projection,)),
    "decomposed": Form("attention", (attention_decomposed,)),
    "mask as numbers": Form("mask", (mask_numbers,)),
    "no mask (wrong with padding)": Form("mask", (without_mask,), exact=False),
    "Q, K, V merged + Split": Form("projections", (merged,)),
    "Gemm 2-D, Reshapes around": Form("linear", (linears_as_gemm,)),
    "rows [B*S, H], Gemm": Form("linear", (token_rows,)),
    "rows, Q, K, V merged": Form("linear", (merged, token_rows)),
    "rows, com.microsoft Attention": Form("linear", (attention_with_projection, token_rows)),
    "rows, BiasGelu": Form("linear", (gelu_with_bias, token_rows)),
    "rows, mask as numbers": Form("linear", (mask_numbers, token_rows)),
    "no SkipLayerNormalization": Form("norm", without=("SkipLayerNormFusion",)),
    "no BiasGelu": Form("gelu", without=("BiasGeluFusion",)),
    "FastGelu (tanh)": Form("gelu", (gelu_by_tanh,), exact=False),
    "erf written out": Form("gelu", (gelu_decomposed,)),
    "LayerScale folded": Form("factors", (folded_factors,)),
    "rows, LayerScale folded": Form("linear", (folded_factors, token_rows)),
    "pooling as MatMul": Form("pooling", (pooling_as_product,)),
    "patches as MatMul": Form("patches", (patches_as_product,)),
    "no spinning": Form("session", entries={"session.intra_op.allow_spinning": "0"}),
    "no prepacking": Form("session", entries={"session.disable_prepacking": "1"}),
    "denormals as zero": Form("session", entries={"session.set_denormal_as_zero": "1"}),
    "dynamic_block_base 4": Form("session", entries={"session.dynamic_block_base": "4"}),
    "graph level basic": Form(
        "session", attributes={"graph_optimization_level": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC}
    ),
    "no arena": Form("session", attributes={"enable_cpu_mem_arena": False}),
    "no memory pattern": Form("session", attributes={"enable_mem_pattern": False}),
    "one thread": Form("session", attributes={"intra_op_num_threads": 1}),
}
