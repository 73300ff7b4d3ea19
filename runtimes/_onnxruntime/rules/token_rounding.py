"""The chain that rounds each token's vector to uint8 by its own range, as `quantize.token_ranges` makes it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

__all__ = ["token_readers"]

_CHAIN: dict[str, tuple[str, tuple[str | float, ...]]] = {
    # What makes each value from which others; a number is a constant.
    "scale": ("Max", ("width", float(np.finfo(np.float32).tiny))),
    "width": ("Div", ("range", 255.0)),
    "range": ("Sub", ("high", "low")),
    "low": ("Min", ("least", 0.0)),
    "least": ("ReduceMin", ("x", -1.0)),
    "high": ("Max", ("greatest", 0.0)),
    "greatest": ("ReduceMax", ("x", -1.0)),
    "zero_point": ("Cast", ("zeros",)),
    "zeros": ("Round", ("below",)),
    "below": ("Div", ("depth", "scale")),
    "depth": ("Neg", ("low",)),
}


def token_readers(quantize: ir.Node) -> tuple[ir.Node, ...]:
    """The nodes that read x where a `QuantizeLinear` rounds each vector of its last axis so; none where it does not."""
    if quantize.op_type != "QuantizeLinear" or quantize.domain or len(quantize.inputs) != 3:
        return ()
    x, scale, zero_point = quantize.inputs
    # One scale for a block is one for the whole vector, however long: a range of it is [.., 1].
    if x is None or quantize.attributes.get_int("axis", 1) != -1 or not quantize.attributes.get_int("block_size", 0):
        return ()
    known: dict[str, ir.Value] = {"x": x}
    if not (_is(scale, "scale", known) and _is(zero_point, "zero_point", known)):
        return ()
    measured = (known[name].producer() for name in ("least", "greatest"))
    return (*(node for node in measured if node is not None), quantize)


def _is(value: ir.Value | None, name: str, known: dict[str, ir.Value]) -> bool:
    if value is None:
        return False
    if name in known:
        return known[name] is value
    node = value.producer()
    op_type, parts = _CHAIN[name]
    if node is None or node.domain or node.op_type != op_type or len(node.inputs) != len(parts):
        return False
    known[name] = value
    return all(
        _is_number(given, part) if isinstance(part, float) else _is(given, part, known)
        for given, part in zip(node.inputs, parts, strict=True)
    )


def _is_number(value: ir.Value | None, number: float) -> bool:
    constant = value.const_value if value is not None and not value.is_graph_input() else None
    return constant is not None and constant.size == 1 and bool(constant.numpy() == np.float32(number))
