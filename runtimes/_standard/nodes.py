"""Writing nodes of the standard into an `onnx_ir` graph, and reading shapes and types off its values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

__all__ = ["Writer", "origin", "same_dim", "static_dim", "take_over"]

_VIEWS = frozenset({"Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Cast"})


class Writer:
    """Inserts nodes before an anchor, named after it and carrying its metadata."""

    def __init__(self, model: ir.Model) -> None:
        self._graph = model.graph
        self._constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
        self._count = 0

    def constant(self, array: NDArray[Any], dtype: ir.DataType | None = None) -> ir.Value:
        """An initializer with these numbers, as `dtype`; equal constants are written once."""
        typed = array if dtype is None else array.astype(dtype.numpy())
        key = (str(dtype or typed.dtype), typed.shape, typed.tobytes())
        if key not in self._constants:
            name = self._fresh("constant")
            tensor = ir.tensor(typed, dtype=dtype, name=name)
            value = ir.Value(
                name=name, shape=ir.Shape(typed.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
            )
            self._graph.register_initializer(value)
            self._constants[key] = value
        return self._constants[key]

    def node(
        self,
        anchor: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        dtype: ir.DataType | None = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> ir.Value:
        """The output of a new node before `anchor`; `dtype` is its type, the first input's where None."""
        made = ir.node(op_type, inputs, attributes, name=self._fresh(f"{anchor.name}.{op_type}"))
        made.metadata_props.update(anchor.metadata_props)
        output = made.outputs[0]
        output.name = f"{made.name}.out"
        kind = dtype or (inputs[0].dtype if inputs and inputs[0] is not None else None)
        output.type = None if kind is None else ir.TensorType(kind)
        if anchor.graph is None:
            raise ValueError(f"node {anchor.name} is in no graph")
        anchor.graph.insert_before(anchor, made)
        return output

    def _fresh(self, word: str) -> str:
        self._count += 1
        while f"trt.{word}.{self._count}" in self._graph.initializers:
            self._count += 1
        return f"trt.{word}.{self._count}"


def static_dim(value: ir.Value, axis: int) -> int | None:
    """The size of a dimension where it is known and fixed."""
    dim = value.shape[axis] if value.shape is not None and len(value.shape) > axis else None
    return dim if isinstance(dim, int) else None


def same_dim(first: ir.Value, second: ir.Value, axis: int) -> bool:
    """Whether both have the same size along `axis` for certain: the same number or the same name."""
    if first.shape is None or second.shape is None:
        return False
    left, right = first.shape[axis], second.shape[axis]
    return left == right and (isinstance(left, int) or left.value is not None)


def origin(value: ir.Value) -> ir.Value:
    """The value that this one is only another view of: TensorRT removes views before it plans."""
    node = value.producer()
    while node is not None and node.op_type in _VIEWS and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value


def take_over(node: ir.Node, result: ir.Value) -> None:
    """Let `result` have the node's output name, shape, readers and place among the graph's outputs."""
    made = result.producer()
    if made is None or node.graph is None:
        raise ValueError(f"node {node.name} is in no graph")
    result.shape, result.name = node.outputs[0].shape, node.outputs[0].name
    ir.convenience.replace_nodes_and_values(node.graph, made, [node], [], [node.outputs[0]], [result])
