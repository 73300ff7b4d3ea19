"""Rotary embedding as tables by position, which `GroupQueryAttention` rotates with itself.

The graph computes cosines and sines from `position_ids`. Where what it computes at a position depends on that position
alone, evaluating it at 0, 1, 2, … gives the tables exactly, whatever scaling the model uses.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from runtimes._onnxruntime.emit import Emitter
from runtimes._onnxruntime.rules.head_split import int_dim

__all__ = ["POSITIONS", "Rotary", "RotaryTables", "rotary_of"]

POSITIONS = "position_ids"
_IR_VERSION = 10
_ROUNDING = 1e-6
"""Vector and scalar code of a cosine differ by less; another scaling differs by far more."""

Pair = tuple[NDArray[np.float32], NDArray[np.float32]]


@dataclass(frozen=True, slots=True, eq=False)
class Rotary:
    """A rotation of heads [B, H, S, D]: what is rotated, by which cosines and sines [B, S, width / 2].

    `width` of each head's D numbers rotate, the first ones.
    """

    source: ir.Value
    cos: ir.Value
    sin: ir.Value
    width: int
    interleaved: bool


def rotary_of(value: ir.Value) -> Rotary | None:
    """How `value` [B, H, S, D] was rotated: whole by one node, or its first part between Slice and Concat."""
    node = value.producer()
    if node is None or node.domain or value.shape is None or value.shape.rank() != 4:
        return None
    if node.op_type == "RotaryEmbedding":
        return _whole(node)
    return _partial(node) if node.op_type == "Concat" else None


class RotaryTables:
    """Makes the tables, `positions` long, once for all layers that share them."""

    def __init__(self, model: ir.Model, emit: Emitter, positions: int) -> None:
        self._model, self._emit, self._positions = model, emit, positions
        self._made: dict[tuple[ir.Value, ir.Value], tuple[ir.Value, ir.Value] | str] = {}

    def of(self, rotary: Rotary) -> tuple[ir.Value, ir.Value] | str:
        """Cosines and sines [positions, width / 2] as initializers, or why there are no such tables."""
        key = (rotary.cos, rotary.sin)
        if key not in self._made:
            self._made[key] = self._make(rotary)
        return self._made[key]

    def _make(self, rotary: Rotary) -> tuple[ir.Value, ir.Value] | str:
        fed = next((value for value in self._model.graph.inputs if value.name == POSITIONS), None)
        if fed is None:
            return f"the graph has no {POSITIONS}"
        try:
            part = ir.convenience.extract(self._model.graph, [fed], [rotary.cos, rotary.sin])
        except ValueError:
            return f"its angles depend on more than {POSITIONS}"
        evaluate = _Evaluation(part, self._model.opset_imports)
        whole = evaluate(np.arange(self._positions)[None])
        if whole is None or any(table.shape != (1, self._positions, rotary.width // 2) for table in whole):
            return "its angles are not [batch, sequence, rotated size / 2]"
        if not _by_position_alone(evaluate, whole, self._positions):
            return "its angles depend on how far the sequence goes"
        cos, sin = (self._emit.constant(np.ascontiguousarray(table[0], np.float32)) for table in whole)
        return cos, sin


class _Evaluation:
    """The part of the graph between positions and tables, as a session."""

    def __init__(self, part: ir.Graph, opsets: dict[str, int]) -> None:
        for value in part.initializers.values():
            if value.const_value is not None:
                value.const_value = ir.tensor(value.const_value.numpy(), name=value.name)
        for output in part.outputs:
            output.dtype = output.dtype or ir.DataType.FLOAT
        part.opset_imports.update(opsets)
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        proto = ir.to_proto(ir.Model(part, ir_version=_IR_VERSION))
        self._session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def __call__(self, positions: NDArray[np.int64]) -> Pair | None:
        cos, sin = self._session.run(None, {POSITIONS: positions})
        return (cos, sin) if cos.ndim == 3 and sin.ndim == 3 else None


def _by_position_alone(evaluate: _Evaluation, whole: Pair, positions: int) -> bool:
    last, middle = positions - 1, positions // 2
    for asked in ([1], [middle], [last], [last, 1], list(range(min(8, positions)))):
        some = evaluate(np.asarray([[min(place, last) for place in asked]]))
        if some is None:
            return False
        for part, table in zip(some, whole, strict=True):
            expected = table[:, [min(place, last) for place in asked]]
            if part.shape != expected.shape or np.abs(part - expected).max() > _ROUNDING:
                return False
    return True


def _whole(node: ir.Node) -> Rotary | None:
    source, cos, sin = (*node.inputs[:3], None, None, None)[:3]
    if source is None or cos is None or sin is None or (len(node.inputs) > 3 and node.inputs[3] is not None):
        return None
    size = int_dim(source, 3)
    width = node.attributes.get_int("rotary_embedding_dim", 0) or size
    if width is None:
        return None
    interleaved = bool(node.attributes.get_int("interleaved", 0))
    return Rotary(source, _without_batch(cos), _without_batch(sin), width, interleaved)


def _partial(concat: ir.Node) -> Rotary | None:
    """`Concat(RotaryEmbedding(x[..., :width]), x[..., width:])` along the head's numbers."""
    if len(concat.inputs) != 2 or concat.attributes.get_int("axis", 0) not in {-1, 3}:
        return None
    turned, kept = concat.inputs
    node = turned.producer() if turned is not None else None
    inner = _whole(node) if node is not None and node.op_type == "RotaryEmbedding" else None
    if inner is None or kept is None:
        return None
    first, rest = _cut(inner.source), _cut(kept)
    if first is None or rest is None or first[0] is not rest[0] or first[1] != 0 or first[2] != rest[1]:
        return None
    source, size = first[0], int_dim(first[0], 3)
    if size is None or first[2] != inner.width or rest[2] < size:
        return None
    return Rotary(source, inner.cos, inner.sin, inner.width, inner.interleaved)


def _cut(value: ir.Value) -> tuple[ir.Value, int, int] | None:
    """What `value` was cut from along the last of its four axes, and from where to where."""
    node = value.producer()
    if node is None or node.domain or node.op_type != "Slice":
        return None
    source, *bounds = node.inputs
    numbers = [
        bound.const_value.numpy().tolist() if bound is not None and bound.const_value else None for bound in bounds
    ]
    starts, ends, axes, steps = (*numbers, None, None)[:4]
    if source is None or starts is None or ends is None or axes not in ([3], [-1]) or steps not in (None, [1]):
        return None
    return source, int(starts[0]), int(ends[0])


def _without_batch(cache: ir.Value) -> ir.Value:
    """The cache before it was expanded to the batch of what it rotates, as exported graphs do."""
    node = cache.producer()
    if node is None or node.op_type != "Expand" or node.inputs[0] is None or node.inputs[1] is None:
        return cache
    shape = node.inputs[1].producer()
    last = shape.inputs[-1] if shape is not None and shape.op_type == "Concat" else None
    if last is None or last.const_value is None or last.const_value.numpy().tolist() != [1, 1]:
        return cache
    return node.inputs[0]
