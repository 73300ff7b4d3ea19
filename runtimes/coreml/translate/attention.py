"""Attention as one operator, its rotary embeddings, and the cache as states."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from runtimes.coreml.translate.mil import Var
from runtimes.coreml.translate.shapes import size_along, sizes_of
from runtimes.coreml.translate.values import Node, Translate

__all__ = ["ATTENTION"]

_KNOWN = frozenset({"scale"})


def _attention(node: Node) -> Var:
    """`scaled_dot_product_attention`, whose scale is 1/sqrt(D) as that of `Attention` where none is given."""
    odd = [name for name in node.node.attributes if name not in _KNOWN]
    query, key, value = (node.input(index) for index in range(3))
    if odd or "scale" in node.node.attributes or any(node.value(index) is not None for index in range(4, 7)):
        raise node.refusal(f"its attributes or cache are not the lowered form: {', '.join(odd) or 'scale'}")
    mask = node.value(3)
    return node.emit(
        "scaled_dot_product_attention",
        query=query,
        key=key,
        value=value,
        attn_mask=None if mask is None else _narrow(node, mask),
    )


def _narrow(node: Node, mask: ir.Value) -> Var:
    """The mask before it was repeated for every query, which ONNX Runtime wants and Core ML does not."""
    producer = mask.producer()
    source = producer.inputs[0] if producer is not None and producer.op_type == "Expand" else None
    if source is not None and sizes_of(node.scope.var(source))[-1:] not in ([], [1]):
        return node.scope.var(source)
    return node.scope.var(mask)


def _rotary(node: Node) -> Var:
    """RotaryEmbedding of ONNX 23 over [B, H, S, D], with cosines and sines [B, S, D / 2] and no positions."""
    x = node.input(0)
    if node.value(3) is not None or len(x.shape) != 4 or node.integer("interleaved", 0):
        raise node.refusal("only halves of heads with cosines of their own are known")
    size = sizes_of(x)[3]
    rotated = node.integer("rotary_embedding_dim", 0) or size
    if size is None or rotated is None:
        raise node.refusal("its head size is not fixed")
    cos, sin = (node.emit("expand_dims", x=node.input(index), axes=[1]) for index in (1, 2))
    half = rotated // 2
    sizes = [half, half, *([size - rotated] if size > rotated else [])]
    first, second, *rest = node.emit("split", x=x, axis=3, split_sizes=sizes)
    real = node.emit("sub", x=node.emit("mul", x=first, y=cos), y=node.emit("mul", x=second, y=sin))
    imaginary = node.emit("add", x=node.emit("mul", x=first, y=sin), y=node.emit("mul", x=second, y=cos))
    return node.emit("concat", values=[real, imaginary, *rest], axis=3)


def _write(node: Node) -> Var:
    """`TensorScatter` of ONNX 24 into a state: new positions [1, H, S, D] go behind those that were written."""
    state = node.scope.states.get(str(_source(node).name))
    if state is None or node.text("mode", "linear") != "linear":
        raise node.refusal("it writes into something that is no cache of its own")
    new, start = node.input(1), node.input(2)
    wide = new.dtype.__name__ != "fp16"
    if wide:
        new = node.emit("cast", x=new, dtype="fp16")
    end = node.emit("add", x=start, y=size_along(node, 1, 2))
    zero = np.zeros(1, np.int32)
    written = node.emit(
        "slice_update",
        x=node.emit("read_state", input=state),
        update=new,
        begin=node.emit("concat", values=[zero, zero, start, zero], axis=0),
        end=node.emit("concat", values=[zero, zero, end, zero], axis=0),
        begin_mask=[True, True, False, True],
        end_mask=[True, True, False, True],
    )
    whole = node.emit("coreml_update_state", state=state, value=written)
    return node.emit("cast", x=whole, dtype="fp32") if wide else whole


def _source(node: Node) -> ir.Value:
    """The graph input behind the cache: itself, or what a cast reads."""
    value = node.given(0)
    cast = value.producer()
    source = cast.inputs[0] if cast is not None and cast.op_type == "Cast" else None
    return value if source is None else source


ATTENTION: Mapping[str, Translate] = {
    "Attention": _attention,
    "RotaryEmbedding": _rotary,
    "TensorScatter": _write,
}
