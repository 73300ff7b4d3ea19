"""Operators that work number by number."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce

import numpy as np
import onnx_ir as ir

from quantize.nodes import constant
from runtimes.coreml.translate.mil import Var
from runtimes.coreml.translate.values import Node, Translate

__all__ = ["ELEMENTWISE"]

_MOVED = frozenset({"Cast", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Unsqueeze"})
_KEPT = frozenset({"Add", "Concat", "Div", "Mul"})
"""Operators whose answer is not negative where the first input is not, and where none is."""


def _unary(operator: str) -> Translate:
    return lambda node: node.emit(operator, x=node.input(0))


def _binary(operator: str) -> Translate:
    return lambda node: node.emit(operator, x=node.input(0), y=node.input(1))


def _variadic(operator: str) -> Translate:
    return lambda node: reduce(lambda x, y: node.emit(operator, x=x, y=y), node.inputs())


def _add(node: Node) -> Var:
    """A bias that a product before it has taken along is not added again."""
    if node.node in node.scope.joined:
        return node.input(int(node.array(0) is not None))
    return _binary("add")(node)


def _div(node: Node) -> Var:
    """Integers are rounded towards zero, which for sizes is down; of others the sign is put back afterwards."""
    if node.dtype != "int32":
        return _binary("real_div")(node)
    if all(_is_size(value) for value in node.node.inputs):
        return _binary("floor_div")(node)
    x, y = node.inputs()
    whole = node.emit("floor_div", x=node.emit("abs", x=x), y=node.emit("abs", x=y))
    signs = node.emit("mul", x=node.emit("sign", x=x), y=node.emit("sign", x=y))
    return node.emit("mul", x=whole, y=signs)


def _is_size(value: ir.Value | None) -> bool:
    """Whether integers are made of sizes, and of constants, in ways that give nothing below zero."""
    tensor, producer = constant(value), value.producer() if value is not None else None
    if tensor is not None:
        return bool((tensor.numpy() >= 0).all())
    if producer is None or producer.op_type == "Shape":
        return producer is not None
    if producer.op_type in _MOVED:
        return _is_size(producer.inputs[0])
    return producer.op_type in _KEPT and all(_is_size(each) for each in producer.inputs)


def _neg(node: Node) -> Var:
    return node.emit("mul", x=node.input(0), y=node.number(-1, node.dtype))


def _reciprocal(node: Node) -> Var:
    """Not `inverse`, which adds a small number to what it divides by."""
    return node.emit("real_div", x=node.number(1, node.dtype), y=node.input(0))


def _pow(node: Node) -> Var:
    exponent, base = node.array(1), node.input(0)
    scalar = exponent is not None and exponent.size == 1 and exponent.ndim <= len(base.shape)
    if exponent is not None and scalar and float(exponent.reshape(())) == 2.0:
        return node.emit("square", x=base)
    if exponent is not None:
        return node.emit("pow", x=base, y=node.number(exponent, node.dtype))
    return node.emit("pow", x=base, y=node.input(1))


def _mod(node: Node) -> Var:
    if node.integer("fmod", 0):
        raise node.refusal("its remainder takes the sign of the dividend")
    return _binary("mod")(node)


def _clip(node: Node) -> Var:
    """Two of minimum and maximum: `clip` takes no integers."""
    low, high, result = node.optional(1), node.optional(2), node.input(0)
    if low is not None:
        result = node.emit("maximum", x=result, y=low)
    return result if high is None else node.emit("minimum", x=result, y=high)


def _gelu(node: Node) -> Var:
    mode = "TANH_APPROXIMATION" if node.text("approximate", "none") == "tanh" else "EXACT"
    return node.emit("gelu", x=node.input(0), mode=mode)


def _leaky_relu(node: Node) -> Var:
    """The larger of x and a part of x."""
    slope = node.decimal("alpha", 0.01)
    if not 0 <= slope <= 1:
        raise node.refusal("its slope is not between 0 and 1")
    return node.emit("maximum", x=node.input(0), y=node.emit("mul", x=node.input(0), y=node.number(slope, node.dtype)))


def _where(node: Node) -> Var:
    """`select` has the shape of its two choices: where the condition is larger, the first is spread over it."""
    cond, a, b = node.inputs()
    if not _covers(cond, a) and not _covers(cond, b):
        a = _spread(node, cond, a)
    return node.emit("select", cond=cond, a=a, b=b)


def _covers(cond: Var, choice: Var) -> bool:
    """Whether the condition is broadcast to the choice, and not the choice to it."""
    lead = len(choice.shape) - len(cond.shape)
    return lead >= 0 and all(size in (1, choice.shape[lead + axis]) for axis, size in enumerate(cond.shape))


def _spread(node: Node, cond: Var, choice: Var) -> Var:
    constant = node.array(1)
    if constant is not None and constant.size == 1:
        return node.emit("fill_like", ref_tensor=cond, value=node.number(constant.reshape(())[()], node.dtype))
    if node.dtype == "bool":
        raise node.refusal("it chooses between truths that are smaller than its condition")
    return node.emit("add", x=node.emit("fill_like", ref_tensor=cond, value=node.number(0, node.dtype)), y=choice)


def _is_inf(node: Node) -> Var:
    x = node.input(0)
    kind = "fp16" if x.dtype.__name__ == "fp16" else "fp32"
    wanted = [
        number for number, flag in ((np.inf, "detect_positive"), (-np.inf, "detect_negative")) if node.integer(flag, 1)
    ]
    found = [node.emit("equal", x=x, y=node.number(number, kind)) for number in wanted]
    return reduce(lambda left, right: node.emit("logical_or", x=left, y=right), found)


def _is_nan(node: Node) -> Var:
    x = node.input(0)
    return node.emit("not_equal", x=x, y=x)


def _cast(node: Node) -> Var:
    x = node.input(0)
    return x if x.dtype.__name__ == node.dtype else node.emit("cast", x=x, dtype=node.dtype)


def _identity(node: Node) -> Var:
    return node.input(0)


ELEMENTWISE: Mapping[str, Translate] = {
    "Abs": _unary("abs"),
    "Add": _add,
    "And": _binary("logical_and"),
    "Cast": _cast,
    "CastLike": _cast,
    "Ceil": _unary("ceil"),
    "Clip": _clip,
    "Cos": _unary("cos"),
    "Div": _div,
    "Equal": _binary("equal"),
    "Erf": _unary("erf"),
    "Exp": _unary("exp"),
    "Floor": _unary("floor"),
    "Gelu": _gelu,
    "Greater": _binary("greater"),
    "GreaterOrEqual": _binary("greater_equal"),
    "Identity": _identity,
    "IsInf": _is_inf,
    "IsNaN": _is_nan,
    "LeakyRelu": _leaky_relu,
    "Less": _binary("less"),
    "LessOrEqual": _binary("less_equal"),
    "Log": _unary("log"),
    "Max": _variadic("maximum"),
    "Min": _variadic("minimum"),
    "Mod": _mod,
    "Mul": _binary("mul"),
    "Neg": _neg,
    "Not": _unary("logical_not"),
    "Or": _binary("logical_or"),
    "Pow": _pow,
    "Reciprocal": _reciprocal,
    "Relu": _unary("relu"),
    "Round": _unary("round"),
    "Sigmoid": _unary("sigmoid"),
    "Sign": _unary("sign"),
    "Sin": _unary("sin"),
    "Softplus": _unary("softplus"),
    "Sqrt": _unary("sqrt"),
    "Sub": _binary("sub"),
    "Sum": _variadic("add"),
    "Tanh": _unary("tanh"),
    "Where": _where,
    "Xor": _binary("logical_xor"),
}
