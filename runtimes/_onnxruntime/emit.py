"""Writing new nodes into an `onnx_ir` graph beside the node that they replace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

__all__ = ["Emitter", "same_dim"]


class Emitter:
    """Adds nodes and constants to a model; a constant that was made before is made only once."""

    def __init__(self, model: ir.Model) -> None:
        self._graph = model.graph
        self._constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
        self._count = 0
        self.aliases: dict[str, str] = {}
        """Initializers that are other initializers in another shape, by name; files hold such bytes once."""

    def constant(self, array: NDArray[Any]) -> ir.Value:
        """An initializer of the main graph with these numbers."""
        key = (array.dtype.name, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self.initializer(ir.tensor(array), self._fresh("constant"))
        return self._constants[key]

    def initializer(self, tensor: ir.TensorProtocol, name: str) -> ir.Value:
        """An initializer of the main graph that holds `tensor`, which may be lazy."""
        value = ir.Value(name=name, shape=ir.Shape(tensor.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        self._graph.register_initializer(value)
        return value

    def alias(self, owner: ir.Value, shape: Sequence[int], name: str) -> ir.Value:
        """An initializer with the bytes of `owner` in another shape."""
        source = owner.const_value
        if source is None or owner.name is None:
            raise ValueError(f"{owner.name} is not a constant")
        tensor = ir.LazyTensor(lambda: ir.tensor(source.numpy().reshape(shape)), source.dtype, ir.Shape(shape))
        self.aliases[name] = owner.name
        return self.initializer(tensor, name)

    def before(
        self,
        anchor: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        *,
        domain: str = "",
        outputs: int = 1,
        like: ir.Value | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> ir.Node:
        """Insert a node before `anchor`; `like` gives output 0 its shape and type.

        `metadata` says whose it is, as its module's path does: the anchor's where it is None, nobody's where it is
        empty.
        """
        node = ir.node(op_type, inputs, attributes, domain=domain, num_outputs=outputs, name=self._fresh(op_type))
        node.metadata_props.update(anchor.metadata_props if metadata is None else metadata)
        for index, value in enumerate(node.outputs):
            value.name = f"{node.name}_out{index}"
        if like is not None:
            node.outputs[0].shape, node.outputs[0].type = like.shape, like.type
        owner = anchor.graph
        if owner is None:
            raise ValueError(f"node {anchor.name} is not in a graph")
        owner.insert_before(anchor, node)
        return node

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Let `new` take the place of `old`; a graph output keeps its name, its shape and its dtype."""
        producer = old.producer()
        if old.is_graph_output() and new.is_graph_output() and producer is not None:
            new = self.before(producer, "Identity", [new], like=old).outputs[0]
        name = old.name if old.is_graph_output() else None
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        if name is not None:
            old.name = self._fresh("replaced")
            new.name, new.shape, new.type = name, old.shape, old.type

    def _fresh(self, word: str) -> str:
        self._count += 1
        return f"lowered.{word}.{self._count}"


def same_dim(first: ir.Value, axis: int, second: ir.Value, other: int) -> bool:
    """Whether two dimensions are known to be equal: the same number or the same name."""
    if first.shape is None or second.shape is None:
        return False
    left, right = first.shape[axis], second.shape[other]
    known = isinstance(left, int) or left.value is not None
    return bool(known and left == right)
